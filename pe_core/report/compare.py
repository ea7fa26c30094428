"""What finished runs say about each other, as text, table and picture: `python -m pe_core compare`, and after every sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pe_core import comparison, recipes
from pe_core.comparison import Groups
from pe_core.config import Experiment
from pe_core.encodings import ENCODINGS
from pe_core.errors import ConfigError, RecordError, unknown
from pe_core.records import Record
from pe_core.report import claims, tables

_USUAL = ("rope-full", "rope", "none")  # baselines, the first that was trained


def comparisons(found: Sequence[Record], against: str | None = None) -> list[tuple[Groups, str]]:
    """The models that can be compared, and the label of their baseline: one entry for each setting (size, text, training) in
    which at least two models were trained, that with most models first.

    Args:
        against: the baseline: a model's label or short name (`rope-full`, any encoding). `None` is RoPE, NoPE, or the first.

    Raises:
        RecordError: no two models were trained alike, or none of them is `against`.
    """
    alike = [group for group in comparison.settings(found) if len({record.label for record in group}) > 1]
    if not alike:
        labels = {record.label for record in found}
        raise RecordError(
            f"{len(found)} finished run(s) of {len(labels)} model(s): two models trained alike (same text, windows, size and "
            "training) are needed for a comparison"
        )
    chosen = []
    for group in alike:
        groups = comparison.groups(comparison.at_chosen_rates(group))
        common = comparison.of_common_seeds(groups)  # a mean over other seeds is not comparable
        groups = common if all(common.values()) else groups
        label = baseline(groups, against)
        if label:
            chosen.append((groups, label))
    if not chosen:
        raise RecordError(unknown("baseline", against or "", sorted({record.label for group in alike for record in group})))
    return chosen


def baseline(groups: Groups, against: str | None = None) -> str | None:
    """The label of the baseline among these models: `against` as in `comparisons`, or `None` where it is not there."""
    if against in groups:
        return against
    for name in [against] if against else _USUAL:
        if name in ENCODINGS or _is_model(name):
            label = Experiment(**recipes.model(name)).label
            of_encoding = [label for label, group in groups.items() if group[0].config["encoding"] == name]
            if label in groups or len(of_encoding) == 1:
                return label if label in groups else of_encoding[0]
    titled = [label for label in groups if against and label.casefold().startswith(against.casefold())]
    if len(titled) == 1:
        return titled[0]
    return None if against else next(iter(groups))


def _is_model(name: str) -> bool:
    try:
        recipes.model(name)
    except ConfigError:
        return False
    return True


def table(groups: Groups, against: str) -> pd.DataFrame:
    """One row a model, best first: what `comparison.frame` says, in the columns a reader wants."""
    rows = comparison.frame(groups, against).sort_values("perplexity")
    columns = ["label", "seeds", "perplexity", "bits_per_byte", "percent", "low", "high", "p_holm", "verdict", "detectable"]
    return rows[columns].reset_index(drop=True)


def text(groups: Groups, against: str) -> str:
    """The comparison in words and a table of plain text."""
    rows, group = comparison.frame(groups, against), groups[against]
    shown = [["model", "seeds", "perplexity", f"% against {against}", "verdict"]]
    for row in rows.sort_values("perplexity").itertuples():
        percent = "–" if math.isnan(row.percent) else tables.interval([row.percent, row.low, row.high])
        verdict = row.verdict if isinstance(row.verdict, str) else "baseline"
        shown.append([row.label, str(row.seeds), f"{row.perplexity:.2f}", percent, verdict])
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in shown]
    said = claims.ranking(rows, against).replace("**", "")
    return "\n".join([f"{claims.scale(group)}", "", *lines, "", said])


def texts(chosen: Sequence[tuple[Groups, str]]) -> str:
    """`text` of each comparison; of several, under what tells its setting from the others', as `samples=1000, seq_len=128`."""
    used = [dict(next(iter(groups.values()))[0].experiment) for groups, _ in chosen]
    names = [name for name in used[0] if name not in comparison.COMPARED and len({repr(one[name]) for one in used}) > 1]
    heads = [", ".join(f"{name}={one[name]}" for name in names) for one in used]
    return "\n\n\n".join(f"{head}\n{text(*one)}".lstrip("\n") for head, one in zip(heads, chosen, strict=True))


def plot(groups: Groups, against: str, file: str | Path) -> Path:
    """Differences to the baseline with their intervals, drawn into a file (.svg, .png, .pdf).

    Raises:
        ConfigError: the file's ending is none that can be drawn.
    """
    from pe_core.report import figures  # takes a second to load

    figures.style()
    return figures.save(figures.forest(comparison.frame(groups, against), against), file)


def plot_positions(found: Sequence[Record], file: str | Path) -> Path:
    """Perplexity by position of these runs, drawn into a file.

    Raises:
        ConfigError: as `plot`.
        RecordError: they were measured on different text.
    """
    from pe_core import records
    from pe_core.report import figures

    if len({record.data["fingerprint"] for record in found}) > 1:
        raise RecordError("these runs were measured on different text, where perplexities do not compare")
    figures.style()
    curves = comparison.curves(comparison.groups(found))
    return figures.save(figures.position_curves(curves, figures.styles(records.frame(list(found)))), file)
