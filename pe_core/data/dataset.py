"""Documents to windows: split by document, tokenizer, token streams, windows, batches.

Whole documents go to one of three sides: `train`; `validation`, on which training stops and settings are chosen; and
`test`, which every reported number is measured on and nothing is chosen by.

Shapes: N training windows, M windows of one held-out side, T context length, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_core import files, paths, progress
from pe_core.config import Experiment
from pe_core.data import corpora
from pe_core.data import facts as fact_sentences
from pe_core.data.sides import LARGEST_HELD_OUT_SHARE, SIDES, SPLIT_SEED, Sides, blocks_of, side_of, split, too_few
from pe_core.data.text import Corpus
from pe_core.data.tokenizer import contents, load_tokenizer, token_bytes, token_lists, train_tokenizer
from pe_core.errors import CorpusError

# Part of every cache key: raise it when the code below changes what it makes of the same documents.
_CACHE_VERSION = 6
# Documents, not tokens, limit what a comparison can find, and losses within one are alike: of a held-out document its first
# tokens are measured, more only where a side has few documents. The rest of it is not trained on either.
_LONGEST_HELD_OUT, _ENOUGH_HELD_OUT = 4_096, 200_000

# Signed tokens may be negative: ~id, that is -1 - id, is a token that is read and not predicted. In text all are predicted.
Tokens = NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.int32]


@dataclass(frozen=True)
class Data:
    """What a run trains and is measured on.

    Attributes:
        train: (N, T + 1) tokens; columns 0…T-1 are inputs, 1…T their targets, but for negative ones (see `Tokens`).
        validation: (M, T + 1) tokens, for early stopping and the choice of settings.
        test: (M', T + 1) tokens, for reported numbers.
        test_documents: (M', T) which test document each target belongs to.
        token_bytes: (V,) UTF-8 bytes each token stands for; the end-of-text token stands for none.
        tokenizer: a `transformers` fast tokenizer.
        fingerprint: hash of the windows, their documents and the tokenizer.
        about: counts and names for the record; `facts` where there are any, with the fingerprint without them.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    test_documents: NDArray[np.int32]
    token_bytes: NDArray[np.int32]
    tokenizer: Any
    fingerprint: str
    about: dict[str, Any]

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[Tokens]:
        """Training windows (size, T + 1) in an order that depends on (seed, epoch) alone.

        Windows that do not fill the last batch are left out of this epoch; another epoch's order is another.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train))
        for start in range(0, len(order) - size + 1, size):
            yield self.train[order[start : start + size]]


@dataclass(frozen=True)
class Streams:
    """Tokens of each side in one row: `<eot> document <eot> document … <eot>`.

    `ends` holds where each document ends (its closing end-of-text token included), also by side. The documents of a
    mixture's sources stand one source after the other; `about["sources"]` says how many test documents each has.
    """

    tokens: dict[str, Tokens]
    ends: dict[str, NDArray[np.int64]]
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
    T, drawn = experiment.seq_len, experiment.draw_len or experiment.seq_len
    held = {side: (len(streams.tokens[side]) - 1) // drawn for side in SIDES}
    wanted = {
        "train": -(-experiment.samples * T // drawn),
        # All of a finite corpus, as many as were streamed of another.
        **{side: held[side] if corpus.finite else experiment.heldout_windows for side in SIDES[1:]},
    }
    for side in SIDES:
        if held[side] < max(wanted[side], 1):
            raise CorpusError(
                f"samples={experiment.samples}: corpus '{corpus.name}' holds only {held['train'] * (drawn // T)} training "
                f"windows of seq_len={T} ({held['validation']} validation and {held['test']} test windows of {drawn})"
            )
    rng = np.random.default_rng([SPLIT_SEED, drawn])
    offsets = np.arange(T + 1)
    windows: dict[str, Tokens] = {}
    for side in SIDES:
        starts = _starts(held[side], wanted[side], drawn, rng, corpus.finite)
        starts = (starts[:, None] + np.arange(0, drawn, T)).reshape(-1)
        windows[side] = streams.tokens[side][starts[: experiment.samples if side == "train" else None, None] + offsets]
    targets = starts[:, None] + offsets[1:]  # of the test side, the last one above
    documents = np.searchsorted(streams.ends["test"], targets, side="right").astype(np.int32)
    train, tokenizer = windows["train"], streams.tokenizer
    stated: dict[str, Any] = {}
    if experiment.facts and experiment.facts_rate:
        stated["facts"] = {"fingerprint_without": windows_fingerprint(*windows.values(), documents, tokenizer=tokenizer)}
        added, counts = _fact_windows(experiment.facts, experiment.facts_rate, tokenizer, len(train), T)
        train = np.concatenate([train, added.astype(train.dtype)])
        stated["facts"] |= counts
    fingerprint = windows_fingerprint(train, windows["validation"], windows["test"], documents, tokenizer=tokenizer)
    measured = np.unique(documents)
    about = {
        **streams.about,
        "windows": {side: len(train if side == "train" else windows[side]) for side in SIDES},
        "test_documents_measured": len(measured),
        **stated,
    }
    if "sources" in streams.about:
        # Rows of a run's held-out losses are the measured documents in order: so many of them belong to each source.
        ends = np.cumsum(list(streams.about["sources"].values()))
        counted = np.diff(np.searchsorted(measured, ends), prepend=0)
        about["sources"] = dict(zip(streams.about["sources"], counted.tolist(), strict=True))
    sizes = token_bytes(tokenizer, experiment.vocabulary)
    return Data(train, windows["validation"], windows["test"], documents, sizes, tokenizer, fingerprint, about)


def loss_mask(windows: Tokens) -> NDArray[np.bool_] | None:
    """(M, T) which targets of (M, T + 1) windows are predicted; `None` is all."""
    return windows[:, 1:] >= 0 if windows.dtype.kind == "i" else None


def token_ids(windows: Tokens) -> NDArray[np.integer]:
    """Ids of all tokens, those that are not predicted among them."""
    return np.where(windows < 0, ~windows, windows) if windows.dtype.kind == "i" else windows


def windows_fingerprint(*parts: NDArray[np.integer], tokenizer: Any) -> str:
    """Of the windows of each side, the documents of the test side, and the tokenizer."""
    digest = hashlib.sha256()
    for part in parts:
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
    vocab = experiment.vocabulary
    key: dict[str, Any] = {
        "version": _CACHE_VERSION,
        "corpus": corpus.version if corpora.is_local(corpus.name) else [corpus.name, corpus.version],
        "tokenizer": (contents(wanted) or wanted) if wanted else f"byte-level BPE {vocab}",
    }
    if not corpus.finite:
        key["windows"] = [experiment.samples, experiment.heldout_windows, experiment.draw_len or experiment.seq_len]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "tokens" / f"{_slug(Path(corpus.name).name)}-{name}"
    streams = _load_streams(folder)
    if streams is None:
        with files.Lock(folder.with_name(f".{folder.name}.lock")):  # another process makes the same: it is there when that ends
            streams = _load_streams(folder)
            if streams is None:
                journal = folder.with_name(f".{folder.name}.stream")
                if corpus.after:
                    corpus = replace(corpus, documents=partial(_remembered, corpus, journal))
                streams = _build_streams(corpus, experiment, wanted, vocab)
                _save_streams(streams, folder)
                journal.unlink(missing_ok=True)
    return replace(streams, about={**streams.about, "corpus": corpus.name})  # files may have been cached under another path


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
    sources: dict[str, int] = {}
    cut_from = 0  # documents that were cut into blocks to hold some of these out
    if corpus.finite:
        sides: Sides = ([], [], [])
        seen: set[str] = set()
        for part in corpus.parts or (corpus,):
            # Exact repeats would stand on two sides; the first one stays.
            documents = [d for d in progress.bar(part.documents(), f"Reading {part.name}", unit=" documents") if d not in seen]
            documents = list(dict.fromkeys(documents))
            seen.update(documents)
            dealt = split(documents, part.name)
            cut_from += blocks_of(documents, dealt) or 0
            for side, found in zip(sides, dealt, strict=True):
                side.extend(found)
            sources[part.name] = len(sides[2]) - sum(sources.values())
    else:
        needed = tuple(n * (experiment.draw_len or experiment.seq_len) + 1 for n in _needed_windows(experiment))
        longest = max(int(LARGEST_HELD_OUT_SHARE * (needed[2] - 1)), 2)
        sides = _take(corpus, needed, tokenizer, longest)
    tokenizer = tokenizer or train_tokenizer(sides[0], vocab)
    tokens, ends = {}, {}
    for name, documents in zip(SIDES, sides, strict=True):
        cut = None if name == "train" else longest or max(_LONGEST_HELD_OUT, _ENOUGH_HELD_OUT // len(documents))
        tokens[name], ends[name] = _encode(documents, tokenizer, f"Tokenising {corpus.name}, {name}", cut)
    about = {
        "corpus": corpus.name,
        "corpus_about": corpus.about,
        "corpus_version": corpus.version,
        "licence": corpus.licence,
        "tokenizer": wanted or f"byte-level BPE of {len(tokenizer)} tokens, trained on the training documents",
        "documents": {side: len(ends[side]) for side in SIDES},
        "tokens": {side: len(tokens[side]) for side in SIDES},
        **({"sources": sources} if corpus.parts else {}),
        **({"blocks_of": cut_from} if cut_from else {}),
    }
    return Streams(tokens, ends, tokenizer, about)


def _needed_windows(experiment: Experiment) -> tuple[int, int, int]:
    """Windows of each side that are streamed of a corpus that is not read whole, of `draw_len` tokens where that is set."""
    train = -(-experiment.samples * experiment.seq_len // (experiment.draw_len or experiment.seq_len))
    return train, experiment.heldout_windows, experiment.heldout_windows


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


def _take(corpus: Corpus, needed: tuple[int, ...], tokenizer: Any | None, longest: int) -> Sides:
    """Documents of each side of an endless corpus, just as many as give the needed tokens.

    Each document's side is decided by a hash of its text alone, so exact repeats never stand on two. A held-out
    document counts for at most `longest` tokens; what is left of it is not trained on either. Without a tokenizer
    yet, one token is taken to stand for eight bytes, more than any byte-level BPE reaches on real text.
    """
    sides: Sides = ([], [], [])
    counts = [0, 0, 0]
    with progress.bar(total=sum(needed), label=f"Streaming {corpus.name}", unit=" tokens") as bar:
        for document in corpus.documents():
            side = side_of(document)
            if counts[side] >= needed[side]:
                continue
            size = 1 + (len(token_lists(tokenizer, [document])[0]) if tokenizer else len(document.encode()) // 8)
            if side:
                size = min(size, longest)
            sides[side].append(document)
            bar.update(min(size, needed[side] - counts[side]))
            counts[side] += size
            if all(count >= need for count, need in zip(counts, needed, strict=True)):
                break
    if not all(sides):
        raise too_few(corpus.name, sum(map(len, sides)))
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
                    entry = files.from_json(line)
                    documents, place = entry["documents"], entry["place"]
                except (ValueError, KeyError, TypeError):
                    break
                yield from documents
                size += len(line)
        os.truncate(journal, size)
    if place:
        progress.say(f"{corpus.name}: going on where an earlier pass was cut off.")
    documents = []
    with journal.open("a", encoding="utf-8") as file:
        for document, here in corpus.after(place):
            documents.append(document)
            yield document
            if len(documents) == _JOURNAL_EVERY:
                file.write(json.dumps({"documents": documents, "place": here()}) + "\n")
                file.flush()
                documents = []


def _save_streams(streams: Streams, folder: Path) -> None:
    """A cache folder is complete or absent."""

    def save(where: Path) -> None:
        ends = {f"{side}_ends": values for side, values in streams.ends.items()}
        np.savez(where / "tokens.npz", **streams.tokens, **ends)  # type: ignore[arg-type]
        streams.tokenizer.save_pretrained(where / "tokenizer")
        sums = {str(p.relative_to(where)): files.sha256(p) for p in sorted(where.rglob("*")) if p.is_file()}
        (where / "meta.json").write_text(json.dumps({"about": streams.about, "sha256": sums}, indent=1))

    files.write_folder(folder, save)


def _load_streams(folder: Path) -> Streams | None:
    """The cached streams, or `None` where there are none or any byte of them is not what was written."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would load every model class first, for seconds

    if not folder.exists():
        return None
    try:
        meta = files.from_json((folder / "meta.json").read_text())
        for name, expected in meta["sha256"].items():
            if files.sha256(folder / name) != expected:
                raise ValueError(f"{name} differs from what was written")
        with np.load(folder / "tokens.npz") as arrays:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
            tokens, ends = {side: arrays[side] for side in SIDES}, {side: arrays[f"{side}_ends"] for side in SIDES}
            return Streams(tokens, ends, tokenizer, meta["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        progress.say(f"The token cache {folder.name} is damaged ({error}); building it again.")
        return None
