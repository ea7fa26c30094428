"""Tasks with exact answers, generated: trained on short, tested on the same and on longer lengths.

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pe_core import data, encodings, hardware, parallel, progress, records, stats
from pe_core.config import Experiment
from pe_core.corpus import DOCUMENT_END
from pe_core.data import Data
from pe_core.errors import ConfigError, CorpusError, RecordError, unknown
from pe_core.records import Record
from pe_core.stats import Estimate, Paired

DIGITS, LETTERS = string.digits, string.ascii_lowercase
KEYS = tuple(f"k{i}" for i in range(128))
ASK, PLUS, MARK = ":", "+", "#"  # ends a question; adds; stands before a passkey
SYMBOLS = (DOCUMENT_END, *DIGITS, *LETTERS, ASK, PLUS, MARK, *KEYS)

FACTORS = (0.5, 1.0, 1.5, 2.0, 4.0)  # lengths tested at, times the one trained at
COUNT = 500  # instances at each
DEPTHS = 5  # parts of the question that are told apart where an answer stands at one place
LEARNED = 0.9  # share of answers right within the trained length from which a task counts as learned
_GROUPS = 200  # held-out instances are resampled in so many groups: as good as one by one, and cheaper
_BATCH_TOKENS = 4_096
_VERSION = 1  # part of the file's name: raise it when the code below measures something else
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
    keys, letters = [KEYS[i] for i in rng.permutation(len(KEYS))[:n]], _some(rng, n)
    pairs = [symbol for pair in zip(keys, letters, strict=True) for symbol in pair]
    asked = [symbol for i in rng.permutation(n).tolist() for symbol in (keys[i], letters[i])]
    return Instance((*pairs, *asked), (*[False] * len(pairs), *[False, True] * n))


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
    """Instances without end, of sizes drawn evenly, of one side of the split (see `data.SIDES`).

    A hash of an instance's symbols says which side it is on, a tenth of all on each held-out one, so that none is on two,
    whatever is drawn, in whatever order.

    Raises:
        CorpusError: none of these sizes has an instance on that side.
    """
    missed = 0
    while missed < 10_000:
        drawn = task.draw(rng, int(rng.choice(sizes)))
        missed += 1
        if data.side_of(" ".join(drawn.symbols)) == side:
            missed = 0
            yield drawn
    raise CorpusError(f"task '{task.name}': no {data.SIDES[side]} instance of size {sizes[0]} to {sizes[-1]} in 10,000 drawn")


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
    negative (see `data.Tokens`)."""
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
        "documents": dict(zip(data.SIDES, counts, strict=True)),
        "tokens": {side: int((part >= 0).sum()) for side, part in zip(data.SIDES, windows, strict=True)},
        "windows": dict(zip(data.SIDES, counts, strict=True)),
        "test_documents_measured": min(counts[2], _GROUPS),
        "sizes": [sizes[0], sizes[-1]],
    }
    fingerprint = data._fingerprint(*windows, documents, tokenizer=tokenizer())
    return Data(*windows, documents, np.zeros(experiment.vocabulary, np.int32), tokenizer(), fingerprint, about)


# --- how often a trained model is right ------------------------------------------------------------------------------


def evaluate(record: Record, factors: Sequence[float] = FACTORS, count: int = COUNT) -> list[dict[str, Any]]:
    """How often a model trained on a task answers right, by length. Computed once, then read from the run's folder.

    At each length, a factor times the length trained at, `count` held-out instances of the largest size that fits are asked.
    An answer is right where every one of its symbols is the likeliest after the question and the answer's earlier symbols,
    which is what greedy decoding writes.

    Returns:
        for each factor `factor`, `tokens` (length), `size`, `count`, `whole` (share of answers that are right), `symbols`
        (share of their symbols), `chance_whole`, `chance_symbols` (see `chance`), and `depths`: for tasks whose answer stands
        at one place, rows of `start`, `end`, `count`, `whole`. Shares are null where the encoding has no such positions (and
        nothing that may stand in for it), and a length for which the task has no instances is left out.

    Raises:
        RecordError: the run was not trained on a task, or an earlier result cannot be read.
    """
    name = record.experiment.task
    if name is None:
        raise RecordError(f"run {record.run}: trained on '{record.config['corpus']}', which is no task")
    file = _file(factors, count)
    if (kept := record.kept(file)) is not None:
        return list(kept)
    from pe_core.experiment import _quiet

    with _quiet():
        model = record.model().float().to(hardware.device("auto"))
    task = load(name)
    found = []
    for factor in progress.bar(factors, f"{record.label}, {name}", unit=" lengths"):
        tokens = round(factor * record.config["seq_len"])
        try:
            size = task.largest(tokens)
        except ConfigError:
            continue
        asked = some(task, 2, range(size, size + 1), count)
        guessing = chance(name, size)
        cell: dict[str, Any] = {
            "factor": factor,
            "tokens": tokens,
            "size": size,
            "count": count,
            "whole": None,
            "symbols": None,
        }
        cell |= {"chance_whole": guessing.whole, "chance_symbols": guessing.symbols, "depths": []}
        try:
            right = answered(_reading(record, model, tokens), asked)
        except ConfigError as error:
            progress.say(f"{record.label}, {name}, {tokens} tokens: {error}")
        else:
            whole = np.array([row.all() for row in right])
            cell |= {"whole": float(whole.mean()), "symbols": float(np.concatenate(right).mean())}
            cell["depths"] = _by_depth(np.array([instance.depth for instance in asked]), whole)
        found.append(cell)
    record.keep(file, found)
    return found


def asked(record: Record) -> bool:
    """Whether what `evaluate` finds by default is on record, so that no weights are needed."""
    return (record.folder / _file(FACTORS, COUNT)).exists()


def _file(factors: Sequence[float], count: int) -> str:
    return f"task-{_VERSION}-{'_'.join(f'{factor:g}' for factor in factors)}x{count}.json"


def _reading(record: Record, model: Any, tokens: int) -> Any:
    """The model as it is to read so many tokens: itself, or, where it has no such positions, with what may stand in for its
    encoding (`Encoding.stretched`)."""
    import torch

    trained = record.config["seq_len"]
    others = encodings.stretched(record.config["encoding"], record.config["options"], trained, max(tokens, trained))
    try:
        with torch.no_grad():
            model(torch.zeros(1, tokens, dtype=torch.long, device=model.device), use_cache=False)
    except ConfigError:
        if not others:
            raise
        from pe_core.experiment import _quiet

        name, options = next(iter(others.values()))
        with _quiet():
            stretched = type(model).from_pretrained(record.folder / records.MODEL, encoding=name, encoding_options=options)
        return stretched.eval().float().to(model.device)
    return model


def answered(model: Any, asked: Sequence[Instance]) -> list[NDArray[np.bool_]]:
    """For each instance, which symbols of the answer are the likeliest ones, all before them given.

    Raises:
        ConfigError: the encoding has no such positions.
    """
    import torch

    from pe_core.attention import Positions

    T = max(len(instance.symbols) for instance in asked)
    windows = encode(asked, T)
    found = []
    with torch.no_grad():
        for batch in np.array_split(windows, math.ceil(windows.size / _BATCH_TOKENS)):
            ids_BT = torch.from_numpy(data.token_ids(batch[:, :-1]).astype(np.int64)).to(model.device)
            positions_1T = torch.arange(T, device=model.device)[None]
            x_BTD, _, _ = model.hidden(ids_BT, Positions(positions_1T, positions_1T))
            scored = batch[:, 1:] >= 0
            likeliest = model.embed_out(x_BTD[torch.from_numpy(scored)]).argmax(dim=-1).cpu().numpy()
            found += np.split(likeliest == batch[:, 1:][scored], scored.sum(axis=1).cumsum()[:-1])
    return found


def _by_depth(depth: NDArray[np.float64], whole: NDArray[np.bool_]) -> list[dict[str, Any]]:
    if np.isnan(depth).any():
        return []
    part = np.minimum((depth * DEPTHS).astype(int), DEPTHS - 1)
    return [
        {"start": i / DEPTHS, "end": (i + 1) / DEPTHS, "count": int((part == i).sum()), "whole": float(whole[part == i].mean())}
        for i in range(DEPTHS)
        if (part == i).any()
    ]


def evaluate_all(
    trained: Sequence[Record], factors: Sequence[float] = FACTORS, count: int = COUNT
) -> list[list[dict[str, Any]]]:
    """`evaluate` for each record, on a CPU several at once."""
    if hardware.device("auto") == "cpu" and len(trained) > 1:
        jobs = {record.run: (record.folder, tuple(factors), count) for record in trained}
        parallel.each(_evaluate_folder, jobs, min(parallel.cores(), len(jobs)))
    return [evaluate(record, factors, count) for record in trained]


def _evaluate_folder(folder: Path, factors: tuple[float, ...], count: int) -> None:
    evaluate(records.load(folder), factors, count)


# --- frames ----------------------------------------------------------------------------------------------------------


def frame(trained: Sequence[Record], measured: Sequence[list[dict[str, Any]]]) -> pd.DataFrame:
    """One row for each model, task and length, over seeds with Student's intervals.

    Returns:
        columns label, encoding, family, task, factor, tokens, size, seeds, whole, whole_low, whole_high, symbols, symbols_low,
        symbols_high, chance_whole, chance_symbols; shares are NaN where the encoding has no such positions.
    """
    rows = []
    for record, cells in _groups(trained, measured):
        about = {"label": record.label, "encoding": record.config["encoding"], "family": record.family}
        for group in zip(*cells, strict=True):
            row = {name: group[0][name] for name in ("factor", "tokens", "size", "chance_whole", "chance_symbols")}
            for name in ("whole", "symbols"):
                known = [cell[name] for cell in group if cell[name] is not None]
                estimate = stats.over_seeds(known) if known else Estimate(math.nan, math.nan, math.nan)
                # A share lies between 0 and 1, whatever Student says of few seeds.
                row |= {name: estimate.value, f"{name}_low": max(estimate.low, 0.0), f"{name}_high": min(estimate.high, 1.0)}
            rows.append({**about, "task": record.experiment.task, "seeds": len(group), **row})
    return pd.DataFrame(rows)


def depths(trained: Sequence[Record], measured: Sequence[list[dict[str, Any]]]) -> pd.DataFrame:
    """By where the answer stands: label, family, task, factor, tokens, depth (middle of its part), whole, low, high."""
    rows = []
    for record, cells in _groups(trained, measured):
        about = {"label": record.label, "family": record.family, "task": record.experiment.task}
        for group in zip(*cells, strict=True):
            for parts in zip(*(cell["depths"] for cell in group), strict=False):
                value, low, high = stats.over_seeds([part["whole"] for part in parts])
                row = {
                    "factor": group[0]["factor"],
                    "tokens": group[0]["tokens"],
                    "depth": (parts[0]["start"] + parts[0]["end"]) / 2,
                }
                rows.append({**about, **row, "whole": value, "low": max(low, 0.0), "high": min(high, 1.0)})
    columns = ["label", "family", "task", "factor", "tokens", "depth", "whole", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _groups(
    trained: Sequence[Record], measured: Sequence[list[dict[str, Any]]]
) -> Iterator[tuple[Record, list[list[dict[str, Any]]]]]:
    """For each model and task its first record, and what was measured of each seed."""
    found: dict[tuple[str, str], tuple[Record, list[list[dict[str, Any]]]]] = {}
    for record, cells in zip(trained, measured, strict=True):
        found.setdefault((record.label, record.config["corpus"]), (record, []))[1].append(cells)
    yield from found.values()


def learned(table: pd.DataFrame) -> list[str]:
    """Tasks that some model learned: at least nine tenths of its answers are right within the trained length."""
    within = table[table.factor <= 1].groupby(["task", "label"], sort=False).whole.mean().groupby("task", sort=False).max()
    return list(within.index[within >= LEARNED])


def able(table: pd.DataFrame) -> pd.DataFrame:
    """Who answers nine of ten questions right (`frame`, the mean over seeds), by task: within the trained length, and at each
    length beyond.

    Returns:
        one row for each task and length: task, tokens (at most), beyond (False for all trained lengths in one), models (how
        many were asked), labels (of those that are able).
    """
    rows = []
    for task, part in table.groupby("task", sort=False):
        within = part[part.factor <= 1]
        lengths = [(False, within)] if len(within) else []
        lengths += [(True, rows) for _, rows in part[part.factor > 1].groupby("tokens")]
        for beyond, asked in lengths:
            shares = asked.groupby("label", sort=False).whole.mean()
            found = {"task": task, "tokens": asked.tokens.max(), "beyond": beyond, "models": len(shares)}
            rows.append({**found, "labels": list(shares.index[shares >= LEARNED])})
    return pd.DataFrame(rows, columns=["task", "tokens", "beyond", "models", "labels"])


# What the paper finds of five encodings: none does best, and T5's bias better than the other three.
CLAIMS = (
    *(("none", other) for other in ("t5", "alibi", "rope", "sinusoidal")),
    *(("t5", other) for other in ("alibi", "rope", "sinusoidal")),
)


def scores(trained: Sequence[Record], measured: Sequence[list[dict[str, Any]]], chosen: Sequence[str]) -> pd.DataFrame:
    """Share of answers right beyond the trained length, the mean over lengths: label, encoding, family, task, seed, score; of
    the chosen tasks. Where an encoding has no such positions its score is 0: it cannot answer."""
    rows = []
    for record, cells in zip(trained, measured, strict=True):
        beyond = [cell["whole"] or 0.0 for cell in cells if cell["factor"] > 1]
        if record.experiment.task in chosen and beyond:
            about = {"label": record.label, "encoding": record.config["encoding"], "family": record.family}
            rows.append(
                {**about, "task": record.experiment.task, "seed": record.config["seed"], "score": float(np.mean(beyond))}
            )
    return pd.DataFrame(rows, columns=["label", "encoding", "family", "task", "seed", "score"])


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """`scores` over tasks, best first: label, family, score, low, high; intervals over seeds."""
    rows = []
    for (label, family), part in table.groupby(["label", "family"], sort=False):
        value, low, high = stats.over_seeds(part.groupby("seed").score.mean().to_numpy())
        rows.append({"label": label, "family": family, "score": value, "low": max(low, 0.0), "high": min(high, 1.0)})
    return pd.DataFrame(rows, columns=["label", "family", "score", "low", "high"]).sort_values("score", ascending=False)


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's order, pair by pair, against `scores`: better, worse (labels), difference, low, high, p, p_holm, and verdict:
    `holds`, `reversed` or `no difference found`. Paired by seed and task; intervals over both (`stats.paired`)."""
    rows = []
    for better, worse in CLAIMS:
        ours, theirs = (table[table.encoding == name] for name in (better, worse))
        if ours.empty or theirs.empty:
            continue
        (estimate, p) = _difference(ours, theirs)
        labels = {"better": ours.label.iloc[0], "worse": theirs.label.iloc[0]}
        rows.append({**labels, "difference": estimate.value, "low": estimate.low, "high": estimate.high, "p": p})
    found = pd.DataFrame(rows, columns=["better", "worse", "difference", "low", "high", "p"])
    found["p_holm"] = stats.holm(found.p.to_numpy(float))
    found["verdict"] = [
        ("holds" if d > 0 else "reversed") if p < 0.05 else "no difference found"
        for d, p in zip(found.difference, found.p_holm, strict=True)
    ]
    return found


def _difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> Paired:
    """Mean difference of scores, seed by seed and task by task."""
    a, b = (part.pivot(index="seed", columns="task", values="score") for part in (ours, theirs))
    both = (a - b).dropna(how="all").dropna(axis="columns")
    if both.empty:
        return Paired(Estimate(math.nan, math.nan, math.nan), math.nan)
    return stats.paired(both.to_numpy(), np.ones(both.shape[1], np.int64))
