"""Generated tasks: answers worked out a second way, nothing trained on is asked, and only answers count."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, made, outputs, run_notebook
from matplotlib import pyplot as plt
from torch import nn
from torch.nn import functional as F

from pe_core import comparison, data, metrics, records, runner
from pe_core.config import Experiment
from pe_core.data import dataset, sides, tasks
from pe_core.data.tasks import SYMBOLS, TASKS
from pe_core.errors import ConfigError, CorpusError, RecordError
from pe_core.loss import LossFunction
from pe_core.report import figures, tables
from pe_core.site import index
from pe_core.studies.diagnostics import measure as diagnostics
from pe_core.studies.extrapolation import lengths
from pe_core.studies.task_accuracy import measure, report


@pytest.fixture(params=list(TASKS))
def task(request):
    """A test with this argument runs once for every task, a new one included."""
    return TASKS[request.param]


def small(name="copy", **settings):
    defaults = dict(samples=100, seq_len=16, epochs=2, batch_size=4, preset="nano", compile="off", device="cpu")
    return Experiment(corpus=f"task:{name}", **{**defaults, **settings})


def drawn(task, n, count=100, seed=0):
    rng = np.random.default_rng(seed)
    return [task.draw(rng, n) for _ in range(count)]


# --- answers, worked out a second way --------------------------------------------------------------------------------


def question(instance):
    return [symbol for symbol, asked in zip(instance.symbols, instance.asked, strict=True) if not asked]


def add(q):
    """Digit by digit with a carry, as on paper."""
    plus = q.index("+")
    a, b = q[:plus], q[plus + 1 : -1]
    assert len(a) == len(b)
    digits, carry = [], 0
    for x, y in zip(reversed(a), reversed(b), strict=True):
        carry, digit = divmod(int(x) + int(y) + carry, 10)
        digits.append(str(digit))
    return [*digits, str(carry)]


def sort_by_insertion(q):
    found = []
    for letter in q[:-1]:
        at = sum(other <= letter for other in found)
        found.insert(at, letter)
    return found


def flip(q):
    odd = False
    for bit in q[:-1]:
        odd = odd != (bit == "1")
    return ["1" if odd else "0"]


def follow(q):
    letters, letter = q[:-2], q[-1]
    places = [i for i, one in enumerate(letters) if one == letter]
    assert len(places) == 1
    return [letters[places[0] + 1]]


def look_up(q):
    pairs, asked = q[: 2 * len(q) // 3], q[2 * len(q) // 3 :]
    known = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert len(known) == len(asked) == len(set(asked))
    return [known[key] for key in asked]


def behind_the_mark(q):
    at = "".join(q).index("#")
    assert "".join(q).count("#") == 1
    return q[at + 1 : at + 4]


def through_chains(q):
    """By a table of all that keys are given, followed back from the last."""
    *statements, ask, key = q
    assert ask == ":"
    given = dict(zip(statements[::2], statements[1::2], strict=True))
    assert len(given) == len(statements) // 2
    hops = 0
    while key in given:
        key, hops = given[key], hops + 1
    assert hops == 3
    return [key]


def swap(q):
    """All five cups are tracked, each known by what is under it."""
    under = ["" for _ in range(5)]
    under[int(q[0])] = "ball"
    for a, b in zip(q[1:-1:2], q[2:-1:2], strict=True):
        assert a != b
        under[int(a)], under[int(b)] = under[int(b)], under[int(a)]
    return [str(under.index("ball"))]


def walk_on(q):
    *letters, _, letter, k = q
    assert letters.count(letter) == 1
    return [letters[letters.index(letter) + int(k)]]


SOLVERS = {
    "multikey": lambda q: [q[q.index(q[-1]) + 1]],
    "tracking": through_chains,
    "cups": swap,
    "nth": lambda q: [q[len(q) - 2 - int(q[-1])]],
    "offset": walk_on,
    "copy": lambda q: q[:-1],
    "reverse": lambda q: [q[i] for i in range(len(q) - 2, -1, -1)],
    "sort": sort_by_insertion,
    "addition": add,
    "counting": lambda q: [str(len([letter for letter in q[:-2] if letter == q[-1]]))],
    "parity": flip,
    "induction": follow,
    "recall": look_up,
    "passkey": behind_the_mark,
    "first": lambda q: q[:1],
    "last": lambda q: q[-2:-1],
}


def test_answers_are_exact(task):
    assert task.name in SOLVERS, "a new task needs its answers worked out a second way, here"
    for n in (task.shortest, task.shortest + 1, 30):
        for instance in drawn(task, n):
            assert list(instance.answer) == SOLVERS[task.name](question(instance))
            assert set(instance.symbols) <= set(SYMBOLS)
            assert any(instance.asked)
            assert not instance.asked[0]


def test_sizes_grow_and_are_the_same_for_all_of_a_size(task):
    counts = [{len(one.symbols) for one in drawn(task, n, 20)} for n in range(task.shortest, task.shortest + 12)]
    assert all(len(count) == 1 for count in counts)
    assert sorted(map(min, counts)) == list(map(min, counts))
    assert len(set(map(min, counts))) == len(counts)
    assert task.about.endswith((".", "?"))
    for tokens in (task.tokens(task.shortest), 40, 97):
        n = task.largest(tokens)
        assert task.tokens(n) <= tokens
        assert n == task.most or task.tokens(n + 1) > tokens
    with pytest.raises(ConfigError, match=f"^task '{task.name}' needs at least .* tokens, not 2$"):
        task.largest(2)


def test_the_most_there_is_is_not_passed():
    recall = TASKS["recall"]
    assert recall.largest(10_000) == recall.most == 128
    assert len(set(question(drawn(recall, 128, 1)[0])[::2][:128])) == 128


def test_depth_says_where_the_answer_stands():
    for name in ("induction", "passkey"):
        instances = drawn(TASKS[name], 11, 400)
        assert {0.0, 1.0} <= {one.depth for one in instances}
        for one in instances:
            q = question(one)
            at = q.index("#") if name == "passkey" else q.index(q[-1])
            assert one.depth == pytest.approx(at / (11 if name == "passkey" else 9))
            assert q[at + 1] == one.answer[0]
        counts = np.histogram([one.depth for one in instances], 5)[0]
        assert counts.min() > 40, "every depth is asked for about as often"
    assert math.isnan(drawn(TASKS["copy"], 5, 1)[0].depth)


def test_a_count_says_nothing_of_the_length():
    for n in (9, 40):
        counts = np.bincount([int(one.answer[0]) for one in drawn(TASKS["counting"], n, 2_000)], minlength=10)
        assert counts.min() > 150
        assert counts.sum() == 2_000


# --- the split -------------------------------------------------------------------------------------------------------


def test_nothing_trained_on_is_held_out(task):
    sizes = range(task.shortest, task.shortest + 6)
    train, validation, test = (
        {one.symbols for one in tasks.some(task, side, sizes, count)} for side, count in ((0, 800), (1, 100), (2, 100))
    )
    assert not train & test
    assert not train & validation
    assert not validation & test
    asked = {one.symbols for one in tasks.some(task, 2, sizes[-1:], 50)}
    assert {task.tokens(sizes[-1])} == {len(symbols) for symbols in asked}
    assert not train & asked, "nor what is asked at one length"


def test_drawn_again_they_are_the_same(task):
    sizes = range(task.shortest, task.shortest + 4)
    once, again = (tasks.some(task, 0, sizes, 50) for _ in range(2))
    assert [one.symbols for one in once] == [one.symbols for one in again]
    assert [one.symbols for one in tasks.some(task, 0, sizes, 20)] == [one.symbols for one in once[:20]]
    assert [one.symbols for one in tasks.some(task, 2, sizes, 20)] != [one.symbols for one in once[:20]]


def test_a_tenth_is_held_out_and_a_side_may_be_empty():
    copies = drawn(TASKS["copy"], 12, 3_000)
    counts = np.bincount([sides.side_of(" ".join(one.symbols)) for one in copies])
    assert counts / 3_000 == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    one = tasks.Task("one", "Always the same.", lambda rng, n: tasks._answered(["a"], ["b"]), 1, 1)
    side = (sides.side_of("a b") + 1) % 3
    with pytest.raises(CorpusError, match=rf"^task 'one': no {sides.SIDES[side]} instance of size 1 to 1 in 10,000 drawn$"):
        tasks.some(one, side, range(1, 2), 1)


# --- chance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n", "symbols", "whole"),
    [
        ("copy", 20, 1 / 20 + 19 / 20 / 26, 0.0),
        ("last", 10, 1 / 10 + 9 / 10 / 26, 1 / 10 + 9 / 10 / 26),
        ("parity", 20, 0.5, 0.5),
        ("counting", 20, 0.1, 0.1),
        ("recall", 8, 1 / 8 + 7 / 8 / 26, 0.0),
        ("passkey", 20, 1 / 3 + 2 / 3 / 10, None),  # one of three digits, and two others may be the same
    ],
)
def test_chance_of_tasks_whose_chance_is_known(name, n, symbols, whole):
    found = tasks.chance(name, n)
    assert found.symbols == pytest.approx(symbols, abs=0.03)
    if whole is not None:
        assert found.whole == pytest.approx(whole, abs=0.03)


def test_sorted_letters_can_be_guessed_in_part():
    """The first of many sorted letters is an a, the last a z."""
    found = tasks.chance("sort", 60)
    assert 0.15 < found.symbols < 0.6
    assert found.whole < 0.01


# --- windows and loss ------------------------------------------------------------------------------------------------


def test_windows_hold_one_instance_each(task):
    some = tasks.some(task, 0, range(task.shortest, task.shortest + 3), 10)
    T = max(len(one.symbols) for one in some) + 2
    windows = tasks.encode(some, T)
    assert windows.shape == (10, T + 1)
    ids = dataset.token_ids(windows)
    for row, window, one in zip(ids, windows, some, strict=True):
        size = len(one.symbols)
        text = tasks.tokenizer().decode(row[1 : size + 1]).split()
        assert tuple(text) == one.symbols
        assert (row[[0, *range(size + 1, T + 1)]] == tasks.tokenizer().eos_token_id).all()
        assert (window[1 : size + 1] >= 0).tolist() == list(one.asked)
        assert (window[size + 1 :] < 0).all()
        assert tasks.tokenizer()(" ".join(one.symbols))["input_ids"] == row[1 : size + 1].tolist()


@pytest.mark.parametrize("name", ["reverse", "last"])  # of whose symbols half are asked for, and one
def test_only_answers_count(tiny, name):
    """The loss and its gradients against a plain mean over the answers' symbols."""
    model = tiny("rope", vocab_size=len(SYMBOLS)).train()
    windows = tasks.encode(tasks.some(TASKS[name], 0, range(4, 8), 6), 20)
    resolved = small(name, precision="fp32").resolved()
    inputs, targets = experiment_tensors(windows)
    loss = LossFunction(model, resolved)(inputs, targets)
    loss.backward()
    gradient = model.embed_in.weight.grad.clone()
    model.zero_grad()
    ids = torch.from_numpy(dataset.token_ids(windows).astype(np.int64))
    logits = model(ids[:, :-1], use_cache=False).logits
    asked = torch.from_numpy(windows[:, 1:] >= 0)
    by_hand = F.cross_entropy(logits[asked], ids[:, 1:][asked])
    by_hand.backward()
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(gradient, model.embed_in.weight.grad)
    evaluated = LossFunction(model, resolved).evaluate(windows)
    assert (evaluated[windows[:, 1:] < 0] == 0).all()
    assert metrics.mean_loss(evaluated, windows[:, 1:] >= 0) == pytest.approx(by_hand.item())


def experiment_tensors(windows):
    from pe_core.loss import tensors

    return tensors(windows, torch.device("cpu"))


def test_text_is_scored_as_before():
    text = np.arange(20, dtype=np.uint16).reshape(2, 10)
    inputs, targets = experiment_tensors(text)
    assert inputs.tolist() == text[:, :-1].tolist()
    assert targets.tolist() == text[:, 1:].tolist()
    assert dataset.token_ids(text) is text
    heldout = metrics.HeldOut.of(np.ones((2, 3)), np.zeros((2, 3), int), np.ones((2, 3), int), np.eye(2, 3, dtype=bool))
    assert heldout.tokens.tolist() == [[1, 1, 0]]
    assert math.isnan(metrics.by_position(heldout)[2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"corpus": "task:copi"}, r"^unknown task 'copi'; did you mean 'copy'\? \(known: addition, .*\)$"),
        ({"seq_len": 5}, "^task 'copy' needs at least 9 tokens, not 5$"),
        ({"facts": "fictional"}, "^facts='fictional': corpus='task:copy' is no text and has none$"),
        ({"tokenizer": "train"}, "^tokenizer='train': corpus='task:copy' is no text and has none$"),
    ],
)
def test_bad_settings_are_one_line(settings, said):
    chosen = small().model_copy(update=settings)
    with pytest.raises((ConfigError, CorpusError), match=said):
        data.prepare(chosen.resolved())


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    chosen = [(encoding, task, seed) for task in ("last", "passkey") for encoding in ("none", "learned") for seed in (1, 2)]
    return [runner.run(small(t, encoding=e, seed=s, seq_len=24), folder) for e, t, s in chosen]


@pytest.fixture(scope="module")
def measured(trained):
    return [measure.evaluate(record, (0.1, 0.75, 1, 2), 40) for record in trained]


def test_a_run_on_a_task_is_a_run(trained, tmp_path):
    record = trained[0]
    assert record.same_result(runner.run(record.experiment, tmp_path))
    assert record.metrics["bits_per_byte"] == {"value": None, "low": None, "high": None}
    assert "no bits per byte" in tables.settings(record).to_html()
    assert "reversal" not in record.metrics
    heldout = record.heldout
    assert heldout.tokens.sum() == 10, "one letter each"
    assert record.metrics["perplexity"]["value"] == pytest.approx(math.exp(record.metrics["loss"]))
    assert None in record.metrics["position_loss"]
    assert all(row["tokens"] for row in record.metrics["position_bins"])


def test_what_reads_records_reads_these(trained):
    of_one = [record for record in trained if record.experiment.task == "last"]
    assert records.frame(trained).bits_per_byte.isna().all()
    table = comparison.frame(comparison.groups(of_one), "NoPE")
    assert table.bits_per_byte.isna().all()
    shown = [tables.comparison(table, "NoPE"), tables.summary(of_one[:1]), tables.runs(trained)]
    assert not any(">nan" in table.to_html() for table in shown)
    assert ">passkey<" in shown[-1].to_html(), "which task a run is of"
    waiting = {record.run: record.experiment for record in trained}
    assert list(runner.distinct_labels(waiting).values())[:2] == ["NoPE, last, seed 1", "NoPE, last, seed 2"]
    assert len(trained[0].position_curve())


def test_measures_of_text_refuse_them(trained):
    with pytest.raises(ConfigError, match="'task:last' is no text that could be cut"):
        lengths.heldout(trained[0], 8, 16)
    with pytest.raises(RecordError, match="trained on 'task:last'; a model of text is needed"):
        diagnostics.diagnose(trained[0])


class _Knows(nn.Module):
    """Gives every symbol that follows in its own book the highest logit, but one."""

    device = torch.device("cpu")

    def __init__(self, some, wrong):
        super().__init__()
        T = max(len(one.symbols) for one in some)
        self.book = {tuple(row[:-1].tolist()): row[1:] for row in dataset.token_ids(tasks.encode(some, T)).astype(np.int64)}
        self.wrong = wrong

    def hidden(self, ids, positions):
        following = torch.stack([torch.from_numpy(self.book[tuple(row)]) for row in ids.tolist()])
        return F.one_hot(following, len(SYMBOLS)).float(), [], []

    def embed_out(self, x):
        x = x.clone()
        x[self.wrong] = x[self.wrong].roll(1)
        return x


def test_right_and_wrong_answers_are_told_apart():
    some = tasks.some(TASKS["copy"], 2, range(5, 6), 4)
    right = measure.answered(_Knows(some, wrong=7), some)
    assert [row.tolist() for row in right] == [[True] * 5, [True, True, False, True, True], [True] * 5, [True] * 5]


@pytest.mark.parametrize("name", ["rope", "alibi", "none"])
def test_right_is_what_greedy_decoding_writes(tiny, name):
    """Symbol by symbol, from the question on. Bits, of which an untrained model guesses some right."""
    model = tiny(name, vocab_size=len(SYMBOLS))
    some = tasks.some(TASKS["parity"], 2, range(6, 10), 30)
    found = measure.answered(model, some)
    ids = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    for one, right in zip(some, found, strict=True):
        given = torch.tensor([[0, *(ids[symbol] for symbol in question(one))]])
        written = model.generate(
            given, max_new_tokens=1, do_sample=False, attention_mask=torch.ones_like(given), pad_token_id=0
        )
        assert right.tolist() == [int(written[0, -1]) == ids[one.answer[0]]]


def test_every_encoding_answers(encoding, tiny):
    """Against the logits of the model's ordinary call."""
    model = tiny(encoding, vocab_size=len(SYMBOLS))
    some = tasks.some(TASKS["recall"], 2, range(4, 5), 7)
    ids = torch.from_numpy(dataset.token_ids(tasks.encode(some, 16)).astype(np.int64))
    with torch.no_grad():
        right = model(ids[:, :-1], use_cache=False).logits.argmax(dim=-1) == ids[:, 1:]
    asked = torch.tensor([one.asked for one in some])
    for row, which, flags in zip(right, asked, measure.answered(model, some), strict=True):
        assert row[which].tolist() == flags.tolist()


def test_random_positions_are_spread_over_longer_questions(tmp_path):
    """Where an encoding has no such positions, what may stand in for it is asked."""
    record = runner.run(small("last", encoding="randomised", epochs=1), tmp_path)
    model = record.model()
    assert measure._reading(record, model, 16) is model
    assert measure._reading(record, model, 40).config.encoding_options["eval_length"] == 40
    assert measure.evaluate(record, (1, 2.5), 10)[1]["whole"] is not None


def test_measured_by_length(trained, measured):
    for record, cells in zip(trained, measured, strict=True):
        assert [cell["factor"] for cell in cells] == [0.75, 1, 2], "no instance is as short as a tenth"
        for cell in cells:
            absent = record.config["encoding"] == "learned" and cell["factor"] > 1
            assert (cell["whole"] is None) == absent
            assert cell["size"] == TASKS[record.experiment.task].largest(cell["tokens"])
            assert bool(cell["depths"]) == (record.experiment.task == "passkey" and not absent)
            if cell["depths"]:
                mean = sum(part["whole"] * part["count"] for part in cell["depths"]) / cell["count"]
                assert mean == pytest.approx(cell["whole"])


def test_measured_once_then_read(trained, measured, monkeypatch):
    monkeypatch.setattr(measure, "answered", None)
    monkeypatch.setattr(measure.processes, "map_processes", lambda *given: None)
    assert measure.evaluate_all(trained[:2], (0.1, 0.75, 1, 2), 40) == measured[:2]
    (trained[0].folder / "task-1-1x3.json").write_text("[")
    with pytest.raises(RecordError, match=r"'task-1-1x3.json' is not JSON .*delete it to measure again"):
        measure.evaluate(trained[0], (1,), 3)
    with pytest.raises(RecordError, match="which is no task"):
        measure.evaluate(trained[0].model_copy(update={"config": {**trained[0].config, "corpus": "aws-docs"}}))


def test_frames_figures_and_tables(trained, measured):
    table, depths = measure.frame(trained, measured), measure.depths(trained, measured)
    assert len(table) == 2 * 2 * 3
    assert table[(table.label == "Learned") & (table.factor == 2)].whole.isna().all()
    assert set(depths.task) == {"passkey"}
    one = table[(table.label == "NoPE") & (table.task == "last") & (table.factor == 1)].iloc[0]
    assert one.whole == pytest.approx(np.mean([measured[0][1]["whole"], measured[1][1]["whole"]]))
    scores = measure.scores(trained, measured, ["last", "passkey"])
    assert (scores[scores.label == "Learned"].score == 0).all(), "no positions, no answers"
    assert len(measure.ranking(scores)) == 2
    assert measure.claims(scores).empty
    styles = figures.styles(table)
    for figure in (report.accuracy_figure(table, styles), report.depths_figure(depths, styles), report.answers_figure(table)):
        figure.canvas.draw()
        plt.close(figure)
    html = (
        report.accuracy_table(table).to_html()
        + report.accuracy_table(table, "symbols").to_html()
        + report.claims_table(measure.claims(scores)).to_html()
    )
    assert "chance" in html
    assert "2 ×" in html
    assert "nan" not in html
    shown = tasks.examples(list(TASKS))
    assert shown["what it asks"].tolist() == [task.about for task in TASKS.values()]
    assert "[" in shown.iloc[0, 2]


# --- what is said ----------------------------------------------------------------------------------------------------


def scored(levels, seeds=3, names=("copy", "last", "sort", "first")):
    rng = np.random.default_rng(1)
    rows = [
        {"label": e.upper(), "encoding": e, "family": "none", "task": t, "seed": s, "score": v + 0.01 * rng.standard_normal()}
        for e, v in levels.items()
        for t in names
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def said_of(scores, learned=("copy", "last", "sort", "first"), asked=("copy", "last", "sort", "first", "parity")):
    return report.findings(measure.ranking(scores), measure.claims(scores), list(learned), list(asked))


def test_the_papers_order_pair_by_pair():
    as_published = scored({"none": 0.8, "t5": 0.6, "alibi": 0.3, "rope": 0.3, "sinusoidal": 0.1})
    found = measure.claims(as_published)
    assert len(found) == 7
    assert set(found.verdict) == {"holds"}
    assert found.difference[0] == pytest.approx(0.2, abs=0.02)
    said = said_of(as_published)
    assert "**The paper's order holds**: of 7 pairs 7 stand in it, 0 in the opposite one" in said
    assert "NONE 80 % (" in said
    assert said.endswith("Not learned by any model, even within the trained length, and left out: parity.")
    assert "does not hold**: of 7 pairs 0 stand in it, 7" in said_of(
        scored({"none": 0.1, "t5": 0.3, "alibi": 0.6, "rope": 0.7, "sinusoidal": 0.8})
    )
    assert "holds in part**" in said_of(scored({"none": 0.1, "t5": 0.5, "alibi": 0.3}))
    level = said_of(scored({"none": 0.5, "t5": 0.5, "alibi": 0.5}))
    assert "**No difference found** for or against the paper's order: of 3 pairs 0 stand in it, 0 in the opposite" in level


def test_a_second_model_of_an_encoding_changes_no_claim():
    """RoPE 25 and 100 %, say: the paper's is the first."""
    one = scored({"none": 0.8, "rope": 0.3})
    other = scored({"rope": 0.9}).assign(label="ROPE 2")
    assert measure.claims(pd.concat([one, other])).equals(measure.claims(one))


def test_where_nothing_is_known_nothing_is_claimed():
    assert "**" not in said_of(scored({"none": 0.5, "alibi": 0.2}, seeds=1, names=("copy",)))
    nothing = scored({}).reindex(columns=["label", "encoding", "family", "task", "seed", "score"])
    said = said_of(nothing, learned=(), asked=("parity",))
    assert said.endswith("So nothing can be said about longer ones.")


def test_an_encodings_page_shows_what_is_on_record(trained, tmp_path, monkeypatch):
    """Answers of published runs, without weights; and no perplexity of theirs stands beside one of text."""
    monkeypatch.setattr(index.paths, "PUBLISHED", tmp_path / "records")
    study = tmp_path / "records" / "tasks"
    records.publish([made(tmp_path / "runs" / "text-1", "none", "NoPE", 1), *trained[:3]], study)
    assert [record.run for record in index.published()] == ["text-1"]
    assert {record.run for record in index.of_tasks()} == {record.run for record in trained[:3]}
    assert index.answering(index.answers("none", index.of_tasks())) == "", "nobody asked these"
    cells = measure.evaluate(trained[0], count=20)
    asked = next(trained[0].folder.glob("task-*x20.json"))
    (study / trained[0].run).mkdir()
    shutil.copyfile(asked, study / trained[0].run / asked.name.replace("x20", f"x{measure.COUNT}"))
    table = index.answers("none", index.of_tasks())
    assert table.whole.tolist() == [cell["whole"] for cell in cells]
    assert set(table.label) == {"NoPE"}
    assert index.answering(table).startswith("## Questions with exact answers")


def test_who_is_able_at_which_length():
    rows = [
        ("a", 0.5, 16, 1.0), ("a", 1, 32, 0.9), ("a", 2, 64, 0.95), ("a", 4, 128, 0.2),
        ("b", 0.5, 16, 1.0), ("b", 1, 32, 0.7), ("b", 2, 64, math.nan), ("b", 4, 128, math.nan),
    ]  # fmt: skip
    found = measure.able(pd.DataFrame(rows, columns=["label", "factor", "tokens", "whole"]).assign(task="copy"))
    assert found.labels.tolist() == [["a"], ["a"], []]
    said = "at up to 32 tokens, as in training, 1 of 2 (a), at 64 tokens 1 of 2 (a), at 128 tokens none of 2."
    assert report.able(found) == f"**copy**, models that answer at least 95 % of questions right: {said}"
    beyond = pd.DataFrame(rows[2:4], columns=["label", "factor", "tokens", "whole"]).assign(task="copy")
    assert measure.able(beyond).beyond.all(), "nothing was asked within the trained length"
    assert report.able(found[:0]) == "No task was given to all encodings."


def test_learned_is_19_of_20_within_the_trained_length():
    rows = [
        ("a", "copy", 1, 0.95),
        ("b", "copy", 1, 0.1),
        ("a", "sort", 1, 0.8),
        ("a", "sort", 2, 1.0),
        ("a", "last", 0.5, 1.0),
    ]
    table = pd.DataFrame(rows, columns=["label", "task", "factor", "whole"])
    assert measure.learned(table) == ["copy", "last"]


@pytest.mark.slow
def test_a_task_compiles(tmp_path):
    """The same losses as uncompiled, up to rounding, without falling back."""
    records_of = [runner.run(small(compile=compiled, precision="fp32", epochs=1), tmp_path) for compiled in ("on", "off")]
    assert [record.runtime["compiled"] for record in records_of] == [True, False]
    assert records_of[0].metrics["loss"] == pytest.approx(records_of[1].metrics["loss"], rel=1e-3)


@pytest.mark.slow
def test_the_notebook_in_small(tmp_path):
    given = {"samples": 300, "seq_len": 24, "seeds": "1", "models": "none,learned", "tasks": "last,passkey"}
    given["shared"] = "[]"
    given |= {"torch_compile": "off", "preset": "nano", "runs_dir": tmp_path / "runs"}
    parameters = [part for name, value in given.items() for part in ("-p", name, str(value))]
    finished = run_notebook(ROOT / "notebooks/tasks.ipynb", tmp_path / "out.ipynb", *parameters)
    assert finished.returncode == 0, finished.stderr
    assert "left out: last and passkey" in " ".join(outputs(tmp_path / "out.ipynb", "text/markdown"))
    assert len(outputs(tmp_path / "out.ipynb", "image/svg+xml")) == 2
    assert len(json.loads(next((tmp_path / "runs").glob("*/task-*.json")).read_text())) == 5
