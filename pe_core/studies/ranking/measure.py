"""The same models after several amounts of fresh text, or at several sizes: who leads, who is overtaken, on which kind of text.

Each run reads its text once, under a learning rate that rises and then falls to zero: a model after few tokens is a finished
small training, not a large one cut short. Rates are chosen on validation text, for each model and amount of text; every number
reported is of test documents, the same ones at every budget and size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd

from pe_core import comparison, metrics, recipes
from pe_core.comparison import Groups
from pe_core.config import Experiment
from pe_core.records import Record
from pe_core.stats import Estimate
from pe_core.sweeper import sweep

Budgets = dict[int, Groups]  # training windows → models by label, fewest windows first
Sizes = dict[str, Groups]  # preset → models by label, fewest parameters first


def grid(models: Sequence[str], budgets: Iterable[int], rates: Sequence[float], **common: Any) -> list[Experiment]:
    """One run for each budget (training windows), model (by its short name, see `recipes.model`) and learning rate."""
    return [
        Experiment(**recipes.model(name), **common, samples=samples, lr=rate)
        for samples in budgets
        for name in models
        for rate in rates
    ]


def search(asked: Iterable[Experiment], **options: Any) -> list[Record]:
    """Train a grid, and then on from it until each model's best rate at each budget lies between two others that were tried, or
    as far as `ROUNDS` more rates. `options` are those of `sweep`."""
    found = sweep(asked, **options)
    for _ in range(ROUNDS):
        if further := beyond(found):
            found += sweep(further, **options)
    return found


ROUNDS = 4


def beyond(searched: Sequence[Record]) -> list[Experiment]:
    """Wherever the best rate is an end of those tried, one more run: at twice the highest, or half the lowest."""
    asked = []
    for runs, tried, best in comparison.rates_tried(searched):
        if _at_end(tried, best):
            asked.append(runs[0].experiment.model_copy(update={"lr": best * (2 if best == max(tried) else 0.5)}))
    return asked


def _at_end(tried: dict[float, float], best: float) -> bool:
    return best in (min(tried), max(tried))


def repeat(searched: Sequence[Record], seeds: Iterable[int], **options: Any) -> list[Record]:
    """The study's runs: of a search the runs at the rates it chose, and the same with each of the other `seeds`."""
    chosen = comparison.at_chosen_rates(searched)
    others = [record.experiment.model_copy(update={"seed": seed}) for seed in seeds for record in chosen]
    return [*chosen, *(sweep(others, **options) if others else [])]


def rates(searched: Iterable[Record]) -> pd.DataFrame:
    """What a search found: for each model and budget its validation loss at each rate, and the rate with the lowest.

    Returns:
        columns label, samples (training windows), preset, one for each rate (NaN where it was not tried), lr, and at_end
        (whether the best rate is the lowest or highest that was tried there, so that another might be better).
    """
    rows = []
    for runs, tried, best in comparison.rates_tried(searched):
        experiment = runs[0].experiment
        row: dict[Any, Any] = {"label": runs[0].label, "samples": experiment.samples, "preset": experiment.preset, **tried}
        rows.append({**row, "lr": best, "at_end": _at_end(tried, best)})
    of_losses = sorted({rate for row in rows for rate in row if isinstance(rate, float)})
    return pd.DataFrame(rows, columns=["label", "samples", "preset", *of_losses, "lr", "at_end"])


def by_budget(trained: Iterable[Record]) -> Budgets:
    """Runs at the rates that were chosen, by number of training windows and model. Budgets of a single model are left out."""
    return {samples: groups for samples, groups in _apart(trained, "samples").items() if len(groups) > 1}


def by_size(trained: Iterable[Record]) -> Sizes:
    """Runs at the rates that were chosen, by size (preset) and model."""
    return _apart(trained, "preset")


def _apart(trained: Iterable[Record], setting: str) -> dict[Any, Groups]:
    kept = comparison.at_chosen_rates(trained)
    extent = {record.config[setting]: (record.config["samples"], record.parameters) for record in kept}
    values = sorted(extent, key=extent.__getitem__)
    return {value: comparison.groups([record for record in kept if record.config[setting] == value]) for value in values}


def tokens(groups: Groups) -> int:
    """Training tokens of each run of a budget."""
    record = next(iter(groups.values()))[0]
    return int(record.data["windows"]["train"]) * int(record.config["seq_len"])


def differences(apart: Budgets | Sizes, baseline: str) -> pd.DataFrame:
    """Each model against the baseline at each budget (or size), and how much that has changed since the smallest one.

    Returns:
        the columns of `comparison.verdicts` but b, with label and family for a, samples, tokens, parameters (of the first
        model), seeds, perplexity, and change, change_low, change_high, change_verdict since the smallest budget or size (NaN
        and "" there); every pair of models of one is corrected for, not the shown ones alone.
    """
    smallest = next(iter(apart.values()))
    parts = []
    for groups in apart.values():
        record = next(iter(groups.values()))[0]
        judged = comparison.verdicts(groups)
        rows = judged[judged.b == baseline].rename(columns={"a": "label"}).drop(columns="b")
        if groups is not smallest:
            moved = comparison.verdicts(groups, since=smallest)
            moved = moved[moved.b == baseline].set_index("a")[["percent", "low", "high", "verdict"]]
            moved.columns = ["change", "change_low", "change_high", "change_verdict"]
            rows = rows.join(moved, on="label")
        of = {label: group[0].family for label, group in groups.items()}
        losses = {label: np.mean([record.metrics["loss"] for record in group]) for label, group in groups.items()}
        seeds = {label: len(group) for label, group in groups.items()}
        parts.append(
            rows.assign(
                samples=record.config["samples"],
                tokens=tokens(groups),
                parameters=record.parameters,
                family=rows.label.map(of),
                seeds=rows.label.map(seeds),
                perplexity=np.exp(rows.label.map(losses)),
            )
        )
    table = pd.concat(parts, ignore_index=True)
    moved = table["change_verdict"].astype(object) if "change_verdict" in table else pd.Series("", index=table.index)
    return table.assign(change_verdict=moved.where(moved.notna(), ""))


def pair(budgets: Budgets, a: str, b: str) -> pd.DataFrame:
    """Model `a` against model `b` at every budget that has both: a row each of `comparison.verdicts`, with tokens."""
    rows = []
    for groups in budgets.values():
        judged = comparison.verdicts(groups)
        rows.append(judged[(judged.a == a) & (judged.b == b)].assign(tokens=tokens(groups)))
    return pd.concat(rows, ignore_index=True)


def leaders(budgets: Budgets) -> pd.DataFrame:
    """At each budget the model with the lowest loss, and which others could not be told from it.

    Returns:
        columns samples, tokens, models, parameters, seeds, documents, best, tied (list of labels, best first), detectable (the
        median over pairs of the smallest difference in percent that four of five such comparisons would find).
    """
    rows = []
    for samples, groups in budgets.items():
        judged = comparison.verdicts(groups)
        first, *tied = comparison.best(groups, judged)
        record = groups[first][0]
        rows.append(
            {
                "samples": samples,
                "tokens": tokens(groups),
                "models": len(groups),
                "parameters": record.parameters,
                "seeds": min(len(group) for group in groups.values()),
                "documents": record.metrics["documents"],
                "best": first,
                "tied": tied,
                "detectable": float(judged.detectable.median()),
            }
        )
    return pd.DataFrame(rows)


def by_source(groups: Groups, baseline: str) -> pd.DataFrame:
    """Each model against the baseline on each source of the corpus apart: the columns of `comparison.verdicts` but b, with
    label for a, and source. Each source's pairs are corrected for together."""
    record = next(iter(groups.values()))[0]
    parts = []
    for name, rows in comparison.sources(record).items():
        judged = comparison.verdicts(groups, rows)
        parts.append(judged[judged.b == baseline].rename(columns={"a": "label"}).drop(columns="b").assign(source=name))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def widest(budgets: Budgets) -> Groups:
    """The models of the largest budget that no other has more models of."""
    return max(reversed(list(budgets.values())), key=len)


def correlations(budgets: Budgets) -> pd.DataFrame:
    """Spearman's correlation of each budget's ranking with the next one's, over the models of both, and between sources at the
    widest budget: columns what, models, value, low, high (see `comparison.rank_correlation`)."""
    rows: list[dict[str, Any]] = []

    def add(what: str, models: int, estimate: Estimate) -> None:
        rows.append({"what": what, "models": models, **estimate._asdict()})

    for before, after in pairwise(budgets.values()):
        shared = sum(label in after for label in before)
        what = f"after {tokens(before) / 1e6:.1f} M against {tokens(after) / 1e6:.1f} M tokens"
        add(what, shared, comparison.rank_correlation(before, after))
    groups = widest(budgets)
    several = list(comparison.sources(next(iter(groups.values()))[0]).items())
    for (name, rows_a), (other, rows_b) in combinations(several, 2):
        what = f"{name} against {other}, after {tokens(groups) / 1e6:.1f} M tokens"
        add(what, len(groups), comparison.rank_correlation(groups, groups, rows_a, rows_b))
    return pd.DataFrame(rows)


def context_use(budgets: Budgets, label: str) -> pd.DataFrame:
    """How far back a model reads, at each budget: its loss by position, as the difference to its loss at the first positions.

    Returns:
        columns tokens, start, end, loss (nats above the whole budget's mean loss).
    """
    parts = []
    for groups in budgets.values():
        if label in groups:
            heldout = comparison.pooled(groups[label])
            curve = metrics.position_curve(heldout)
            parts.append(
                curve.assign(tokens=tokens(groups), loss=curve.loss - heldout.loss)[["tokens", "start", "end", "loss"]]
            )
    return pd.concat(parts, ignore_index=True)
