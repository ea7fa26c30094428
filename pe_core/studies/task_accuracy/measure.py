"""How often models trained on short instances of a task answer right, at the trained length and beyond.

After Kazemnejad et al. 2023 (arXiv 2305.19466). Shapes: B instances, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pe_core import encodings, hardware, progress, records, stats
from pe_core.attention import Positions
from pe_core.data import tasks
from pe_core.data.dataset import token_ids
from pe_core.data.tasks import Instance
from pe_core.errors import ConfigError, RecordError
from pe_core.launch import processes
from pe_core.records import Record
from pe_core.stats import Estimate, Paired

FACTORS = (0.5, 1.0, 1.5, 2.0, 4.0)  # lengths tested at, times the one trained at
COUNT = 500  # instances at each
DEPTHS = 5  # parts of the question that are told apart where an answer stands at one place
LEARNED = 0.95  # share of answers right within the trained length from which a task counts as learned
_BATCH_TOKENS = 4_096
_VERSION = 1  # part of the file's name: raise it when the code below measures something else


def evaluate(record: Record, factors: Sequence[float] = FACTORS, count: int = COUNT) -> list[dict[str, Any]]:
    """How often a model trained on a task answers right, by length. Computed once, then read from the run's folder.

    At each length, a factor times the length trained at, `count` held-out instances of the largest size that fits are asked.
    An answer is right where every one of its symbols is the likeliest after the question and the answer's earlier symbols,
    which is what greedy decoding writes.

    Returns:
        for each factor `factor`, `tokens` (length), `size`, `count`, `whole` (share of answers that are right), `symbols`
        (share of their symbols), `chance_whole`, `chance_symbols` (`tasks.chance`), and `depths`: for tasks whose answer stands
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
    with progress.quiet_transformers():
        model = record.model().float().to(hardware.device("auto"))
    task = tasks.load(name)
    found = []
    for factor in progress.bar(factors, f"{record.label}, {name}", unit=" lengths"):
        tokens = round(factor * record.config["seq_len"])
        try:
            size = task.largest(tokens)
        except ConfigError:
            continue
        asked = tasks.some(task, 2, range(size, size + 1), count)
        guessing = tasks.chance(name, size)
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
    encoding (`encodings.length_extensions`)."""
    trained = record.config["seq_len"]
    others = encodings.length_extensions(record.config["encoding"], record.config["options"], trained, max(tokens, trained))
    try:
        with torch.no_grad():
            model(torch.zeros(1, tokens, dtype=torch.long, device=model.device), use_cache=False)
    except ConfigError:
        if not others:
            raise
        name, options = next(iter(others.values()))
        with progress.quiet_transformers():
            stretched = type(model).from_pretrained(record.folder / records.MODEL, encoding=name, encoding_options=options)
        return stretched.eval().float().to(model.device)
    return model


def answered(model: Any, asked: Sequence[Instance]) -> list[NDArray[np.bool_]]:
    """For each instance, which symbols of the answer are the likeliest ones, all before them given.

    Raises:
        ConfigError: the encoding has no such positions.
    """
    T = max(len(instance.symbols) for instance in asked)
    windows = tasks.encode(asked, T)
    found = []
    with torch.no_grad():
        for batch in np.array_split(windows, math.ceil(windows.size / _BATCH_TOKENS)):
            ids_BT = torch.from_numpy(token_ids(batch[:, :-1]).astype(np.int64)).to(model.device)
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
    here = [record for record in trained if record.has_weights]  # published runs have been asked
    processes.for_each_run(_evaluate_folder, here, tuple(factors), count)
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
    """Tasks that some model learned: so many of its answers are right within the trained length (`LEARNED`)."""
    within = table[table.factor <= 1].groupby(["task", "label"], sort=False).whole.mean().groupby("task", sort=False).max()
    return list(within.index[within >= LEARNED])


def able(table: pd.DataFrame) -> pd.DataFrame:
    """Who answers 95 % of questions right (`frame`, the mean over seeds), by task: within the trained length, and at each
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
    """The paper's order, pair by pair, against `scores`: better, worse (labels), difference, low, high, p_holm, detectable
    (`stats.detectable`) and verdict: `holds`, `reversed` or `no difference found`. Paired by seed and task; intervals over
    both, corrected for all pairs."""
    rows, differences = [], []
    for better, worse in CLAIMS:
        ours, theirs = (table[table.encoding == name] for name in (better, worse))
        if ours.empty or theirs.empty:
            continue
        ours, theirs = (some[some.label == some.label.iloc[0]] for some in (ours, theirs))  # the first model of the encoding
        differences.append(_difference(ours, theirs))
        rows.append((ours.label.iloc[0], theirs.label.iloc[0]))
    corrected = zip(rows, stats.corrected(differences), strict=True)
    told = [(*pair, *one.estimate, one.p, one.detectable) for pair, one in corrected]
    found = pd.DataFrame(told, columns=["better", "worse", "difference", "low", "high", "p_holm", "detectable"])
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
