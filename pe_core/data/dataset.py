"""Token streams to windows and batches.

Whole documents go to one of three sides: `train`; `validation`, on which training stops and settings are chosen; and
`test`, which every reported number is measured on and nothing is chosen by.

Shapes: N training windows, M windows of one held-out side, T context length, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pe_core.config import Experiment
from pe_core.data import corpora
from pe_core.data import facts as fact_sentences
from pe_core.data import streams as token_streams
from pe_core.data.sides import SIDES, SPLIT_SEED
from pe_core.data.tokenizer import token_bytes, token_lists
from pe_core.errors import CorpusError

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
        together: windows that were cut from one drawn one, and stay in one batch.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    test_documents: NDArray[np.int32]
    token_bytes: NDArray[np.int32]
    tokenizer: Any
    fingerprint: str
    about: dict[str, Any]
    together: int = 1

    def batches(self, size: int, seed: int, epoch: int) -> Iterator[Tokens]:
        """Training windows (size, T + 1) in an order that depends on (seed, epoch) alone: runs of several context lengths that
        share `draw_len` have the same text in every batch, if their batches hold as many tokens, whole drawn windows of them.

        Windows that do not fill the last batch are left out of this epoch; another epoch's order is another.
        """
        n, together = len(self.train), self.together
        drawn = np.random.default_rng([seed, epoch]).permutation(n // together)
        # Those that are a part of a drawn one come last, so that they shift no other.
        order = np.append((drawn[:, None] * together + np.arange(together)).reshape(-1), np.arange(n - n % together, n))
        for start in range(0, len(order) - size + 1, size):
            yield self.train[order[start : start + size]]


def prepare(experiment: Experiment, cache: Path | None = None) -> Data:
    """The windows of a resolved experiment on text, from the token cache or built and cached.

    Raises:
        CorpusError: the corpus cannot be read, has too few documents to split, or holds fewer windows than
            `samples` asks for (the message says how many it holds).
    """
    corpus = corpora.load(experiment.corpus)
    streams = token_streams.load(corpus, experiment, cache)
    T, drawn = experiment.seq_len, experiment.draw_len or experiment.seq_len
    held = {side: (len(streams.tokens[side]) - 1) // drawn for side in SIDES}
    wanted = dict(zip(SIDES, token_streams.needed_windows(experiment), strict=True))
    if corpus.finite:  # all that is held out of it
        wanted |= {side: held[side] for side in SIDES[1:]}
    for side in SIDES:
        if held[side] < max(wanted[side], 1):
            raise CorpusError(
                f"samples={experiment.samples}: corpus '{corpus.name}' holds only {held['train'] * (drawn // T)} training "
                f"windows of seq_len={T} ({held['validation']} validation and {held['test']} test windows of {drawn})"
            )
    rng = np.random.default_rng([SPLIT_SEED, drawn])
    windows: dict[str, Tokens] = {}
    for side in SIDES:
        starts = _starts(held[side], wanted[side], drawn, rng, corpus.finite)
        starts = (starts[:, None] + np.arange(0, drawn, T)).reshape(-1)
        of_side: Any = sliding_window_view(streams.tokens[side], T + 1)
        windows[side] = of_side[starts[: experiment.samples if side == "train" else None]]
    targets = starts[:, None] + np.arange(1, T + 1)  # of the test side, the last one above
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
    return Data(train, windows["validation"], windows["test"], documents, sizes, tokenizer, fingerprint, about, drawn // T)


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
        digest.update(np.ascontiguousarray(part).data)
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
