"""What was found inside trained models, in sentences, tables and figures."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas.io.formats.style import Styler

from pe_core.report import claims, figures, tables
from pe_core.stats import Estimate


def knows_position(table: pd.DataFrame) -> str:
    """Where position can be read off (`measure.probes`): models by what becomes of it from the embeddings on."""
    worked_out, told = "**Infer positions, which their embeddings lack**", "Keep the positions that their embeddings hold"
    no_more, unknown = (
        "No layer encodes position significantly better than the embeddings",
        "No interval, so nothing can be concluded",
    )
    said: dict[str, list[str]] = {worked_out: [], told: [], no_more: [], unknown: []}
    for label, rows in table.groupby("label", sort=False):
        start, best = rows.iloc[0], rows.loc[rows.r2.idxmax()]
        first, most = (Estimate(row.r2, row.low, row.high) for row in (start, best))
        if not (claims.has_interval(first) and claims.has_interval(most)):
            said[unknown].append(f"{label}, R² {claims.as_number(best.r2, 2)} at most")
        elif most.low <= max(0.0, first.high):
            said[no_more].append(f"{label}, R² {claims.as_number(start.r2, 2)} ({claims.as_range(first, digits=2)})")
        else:
            reached = f"R² {claims.as_number(best.r2, 2)} ({claims.as_range(most, digits=2)}) after layer {best.layer}"
            said[told if first.low > 0 else worked_out].append(f"{label}, {reached}")
    found = [f"{verdict}: {'; '.join(models)}." for verdict, models in said.items() if models]
    return "\n\n".join([*found, "R² of a linear probe on documents it was not fitted on, with 95 % intervals over documents."])


def uses_order(table: pd.DataFrame) -> str:
    """What the order of earlier tokens is worth (`measure.order`): for each number of tokens left in place, whose loss
    changes when the others are shuffled."""
    said = []
    for kept, rows in table[table.change == "shuffled"].groupby("kept"):
        known = rows.p_holm.notna() & rows.low.notna()
        ways = {
            "The loss **rises**": rows[known & rows.differs & (rows.rise > 0)],
            "The loss **falls**": rows[known & rows.differs & (rows.rise < 0)],
            "No difference is found": rows[known & ~rows.differs],
            "Nothing can be concluded, without an interval,": rows[~known],
        }
        parts = [f"{way} for {'; '.join(map(_rise, part.itertuples()))}." for way, part in ways.items() if len(part)]
        before = f"All but the nearest {kept} tokens" if kept else "All earlier tokens"
        said.append(f"{before} shuffled. {' '.join(parts)}")
    said.append(
        "In nats, with intervals over seeds and documents; significant where p < 0.05 after Holm's correction, in which "
        "intervals are corrected too."
    )
    return "\n\n".join(said)


def _rise(row: Any) -> str:
    interval = "" if math.isnan(row.low) else f" ({claims.as_range(Estimate(row.rise, row.low, row.high), digits=3)})"
    return f"{row.label}, {claims.as_number(row.rise, 3, '+')}{interval}"


def probes_table(table: pd.DataFrame) -> Styler:
    """`measure.probes`: one row a model, one column a layer."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        name = f"after layer {row.layer}" if row.layer else "embeddings"
        shown.setdefault(row.label, {})[name] = tables.interval([row.r2, row.low, row.high], 2)
    return tables.styled(pd.DataFrame(shown).T)


def order_table(table: pd.DataFrame) -> Styler:
    """`measure.order`: one row for each model and number of tokens left in place."""
    shown: dict[tuple[str, int], dict[str, Any]] = {}
    for row in table.itertuples():
        cells = shown.setdefault((row.label, row.kept), {"model": row.label, "nearest left in place": row.kept})
        cells[f"{row.change}, nats more"] = tables.interval([row.rise, row.low, row.high], 3)
        cells[f"p (Holm), {row.change}"] = tables.p_value(row.p_holm)
    return tables.styled(pd.DataFrame(list(shown.values()))).hide()


def attention_table(table: pd.DataFrame) -> Styler:
    """`measure.summary`: attention of each model, and of attention spread evenly."""
    columns = {"mean distance, tokens": ("distance", 1), "entropy, nats": ("entropy", 2), "share on first token": ("first", 3),
               "first token's length over others'": ("norm", 2)}  # fmt: skip
    shown = {
        title: [
            tables.interval([getattr(r, name), getattr(r, f"{name}_low"), getattr(r, f"{name}_high")], n)
            for r in table.itertuples()
        ]
        for title, (name, n) in columns.items()
    }
    return tables.styled(pd.DataFrame(shown, index=list(table.label)))


def wavelengths_table(table: pd.DataFrame) -> Styler:
    """`measure.values`: one row for each model, queries and keys apart, one column for each band of wavelengths."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault(f"{row.label}, {row.of}", {})
        cells[row.band] = f"{tables.interval([row.ratio, row.low, row.high])} of {row.dims}"
    return tables.styled(pd.DataFrame(shown).T.fillna("–"))


def probes_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """How well position can be read off, by layer (`measure.probes`), with 95 % bands over documents."""
    figure, ax = plt.subplots()
    for label, rows in table.groupby("label", sort=False):
        ax.plot(rows.layer, rows.r2, marker=".", label=label, **styles[label])
        ax.fill_between(rows.layer, rows.low, rows.high, color=styles[label]["color"], alpha=0.15, lw=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        title="R² of position, linear probe",
        xlabel="after layer (0: embeddings)",
        ylabel="",
        ylim=(min(-0.05, table.low.min()), 1.02),
    )
    figures.figure_legend(figure, ax.get_legend_handles_labels()[0])
    return figure


def order_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Rise of the loss where earlier tokens are shuffled, and where they are removed (`measure.order`)."""
    kept, labels = sorted(table.kept.unique()), list(dict.fromkeys(table.label))
    figure, axes = plt.subplots(2, 1, sharex=True, sharey=True, figsize=(figures.WIDTH, 6.4))
    for ax, change in zip(axes, ("shuffled", "removed"), strict=True):
        for nth, label in enumerate(labels):
            rows = table[(table.change == change) & (table.label == label)]
            at = [kept.index(n) + 0.6 * ((nth + 0.5) / len(labels) - 0.5) for n in rows.kept]
            ax.vlines(at, rows.low, rows.high, color=styles[label]["color"], lw=2)
            ax.plot(at, rows.rise, figures.MARKS[nth % len(figures.MARKS)], ms=5, color=styles[label]["color"], label=label)
        ax.axhline(0, color="0.4", lw=1)
        ax.set_xticks(range(len(kept)), [f"{n}" for n in kept])
        ax.set(title=f"Loss when {change}, nats more", xlabel="nearest tokens left in place", ylabel="")
        ax.grid(axis="x", visible=False)
    figures.figure_legend(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def heads_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]], even: dict[str, float]) -> Figure:
    """Every head of every model and seed (`measure.heads`), by layer; dashed: attention spread evenly."""
    titles = {"distance": "Mean distance, tokens", "entropy": "Entropy, nats", "first": "Share on first token"}
    labels = list(dict.fromkeys(table.label))
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(figures.WIDTH, 7.6))
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for nth, label in enumerate(labels):
            rows = table[table.label == label]
            at = rows.layer + 0.7 * ((nth + 0.5) / len(labels) - 0.5)
            ax.plot(
                at,
                rows[name],
                figures.MARKS[nth % len(figures.MARKS)],
                ms=4,
                alpha=0.7,
                color=styles[label]["color"],
                label=label,
            )
        ax.axhline(even[name], color="0.4", lw=1, ls="--")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=title, xlabel="layer", ylabel="")
        ax.grid(axis="x", visible=False)
    figures.figure_legend(figure, axes[0].get_legend_handles_labels()[0])
    means = table.groupby("label", sort=False)[list(titles)].mean()
    said = [
        f"{title}: {', '.join(f'{label} {value:.2g}' for label, value in means[name].items())}, spread evenly {even[name]:.2g}"
        for name, title in titles.items()
    ]
    return figures.set_alt_text(figure, f"Means over all heads. {'. '.join(said)}.")


def profiles_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Share of attention by distance (`measure.profiles`), both axes logarithmic; the token itself stands at 1."""
    figure, ax = plt.subplots()
    for label, rows in table[table.share > 0].groupby("label", sort=False):
        ax.plot(rows.distance + 1, rows.share, label=label, **styles[label])
    ax.set(title="Attention by distance", xlabel="distance + 1, tokens", ylabel="share", xscale="log", yscale="log")
    figures.figure_legend(figure, ax.get_legend_handles_labels()[0])
    return figure


def norms_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Length of the residual stream before the last norm, by position (`measure.norms`)."""
    figure, ax = plt.subplots()
    for label, rows in table[table.layer == table.layer.max()].groupby("label", sort=False):
        ax.plot(rows.position + 1, rows.norm, label=label, **styles[label])
    ax.set(title="Length of hidden states", xlabel="position", ylabel="", xscale="log", ylim=(0, None))
    figures.figure_legend(figure, ax.get_legend_handles_labels()[0])
    return figure
