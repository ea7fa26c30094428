"""Documents to windows: nothing leaks, nothing is lost, the cache is never trusted blindly."""

import hashlib
import json

import numpy as np
import pytest

from pe_core import data
from pe_core.config import Experiment
from pe_core.data import corpora, dataset
from pe_core.data.text import Corpus
from pe_core.errors import CorpusError

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


def test_no_document_stands_on_both_sides(library, tmp_path):
    streams = dataset._streams(corpora.load(str(library)), experiment(library), tmp_path)
    decode = streams.tokenizer.decode
    sides = [decode(side.tolist()).split("<|endoftext|>") for side in (streams.train, streams.heldout)]
    train, heldout = ({text.strip() for text in side if text.strip()} for side in sides)
    assert not train & heldout
    assert len(train) + len(heldout) == 200, "every document is on one side, whole"
    share = sum(map(len, heldout)) / sum(map(len, train | heldout))
    assert 0.09 < share < 0.11


def test_windows_are_cut_from_their_own_side_and_counted(library, tmp_path):
    prepared = prepare(library, tmp_path)
    assert prepared.train.shape == (90, 17)
    assert prepared.heldout.shape == (10, 17)
    assert prepared.heldout_documents.shape == (10, 16)
    assert prepared.about["windows"] == {"train": 90, "heldout": 10}


def test_each_target_knows_its_document(library, tmp_path):
    streams = dataset._streams(corpora.load(str(library)), experiment(library), tmp_path)
    prepared = prepare(library, tmp_path)
    starts = np.concatenate([[1], streams.heldout_ends])
    for tokens, documents in zip(prepared.heldout[:, 1:], prepared.heldout_documents, strict=True):
        for token, document in zip(tokens, documents, strict=True):
            assert token in streams.heldout[starts[document] : starts[document + 1]]


def test_fewer_windows_are_a_subset_of_more(library, tmp_path):
    few, many = (prepare(library, tmp_path, samples=n) for n in (50, 100))
    assert {w.tobytes() for w in few.train} <= {w.tobytes() for w in many.train}
    assert {w.tobytes() for w in few.heldout} <= {w.tobytes() for w in many.heldout}


def test_seeds_and_encodings_share_the_data(library, tmp_path):
    fingerprints = {prepare(library, tmp_path, seed=s, encoding=e).fingerprint for s in (1, 2) for e in ("none", "rope")}
    assert len(fingerprints) == 1
    assert prepare(library, tmp_path, samples=90).fingerprint not in fingerprints


def test_asking_for_more_than_the_corpus_holds_says_how_many_it_holds(library, tmp_path):
    with pytest.raises(CorpusError) as error:
        prepare(library, tmp_path, samples=1_000_000)
    most = int(str(error.value).split("holds only ")[1].split()[0].replace(",", ""))
    assert prepare(library, tmp_path, samples=most).about["windows"]["train"] > 0
    with pytest.raises(CorpusError):
        prepare(library, tmp_path, samples=most + 1)
    with pytest.raises(CorpusError, match="holds only"):
        prepare(library, tmp_path, seq_len=100_000, samples=10)


def test_a_single_document_cannot_be_split(tmp_path):
    (tmp_path / "one.txt").write_text("word " * 5000)
    with pytest.raises(CorpusError, match=r"holds 1 document\(s\), too few.*endoftext"):
        prepare(tmp_path / "one.txt", tmp_path)


def test_a_huge_document_is_not_held_out():
    documents = ["x" * 100_000] + [f"{i} " * 100 for i in range(300)]
    train, heldout = dataset.split(documents)
    assert documents[0] in train
    assert heldout
    assert max(map(len, heldout)) < 0.1 * sum(map(len, heldout)) + 500


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
    assert [len(batch) for batch in batches] == [8] * (90 // 8)
    assert len({row.tobytes() for batch in batches for row in batch}) == len({r.tobytes() for r in prepared.train}) - 90 % 8


def _files(cache):
    return {p.relative_to(cache): hashlib.sha256(p.read_bytes()).hexdigest() for p in cache.rglob("*") if p.is_file()}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_a_damaged_cache_is_rebuilt_not_trusted(library, tmp_path, capsys, damage):
    cache = tmp_path / "cache"
    fingerprint = prepare(library, cache).fingerprint
    tokens, meta = next(cache.rglob("tokens.npz")), next(cache.rglob("meta.json"))
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
    assert not list(cache.rglob(".partial*"))
    monkeypatch.setattr(dataset, "train_tokenizer", None)  # building again would fail
    prepare(library, cache)


def test_an_interrupted_write_leaves_no_cache(library, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(library, cache)
    assert not list(cache.rglob("meta.json"))
    assert not list(cache.rglob(".partial*"))
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
    once = dataset._streams(corpora.load(str(library)), experiment(library), tmp_path / "once")
    assert (
        dataset._streams(corpora.load(str(twice)), experiment(twice), tmp_path / "twice").about["documents"]
        == (once.about["documents"])
    )


@pytest.mark.parametrize("count", [20, 50, 1000])
def test_a_tenth_is_held_out_of_few_and_of_many_documents(count):
    rng = np.random.default_rng(0)
    train, heldout = dataset.split(["x" * rng.integers(900, 1100) for _ in range(count)])
    assert 0.04 < sum(map(len, heldout)) / sum(map(len, train + heldout)) <= 0.101
    assert len(heldout) >= count // 25


def test_a_tokenizer_that_is_not_byte_level_is_refused(library, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator([library.read_text()], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path / "spm")
    with pytest.raises(CorpusError, match="a byte-level tokenizer is needed"):
        prepare(library, tmp_path / "cache", tokenizer=str(tmp_path / "spm"))


def test_a_document_that_spells_end_of_text_does_not_end_there(library, tmp_path):
    spelt = tmp_path / "spelt.jsonl"
    rows = [json.loads(line)["text"] for line in library.read_text().splitlines()]
    spelt.write_text("\n".join(json.dumps({"text": text.replace(" ", END, 2)}) for text in rows))
    streams = dataset._streams(corpora.load(str(spelt)), experiment(spelt), tmp_path / "cache")
    for tokens, ends in ((streams.train, streams.train_ends), (streams.heldout, streams.heldout_ends)):
        assert np.flatnonzero(tokens == streams.tokenizer.eos_token_id).tolist() == [0, *(ends - 1)]
    assert streams.tokenizer.decode(streams.heldout.tolist()).count(END) == 1 + 3 * len(streams.heldout_ends)
    again = dataset._streams(corpora.load(str(spelt)), experiment(spelt), tmp_path / "cache")
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
    sides = [[text for text in rows if dataset.is_heldout(text) == side] for side in (False, True)]
    huge = next(text for n in range(100) if dataset.is_heldout(text := f"huge {n} " + "once upon a time " * 3000))
    stream = [huge, *sides[0], *sides[1]]

    streams = dataset._streams(streamed(stream), settings, tmp_path / "cache")
    wanted = settings.heldout_windows * settings.seq_len
    assert len(streams.heldout) > wanted, "cut documents are made up for by others"
    measured = np.searchsorted(streams.heldout_ends, np.arange(1, wanted + 1), side="right")
    assert np.bincount(measured).max() == wanted // 10
    pieces = streams.tokenizer.decode(streams.heldout.tolist()).split(END)[1:-1]
    assert all(whole.startswith(piece) for whole, piece in zip([huge, *sides[1]], pieces, strict=False))
    assert streams.heldout_ends[0] == 1 + wanted // 10
    assert "once upon" in pieces[0]
    assert "once upon" not in streams.tokenizer.decode(streams.train.tolist()), "what was cut off is not trained on"
