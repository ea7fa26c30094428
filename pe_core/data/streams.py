"""Documents to token streams on the disk: which side each belongs to, its tokens, and the cache of them.

Memory is bounded, however much text there is: files larger than `ENOUGH` are read once for each use and not held, no more of
their training text is tokenised than a run needs, tokens are written as they are made and mapped where they are read.

Shapes: P tokens of a side, D documents of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_core import files, paths, progress
from pe_core.config import Experiment
from pe_core.data import corpora
from pe_core.data.sides import (
    FEWEST_TEST_DOCUMENTS,
    LARGEST_HELD_OUT_SHARE,
    SIDES,
    Sides,
    blocks_of,
    deal,
    side_of,
    split,
    too_few,
)
from pe_core.data.text import ENOUGH, Corpus
from pe_core.data.tokenizer import contents, encoder, load_tokenizer, token_lists, train_tokenizer, vocabulary
from pe_core.errors import CorpusError

# Part of every cache key: raise it when the code below changes what it makes of the same documents.
_CACHE_VERSION = 7
# Documents, not tokens, limit what a comparison can find, and losses within one are alike: of a held-out document its first
# tokens are measured, more only where a side has few documents. The rest of it is not trained on either.
_LONGEST_HELD_OUT, _ENOUGH_HELD_OUT = 4_096, 200_000
# A token of most text stands for fewer bytes: so much text is enough for so many tokens. Where it is not, more is read.
_BYTES_PER_TOKEN = 8
_BATCH = 1_000_000  # characters that are tokenised at a time
_JOURNAL_EVERY = 64  # documents


@dataclass(frozen=True)
class Streams:
    """Tokens of each side in one row, mapped from the disk: `<eot> document <eot> document … <eot>`.

    `ends` holds where each document ends (its closing end-of-text token included), also by side. The documents of a
    mixture's sources stand one source after the other; `about["sources"]` says how many test documents each has.
    """

    tokens: dict[str, NDArray[np.uint16] | NDArray[np.uint32]]  # (P,)
    ends: dict[str, NDArray[np.int64]]  # (D,)
    tokenizer: Any
    about: dict[str, Any]


@dataclass(frozen=True)
class _Dealt:
    """Documents by side. `documents` starts a fresh pass over (side, document), those of a side in the corpus's order."""

    documents: Callable[[], Iterable[tuple[int, str]]]
    to_learn: Callable[[], Iterable[str]]  # what a tokenizer is trained on
    counts: tuple[int, ...]
    longest: int | None = None  # tokens of a held-out document, where that does not follow from their number
    about: dict[str, Any] | None = None


def load(corpus: Corpus, experiment: Experiment, cache: Path | None = None) -> Streams:
    """The token streams of a corpus, from the cache or built and cached.

    Raises:
        CorpusError: the corpus cannot be read, or has too few documents to split.
    """
    drawn, scale = experiment.draw_len or experiment.seq_len, 1
    needed = dict(zip(SIDES[:1] if corpus.finite else SIDES, needed_windows(experiment), strict=False))
    while True:
        streams = _load(corpus, experiment, cache or paths.cache(), scale)
        more = streams.about.pop("more", False)  # documents that were left alone
        if not more or all(len(streams.tokens[side]) > windows * drawn for side, windows in needed.items()):
            return streams
        scale *= 4  # its tokens stand for more bytes than those of most text


def _load(corpus: Corpus, experiment: Experiment, cache: Path, scale: int) -> Streams:
    wanted = {"auto": corpus.tokenizer, "train": None}.get(experiment.tokenizer, experiment.tokenizer)
    key: dict[str, Any] = {
        "version": _CACHE_VERSION,
        "corpus": corpus.version if corpora.is_local(corpus.name) else [corpus.name, corpus.version],
        "tokenizer": (contents(wanted) or wanted) if wanted else f"byte-level BPE {experiment.vocabulary}",
    }
    if not corpus.finite:
        key["windows"] = [experiment.samples, experiment.heldout_windows, experiment.draw_len or experiment.seq_len, scale]
    elif corpus.size > ENOUGH:
        key["bytes"] = _most(experiment, scale)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "tokens" / f"{_slug(Path(corpus.name).name)}-{name}"
    streams = _read(folder)
    if streams is None:
        with files.Lock(folder.with_name(f".{folder.name}.lock")):  # another process makes the same: it is there when that ends
            streams = _read(folder)
            if streams is None:
                journal = folder.with_name(f".{folder.name}.stream")
                if corpus.after:
                    corpus = replace(corpus, documents=partial(_remembered, corpus, journal))
                files.write_folder(folder, lambda where: _build(corpus, experiment, wanted, scale, where))
                journal.unlink(missing_ok=True)
                streams = _read(folder)
                assert streams is not None
    return replace(streams, about={**streams.about, "corpus": corpus.name})  # files may have been cached under another path


def needed_windows(experiment: Experiment) -> tuple[int, int, int]:
    """Windows of each side that a run reads of a text that is not used whole, of `draw_len` tokens where that is set."""
    train = -(-experiment.samples * experiment.seq_len // (experiment.draw_len or experiment.seq_len))
    return train, experiment.heldout_windows, experiment.heldout_windows


def _most(experiment: Experiment, scale: int) -> int:
    """Bytes of training text that are tokenised of a corpus that is larger: enough for the run, the same for all short ones."""
    return max(ENOUGH, scale * _BYTES_PER_TOKEN * (experiment.samples * experiment.seq_len + 1))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)[-40:].strip("-")


def _build(corpus: Corpus, experiment: Experiment, wanted: str | None, scale: int, folder: Path) -> None:
    """Fill a cache folder: `train.bin` and so on, `ends.npz`, the tokenizer, and `meta.json` with their checksums."""
    tokenizer = load_tokenizer(wanted) if wanted else None
    if tokenizer and (size := vocabulary(tokenizer)) > experiment.vocabulary:
        raise CorpusError(
            f"tokenizer '{wanted}' has ids up to {size - 1}, more than the vocabulary of {experiment.vocabulary} of preset "
            f"'{experiment.preset}'; take a larger preset (pythia-14m), or tokenizer='train' to train one"
        )
    if not corpus.finite:
        dealt = _streamed(corpus, experiment, tokenizer, scale)
    else:
        dealt = (corpus.size > ENOUGH and _dealt_unread(corpus, _most(experiment, scale))) or _dealt_whole(corpus)
    tokenizer = tokenizer or train_tokenizer(dealt.to_learn(), experiment.vocabulary)
    ends = _tokenise(dealt, tokenizer, folder, f"Tokenising {corpus.name}")
    np.savez(folder / "ends.npz", **dict(zip(SIDES, ends, strict=True)))  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder / "tokenizer")
    about = {
        "corpus": corpus.name,
        "corpus_about": corpus.about,
        "corpus_version": corpus.version,
        "licence": corpus.licence,
        "tokenizer": wanted or f"byte-level BPE of {len(tokenizer)} tokens, trained on the training documents",
        "documents": {side: len(found) for side, found in zip(SIDES, ends, strict=True)},
        "tokens": {side: int(found[-1]) for side, found in zip(SIDES, ends, strict=True)},
        **(dealt.about or {}),
    }
    sums = {str(p.relative_to(folder)): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / "meta.json").write_text(json.dumps({"about": about, "sha256": sums}, indent=1))


def _read(folder: Path) -> Streams | None:
    """The cached streams, or `None` where there are none or any byte of them is not what was written."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would load every model class first, for seconds

    if not folder.exists():
        return None
    try:
        meta = files.from_json((folder / "meta.json").read_text())
        for name, expected in meta["sha256"].items():
            if files.sha256(folder / name) != expected:
                raise ValueError(f"{name} differs from what was written")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        dtype = _dtype(tokenizer)
        tokens = {side: np.asarray(np.memmap(folder / f"{side}.bin", dtype, "r")) for side in SIDES}
        with np.load(folder / "ends.npz") as ends:
            return Streams(tokens, {side: ends[side] for side in SIDES}, tokenizer, meta["about"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        progress.say(f"The token cache {folder.name} is damaged ({error}); building it again.")
        return None


def _dtype(tokenizer: Any) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary(tokenizer) <= 2**16 else np.uint32


def _tokenise(dealt: _Dealt, tokenizer: Any, folder: Path, label: str) -> list[NDArray[np.int64]]:
    """Write each side's stream and return where its documents end; of a held-out document, at most the tokens that are
    measured of it (its end included)."""
    encode, dtype = encoder(tokenizer), _dtype(tokenizer)
    end = np.array([tokenizer.eos_token_id], dtype)
    cuts = [0, *(dealt.longest or max(_LONGEST_HELD_OUT, _ENOUGH_HELD_OUT // count) for count in dealt.counts[1:])]
    ends = [array("q") for _ in SIDES]
    with progress.bar(total=sum(dealt.counts), label=label, unit=" documents") as bar:
        outputs = [(folder / f"{side}.bin").open("wb") for side in SIDES]
        try:
            for output in outputs:
                output.write(end.tobytes())
            for batch in _batches(dealt.documents()):
                for (side, _), ids in zip(batch, encode([document for _, document in batch]), strict=True):
                    kept = np.concatenate([np.asarray(ids[: cuts[side] - 1 if side else None], dtype), end])
                    outputs[side].write(kept.tobytes())
                    ends[side].append((ends[side][-1] if ends[side] else 1) + len(kept))
                bar.update(len(batch))
        finally:
            for output in outputs:
                output.close()
    return [np.array(found, np.int64) for found in ends]


def _batches(documents: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    size = 0
    for entry in documents:
        batch.append(entry)
        size += len(entry[1])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- which documents, on which side ------------------------------------------------------------------------------------


def _dealt_whole(corpus: Corpus) -> _Dealt:
    """All documents of a corpus that is held in memory."""
    sides: Sides = ([], [], [])
    seen: set[str] = set()
    sources: dict[str, int] = {}
    cut_from = 0  # documents that were cut into blocks to hold some of these out
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
    about = {**({"sources": sources} if corpus.parts else {}), **({"blocks_of": cut_from} if cut_from else {})}
    return _held(sides, about=about)


def _held(sides: Sides, longest: int | None = None, about: dict[str, Any] | None = None) -> _Dealt:
    def documents() -> Iterator[tuple[int, str]]:
        return chain.from_iterable(((number, text) for text in side) for number, side in enumerate(sides))

    return _Dealt(documents, lambda: sides[0], tuple(map(len, sides)), longest, about)


def _dealt_unread(corpus: Corpus, most: int) -> _Dealt | None:
    """A corpus that is read again for each use: only sizes and digests of its documents are held, to find exact repeats and
    to choose the same sides as if it were held. `None` where it has too few documents to hold whole ones out."""
    sizes, digests = array("q"), array("Q")
    with progress.bar(total=corpus.size, label=f"Reading {corpus.name}", unit="B", unit_scale=True) as bar:
        for document in corpus.documents():
            raw = document.encode()
            sizes.append(len(raw))
            digests.append(int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big"))
            bar.update(len(raw))
    first = np.sort(np.unique(np.asarray(digests), return_index=True)[1])  # of each text, where it stands first
    read = np.asarray(sizes)
    kept = read[first].tolist()
    side_of_each, learned = (np.full(len(read), -1, np.int8) for _ in range(2))  # -1: a repeat, or not needed
    side_of_each[first] = deal(kept, most)
    learned[first] = side_of_each[first] if most == ENOUGH else deal(kept, ENOUGH)
    counts = tuple(int((side_of_each == side).sum()) for side in range(len(SIDES)))
    if counts[2] < FEWEST_TEST_DOCUMENTS or not all(counts):
        return None

    def documents(sides: NDArray[np.int8] = side_of_each) -> Iterator[tuple[int, str]]:
        try:
            for side, document in zip(sides.tolist(), corpus.documents(), strict=True):
                if side >= 0:
                    yield side, document
        except ValueError:
            raise CorpusError(f"corpus '{corpus.name}' was changed while it was read") from None

    def to_learn() -> Iterator[str]:  # the same for short and long runs
        return (document for side, document in documents(learned) if side == 0)

    about = None
    if sum(counts) < len(first):
        about = {"drawn_from": len(first), "more": True}
        used, held = (int(read[chosen].sum()) / 1e6 for chosen in (side_of_each >= 0, first))
        progress.say(f"{corpus.name}: {used:,.0f} of {held:,.0f} MB are tokenised, all that the run needs.")
    return _Dealt(documents, to_learn, counts, about=about)


def _streamed(corpus: Corpus, experiment: Experiment, tokenizer: Any | None, scale: int) -> _Dealt:
    """Documents of an endless corpus, just as many as give each side the tokens it needs.

    Each document's side is decided by a hash of its text alone, so exact repeats never stand on two. A held-out
    document counts for at most a tenth of its side; what is left of it is not trained on either. Without a tokenizer
    yet, the tokens of a document are taken to be the fewest it can have.
    """
    drawn = experiment.draw_len or experiment.seq_len
    needed = [n * drawn + 1 for n in needed_windows(experiment)]
    longest = max(int(LARGEST_HELD_OUT_SHARE * (needed[2] - 1)), 2)
    sides: Sides = ([], [], [])
    counts, more = [0, 0, 0], False
    with progress.bar(total=sum(needed), label=f"Streaming {corpus.name}", unit=" tokens") as bar:
        for document in corpus.documents():
            side = side_of(document)
            if counts[side] >= needed[side]:
                continue
            bytes_per_token = scale * _BYTES_PER_TOKEN
            size = 1 + (len(token_lists(tokenizer, [document])[0]) if tokenizer else len(document.encode()) // bytes_per_token)
            if side:
                size = min(size, longest)
            sides[side].append(document)
            bar.update(min(size, needed[side] - counts[side]))
            counts[side] += size
            if all(count >= need for count, need in zip(counts, needed, strict=True)):
                more = tokenizer is None
                break
    if not all(sides):
        raise too_few(corpus.name, sum(map(len, sides)))
    return _held(sides, longest, {"more": True} if more else None)


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
