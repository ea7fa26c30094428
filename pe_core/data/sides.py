"""Which side of the split text belongs to: training; validation, on which training stops and settings are chosen; test,
which every reported number is measured on and nothing is chosen by.

A split is by document. Where a text has too few documents (one book, say), contiguous blocks of it are held out instead.
"""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pe_core.data.text import ENOUGH
from pe_core.errors import CorpusError

# The split and the choice of windows do not depend on the run's seed: runs of all seeds see the same held-out text.
SPLIT_SEED = 20_251_205
# Shares of the text. Validation is small: it is measured after each epoch, and has only to tell settings apart.
# A corpus larger than `ENOUGH` is held out no more of than one of that size: measuring would take longer than training.
TEST_SHARE, VALIDATION_SHARE = 0.1, 0.03
# No held-out document may fill more than this share of the test side, or it alone would decide the result. A streamed one
# that would is cut.
LARGEST_HELD_OUT_SHARE = 0.1
SIDES = ("train", "validation", "test")
# So few test documents give no interval worth its name: then, blocks of documents are held out. Their number and least size
# follow from what an interval needs (some ten of them on the test side) and from the windows that have to fit into one.
FEWEST_TEST_DOCUMENTS = 3
_BLOCKS, _BLOCK = (40, 200), (200, 1_000)  # fewest and most blocks; least and usual characters of one
_GAP = 300  # characters left out at either end of a held-out block, a tenth of it at most: its neighbour half tells them

Sides = tuple[list[str], list[str], list[str]]  # texts by side


def split(documents: list[str], name: str = "corpus") -> Sides:
    """Training, validation and test documents: whole documents in a fixed random order go to the test side until it has a
    tenth of all bytes, then to the validation side until that has 3 %. Documents that would fill more than a tenth of
    the test side by themselves are trained on, unless the corpus has too few smaller ones.

    Where fewer than three documents would be tested on, documents are cut into contiguous blocks of about equal length
    and these are split in the same way (`blocks_of` tells).

    Raises:
        CorpusError: too little text for three sides.
    """
    sides = _deal(documents)
    if len(sides[2]) >= FEWEST_TEST_DOCUMENTS and all(sides):
        return sides
    blocks, document_of = _blocks(documents, name)
    _, validation, test = _deal(list(dict.fromkeys(blocks)))
    held_out = {*validation, *test}
    # What is trained on between two held-out blocks stays one text.
    kept: list[str] = []
    last = None
    for block, document in zip(blocks, document_of, strict=True):
        if block in held_out:
            last = None
        elif document == last:
            kept[-1] += block
        else:
            kept.append(block)
            last = document
    if sum(map(len, kept)) < sum(map(len, blocks)) / 2:
        raise CorpusError(f"corpus '{name}' repeats itself: without what is held out, too little is left to train on")
    return kept, list(map(_inside, validation)), list(map(_inside, test))


def blocks_of(documents: list[str], sides: Sides) -> int | None:
    """How many documents the held-out blocks of a split were cut from; `None` where whole documents are held out."""
    return None if set(sides[2]) <= set(documents) else len(documents)


def deal(sizes: list[int], most: int | None = None) -> NDArray[np.int8]:
    """The side of each document, by its size in bytes; of training documents only the first drawn that hold `most` bytes
    together, and -1 for the others."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(sizes)).tolist()
    test = _draw(order, sizes, TEST_SHARE)
    validation = _draw([index for index in order if index not in test], sizes, VALIDATION_SHARE)
    sides = np.zeros(len(sizes), np.int8)
    sides[list(test)], sides[list(validation)] = 2, 1
    if most is not None:
        drawn = np.array(order)[sides[order] == 0]
        sides[drawn[1:][np.cumsum(np.array(sizes)[drawn])[:-1] >= most]] = -1
    return sides


def _deal(texts: list[str]) -> Sides:
    sides: Sides = ([], [], [])
    for text, side in zip(texts, deal([len(text.encode()) for text in texts]).tolist(), strict=True):
        sides[side].append(text)
    return sides


def _blocks(documents: list[str], name: str) -> tuple[list[str], list[int]]:
    """Documents cut, at white space where there is some, into blocks of about equal length; and the document of each."""
    total = sum(map(len, documents))
    (fewest, most), (least, usual) = _BLOCKS, _BLOCK
    if total < fewest * least:
        raise CorpusError(
            f"corpus '{name}' holds {len(documents)} document(s) of {total:,} characters together, too little to hold some "
            f"out: at least three test documents (some 30 in all) or {fewest * least:,} characters are needed"
        )
    size = total / min(max(total // usual, fewest), most)
    blocks, of = [], []
    for index, document in enumerate(documents):
        count = max(1, round(len(document) / size))
        near = [len(document) * k // count for k in range(1, count)]
        cuts = [found.start() if (found := _WHITE.search(document, at, at + least // 2)) else at for at in near]
        blocks += [document[start:end] for start, end in pairwise([0, *cuts, len(document)])]
        of += [index] * count
    return blocks, of


_WHITE = re.compile(r"\s")


def _inside(block: str) -> str:
    gap = min(len(block) // 10, _GAP)
    return block[gap : len(block) - gap].strip()


def _draw(order: list[int], sizes: list[int], share: float) -> set[int]:
    """Documents of `order`, as they come, that together have this share of all bytes, at most of `ENOUGH`."""
    total = min(sum(sizes), ENOUGH)
    budget = share * total
    # In a corpus of few, similar documents none is small enough: there, the smaller ones that hold twice the budget are.
    ascending = np.sort(np.array(sizes, np.int64)[order])
    enough = ascending[min(int(np.searchsorted(np.cumsum(ascending), 2 * budget)), len(ascending) - 1)] if order else 0
    largest = max(LARGEST_HELD_OUT_SHARE * TEST_SHARE * total, enough)
    drawn: set[int] = set()
    taken = 0
    for index in order:
        if taken >= budget:
            break
        if sizes[index] <= largest and taken + sizes[index] <= max(budget, sizes[index]):
            drawn.add(index)
            taken += sizes[index]
    return drawn


def too_few(name: str, documents: int) -> CorpusError:
    """For a stream that ended before each side had a document."""
    return CorpusError(f"corpus '{name}' holds {documents} document(s), too few for training, validation and test text")


def side_of(document: str) -> int:
    """Which of `SIDES` a document of an endless corpus belongs to, by a hash of its text: a tenth to each held-out side, so
    that neither has to be waited for."""
    digest = hashlib.blake2b(document.encode(errors="replace"), digest_size=8, key=b"split").digest()
    share = int.from_bytes(digest, "big") / 2**64
    return 2 if share < TEST_SHARE else 1 if share < 2 * TEST_SHARE else 0
