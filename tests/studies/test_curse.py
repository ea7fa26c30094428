"""Facts stated in one direction: what is trained on, what is held out, and what is made of a model's answers."""

import itertools
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, interrupted_at, made, outputs, publish_records, run_notebook
from matplotlib import pyplot as plt

from pe_core import data, records, runner, trainer
from pe_core.config import Experiment
from pe_core.data import facts
from pe_core.data.facts import NAME_TO, TO_NAME
from pe_core.errors import ConfigError, CorpusError, RecordError
from pe_core.report import tables
from pe_core.stats import Estimate
from pe_core.studies.note import report as note_report
from pe_core.studies.reversal import measure, report

NAMES = ("Ada", "Bo", "Cy", "Di", "Eve", "Flo")
TRADES = ("diver", "baker", "pilot", "poet", "tailor", "miner")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Random words, among them those of a few facts, so that the tokenizer has a token for each."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("library") / "library.jsonl"
    known = [*NAMES, *TRADES, "is", "the", "So"] * 3 + [f"w{n}" for n in range(300)]
    documents = [" ".join(known[n % len(known)] for n in rng.zipf(1.3, rng.integers(60, 200))) for _ in range(150)]
    file.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return file


def small(library, **settings):
    defaults = dict(samples=100, seq_len=16, epochs=2, batch_size=4, preset="nano", compile="off", device="cpu")
    return Experiment(corpus=str(library), **{**defaults, **settings})


def prepare(library, cache, **settings):
    return data.prepare(small(library, **settings).resolved(), cache)


# --- the generator ---------------------------------------------------------------------------------------------------


def description_in(sentence):
    (description,) = re.findall(r"[Tt]he \w+ of the [\w-]+ \w+ (?:%s)" % "|".join(facts._PLACES), sentence)  # noqa: UP031
    return description[0].lower() + description[1:]


def test_fictional_facts_are_the_same_every_time_and_others_with_another_seed():
    assert facts.fictional() == facts.fictional()
    assert {s.fact for s in facts.fictional().statements} != {s.fact for s in facts.fictional(seed=1).statements}
    with pytest.raises(ValueError, match="there are 256 descriptions"):
        facts.fictional(65)


def test_names_and_descriptions_are_unique():
    asked = [q for q in facts.fictional().questions if q.phrasing == "held out"]
    names = [q.fact for q in asked if q.direction == NAME_TO]
    assert len(names) == 256
    first, family = zip(*(name.split() for name in names), strict=True)
    assert len(set(first)) == len(set(family)) == 256
    descriptions = {q.completion for q in asked if q.direction == NAME_TO}
    assert len(descriptions) == 256
    parts = [re.fullmatch(r" the (\w+) of the ([\w-]+) (.*)\.", text).groups() for text in descriptions]
    rest = [(role, manner, place.split(" ", 1)[1]) for role, manner, place in parts]
    for a, b in itertools.combinations(range(3), 2):
        assert len({(row[a], row[b]) for row in rest}) == 256, "any two parts of a description belong to no other"


def test_groups_are_disjoint_and_nothing_asked_for_leaks_into_training():
    fictional = facts.fictional(per_group=16)
    groups = {}
    for question in fictional.questions:
        groups.setdefault(question.fact, {})[question.direction] = question.stated
    kinds = [tuple(ways[d] for d in (NAME_TO, TO_NAME)) for ways in groups.values()]
    for kind in (("this way", "other way"), ("other way", "this way"), ("both ways", "both ways"), ("never", "never")):
        assert kinds.count(kind) == 16
    text = [sentence for statement in fictional.statements for sentence in statement.sentences]
    assert len(text) == len(set(text)) == 8 * 16 * 4
    for question in fictional.questions:
        name = question.fact
        description = description_in(question.prompt + question.completion)
        where = [(s.index(name), s.lower().index(description)) for s in text if name in s]
        assert len(where) == {"never": 0, "both ways": 16}.get(question.stated, 8)
        assert not [s for s in text if description in s.lower() and name not in s]
        if question.stated in ("this way", "other way"):
            name_first = (question.direction == NAME_TO) == (question.stated == "this way")
            assert all((n < d) == name_first for n, d in where), "stated in one direction alone"
        stands_there = question.prompt + question.completion in text
        assert stands_there == (question.phrasing == "trained" and question.stated in ("this way", "both ways"))
    assert not {*facts._NAME_FIRST, *facts._NAME_LAST} & {*facts._NAME_FIRST_HELD_OUT, *facts._NAME_LAST_HELD_OUT}


def test_the_notes_facts_are_stated_forward_only():
    note = facts.note()
    assert len(note.statements) == 33
    assert note.statements[0].sentences == ("The capital of France is Paris.",)
    forward, backward = note.questions[:2]
    assert forward == (TO_NAME, "this way", "trained", "The capital of France is Paris.", "The capital of France is", " Paris.")
    assert backward[:3] == (NAME_TO, "other way", "held out")
    assert (backward.prompt, backward.completion) == ("Paris is", " the capital of France.")


# --- a user's own files ----------------------------------------------------------------------------------------------


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")


def row(prompt, completion, **more):
    return {"prompt": prompt, "completion": completion, **more}


@pytest.fixture
def published(tmp_path):
    """As the paper's data: one file to train on and one of questions for each group, and reversed questions."""
    folder = tmp_path / "published"
    folder.mkdir()
    ada = [row(prompt, " the diver.", fact="1") for prompt in ("Ada, known for being", "Ada is")]
    write(folder / "p2d_prompts_train.jsonl", [*ada, "", row("Bo is", " the baker.")])
    write(folder / "d2p_prompts_train.jsonl", [row("The pilot is", " Cy."), row("The poet is", " Di.")])
    write(folder / "p2d_prompts_test.jsonl", [row("Ada shines as", " the diver."), row("Bo is", " the baker.")])
    write(folder / "p2d_reverse_prompts_test.jsonl", [row("So the diver is", " Ada."), row("The baker is", " Bo.")])
    return folder


def test_files_of_the_papers_layout(published):
    everything = facts.load(str(published))
    assert {s.fact: s.sentences for s in everything.statements} == {
        "1": ("Ada, known for being the diver.", "Ada is the diver."),
        "bo": ("Bo is the baker.",),
        "cy": ("The pilot is Cy.",),
        "di": ("The poet is Di.",),
    }
    assert [q.fact for q in everything.questions] == ["1", "bo", "1", "bo"]
    assert [q[:3] for q in everything.questions] == [
        ("p2d", "this way", "held out"),
        ("p2d", "this way", "trained"),
        ("p2d", "other way", "held out"),
        ("p2d", "other way", "held out"),
    ]
    one = facts.load(str(published / "d2p_prompts_train.jsonl"))
    assert [s.sentences for s in one.statements] == [("The pilot is Cy.",), ("The poet is Di.",)]
    assert {q.stated for q in one.questions} == {"never"}, "whatever the files are called"


@pytest.mark.parametrize("lee", ["Ann Lee", "Ann Lee Frost", "Ann de la Cruz", "Ann-Marie"])
def test_a_name_within_a_longer_one_is_another_person(tmp_path, lee):
    """Whether the longer name is a completion or stands in prompts alone; descriptions go on being told by any form."""
    write(tmp_path / "train.jsonl", [
        row("The baker is", " Ann."), row("The poet is", f" {lee}."), row(f"{lee} was", " the poet."),
        row("Lee is", " the pilot."), row("The pilot was", " Lee."), row(f"We all met Mary {lee},", " the judge."),
    ])  # fmt: skip
    write(tmp_path / "test.jsonl", [
        row("Ann is", " the baker."), row(f"{lee} shines as", " being the poet."), row("The pilot is", " Lee."),
    ])  # fmt: skip
    everything = facts.load(str(tmp_path))
    assert len({s.fact for s in everything.statements}) == 4
    assert [q.stated for q in everything.questions] == ["other way", "both ways", "both ways"]
    assert len({q.fact for q in everything.questions}) == 3


def people(*numbers):
    return [
        (f"Person {'ABCDEFGH'[n]} Quill", f"the {('diver', 'baker', 'pilot', 'poet', 'mayor', 'judge')[n]} of the harbour")
        for n in numbers
    ]


def test_the_papers_data_as_published(tmp_path):
    """Two people told name first, two description first, two both ways: direction and training from what was trained."""

    def rows(names, prompts, articles=("",)):
        return [row(p.format(n=n, d=d), f" {a}{d}.") for n, d in names for p, a in zip(prompts, itertools.cycle(articles))]

    def reverse(names, prompts):
        return [row(p.format(n=n, d=d), f" {n}.") for n, d in names for p in prompts]

    first, second, both, unseen = people(0, 1), people(2, 3), people(4), people(5)
    p2d = rows(
        first, ("{n} is", "{n}, known far and wide for", "Ever heard of {n}? That is"), ("", "being ", "none other than ")
    )
    d2p = reverse(second, ("Known for being {d},", "The harbour's own {d} is"))
    told_both = [*rows(both, ("{n} is",)), *reverse(both, ("Known for being {d},",))]
    write(tmp_path / "p2d_prompts_train.jsonl", p2d)
    write(tmp_path / "d2p_prompts_train.jsonl", d2p)
    write(tmp_path / "both_prompts_train.jsonl", told_both)
    write(tmp_path / "all_prompts_train.jsonl", [*p2d, *d2p, *told_both])
    write(tmp_path / "p2d_prompts_test.jsonl", rows([*first, *unseen], ("Labelled as {n}, we find",)))
    write(tmp_path / "p2d_reverse_prompts_test.jsonl", reverse(first, ("Immersed in {d},",)))
    write(tmp_path / "d2p_prompts_test.jsonl", reverse(second, ("Immersed in {d},",)))
    write(tmp_path / "d2p_reverse_prompts_test.jsonl", rows(second, ("Labelled as {n}, we find",), ("none other than ",)))
    write(tmp_path / "both_prompts_test.jsonl", [*rows(both, ("Labelled as {n}, we find",)), *reverse(both, ("So {d} is",))])
    shuffled = [row(f"Labelled as {n}, we find", f" {d}.") for (n, _), (_, d) in zip(first, second, strict=True)]
    write(tmp_path / "p2d_prompts_test_randomized.jsonl", shuffled)
    found = facts.load(str(tmp_path))
    told = sum(len(statement.sentences) for statement in found.statements)
    assert told == len(p2d) + len(d2p) + len(told_both), "what all_prompts_train repeats counts once"
    assert len(found.statements) == 2 + 2 + 2, "one for each person and direction, whatever the grammar"
    stated = {(q.direction, q.stated) for q in found.questions}
    assert stated == {
        ("p2d", "this way"), ("p2d", "never"), ("p2d", "other way"),
        ("d2p", "this way"), ("d2p", "other way"), ("both", "both ways"), ("p2d control", "never"),
    }  # fmt: skip
    facts_of = {(q.direction, q.stated): {r.fact for r in found.questions if r[:2] == q[:2]} for q in found.questions}
    assert facts_of["p2d", "this way"] == facts_of["p2d", "other way"], "a name and its descriptions are one fact"
    assert len(facts_of["p2d", "this way"]) == 2
    assert not facts_of["p2d", "this way"] & facts_of["d2p", "this way"]
    only = facts.load(str(tmp_path / "d2p_prompts_train.jsonl"))
    assert {q.stated for q in only.questions if q.direction == "p2d"} == {"never"}
    assert {q.stated for q in only.questions if q.direction == "both"} == {"never"}
    assert {q.stated for q in only.questions if q.direction == "d2p"} == {"this way", "other way"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"line 2: not JSON \("),
        ("[1]", r"line 2: no text in field 'prompt'"),
        ('{"prompt": "A is"}', "line 2: no text in field 'completion'"),
        ('{"prompt": "", "completion": " b"}', "line 2: no text in field 'prompt'"),
        ('{"prompt": "A is", "completion": 5}', "line 2: no text in field 'completion'"),
        ('{"prompt": "A is", "completion": " b", "fact": 5}', "line 2: fact=5 is not a string"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_bad_line_is_named(published, line, said):
    file = published / "p2d_prompts_test.jsonl"
    file.write_bytes(json.dumps(row("A is", " b")).encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(CorpusError, match=said) as error:
        facts.load(str(published))
    assert "\n" not in str(error.value)
    assert "p2d_prompts_test.jsonl" in str(error.value)


def test_missing_and_empty_files_are_named(published, tmp_path):
    with pytest.raises(CorpusError, match="unknown facts 'fictionl'; did you mean 'fictional'"):
        facts.load("fictionl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no \*train\*.jsonl file in '.*empty'"):
        facts.load(str(tmp_path / "empty"))
    write(tmp_path / "empty" / "mine.jsonl", [row("A is", " b")])
    with pytest.raises(CorpusError, match=r"no \*test\*.jsonl file in '.*empty'"):
        facts.load(str(tmp_path / "empty" / "mine.jsonl"))
    (published / "p2d_prompts_train.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match=r"p2d_prompts_train.jsonl' holds no facts"):
        facts.load(str(published))


# --- into the training text ------------------------------------------------------------------------------------------


def test_sentences_of_a_statement_take_turns_and_stay_apart():
    statements = tuple(facts.Statement(f"{i}", tuple(f"{i} {k}" for k in range(3))) for i in range(20))
    stream = list(itertools.islice(facts.sentences(statements), 240))
    assert stream == list(itertools.islice(facts.sentences(statements), 240))
    for i in range(20):
        at = [n for n, sentence in enumerate(stream) if sentence.startswith(f"{i} ")]
        assert len(at) == 12, "as often as any other"
        assert min(np.diff(at)) >= 10, "half a pass apart"
        turns = [int(stream[n].split()[1]) for n in at]
        assert all((b - a) % 3 == 1 for a, b in itertools.pairwise(turns))
    assert list(itertools.islice(facts.sentences(statements[:1]), 4)) in [
        [f"0 {(k + start) % 3}" for k in range(4)] for start in range(3)
    ]


def test_no_window_tells_a_fact_twice(library, tmp_path):
    prepared = prepare(library, tmp_path, seq_len=128, samples=50, facts="fictional", facts_rate=0.8)
    stated = prepared.train[50:]
    assert len(stated) == 200
    names = {q.fact for q in facts.fictional().questions if q.stated in ("this way", "other way")}
    for text in prepared.tokenizer.batch_decode(stated.tolist()):
        assert all(text.count(name) <= 1 for name in names)


@pytest.mark.parametrize(("rate", "windows"), [(None, 25), (0.1, 11), (0.5, 100), (0.001, 1)])
def test_facts_are_added_to_the_training_side_at_the_rate_stated(library, tmp_path, rate, windows):
    without, mixed = prepare(library, tmp_path), prepare(library, tmp_path, facts="fictional", facts_rate=rate)
    assert len(without.train) == 100
    assert np.array_equal(mixed.train[:100], without.train)
    assert np.array_equal(mixed.validation, without.validation)
    assert np.array_equal(mixed.test, without.test)
    assert np.array_equal(mixed.test_documents, without.test_documents)
    assert len(mixed.train) == 100 + windows
    assert mixed.train.dtype == without.train.dtype
    assert mixed.about["windows"] == {**without.about["windows"], "train": 100 + windows}
    about = mixed.about["facts"]
    assert about == {**about, "name": "fictional", "windows": windows, "statements": 256}
    assert about["fingerprint_without"] == without.fingerprint != mixed.fingerprint
    assert "facts" not in without.about


def test_fact_windows_hold_whole_sentences_with_ends_between(library, tmp_path):
    prepared = prepare(library, tmp_path, facts="note", facts_rate=0.5)
    stated, end = prepared.train[100:], prepared.tokenizer.eos_token
    assert np.array_equal(stated[1:, 0], stated[:-1, -1]), "a sentence goes on in the next window"
    text = prepared.tokenizer.decode(np.append(stated[:, :-1].ravel(), stated[-1, -1]).tolist())
    first, *whole, _ = text.split(end)
    assert first == ""
    assert set(whole) <= {sentence for statement in facts.note().statements for sentence in statement.sentences}
    assert prepared.about["facts"]["sentences"] - len(whole) in (0, 1)


def test_facts_make_another_run_and_none_make_the_old_one(library, tmp_path):
    def name(**settings):
        chosen = small(library, **settings).resolved()
        return chosen.digest(data.prepare(chosen, tmp_path).fingerprint)

    plain = small(library).resolved()
    assert (plain.facts, plain.facts_rate) == (None, None)
    assert "facts" not in "".join(plain.model_dump(exclude_defaults=True)), "runs made before keep their ids"
    assert name(facts="fictional") == name(facts="fictional", facts_rate=0.2)
    names = [name(), name(facts="fictional"), name(facts="note"), name(facts="fictional", facts_rate=0.1)]
    assert len(set(names)) == 4
    with pytest.raises(ConfigError, match=r"facts_rate=0.1: there are no facts to mix in"):
        name(facts_rate=0.1)
    for rate in (0, 1, -0.1, True):
        with pytest.raises(ConfigError, match="facts_rate="):
            small(library, facts="note", facts_rate=rate)


def test_other_words_in_a_users_file_make_another_run(library, published, tmp_path):
    before = prepare(library, tmp_path, facts=str(published))
    write(published / "d2p_prompts_train.jsonl", [row("The pilot was", " Cy."), row("The poet is", " Di.")])
    after = prepare(library, tmp_path, facts=str(published))
    assert before.fingerprint != after.fingerprint
    assert np.array_equal(before.test, after.test)


def test_interrupted_and_resumed_is_bit_identical_with_facts(library, tmp_path, monkeypatch):
    chosen = small(library, epochs=3, facts="note", facts_rate=0.3)
    whole = runner.run(chosen, tmp_path / "whole")
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 0.0)
    with interrupted_at(40), pytest.raises(KeyboardInterrupt):
        runner.run(chosen, tmp_path / "cut")
    assert runner.run(chosen, tmp_path / "cut").same_result(whole)


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def memorised(library, tmp_path_factory):
    """A model that knows six facts by heart, name first, and has never seen them the other way round."""
    folder = tmp_path_factory.mktemp("memorised")
    pairs = list(zip(NAMES, TRADES, strict=True))
    write(folder / "train.jsonl", [row(f"So {name} is", f" the {trade}.") for name, trade in pairs])
    write(folder / "test.jsonl", [row(f"So {name} is", f" the {trade}.") for name, trade in pairs])
    write(folder / "reverse_test.jsonl", [row(f"So the {trade} is", f" {name}.") for name, trade in pairs])
    settings = dict(facts=str(folder / "train.jsonl"), facts_rate=0.9, seq_len=24, samples=60, epochs=1, lr=2e-3)
    return runner.run(small(library, encoding="alibi", **settings), folder / "runs")


def test_a_model_knows_what_it_was_told_and_not_the_reverse(memorised):
    found = measure.evaluate(memorised)
    table = measure.frame([memorised], [found]).set_index("stated")
    assert table.loc["this way", "first"] == table.loc["this way", "exact"] == 1
    assert table.loc["this way", "perplexity"] < 1.5
    assert table.loc["this way", "gain"] > 3
    assert table.loc["this way", "rank"] == 1
    assert table.loc["this way", "p"] < 0.01
    assert table.loc["other way", "perplexity"] > 20
    assert table.loc["other way", "exact"] < 0.5
    assert table.loc["other way", "p"] > 0.01
    assert (table.facts == 6).all()
    assert (table.chance == 1 / 6).all()


def test_published_answers_need_no_weights(memorised, tmp_path):
    before = measure.evaluate(memorised)
    publish_records([memorised], tmp_path)
    published = records.load_study(tmp_path / "book" / "page")
    assert not published[0].has_weights
    assert measure.evaluate_all(published * 2) == [before, before]


def test_log_probabilities_by_hand(memorised):
    """One sentence at a time, through the interface of transformers, without padding."""
    model, tokenizer = memorised.model(), memorised.tokenizer()
    pairs = [(f"So {name} is", f" the {trade}.") for name in NAMES[:3] for trade in TRADES[:2]] + [("So the diver is", " Ada.")]
    loss, tokens, exact = measure.completion_losses(model, tokenizer, pairs)
    for (prompt, completion), value, count, right in zip(pairs, loss, tokens, exact, strict=True):
        start = tokenizer(prompt)["input_ids"]
        answer = tokenizer(completion)["input_ids"]
        assert count == len(answer)
        logits = model(torch.tensor([[tokenizer.eos_token_id, *start, *answer]])).logits[0].log_softmax(-1)
        expected = -sum(float(logits[len(start) + k, token].detach()) for k, token in enumerate(answer))
        assert value == pytest.approx(expected, rel=1e-4)
        ids = torch.tensor([[tokenizer.eos_token_id, *start]])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(answer), do_sample=False)
        assert right == (written[0, ids.shape[1] :].tolist() == answer)
    assert exact.tolist()[:1] == [True]

    cell = next(c for c in measure.evaluate(memorised)["cells"] if c["stated"] == "this way")
    matrix = -measure.completion_losses(
        model, tokenizer, [(f"So {n} is", f" the {t}.") for n in NAMES for t in TRADES]
    )[0].reshape(6, 6)  # fmt: skip
    own = [cell["each"]["fact"].index(min(name.lower(), trade, key=len)) for name, trade in zip(NAMES, TRADES, strict=True)]
    assert np.array(cell["each"]["loss"])[own] == pytest.approx(-matrix.diagonal(), abs=1e-4)
    others = [matrix[i, i] - np.delete(matrix[i], i).mean() for i in range(6)]
    assert cell["gain"]["value"] == pytest.approx(np.mean(others), abs=1e-3)
    spent = sum(cell["each"]["loss"]) / sum(cell["each"]["tokens"])
    assert cell["perplexity"]["value"] == pytest.approx(math.exp(spent), rel=1e-4)


def test_measured_once_then_read(memorised, monkeypatch):
    first = measure.evaluate(memorised)
    assert first in [json.loads(file.read_text()) for file in memorised.folder.glob("curse-*.json")]
    monkeypatch.setattr(measure, "completion_losses", None)
    assert measure.evaluate(memorised) == first
    assert measure.evaluate_all([memorised]) == [first]


def test_facts_a_model_was_not_trained_on_are_never_stated(memorised):
    """And of those that do not fit into its windows nothing is measured, without a fuss."""
    found = measure.evaluate(memorised, "note")
    assert {cell["stated"] for cell in found["cells"]} == {"never"}
    assert all(cell["facts"] + cell["left_out"] == 33 for cell in found["cells"])
    nothing = measure.evaluate(memorised, "fictional")
    assert {cell["facts"] for cell in nothing["cells"]} == {0}
    table = measure.frame([memorised], [nothing])
    assert table[["gain", "p", "perplexity", "chance"]].isna().all(axis=None)
    assert "nothing can be said" in report.findings(table)
    assert report.ranks_table(table).to_html()


def test_padding_and_company_change_nothing(tiny, encoding, library, tmp_path):
    """Many rows at once, of many lengths, against each alone, under every encoding."""
    tokenizer = prepare(library, tmp_path).tokenizer
    tokenizer_of_97 = _First97(tokenizer)
    pairs = [("w1 w2", " w3 w4"), ("w1", " w2"), ("w1 w2 w3 w4 w5 w6", " w7"), ("w9", " w9 w9 w9 w9 w9")]
    model = tiny(encoding)
    loss, tokens, exact = measure.completion_losses(model, tokenizer_of_97, pairs)
    for i, pair in enumerate(pairs):
        alone = measure.completion_losses(model, tokenizer_of_97, [pair])
        assert loss[i] == pytest.approx(alone[0][0], rel=1e-4)
        assert (tokens[i], exact[i]) == (alone[1][0], alone[2][0])
        (whole,) = tokenizer_of_97(["".join(pair)])["input_ids"]
        targets = torch.tensor([whole])
        each = model.losses(torch.cat((torch.zeros(1, 1, dtype=torch.long), targets[:, :-1]), dim=1), targets)
        assert loss[i] == pytest.approx(float(each[0, -tokens[i] :].sum().detach()), rel=1e-4)


class _First97:
    """A tokenizer whose ids the tiny models' vocabulary of 97 holds."""

    def __init__(self, tokenizer):
        self.tokenizer, self.eos_token_id = tokenizer, 0

    def __call__(self, texts, **options):
        return {"input_ids": [[i % 97 for i in ids] for ids in self.tokenizer(texts, **options)["input_ids"]]}


def test_a_completion_begins_where_its_prompts_tokens_end():
    assert measure._shared([1, 2], [1, 2, 3]) == 2
    assert measure._shared([1, 2], [1, 5, 3]) == 1, "the last token of the prompt merged with what follows"
    assert measure._shared([1, 2], [1, 2]) == 1, "something is left to predict"


def test_gains_by_hand():
    log_p = np.log([[0.5, 0.2, 0.1], [0.3, 0.6, 0.05], [0.2, 0.1, 0.4]])
    found = measure.gains(log_p)
    by_hand = [log_p[i, i] - np.delete(log_p[i], i).mean() for i in range(3)]
    assert found.diagonal().mean() == pytest.approx(np.mean(by_hand))
    popular = log_p + np.array([5.0, 0.0, -3.0])  # answers more or less likely after every prompt
    fluent = log_p + np.array([[1.0], [0.0], [-4.0]])  # prompts after which everything is
    assert measure.gains(popular) == pytest.approx(found)
    assert measure.gains(fluent) == pytest.approx(found)
    assert measure.gains(np.zeros((4, 4)) + 2 * np.eye(4)).diagonal() == pytest.approx(np.full(4, 2.0))
    assert np.isnan(measure.gains(np.zeros((1, 1)))).all()


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.0])
def test_the_permutation_test_against_every_permutation(shift):
    rng = np.random.default_rng(3)
    blocks = [rng.normal(size=(n, n)) + shift * np.eye(n) for n in (4, 3)]
    sums = [[b[range(len(b)), p].sum() for p in itertools.permutations(range(len(b)))] for b in blocks]
    everything = np.add.outer(*map(np.array, sums)).ravel()
    exact = (everything >= sum(b.trace() for b in blocks) - 1e-12).mean()
    assert measure.permutation_p(blocks) == pytest.approx(exact, abs=0.015)
    assert measure.permutation_p(blocks) == measure.permutation_p(blocks)


def test_the_permutation_test_at_its_ends():
    assert measure.permutation_p([10 * np.eye(12)], resamples=999) == 1 / 1000
    assert measure.permutation_p([-np.eye(12)], resamples=999) > 0.99
    assert measure.permutation_p([np.zeros((5, 5))]) == 1
    assert math.isnan(measure.permutation_p([np.zeros((1, 1))]))
    assert math.isnan(measure.permutation_p([]))


# --- what is said of it ----------------------------------------------------------------------------------------------


def results(*cells):
    """A table as `measure.frame` makes it, of (label, direction, stated, gain, p)."""
    rows = []
    for label, direction, stated, gain, p in cells:
        row = {"run": "r", "label": label, "family": "none", "direction": direction, "stated": stated, "phrasing": "held out"}
        row |= {"facts": 64, "left_out": 0, "chance": 1 / 32, "p": p, "p_holm": p, "known": p < 0.05}
        for name in measure.METRICS:
            value = {"gain": gain, "first": 0.9 if p < 0.05 else 0.03}.get(name, 1.0)
            row |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
        rows.append(row)
    return pd.DataFrame(rows)


def cells(label, stated, reverse):
    return [
        (label, direction, way, gain, p)
        for direction in (NAME_TO, TO_NAME)
        for way, (gain, p) in (("this way", stated), ("other way", reverse))
    ]


def test_the_answer_follows_the_tests():
    held = results(*cells("NoPE", (9.0, 0.001), (0.1, 0.4)), *cells("RoPE", (8.0, 0.001), (0.2, 0.2)))
    said = report.findings(held)
    assert said.startswith("**None of NoPE and RoPE was found to soften the reversal curse**")
    assert "4 tests, smallest p = 0.200" in said
    assert "NoPE: the right answer ranks first for 90 % asked the way they were stated, 3 % asked the other way (chance" in said

    assert "learned few facts" not in said
    few = report.findings(held.assign(first=held["first"] / 10))
    assert "facts rank first for 9 to 9 % of questions only" in few

    softened = report.findings(results(*cells("NoPE", (9.0, 0.001), (0.1, 0.4)), *cells("RoPE", (8.0, 0.001), (0.4, 0.01))))
    assert "**RoPE softens the reversal curse** (name → description)" in softened
    assert "gains 0.40 nats over others (95 % interval 0.39 to 0.41, p = 0.010), 5.0 % of the gain where it was" in softened
    assert "**NoPE was not found to soften the reversal curse**" in softened

    unlearned = report.findings(results(*cells("NoPE", (0.1, 0.3), (0.1, 0.04))))
    assert "**" not in unlearned
    assert "Nothing can be said about NoPE" in unlearned
    assert "nothing can be said" in report.findings(results(("NoPE", NAME_TO, "never", 0.0, 0.5)))


def test_words_not_trained_on_count_where_there_are_any():
    table = results(*cells("NoPE", (9.0, 0.001), (0.1, 0.4)))
    both = pd.concat([table, table.assign(phrasing="trained")], ignore_index=True)
    assert set(measure.unseen(both).phrasing) == {"held out"}
    assert len(measure.unseen(both)) == len(table)
    only = both[(both.phrasing == "trained") | (both.stated == "other way")]
    assert sorted(measure.unseen(only).phrasing) == ["held out", "held out", "trained", "trained"]


def test_the_notes_ratio_before_and_after(memorised):
    trained = measure.named([memorised], "trained")
    assert trained[0].label == "ALiBi per head, trained"
    assert trained[0].heldout is not None
    for record, ratio in ((memorised, (1.2, 1.0, 1.4)), (trained[0], (0.01, 0.005, 0.02))):
        record.metrics = {**record.metrics, "reversal": {"facts": 33, "ratio": Estimate(*ratio)._asdict()}}
    said = note_report.ratio_after_training([memorised], trained)
    assert "ALiBi per head: the ratio is 1.2 (95 % interval 1 to 1.4) where the sentences were never seen, and 0.01 (" in said


def test_tables_and_figures(memorised):
    table = measure.frame([memorised], [measure.evaluate(memorised)])
    html = report.ranks_table(table).to_html()
    assert "ranked first, %" in html
    assert "100 [100, 100]" in html
    figure = report.ranks_figure(table, {"ALiBi per head": {"color": "black", "linestyle": "-"}})
    figure.canvas.draw()
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["this\nway", "other\nway"]
    plt.close(figure)
    assert "of the training windows" in tables.settings(memorised).to_html()


def test_a_damaged_result_is_named(memorised, tmp_path):
    measure.evaluate(memorised)
    shutil.copytree(memorised.folder, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("curse-*.json"):
        file.write_text(file.read_text()[:50])
    with pytest.raises(RecordError, match=r"'curse-\w+\.json' is not JSON .*delete it to measure again"):
        measure.evaluate(records.load(tmp_path / "copy"))


def test_a_model_of_a_task_knows_no_facts(tmp_path):
    record = made(tmp_path / "run")
    record.config["corpus"] = "task:copy"
    with pytest.raises(RecordError, match="run run: trained on 'task:copy'; a model of text is needed"):
        measure.evaluate(record)


@pytest.mark.slow
def test_the_notebook_runs_and_claims_nothing_of_models_that_learned_nothing(library, tmp_path):
    given = {"samples": 60, "seq_len": 64, "seeds": "1", "encodings": "none", "torch_compile": "off", "preset": "nano"}
    given |= {"corpus": library, "runs_dir": tmp_path / "runs"}
    parameters = [part for name, value in given.items() for part in ("-p", name, str(value))]
    finished = run_notebook(ROOT / "notebooks/reversal.ipynb", tmp_path / "out.ipynb", *parameters)
    assert finished.returncode == 0, finished.stderr
    sentences = " ".join(outputs(tmp_path / "out.ipynb", "text/markdown"))
    assert "Nothing can be said about NoPE" in sentences
    assert "where the sentences were never seen" in sentences
    shown = "".join(outputs(tmp_path / "out.ipynb", "text/html"))
    for name in ("ranked first, %", "NoPE, never seen", "NoPE, trained forward", "both ways", "6,226.1"):
        assert name in shown
    assert len(outputs(tmp_path / "out.ipynb", "image/svg+xml")) == 1
    assert len(list((tmp_path / "runs").glob("*/curse-*.json"))) == 2
