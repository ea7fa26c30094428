"""Documents to windows: nothing leaks, nothing is lost, the cache is never trusted blindly."""

import hashlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pe_core import data
from pe_core.config import Experiment
from pe_core.data import corpora, dataset, sides, text
from pe_core.data import streams as token_streams
from pe_core.data.sides import blocks_of, side_of, split
from pe_core.data.text import Corpus
from pe_core.data.tokenizer import _blank, encoder, load_tokenizer, token_lists, train_tokenizer
from pe_core.errors import CorpusError
from pe_core.runner import run_id

END = "<|endoftext|>"


@pytest.fixture
def library(tmp_path):
    """200 documents of distinct words, so that a token tells which document it came from."""
    rng = np.random.default_rng(0)
    lines = []
    for document in range(200):
        words = [f"d{document}w{rng.integers(50)}" for _ in range(rng.integers(30, 90))]
        lines.append(json.dumps({"text": " ".join(words)}))
    file = tmp_path / "library.jsonl"
    file.write_text("\n".join(lines))
    return file


def experiment(corpus, **settings):
    return Experiment(**{"corpus": str(corpus), "samples": 100, "seq_len": 16, "preset": "nano", **settings}).resolved()


def prepare(corpus, cache, **settings):
    return data.prepare(experiment(corpus, **settings), cache)


def sources(prepared, windows):
    """The documents a side's text comes from, read off its words."""
    text = prepared.tokenizer.decode(windows.ravel().tolist())
    return {
        word.split("w")[0] for word in text.replace("<|endoftext|>", " ").split() if word.startswith("d") and "w" in word[1:]
    }


def streams_of(corpus, cache, **settings):
    return token_streams.load(corpora.load(str(corpus)), experiment(corpus, **settings), cache)


def test_no_document_stands_on_two_sides(library, tmp_path):
    streams = streams_of(library, tmp_path)
    texts = {side: streams.tokenizer.decode(streams.tokens[side].tolist()).split(END) for side in dataset.SIDES}
    train, validation, test = ({text.strip() for text in texts[side] if text.strip()} for side in dataset.SIDES)
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert len(train) + len(validation) + len(test) == 200, "every document is on one side, whole"
    total = sum(map(len, train | validation | test))
    assert 0.09 < sum(map(len, test)) / total < 0.11
    assert 0.02 < sum(map(len, validation)) / total < 0.04


def test_windows_are_cut_from_their_own_side_and_counted(library, tmp_path):
    prepared, streams = prepare(library, tmp_path), streams_of(library, tmp_path)
    windows = {side: (len(streams.tokens[side]) - 1) // 16 for side in dataset.SIDES}
    assert prepared.train.shape == (100, 17)
    assert prepared.validation.shape == (windows["validation"], 17), "all of it, however few windows are trained on"
    assert prepared.test.shape == (windows["test"], 17)
    assert prepared.test_documents.shape == (windows["test"], 16)
    assert prepared.about["windows"] == {**windows, "train": 100}


def test_each_target_knows_its_document(library, tmp_path):
    prepared, streams = prepare(library, tmp_path), streams_of(library, tmp_path)
    starts = np.concatenate([[1], streams.ends["test"]])
    for tokens, documents in zip(prepared.test[:, 1:], prepared.test_documents, strict=True):
        for token, document in zip(tokens, documents, strict=True):
            assert token in streams.tokens["test"][starts[document] : starts[document + 1]]


def test_fewer_windows_are_a_subset_of_more(library, tmp_path):
    few, many = (prepare(library, tmp_path, samples=n) for n in (50, 100))
    assert {w.tobytes() for w in few.train} <= {w.tobytes() for w in many.train}
    assert np.array_equal(few.test, many.test)
    assert np.array_equal(few.validation, many.validation)


def test_window_lengths_that_share_a_drawn_length_see_the_same_text(library, tmp_path):
    short, long = (prepare(library, tmp_path, seq_len=T, draw_len=64, samples=40 * 64 // T) for T in (16, 64))
    for side in ("train", "validation", "test"):
        pieces = getattr(long, side)[:, :-1].reshape(-1, 16)
        assert np.array_equal(getattr(short, side)[:, :-1], pieces), side
    assert np.array_equal(short.test_documents, long.test_documents.reshape(-1, 16))
    assert short.fingerprint != long.fingerprint
    batches = zip(short.batches(8, seed=1, epoch=2), long.batches(2, seed=1, epoch=2), strict=True)
    assert all(np.array_equal(a[:, :-1], b[:, :-1].reshape(-1, 16)) for a, b in batches), "in every batch"


def test_windows_that_fill_no_drawn_one_are_trained_on_too(library, tmp_path):
    uneven = prepare(library, tmp_path, seq_len=16, draw_len=64, samples=42)
    rows = [row.tobytes() for batch in uneven.batches(2, seed=1, epoch=1) for row in batch]
    assert sorted(rows) == sorted(row.tobytes() for row in uneven.train)


def test_a_mixture_is_split_by_source_and_says_so(library, tmp_path):
    rows = [json.loads(line)["text"] for line in library.read_text().splitlines()]
    parts = tuple(
        Corpus(name, "part", "none", "1", lambda chosen=chosen: iter(chosen))
        for name, chosen in (("few", rows[:60]), ("many", rows[60:] + rows[:5]))
    )
    mixed = Corpus("mixed", "parts", "none", "1", lambda: iter(rows), parts=parts)
    settings = experiment("x.txt")
    streams = token_streams.load(mixed, settings, tmp_path)
    alone = {part.name: split(list(dict.fromkeys(part.documents())))[2] for part in parts[:1]}
    assert streams.about["sources"]["few"] == len(alone["few"]), "held out as it would be by itself"
    assert sum(streams.about["sources"].values()) == len(streams.ends["test"])
    assert sum(streams.about["documents"].values()) == 200, "what stands in two sources counts once"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.corpora, "load", lambda name: mixed)
        prepared = data.prepare(settings, tmp_path)
    names = [name for name, count in prepared.about["sources"].items() for _ in range(count)]
    few = set().union(*(text.split() for text in rows[:60]))
    for row, document in enumerate(np.unique(prepared.test_documents)):
        tokens = prepared.test[:, 1:][prepared.test_documents == document]
        word = prepared.tokenizer.decode(tokens.tolist()).replace(END, "").split()[1]
        assert (names[row] == "few") == (word in few)


def test_seeds_and_encodings_share_the_data(library, tmp_path):
    fingerprints = {prepare(library, tmp_path, seed=s, encoding=e).fingerprint for s in (1, 2) for e in ("none", "rope")}
    assert len(fingerprints) == 1
    assert prepare(library, tmp_path, samples=90).fingerprint not in fingerprints


def test_asking_for_more_than_the_corpus_holds_says_how_many_it_holds(library, tmp_path):
    with pytest.raises(CorpusError) as error:
        prepare(library, tmp_path, samples=1_000_000)
    most = int(str(error.value).split("holds only ")[1].split()[0].replace(",", ""))
    assert prepare(library, tmp_path, samples=most).about["windows"]["train"] == most
    with pytest.raises(CorpusError):
        prepare(library, tmp_path, samples=most + 1)
    with pytest.raises(CorpusError, match="holds only"):
        prepare(library, tmp_path, seq_len=100_000, samples=10)


def test_a_huge_document_is_not_held_out():
    documents = ["x" * 100_000] + [f"{i} " * 100 for i in range(300)]
    train, *others = split(documents)
    assert documents[0] in train
    for heldout in others:
        assert heldout
        assert max(map(len, heldout)) < 0.1 * sum(map(len, others[1])) + 500


def test_bytes_of_tokens_add_up_to_the_text(library, tmp_path):
    prepared = prepare(library, tmp_path)
    text = "naïve café – 位置 d3w7 \n\t end"
    ids = prepared.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prepared.token_bytes[ids].sum() == len(text.encode())
    assert prepared.token_bytes[prepared.tokenizer.eos_token_id] == 0


def test_batches_depend_on_seed_and_epoch_alone(library, tmp_path):
    prepared = prepare(library, tmp_path)

    def order(seed, epoch):
        return b"".join(batch.tobytes() for batch in prepared.batches(8, seed, epoch))

    assert order(1, 1) == order(1, 1)
    assert len({order(seed, epoch) for seed in (1, 2) for epoch in (1, 2)}) == 4
    batches = list(prepared.batches(8, 1, 1))
    assert [len(batch) for batch in batches] == [8] * (100 // 8)
    assert len({row.tobytes() for batch in batches for row in batch}) == len({r.tobytes() for r in prepared.train}) - 100 % 8


def _files(cache):
    return {p.relative_to(cache): hashlib.sha256(p.read_bytes()).hexdigest() for p in cache.rglob("*") if p.is_file()}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_a_damaged_cache_is_rebuilt_not_trusted(library, tmp_path, capsys, damage):
    cache = tmp_path / "cache"
    fingerprint = prepare(library, cache).fingerprint
    tokens, meta = next(cache.rglob("train.bin")), next(cache.rglob("meta.json"))
    before = _files(cache)
    raw = bytearray(tokens.read_bytes())
    match damage:
        case "flip":
            raw[len(raw) // 2] ^= 1
            tokens.write_bytes(raw)
        case "truncate":
            tokens.write_bytes(raw[: len(raw) // 2])
        case "delete":
            tokens.unlink()
        case "meta":
            meta.write_text("{")
    assert prepare(library, cache).fingerprint == fingerprint
    assert "damaged" in capsys.readouterr().out
    assert _files(cache) == before, "rebuilt to the same bytes"


def test_the_cache_is_used_and_leaves_nothing_half_written(library, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    prepare(library, cache)
    assert not list(cache.rglob("*.partial"))
    monkeypatch.setattr(token_streams, "train_tokenizer", None)  # building again would fail
    prepare(library, cache)


@pytest.mark.slow
def test_processes_that_build_one_cache_at_once_share_it(library, tmp_path):
    code = (
        "import sys; from pe_core import data; from pe_core.config import Experiment; from pathlib import Path; input(); "
        f"print(data.prepare(Experiment(**{experiment(library).model_dump()!r}), Path({str(tmp_path)!r})).fingerprint)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(5)]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * 5, ended
    assert len({out.splitlines()[-1] for out, _ in ended}) == 1
    assert len([*(tmp_path / "tokens").glob("[!.]*")]) == 1


def test_an_interrupted_write_leaves_no_cache(library, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_streams.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(library, cache)
    assert not list(cache.rglob("meta.json"))
    assert not list(cache.rglob("*.partial"))
    prepare(library, cache)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(library, tmp_path, monkeypatch):
    prepared = prepare(library, tmp_path / "a")
    prepared.tokenizer.add_tokens([f"extra{i}" for i in range(5000)])
    prepared.tokenizer.save_pretrained(tmp_path / "big")
    with pytest.raises(CorpusError, match="more than the vocabulary of 4096"):
        prepare(library, tmp_path / "b", tokenizer=str(tmp_path / "big"))


def test_a_document_given_twice_is_on_one_side(library, tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_text(library.read_text() + "\n" + library.read_text())
    once = token_streams.load(corpora.load(str(library)), experiment(library), tmp_path / "once")
    assert (
        token_streams.load(corpora.load(str(twice)), experiment(twice), tmp_path / "twice").about["documents"]
        == (once.about["documents"])
    )


@pytest.mark.parametrize("count", [20, 50, 1000])
def test_a_tenth_is_tested_on_of_few_and_of_many_documents(count):
    rng = np.random.default_rng(0)
    train, validation, test = split(["x" * rng.integers(900, 1100) for _ in range(count)])
    total = sum(map(len, train + validation + test))
    assert 0.04 < sum(map(len, test)) / total <= 0.101
    assert 0.005 < sum(map(len, validation)) / total <= max(0.031, 1.2 / count)
    assert len(test) >= count // 25


def test_a_tokenizer_that_is_not_byte_level_is_refused(library, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator([library.read_text()], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path / "spm")
    with pytest.raises(CorpusError, match="a byte-level tokenizer that gives text back"):
        prepare(library, tmp_path / "cache", tokenizer=str(tmp_path / "spm"))


def test_a_document_that_spells_end_of_text_does_not_end_there(library, tmp_path):
    spelt = tmp_path / "spelt.jsonl"
    rows = [json.loads(line)["text"] for line in library.read_text().splitlines()]
    spelt.write_text("\n".join(json.dumps({"text": text.replace(" ", END, 2)}) for text in rows))
    streams = token_streams.load(corpora.load(str(spelt)), experiment(spelt), tmp_path / "cache")
    for tokens, ends in ((streams.tokens[side], streams.ends[side]) for side in dataset.SIDES):
        assert np.flatnonzero(tokens == streams.tokenizer.eos_token_id).tolist() == [0, *(ends - 1)]
    assert streams.tokenizer.decode(streams.tokens["test"].tolist()).count(END) == 1 + 3 * len(streams.ends["test"])
    again = token_streams.load(corpora.load(str(spelt)), experiment(spelt), tmp_path / "cache")
    assert again.tokenizer.backend_tokenizer.to_str() == streams.tokenizer.backend_tokenizer.to_str()


def streamed(documents):
    """A corpus as the hub's are: read only as far as needed."""
    return Corpus("stream", "made up", "none", "1", lambda: iter(documents), finite=False)


@pytest.mark.parametrize("own", [True, False], ids=["trained tokenizer", "given tokenizer"])
def test_no_streamed_document_fills_the_held_out_side(library, tmp_path, own):
    if own:
        tokenizer = "train"
    else:
        tokenizer = str(tmp_path / "tokenizer")
        prepare(library, tmp_path / "library").tokenizer.save_pretrained(tokenizer)
    settings = experiment("x.txt", samples=200, tokenizer=tokenizer)
    rows = [json.loads(line)["text"] for line in library.read_text().splitlines()]
    sides = [[text for text in rows if side_of(text) == side] for side in range(3)]
    huge = next(text for n in range(100) if side_of(text := f"huge {n} " + "once upon a time " * 3000) == 2)
    stream = [huge, *sides[0], *sides[1], *sides[2]]

    streams = token_streams.load(streamed(stream), settings, tmp_path / "cache")
    wanted = settings.heldout_windows * settings.seq_len
    tokens, ends = streams.tokens["test"], streams.ends["test"]
    assert len(tokens) > wanted, "cut documents are made up for by others"
    measured = np.searchsorted(ends, np.arange(1, wanted + 1), side="right")
    assert np.bincount(measured).max() == wanted // 10
    pieces = streams.tokenizer.decode(tokens.tolist()).split(END)[1:-1]
    assert all(whole.startswith(piece) for whole, piece in zip([huge, *sides[2]], pieces, strict=False))
    assert ends[0] == 1 + wanted // 10
    assert "once upon" in pieces[0]
    for side in ("train", "validation"):
        assert "once upon" not in streams.tokenizer.decode(streams.tokens[side].tolist()), "what was cut off is not used"


# One long text, or few: blocks are held out


def test_blocks_of_a_single_long_document_are_held_out(tmp_path):
    rng = np.random.default_rng(0)
    book = " ".join(f"w{number}" for number in rng.integers(0, 10_000, 30_000))
    train, validation, test = split([book])
    assert blocks_of([book], (train, validation, test)) == 1
    assert 10 <= len(test) <= 20
    assert 3 <= len(validation) <= 6
    assert all(text in book for text in (*train, *validation, *test)), "contiguous"
    assert 0.07 < sum(map(len, test)) / len(book) < 0.11
    assert sum(map(len, train)) / len(book) > 0.85
    for block in (*validation, *test):
        start = book.index(block)
        around = book[start - 100 : start + len(block) + 100]
        assert not any(around in text for text in train), "a gap lies between held-out text and what is trained on"
        assert not any(book[start - 150 : start - 50] in text for text in train)
    assert len(train) > 5, "text between two held-out blocks stays one"


def test_a_block_that_repeats_is_on_no_two_sides():
    rng = np.random.default_rng(0)
    pages = ["".join(rng.choice(list("abcdef "), 500)) for _ in range(60)]
    book = "".join(page for n in range(60) for page in (pages[n], pages[0] if n % 3 else ""))
    train, validation, test = split([book])
    for block in (*validation, *test):
        assert sum(block in text for text in (*train, *validation, *test)) == 1


def test_whole_documents_are_held_out_where_three_can_be():
    documents = [f"{i} " + "word " * 400 for i in range(40)]
    assert blocks_of(documents, split(documents)) is None
    two = ["one " * 5_000, "two " * 5_000]
    assert blocks_of(two, split(two)) == 2
    with pytest.raises(CorpusError, match=r"^corpus 'x' holds 2 document\(s\) of 200 characters together, too little"):
        split(["a" * 100, "b" * 100], "x")


def test_a_run_on_a_book_says_that_blocks_were_held_out(tmp_path):
    words = np.random.default_rng(0).choice(["river", "stone", "walks", "green", "under"], 8_000)
    (tmp_path / "book.txt").write_text(" ".join(words))
    about = prepare(tmp_path / "book.txt", tmp_path).about
    assert about["blocks_of"] == 1
    assert about["test_documents_measured"] >= 3


def test_a_corpus_is_known_by_its_content(library, tmp_path, monkeypatch):
    """The same file by another path is the same text: one cache, one run."""
    monkeypatch.chdir(library.parent)
    there, here = experiment(library), experiment(library.name)
    assert run_id(there, data.prepare(there, tmp_path)) == run_id(here, data.prepare(here, tmp_path))
    assert len(list((tmp_path / "tokens").glob("[!.]*"))) == 1
    assert data.prepare(here, tmp_path).about["corpus"] == library.name


def test_a_tokenizer_is_known_by_its_content(library, tmp_path, monkeypatch):
    """By a relative and an absolute path one run; changed under the same name another, and no cache of the old one."""
    monkeypatch.chdir(tmp_path)
    train_tokenizer([library.read_text()], 300).save_pretrained("tok")
    ids = []
    for name in ("tok", str(tmp_path / "tok"), "tok/tokenizer.json"):
        one = experiment(library, tokenizer=name)
        ids.append(run_id(one, data.prepare(one, tmp_path / "cache")))
    assert len(set(ids)) == 1
    train_tokenizer([library.read_text()], 310).save_pretrained("tok")
    assert run_id(one, data.prepare(one, tmp_path / "cache")) not in ids


@pytest.mark.parametrize("name", ["./gone", "/gone/tokenizer.json", "gone.json", "~/gone", "a/b/c"])
def test_a_tokenizer_that_is_not_there_is_not_asked_of_the_hub(name):
    with pytest.raises(CorpusError, match=r"no such file or folder$"):
        load_tokenizer(name)


def test_a_tokenizers_end_of_text_is_part_of_its_content(library, tmp_path):
    """Named in a file beside `tokenizer.json`."""
    train_tokenizer([library.read_text()], 300).save_pretrained(tmp_path / "tok")
    name, config = str(tmp_path / "tok" / "tokenizer.json"), tmp_path / "tok" / "tokenizer_config.json"
    before = prepare(library, tmp_path / "cache", tokenizer=name).tokenizer.eos_token
    config.write_text(config.read_text().replace(END, "d1"))
    assert prepare(library, tmp_path / "cache", tokenizer=name).tokenizer.eos_token == "d1" != before


def test_a_tokenizer_with_gaps_in_its_ids_is_known_by_the_highest(library, tmp_path):
    tokenizer = train_tokenizer([library.read_text()], 300)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    for ids, said in ((4_095, None), (70_000, r"has ids up to 70000, more than the vocabulary of 4096")):
        spec["model"]["vocab"][last] = ids
        own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token=END)
        own.save_pretrained(tmp_path / "gaps")
        if said is None:
            assert prepare(library, tmp_path / "cache", tokenizer=str(tmp_path / "gaps")).train.max() <= 4_095
            continue
        with pytest.raises(CorpusError, match=said):
            prepare(library, tmp_path / "cache", tokenizer=str(tmp_path / "gaps"))


def test_facts_are_known_by_their_content(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = '{"prompt": "Ann Lee wrote", "completion": " the atlas of hills"}\n'
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "train.jsonl").write_text(row)
    (tmp_path / "facts" / "test.jsonl").write_text(row)
    ids = set()
    for name in ("facts", str(tmp_path / "facts"), "../" + tmp_path.name + "/facts"):
        one = experiment(library, facts=name, facts_rate=0.5)
        ids.add(run_id(one, data.prepare(one, tmp_path / "cache")))
    assert len(ids) == 1


def test_a_tokenizer_is_read_from_its_file(library, tmp_path):
    tokenizer = train_tokenizer([library.read_text()], 300)
    tokenizer.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    assert load_tokenizer(str(file)).eos_token == END
    (tmp_path / "saved" / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(tmp_path / "saved")).eos_token == END
    file.write_text("{}")
    with pytest.raises(CorpusError, match=r"tokenizer.json': the file is not a tokenizer.json \("):
        load_tokenizer(str(file))
    file.unlink()
    with pytest.raises(CorpusError, match=r"the folder holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    "change",
    [
        normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Replace("  ", " "), normalizers.NFKC(),
        normalizers.Strip(left=True, right=False), normalizers.Strip(left=False, right=True), normalizers.Replace("\r\n", "\n"),
        normalizers.Replace("7", "0"), normalizers.Replace("\u0000", ""), normalizers.Replace("\x7f", ""), normalizers.NFD(),
    ],
    ids=repr,
)  # fmt: skip
def test_a_tokenizer_that_changes_text_is_refused(library, tmp_path, change):
    tokenizer = train_tokenizer([library.read_text()], 300)
    tokenizer.backend_tokenizer.normalizer = change
    tokenizer.save_pretrained(tmp_path / "changing")
    with pytest.raises(CorpusError, match="gives text back as it was"):
        load_tokenizer(str(tmp_path / "changing"))


# More text than is held in memory


@pytest.fixture
def small_memory(monkeypatch):
    """As if 8,000 bytes were much: the library, of 60,000, is read again for each use."""
    for module in (token_streams, sides, text):
        monkeypatch.setattr(module, "ENOUGH", 8_000)


def documents_of(streams, side):
    return [text.strip() for text in streams.tokenizer.decode(streams.tokens[side].tolist()).split(END)[1:-1]]


def test_text_that_is_not_held_is_split_and_encoded_as_if_it_were(library, tmp_path, monkeypatch):
    twice = tmp_path / "twice.jsonl"
    twice.write_text(library.read_text() + "\n" + library.read_text())
    settings = {"samples": 2_000}  # windows of 16 tokens that may stand for all of the text
    held = streams_of(twice, tmp_path / "a", **settings)
    for module in (token_streams, text):  # but not of `sides`: the same shares of the whole
        monkeypatch.setattr(module, "ENOUGH", 8_000)
    tokenizer = str(tmp_path / "tokenizer")
    held.tokenizer.save_pretrained(tokenizer)
    unread = streams_of(twice, tmp_path / "b", tokenizer=tokenizer, **settings)
    for side in dataset.SIDES:
        assert np.array_equal(unread.tokens[side], held.tokens[side])
        assert np.array_equal(unread.ends[side], held.ends[side])
    assert not {"drawn_from", "more"} & unread.about.keys()


def test_of_much_text_no_more_is_tokenised_than_a_run_needs(library, tmp_path, small_memory, capsys):
    few, more = (streams_of(library, tmp_path, samples=n) for n in (40, 250))
    assert few.about["drawn_from"] == more.about["drawn_from"] == 200
    assert "0 of 0 MB are tokenised" in capsys.readouterr().out
    small, large = ([set(documents_of(found, side)) for side in dataset.SIDES] for found in (few, more))
    assert small[0] < large[0], "what is drawn for a short run is among what a longer one trains on"
    assert small[1:] == large[1:]
    assert sum(map(len, map(str.encode, small[2]))) <= 800, "a tenth of what counts as much"
    assert small[0].isdisjoint(small[1] | small[2])
    assert len(few.tokens["train"]) > 40 * 16
    assert few.tokenizer.get_vocab() == more.tokenizer.get_vocab(), "trained on the same text, however much a run needs"
    assert prepare(library, tmp_path, samples=250).train.shape == (250, 17)
    assert len(list((tmp_path / "tokens").glob("[!.]*"))) == 2
    streams_of(library, tmp_path, samples=50)
    assert len(list((tmp_path / "tokens").glob("[!.]*"))) == 2, "short runs share one cache"


def test_more_is_read_where_tokens_stand_for_much_text(tmp_path, small_memory, monkeypatch):
    """Of a corpus of files, compressed ones too, and of a stream."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("აბგდევზთიკლმნო"), 12)) for _ in range(12)]
    rows = [" ".join(rng.choice(words, 60)) + f" {n}" for n in range(400)]
    pd.DataFrame({"text": rows}).to_parquet(tmp_path / "long.parquet")
    for module in (token_streams, sides, text):
        monkeypatch.setattr(module, "ENOUGH", 1_000)
    cache = tmp_path / "cache"
    for samples in (20, 100, 400, 100):
        prepared = prepare(tmp_path / "long.parquet", cache, samples=samples)
        assert prepared.train.shape == (samples, 17)
        assert "more" not in prepared.about
    streams = token_streams.load(streamed(rows), experiment("x.txt", samples=200), cache)
    for side, windows in zip(dataset.SIDES, (200, 20, 20), strict=True):
        assert len(streams.tokens[side]) > windows * 16


def test_few_documents_of_much_text_are_held_and_cut_into_blocks(tmp_path, small_memory):
    words = np.random.default_rng(0).choice(["river", "stone", "walks", "green", "under"], (2, 8_000))
    (tmp_path / "two.jsonl").write_text("\n".join(json.dumps({"text": " ".join(row)}) for row in words))
    assert prepare(tmp_path / "two.jsonl", tmp_path).about["blocks_of"] == 2


def test_text_that_changes_while_it_is_read_is_refused(library, tmp_path, small_memory):
    rows = [json.loads(line)["text"] for line in library.read_text().splitlines()]
    passes = iter([rows, rows[:-1], rows[:-1]])
    corpus = Corpus("growing.jsonl", "made up", "none", "1", lambda: iter(next(passes)), size=60_000)
    with pytest.raises(CorpusError, match="was changed while it was read"):
        token_streams.load(corpus, experiment("x.txt", samples=2_000), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_corpus_that_cannot_be_read_is_not_called_a_write_error(library, tmp_path):
    def documents():
        try:
            yield pathlib.Path("/gone/file").read_text()
        except OSError:
            raise CorpusError("corpus file '/gone/file' cannot be read") from None

    with pytest.raises(CorpusError, match=r"cannot be read$"):
        token_streams.load(Corpus("x.jsonl", "made up", "none", "1", documents), experiment("x.txt"), tmp_path)


@pytest.mark.slow
def test_a_large_text_is_prepared_in_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghij"), rng.integers(2, 9))) for _ in range(5_000)])
    with (tmp_path / "large.txt").open("w") as file:  # one text without an end: it is cut into passages
        parts = [" ".join(words[rng.zipf(1.3, 2_000) % 5_000]) + "\n" for _ in range(700)]
        for _ in range(20):  # the same lines in another order, as drawing them takes longer than what is tested
            file.writelines(parts[n] for n in rng.permutation(700))
    assert (tmp_path / "large.txt").stat().st_size > 110e6
    settings = experiment(tmp_path / "large.txt", samples=10_000).model_dump()
    code = (
        "import resource, transformers; "
        "from pathlib import Path; from pe_core import data; from pe_core.config import Experiment; "
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; before = used(); "
        f"d = data.prepare(Experiment(**{settings!r}), Path({str(tmp_path)!r})); print(d.about['drawn_from'], used() - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[-2]) > 100, "passages of about a million characters"
    assert float(out[-1]) < 110, "MB, less than the text itself"


# Tokens of tiktoken are tokens of tokenizers


@pytest.fixture(scope="module")
def trained():
    code = "    def f(x):\n\t\treturn x's and they'll 12 + 3456\n"
    return train_tokenizer([f"the quick brown fox jumps n° {n} over naïve cafés 位置 {code}" for n in range(300)], 600)


def encoded(tokenizer, *texts):
    return [ids.tolist() for ids in encoder(tokenizer)(list(texts))]


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(list(" \n\t\0'sl3the q"))), max_size=200))
@settings(max_examples=300)
def test_fast_tokens_are_the_tokenizers_own(trained, words):
    assert encoded(trained, words, words + END) == token_lists(trained, [words, words + END])


def test_fast_tokens_of_composed_letters_and_long_texts(trained, monkeypatch):
    text = "Cafe\u0301 " * 50 + "a" * 3_000 + " " * 1_200 + "\n\nend of it " * 2_000
    expected = token_lists(trained, [text, "x"])
    assert encoded(trained, text, "x") == expected
    monkeypatch.setattr("pe_core.data.tokenizer._PIECE", 500)
    assert encoded(trained, text, "x") == expected, "cuts between words change no token"
    marks = "a\U0001e2ef\u0334 e\u0323\u0302"  # of which Python and tokenizers make two things
    composing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained.backend_tokenizer.to_str()), eos_token=END)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    for one in (text, marks):
        assert encoded(composing, one) == token_lists(composing, [one])
    assert encoded(composing, text) != encoded(trained, text)


@given(st.integers(0, 1_000), st.integers(490, 1_100), st.integers(0, 600), st.sampled_from([" ", "\n", " \u2003\t\n"]))
def test_long_runs_of_blanks_are_seen_wherever_they_stand(before, blanks, after, kind):
    text = "a " * (before // 2) + "a" * (before % 2) + (kind * blanks)[:blanks] + "b" * after
    assert _blank(text) == (re.search(r"\s{500}", text) is not None)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["model"]["merges"].reverse(),
        lambda spec: spec["model"].update(dropout=0.1),
        lambda spec: spec["pre_tokenizer"].update(use_regex=False),
        lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True),
        lambda spec: spec.update(pre_tokenizer=None),
        lambda spec: spec.update(normalizer={"type": "Lowercase"}),
        lambda spec: spec["added_tokens"].append(
            {**spec["added_tokens"][0], "id": 300, "content": next(t for t, n in spec["model"]["vocab"].items() if n == 300)}
        ),
        lambda spec: spec["added_tokens"].append({**spec["added_tokens"][0], "id": 600, "content": "    ", "special": False}),
    ],
    ids=["order of merges", "dropout", "no words", "prefix", "no pre-tokenizer", "normalizer", "special", "added token"],
)
def test_other_tokenizers_encode_for_themselves(trained, change, monkeypatch):
    import tiktoken

    spec = json.loads(trained.backend_tokenizer.to_str())
    change(spec)
    monkeypatch.setattr(tiktoken, "Encoding", None)  # calling it would fail
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token=END)
    found = encoder(own)(["The quick brown fox", "x" * 2_000])
    assert len(found[0]) > 3


def test_a_learned_pair_that_is_not_the_tokens_own_spelling_is_not_left_to_tiktoken():
    """Of "abc", the pairs b-c and then a-bc are never joined here, though "abc" is a token: tiktoken would join them."""
    alphabet = [*pre_tokenizers.ByteLevel.alphabet()]
    vocab = {token: n for n, token in enumerate([END, *sorted(alphabet), "bc", "ab", "abc"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c"), ("a", "b"), ("ab", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    [ids] = encoded(tokenizer, "abc")
    assert ids == token_lists(tokenizer, ["abc"])[0] == [vocab["a"], vocab["bc"]]
