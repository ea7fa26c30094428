"""Tasks with exact answers, generated.

A task is one function here: from a random generator and a size n it draws an instance, a question with its answer. It is in
`TASKS`, in the error message for unknown names, and in every test parametrised over tasks without another edit (its answers
have to be worked out a second way in the tests, which say so where that is missing). `Experiment(corpus="task:copy")` trains
on it: a window holds one instance after an end-of-text token, and only answers are predicted.

After Kazemnejad et al. 2023 (arXiv 2305.19466). Shapes: B instances, T tokens.
"""

from __future__ import annotations

import math
import string
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pe_core.config import Experiment
from pe_core.data.dataset import Data, windows_fingerprint
from pe_core.data.sides import SIDES, side_of
from pe_core.data.text import DOCUMENT_END
from pe_core.errors import ConfigError, CorpusError, unknown

DIGITS, LETTERS = string.digits, string.ascii_lowercase
KEYS = tuple(f"k{i}" for i in range(128))
ASK, PLUS, MARK = ":", "+", "#"  # ends a question; adds; stands before a passkey
SYMBOLS = (DOCUMENT_END, *DIGITS, *LETTERS, ASK, PLUS, MARK, *KEYS)

_GROUPS = 200  # held-out instances are resampled in so many groups: as good as one by one, and cheaper
_VERSION = 1  # of the instances, part of every fingerprint's record: raise it when the code below draws others
# Instances do not depend on the run's seed: runs of all seeds and encodings train and are tested on the same ones.
_SEED = 20_230_530

Random = np.random.Generator


class Instance(NamedTuple):
    """A question and its answer as one sequence of symbols.

    Attributes:
        asked: which symbols are the answer; these are predicted, the others are given.
        depth: where in the question the answer stands, from 0 (its beginning) to 1; NaN where it is no one place.
    """

    symbols: tuple[str, ...]
    asked: tuple[bool, ...]
    depth: float = math.nan

    @property
    def answer(self) -> tuple[str, ...]:
        return tuple(symbol for symbol, asked in zip(self.symbols, self.asked, strict=True) if asked)


class Task(NamedTuple):
    """A way to draw instances.

    Attributes:
        about: one sentence.
        draw: (generator, n) -> instance; all instances of one n have the same number of symbols, which grows with n.
        shortest, most: the least and the largest n there are.
    """

    name: str
    about: str
    draw: Callable[[Random, int], Instance]
    shortest: int
    most: int

    def tokens(self, n: int) -> int:
        """Symbols of an instance of size n."""
        return len(self.draw(np.random.default_rng(0), n).symbols)

    def largest(self, tokens: int) -> int:
        """The largest n whose instances have at most so many symbols.

        Raises:
            ConfigError: not even the shortest fit.
        """
        if self.tokens(self.shortest) > tokens:
            raise ConfigError(f"task '{self.name}' needs at least {self.tokens(self.shortest)} tokens, not {tokens}")
        sizes = range(self.shortest, min(self.most, tokens) + 1)
        return sizes[bisect_right(sizes, tokens, key=self.tokens) - 1]


TASKS: dict[str, Task] = {}


def _task(shortest: int, most: int = 1_000_000) -> Callable[[Callable[[Random, int], Instance]], Task]:
    """The function below is a task, named and described by its own name and the first line of its docstring."""

    def add(draw: Callable[[Random, int], Instance]) -> Task:
        assert draw.__doc__ is not None
        task = TASKS[draw.__name__] = Task(draw.__name__, draw.__doc__.splitlines()[0], draw, shortest, most)
        return task

    return add


def load(name: str) -> Task:
    """Raises CorpusError for an unknown name."""
    if name not in TASKS:
        raise CorpusError(unknown("task", name, TASKS))
    return TASKS[name]


def _some(rng: Random, n: int, symbols: Sequence[str] = LETTERS) -> list[str]:
    return [symbols[i] for i in rng.integers(len(symbols), size=n).tolist()]


def _pairs(rng: Random, n: int) -> list[tuple[str, str]]:
    """Different keys, each with a letter."""
    return list(zip([KEYS[i] for i in rng.permutation(len(KEYS))[:n]], _some(rng, n), strict=True))


def _answered(question: Sequence[str], answer: Sequence[str], depth: float = math.nan) -> Instance:
    return Instance((*question, *answer), (*[False] * len(question), *[True] * len(answer)), depth)


# --- the tasks -------------------------------------------------------------------------------------------------------


@_task(shortest=4)
def copy(rng: Random, n: int) -> Instance:
    """Repeat n letters."""
    letters = _some(rng, n)
    return _answered([*letters, ASK], letters)


@_task(shortest=4)
def reverse(rng: Random, n: int) -> Instance:
    """Repeat n letters from the last to the first."""
    letters = _some(rng, n)
    return _answered([*letters, ASK], letters[::-1])


@_task(shortest=4)
def sort(rng: Random, n: int) -> Instance:
    """Repeat n letters in alphabetical order."""
    letters = _some(rng, n)
    return _answered([*letters, ASK], sorted(letters))


@_task(shortest=2)
def addition(rng: Random, n: int) -> Instance:
    """Add two numbers of n digits; the sum has n + 1, from the last to the first, as one carries."""
    a, b = _some(rng, n, DIGITS), _some(rng, n, DIGITS)
    total = str(int("".join(a)) + int("".join(b))).zfill(n + 1)
    return _answered([*a, PLUS, *b, ASK], total[::-1])


@_task(shortest=9)
def counting(rng: Random, n: int) -> Instance:
    """Count a letter among n: from none to nine times, whatever n is."""
    letter, *others = rng.permutation(list(LETTERS)).tolist()
    count = int(rng.integers(10))
    letters = rng.permutation([letter] * count + _some(rng, n - count, others)).tolist()
    return _answered([*letters, ASK, letter], [DIGITS[count]])


@_task(shortest=4)
def parity(rng: Random, n: int) -> Instance:
    """Is the number of ones among n bits odd?"""
    bits = _some(rng, n, "01")
    return _answered([*bits, ASK], [str(bits.count("1") % 2)])


@_task(shortest=4)
def induction(rng: Random, n: int) -> Instance:
    """Which letter followed this one, which occurs once among n letters?"""
    letter, *others = rng.permutation(list(LETTERS)).tolist()
    letters, at = _some(rng, n, others), int(rng.integers(n - 1))
    letters[at] = letter
    return _answered([*letters, ASK, letter], [letters[at + 1]], at / (n - 2))


@_task(shortest=2, most=len(KEYS))
def recall(rng: Random, n: int) -> Instance:
    """Which letter stood beside each of n keys? All are asked for, in another order.

    Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).
    """
    pairs = _pairs(rng, n)
    asked = [pairs[i] for i in rng.permutation(n).tolist()]
    return Instance((*chain(*pairs), *chain(*asked)), (*[False] * 2 * n, *[False, True] * n))


@_task(shortest=2, most=len(KEYS))
def multikey(rng: Random, n: int) -> Instance:
    """Which letter stood beside one of n keys?

    Multi-key retrieval of RULER (Hsieh et al. 2024, arXiv 2404.06654), without its sentences.
    """
    pairs, at = _pairs(rng, n), int(rng.integers(n))
    return _answered([*chain(*pairs), ASK, pairs[at][0]], pairs[at][1:], at / (n - 1))


@_task(shortest=2, most=len(KEYS) // 3)
def tracking(rng: Random, n: int) -> Instance:
    """A letter is given to a key, that key to a second and that to a third, n times: for which letter does one third key stand?

    After variable tracking of RULER (Hsieh et al. 2024, arXiv 2404.06654), which names the value and asks for its variables:
    "k5 q" stands for k5 = q, "k2 k5" for k2 = k5. The n chains are woven together, each in its own order, and no two begin with
    the same letter where there are letters enough.
    """
    keys = np.array(KEYS)[rng.permutation(len(KEYS))[: 3 * n]].reshape(n, 3)
    letters = np.array(list(LETTERS))[np.resize(rng.permutation(len(LETTERS)), n)]
    steps, statements = [0] * n, []
    for one in rng.permutation(np.repeat(np.arange(n), 3)).tolist():
        step = steps[one]
        statements += [keys[one, step], keys[one, step - 1] if step else letters[one]]
        steps[one] += 1
    asked = int(rng.integers(n))
    return _answered([*map(str, statements), ASK, str(keys[asked, 2])], [str(letters[asked])])


@_task(shortest=4)
def cups(rng: Random, n: int) -> Instance:
    """Five cups, a ball under one: n times two of them change places. Under which is the ball?

    A state that has to be tracked through permutations of five: unless TC⁰ = NC¹, no transformer of fixed depth does so at
    every length (Merrill et al. 2024, arXiv 2404.08819).
    """
    ball = start = int(rng.integers(5))
    swaps: list[str] = []
    for _ in range(n):
        a, b = rng.permutation(5)[:2].tolist()
        ball = {a: b, b: a}.get(ball, ball)
        swaps += [DIGITS[a], DIGITS[b]]
    return _answered([DIGITS[start], *swaps, ASK], [DIGITS[ball]])


@_task(shortest=9)
def nth(rng: Random, n: int) -> Instance:
    """Which is the k-th letter from the end of n, k from 1 to 9?"""
    letters, k = _some(rng, n), int(rng.integers(1, 10))
    return _answered([*letters, ASK, DIGITS[k]], [letters[-k]])


@_task(shortest=11)
def offset(rng: Random, n: int) -> Instance:
    """Which letter stands k places after this one, which occurs once among n letters, k from 1 to 9?

    After the indirect indexing of PoPE (Gopalakrishnan et al. 2025, arXiv 2509.10534): found by content, then by position.
    """
    letter, *others = rng.permutation(list(LETTERS)).tolist()
    letters, k = _some(rng, n, others), int(rng.integers(1, 10))
    at = int(rng.integers(n - k))
    letters[at] = letter
    return _answered([*letters, ASK, letter, DIGITS[k]], [letters[at + k]])


@_task(shortest=4)
def passkey(rng: Random, n: int) -> Instance:
    """Find three digits behind a mark, somewhere among n letters.

    After Mohtashami and Jaggi 2023 (arXiv 2305.16300), with noise in place of their sentences.
    """
    letters, digits, at = _some(rng, n), _some(rng, 3, DIGITS), int(rng.integers(n + 1))
    return _answered([*letters[:at], MARK, *digits, *letters[at:], ASK], digits, at / n)


@_task(shortest=4)
def first(rng: Random, n: int) -> Instance:
    """Which was the first of n letters?"""
    letters = _some(rng, n)
    return _answered([*letters, ASK], letters[:1])


@_task(shortest=4)
def last(rng: Random, n: int) -> Instance:
    """Which was the last of n letters?"""
    letters = _some(rng, n)
    return _answered([*letters, ASK], letters[-1:])


# --- instances, and what guessing gets -------------------------------------------------------------------------------


def instances(task: Task, side: int, sizes: range, rng: Random) -> Iterator[Instance]:
    """Instances without end, of sizes drawn evenly, of one side of the split (see `dataset.SIDES`).

    A hash of an instance's symbols says which side it is on, a tenth of all on each held-out one, so that none is on two,
    whatever is drawn, in whatever order.

    Raises:
        CorpusError: none of these sizes has an instance on that side.
    """
    missed = 0
    while missed < 10_000:
        drawn = task.draw(rng, int(rng.choice(sizes)))
        missed += 1
        if side_of(" ".join(drawn.symbols)) == side:
            missed = 0
            yield drawn
    raise CorpusError(f"task '{task.name}': no {SIDES[side]} instance of size {sizes[0]} to {sizes[-1]} in 10,000 drawn")


def some(task: Task, side: int, sizes: range, count: int) -> list[Instance]:
    """The first `count` instances of these sizes, the same ones every time: fewer are a part of more."""
    rng = np.random.default_rng([_SEED, zlib.crc32(task.name.encode()), side, sizes[0], sizes[-1]])
    stream = instances(task, side, sizes, rng)
    return [next(stream) for _ in range(count)]


class Chance(NamedTuple):
    """What guessing gets: the share of whole answers that are right, and the share of their symbols."""

    whole: float
    symbols: float


@cache
def chance(name: str, n: int, count: int = 2_000) -> Chance:
    """The better of two guesses at instances of size n, by trying them out on training instances.

    One is the answer that is best without a look at the question: at each place the symbol that is right most often, chosen
    on one half of the instances and tried on the other. The other draws each symbol from those of the question that can be
    answers; its share is exact for each instance.
    """
    drawn = some(load(name), 0, range(n, n + 1), count)
    answers = np.array([instance.answer for instance in drawn])
    possible = set(answers.flat)
    half = count // 2
    best = np.array([max(sorted(set(column)), key=column.tolist().count) for column in answers[:half].T])
    right = answers[half:] == best
    shares = np.array([_shares(instance, possible) for instance in drawn[half:]])
    return Chance(
        whole=max(float(right.all(axis=1).mean()), float(shares.prod(axis=1).mean())),
        symbols=max(float(right.mean()), float(shares.mean())),
    )


def _shares(instance: Instance, possible: set[str]) -> list[float]:
    """For each symbol of the answer, its share among the symbols of the question that can be answers."""
    given = Counter(s for s, asked in zip(instance.symbols, instance.asked, strict=True) if not asked and s in possible)
    return [given[symbol] / max(given.total(), 1) for symbol in instance.answer]


def examples(names: Sequence[str]) -> pd.DataFrame:
    """A short training instance of each task, its answer in brackets."""
    rows = []
    for name in names:
        task = load(name)
        size = max(task.shortest, 6)
        (one,) = some(task, 0, range(size, size + 1), 1)
        shown = [f"[{symbol}]" if asked else symbol for symbol, asked in zip(one.symbols, one.asked, strict=True)]
        rows.append({"task": name, "what it asks": task.about, "an instance, [answer]": " ".join(shown)})
    return pd.DataFrame(rows)


# --- into the assembly line ------------------------------------------------------------------------------------------


@cache
def tokenizer() -> Any:
    """One token for each symbol; symbols are divided by spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(dict(_IDS), unk_token=DOCUMENT_END))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=DOCUMENT_END, eos_token=DOCUMENT_END, pad_token=DOCUMENT_END
    )


_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}


def encode(drawn: Sequence[Instance], T: int) -> NDArray[np.int32]:
    """Windows (B, T + 1): an end-of-text token, the instance, and end-of-text tokens to fill up. What is not asked for is
    negative (see `dataset.Tokens`)."""
    windows = np.full((len(drawn), T + 1), ~_IDS[DOCUMENT_END], np.int32)
    for window, instance in zip(windows, drawn, strict=True):
        ids = np.array([_IDS[symbol] for symbol in instance.symbols], np.int32)
        window[1 : len(ids) + 1] = np.where(instance.asked, ids, ~ids)
    return windows


@lru_cache(maxsize=16)  # runs of several seeds and encodings share them
def _windows(name: str, T: int, counts: tuple[int, ...]) -> list[NDArray[np.int32]]:
    """Windows of each side."""
    task = load(name)
    sizes = range(task.shortest, task.largest(T) + 1)
    return [encode(some(task, side, sizes, count), T) for side, count in enumerate(counts)]


def prepare(experiment: Experiment) -> Data:
    """Windows of a resolved experiment on a task, of every size up to the largest that fits into `seq_len`.

    Raises:
        CorpusError: there is no such task. ConfigError: a window is too short for it, or facts or a tokenizer were asked for.
    """
    task = load(experiment.task or "")
    if experiment.facts or experiment.tokenizer != "auto":
        name = "facts" if experiment.facts else "tokenizer"
        raise ConfigError(f"{name}={getattr(experiment, name)!r}: corpus='{experiment.corpus}' is no text and has none")
    sizes = range(task.shortest, task.largest(experiment.seq_len) + 1)
    counts = experiment.samples, experiment.heldout_windows, experiment.heldout_windows
    windows = _windows(task.name, experiment.seq_len, counts)
    documents = np.repeat(np.arange(counts[2], dtype=np.int32) % _GROUPS, experiment.seq_len).reshape(counts[2], -1)
    about = {
        "corpus": experiment.corpus,
        "corpus_about": f"{task.about} Sizes {sizes[0]} to {sizes[-1]}.",
        "corpus_version": f"tasks {_VERSION}",
        "licence": "generated",
        "tokenizer": f"a token for each of {len(SYMBOLS)} symbols; they stand for no text, so there are no bits per byte",
        "documents": dict(zip(SIDES, counts, strict=True)),
        "tokens": {side: int((part >= 0).sum()) for side, part in zip(SIDES, windows, strict=True)},
        "windows": dict(zip(SIDES, counts, strict=True)),
        "test_documents_measured": min(counts[2], _GROUPS),
        "sizes": [sizes[0], sizes[-1]],
    }
    fingerprint = windows_fingerprint(*windows, documents, tokenizer=tokenizer())
    train, validation, test = windows
    sizes_of_tokens = np.zeros(experiment.vocabulary, np.int32)
    return Data(train, validation, test, documents, sizes_of_tokens, tokenizer(), fingerprint, about)
