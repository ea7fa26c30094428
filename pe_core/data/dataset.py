"""Documents to windows: split by document, tokenizer, token streams, windows, batches.

Shapes: N training windows, M held-out windows, T context length, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from pe_core import paths, progress
from pe_core.config import PRESETS, Experiment
from pe_core.data import corpora
from pe_core.data import facts as fact_sentences
from pe_core.data.text import DOCUMENT_END, Corpus
from pe_core.data.tokenizer import load_tokenizer, token_bytes, token_lists, train_tokenizer
from pe_core.errors import CorpusError

# Part of every cache key: raise it when the code below changes what it makes of the same documents.
_CACHE_VERSION = 3
# The split and the choice of windows do not depend on the run's seed: runs of all seeds see the same held-out text.
_SPLIT_SEED = 20_251_205
_HELD_OUT_SHARE = 0.1
# No held-out document may fill more than this share of the held-out text, or it alone would decide the result. A streamed
# one that would is cut.
_LARGEST_HELD_OUT_SHARE = 0.1

# Signed tokens may be negative: ~id, that is -1 - id, is a token that is read and not predicted. In text all are predicted.
Tokens = NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.int32]


@dataclass(frozen=True)
class Data:
    """What a run trains and is measured on.

    Attributes:
        train: (N, T + 1) tokens; columns 0…T-1 are inputs, 1…T their targets, but for negative ones (see `Tokens`).
        heldout: (M, T + 1) tokens.
        heldout_documents: (M, T) which held-out document each target belongs to.
        token_bytes: (V,) UTF-8 bytes each token stands for; the end-of-text token stands for none.
        tokenizer: a `transformers` fast tokenizer.
        fingerprint: hash of the windows, their documents and the tokenizer.
        about: counts and names for the record; `facts` where there are any, with the fingerprint without them.
    """

    train: Tokens
    heldout: Tokens
    heldout_documents: NDArray[np.int32]
    token_bytes: NDArray[np.int32]
    tokenizer: Any
    fingerprint: str
    about: dict[str, Any]

    @property
    def loss_mask(self) -> NDArray[np.bool_] | None:
        """(M, T) which held-out targets are predicted; `None` is all."""
        return self.heldout[:, 1:] >= 0 if self.heldout.dtype.kind == "i" else None

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[Tokens]:
        """Training windows (size, T + 1) in an order that depends on (seed, epoch) alone.

        Windows that do not fill a last batch sit this epoch out; another epoch's order brings them back.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train))
        for start in range(0, len(order) - size + 1, size):
            yield self.train[order[start : start + size]]


@dataclass(frozen=True)
class Streams:
    """Tokens of both sides, one after the other: `<eot> document <eot> document … <eot>`.

    `train_ends` and `heldout_ends` hold where each document ends (its closing end-of-text token included).
    """

    train: Tokens
    heldout: Tokens
    train_ends: NDArray[np.int64]
    heldout_ends: NDArray[np.int64]
    tokenizer: Any
    about: dict[str, Any]


def prepare(experiment: Experiment, cache: Path | None = None) -> Data:
    """The windows of a resolved experiment on text, from the token cache or built and cached.

    Raises:
        CorpusError: the corpus cannot be read, has too few documents to split, or holds fewer windows than
            `samples` asks for (the message says how many it holds).
    """
    corpus = corpora.load(experiment.corpus)
    streams = _streams(corpus, experiment, cache or paths.cache())
    T = experiment.seq_len
    held = {"train": (len(streams.train) - 1) // T, "heldout": (len(streams.heldout) - 1) // T}
    if held["train"] < experiment.train_windows or held["heldout"] < experiment.heldout_windows:
        # The largest `samples` whose two shares fit.
        most = next(n for n in range(min(held["train"] * 10 // 9, held["heldout"] * 10) + 10, -1, -1)
                    if round(n / 10) <= held["heldout"] and n - round(n / 10) <= held["train"])  # fmt: skip
        raise CorpusError(
            f"samples={experiment.samples}: corpus '{corpus.name}' holds only {most} windows of seq_len={T} "
            f"({held['train']} training, {held['heldout']} held-out)"
        )
    rng = np.random.default_rng([_SPLIT_SEED, T])
    train_starts = _starts(held["train"], experiment.train_windows, T, rng, corpus.finite)
    heldout_starts = _starts(held["heldout"], experiment.heldout_windows, T, rng, corpus.finite)
    offsets = np.arange(T + 1)
    train, heldout = streams.train[train_starts[:, None] + offsets], streams.heldout[heldout_starts[:, None] + offsets]
    targets = heldout_starts[:, None] + offsets[1:]
    documents = np.searchsorted(streams.heldout_ends, targets, side="right").astype(np.int32)
    tokenizer = streams.tokenizer
    stated: dict[str, Any] = {}
    if experiment.facts and experiment.facts_rate:
        stated["facts"] = {"fingerprint_without": windows_fingerprint(train, heldout, documents, tokenizer)}
        added, counts = _fact_windows(experiment.facts, experiment.facts_rate, tokenizer, len(train), T)
        train = np.concatenate([train, added.astype(train.dtype)])
        stated["facts"] |= counts
    fingerprint = windows_fingerprint(train, heldout, documents, tokenizer)
    about = {
        **streams.about,
        "windows": {"train": len(train), "heldout": len(heldout)},
        "heldout_documents_measured": len(np.unique(documents)),
        **stated,
    }
    vocab = PRESETS[experiment.preset].vocab
    return Data(train, heldout, documents, token_bytes(tokenizer, vocab), tokenizer, fingerprint, about)


def token_ids(windows: Tokens) -> NDArray[np.integer]:
    """Ids of all tokens, those that are not predicted among them."""
    return np.where(windows < 0, ~windows, windows) if windows.dtype.kind == "i" else windows


def windows_fingerprint(train: Tokens, heldout: Tokens, documents: NDArray[np.int32], tokenizer: Any) -> str:
    digest = hashlib.sha256()
    for part in (train, heldout, documents):
        digest.update(part.tobytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def _fact_windows(name: str, rate: float, tokenizer: Any, others: int, T: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """So many windows of fact sentences that they are a share `rate` of all, beside so many others; and their counts."""
    facts = fact_sentences.load(name)
    count = max(1, round(others * rate / (1 - rate)))
    found, sentences = fact_sentences.windows(
        facts.statements, lambda documents: token_lists(tokenizer, documents), tokenizer.eos_token_id, count, T
    )
    return found, {"name": facts.name, "windows": count, "statements": len(facts.statements), "sentences": sentences}


def _starts(held: int, wanted: int, T: int, rng: np.random.Generator, finite: bool) -> NDArray[np.int64]:
    """Where the wanted windows start: spread over the whole of a finite corpus, the first ones of a stream.

    One permutation serves every `samples`: fewer windows are a subset of more.
    """
    chosen = rng.permutation(held)[:wanted] if finite else np.arange(wanted)
    return np.sort(chosen).astype(np.int64) * T


# --- token streams and their cache -----------------------------------------------------------------------------------


def _streams(corpus: Corpus, experiment: Experiment, cache: Path) -> Streams:
    wanted = {"auto": corpus.tokenizer, "train": None}.get(experiment.tokenizer, experiment.tokenizer)
    vocab = PRESETS[experiment.preset].vocab
    key: dict[str, Any] = {
        "version": _CACHE_VERSION,
        "corpus": [corpus.name, corpus.version],
        "tokenizer": wanted or f"byte-level BPE {vocab}",
    }
    if not corpus.finite:
        key["windows"] = [experiment.train_windows, experiment.heldout_windows, experiment.seq_len]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "tokens" / f"{_slug(corpus.name)}-{name}"
    streams = _load_streams(folder)
    if streams is None and corpus.after:
        journal = folder.with_name(f".{folder.name}.stream")
        journal.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(journal.with_suffix(".lock")):  # another process streams the same: its work is there when it ends
            streams = _load_streams(folder)
            if streams is None:
                remembered = replace(corpus, documents=lambda: _remembered(corpus, journal))
                streams = _build_streams(remembered, experiment, wanted, vocab)
                _save_streams(streams, folder)
                journal.unlink(missing_ok=True)
    if streams is None:
        streams = _build_streams(corpus, experiment, wanted, vocab)
        _save_streams(streams, folder)
    return streams


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[-40:].strip("-")


def _build_streams(corpus: Corpus, experiment: Experiment, wanted: str | None, vocab: int) -> Streams:
    tokenizer = load_tokenizer(wanted) if wanted else None
    longest = None
    if tokenizer and len(tokenizer) > vocab:
        raise CorpusError(
            f"tokenizer '{wanted}' has {len(tokenizer)} tokens, more than the vocabulary of {vocab} of preset "
            f"'{experiment.preset}'; take a larger preset (pythia-14m), or tokenizer='train' to train one"
        )
    if corpus.finite:
        # Exact repeats would stand on both sides; the first one stays.
        documents = list(dict.fromkeys(progress.bar(corpus.documents(), f"Reading {corpus.name}", unit=" documents")))
        train, heldout = split(documents, corpus.name)
    else:
        needed = (experiment.train_windows * experiment.seq_len + 1, experiment.heldout_windows * experiment.seq_len + 1)
        longest = max(int(_LARGEST_HELD_OUT_SHARE * (needed[1] - 1)), 2)
        train, heldout = _take(corpus, needed, tokenizer, longest)
    tokenizer = tokenizer or train_tokenizer(train, vocab)
    train_tokens, train_ends = _encode(train, tokenizer, f"Tokenising {corpus.name}")
    heldout_tokens, heldout_ends = _encode(heldout, tokenizer, f"Tokenising {corpus.name}, held-out", longest)
    about = {
        "corpus": corpus.name,
        "corpus_about": corpus.about,
        "corpus_version": corpus.version,
        "licence": corpus.licence,
        "tokenizer": wanted or f"byte-level BPE of {len(tokenizer)} tokens, trained on the training documents",
        "documents": {"train": len(train_ends), "heldout": len(heldout_ends)},
        "tokens": {"train": len(train_tokens), "heldout": len(heldout_tokens)},
    }
    return Streams(train_tokens, heldout_tokens, train_ends, heldout_ends, tokenizer, about)


def split(documents: list[str], name: str = "corpus") -> tuple[list[str], list[str]]:
    """Training and held-out documents: whole documents in a fixed random order go to the held-out side until it
    has a tenth of all bytes. Documents that would fill more than a tenth of that side by themselves stay on the
    training side, unless the corpus has too few smaller ones.

    Raises:
        CorpusError: too few documents for both sides.
    """
    sizes = [len(document.encode()) for document in documents]
    budget = _HELD_OUT_SHARE * sum(sizes)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(documents))
    # In a corpus of few, similar documents none is that small: there, the smaller ones that hold a fifth of the text do.
    ascending = sorted(sizes)
    enough = ascending[min(int(np.searchsorted(np.cumsum(ascending), 2 * budget)), len(sizes) - 1)] if sizes else 0
    largest = max(_LARGEST_HELD_OUT_SHARE * budget, enough)
    heldout: set[int] = set()
    taken = 0
    for index in order.tolist():
        if sizes[index] <= largest and taken + sizes[index] <= max(budget, sizes[index]):
            heldout.add(index)
            taken += sizes[index]
        if taken >= budget:
            break
    if not heldout or len(heldout) == len(documents):
        raise _too_few(name, len(documents))
    sides: tuple[list[str], list[str]] = ([], [])
    for index, document in enumerate(documents):
        sides[index in heldout].append(document)
    return sides


def _too_few(name: str, documents: int) -> CorpusError:
    return CorpusError(
        f"corpus '{name}' holds {documents} document(s), too few to hold some out: give a folder, a glob, "
        f"a .jsonl or .parquet file with one document a row, or divide the text by lines of {DOCUMENT_END}"
    )


def _encode(documents: list[str], tokenizer: Any, label: str, longest: int | None = None) -> tuple[Tokens, NDArray[np.int64]]:
    """Documents as one stream, and where each ends; of a document, at most `longest` tokens (its end included)."""
    pieces: list[Tokens] = []
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    end = np.array([tokenizer.eos_token_id], dtype)
    with progress.bar(total=len(documents), label=label, unit=" documents") as bar:
        for start in range(0, len(documents), 64):
            some = documents[start : start + 64]
            for ids in token_lists(tokenizer, some):
                pieces.append(np.concatenate([np.array(ids[: longest and longest - 1], dtype), end]))
            bar.update(len(some))
    ends = 1 + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate([end, *pieces]), ends


def _take(corpus: Corpus, needed: tuple[int, int], tokenizer: Any | None, longest: int) -> tuple[list[str], list[str]]:
    """Training and held-out documents of an endless corpus, just as many as give the needed tokens.

    Each document's side is decided by a hash of its text alone, so exact repeats never stand on both. A held-out
    document counts for at most `longest` tokens; what is left of it is not trained on either. Without a tokenizer
    yet, one token is taken to stand for eight bytes, more than any byte-level BPE reaches on real text.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    counts = [0, 0]
    with progress.bar(total=sum(needed), label=f"Streaming {corpus.name}", unit=" tokens") as bar:
        for document in corpus.documents():
            side = int(is_heldout(document))
            if counts[side] >= needed[side]:
                continue
            size = 1 + (len(token_lists(tokenizer, [document])[0]) if tokenizer else len(document.encode()) // 8)
            if side:
                size = min(size, longest)
            sides[side].append(document)
            bar.update(min(size, needed[side] - counts[side]))
            counts[side] += size
            if counts[0] >= needed[0] and counts[1] >= needed[1]:
                break
    if not sides[0] or not sides[1]:
        raise _too_few(corpus.name, len(sides[0]) + len(sides[1]))
    return sides


_JOURNAL_EVERY = 64  # documents


def _remembered(corpus: Corpus, journal: Path) -> Iterator[str]:
    """The documents of a stream, those first that a pass which was cut off has written to the journal. Each of its lines
    holds some documents and the place after them; a last line that was cut off is dropped."""
    assert corpus.after is not None
    place, size = None, 0
    if journal.exists():
        with journal.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                yield from entry["documents"]
                place, size = entry["place"], size + len(line)
        os.truncate(journal, size)
    if place:
        progress.say(f"{corpus.name}: going on where an earlier pass was cut off.")
    documents: list[str] = []
    with journal.open("a", encoding="utf-8") as file:
        for document, here in corpus.after(place):
            documents.append(document)
            yield document
            if len(documents) == _JOURNAL_EVERY:
                file.write(json.dumps({"documents": documents, "place": here()}) + "\n")
                file.flush()
                documents = []


def is_heldout(document: str) -> bool:
    digest = hashlib.blake2b(document.encode(errors="replace"), digest_size=8, key=b"split").digest()
    return int.from_bytes(digest, "big") < _HELD_OUT_SHARE * 2**64


def _save_streams(streams: Streams, folder: Path) -> None:
    """Write beside, then rename: a cache folder is complete or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        np.savez(
            temporary / "tokens.npz",
            train=streams.train,
            heldout=streams.heldout,
            train_ends=streams.train_ends,
            heldout_ends=streams.heldout_ends,
        )
        streams.tokenizer.save_pretrained(temporary / "tokenizer")
        sums = {str(p.relative_to(temporary)): _sum(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        (temporary / "meta.json").write_text(json.dumps({"about": streams.about, "sha256": sums}, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load_streams(folder: Path) -> Streams | None:
    """The cached streams, or `None` where there are none or any byte of them is not what was written."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would load every model class first, for seconds

    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        for name, expected in meta["sha256"].items():
            if _sum(folder / name) != expected:
                raise ValueError(f"{name} differs from what was written")
        with np.load(folder / "tokens.npz") as arrays:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
            return Streams(**arrays, tokenizer=tokenizer, about=meta["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        progress.say(f"The token cache {folder.name} is damaged ({error}); building it again.")
        return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
