"""What longer contexts do to models, in sentences, tables and figures."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from pandas.io.formats.style import Styler

from pe_core.report import claims, figures, tables
from pe_core.stats import Estimate, Paired


def gains(found: dict[str, Paired], against: str) -> str:
    """Whom longer windows help (`lengths.gains`), one sentence each; found where the corrected p is below 0.05."""
    return "\n\n".join(f"{name}: {_gain(gain, against)}" for name, gain in found.items())


def answer(found: dict[str, Paired], against: str, size: str) -> str:
    """The same in one sentence, with the size of the runs."""
    known = {name: gain for name, gain in found.items() if claims.has_interval(gain.estimate)}
    helped, hurt = (
        [f"{name} ({claims.as_number(gain.estimate.value, 1, '+')} %)" for name, gain in known.items() if _found(gain, sign)]
        for sign in (-1, 1)
    )
    if not known:
        return f"There is no interval for any difference, so nothing can be concluded ({size})."
    parts = [f"longer windows lower the perplexity of {claims.joined(helped)}"] if helped else []
    parts += [f"they raise it for {claims.joined(hurt)}"] if hurt else []
    rest = len(known) - len(helped) - len(hurt)
    parts += (
        [f"for {'the other ' if parts else ''}{rest} model{'s' if rest > 1 else ''} no difference is found"] if rest else []
    )
    said = "; ".join(parts)
    return f"**Against {against}, {said}** ({size})."


def _found(gain: Paired, sign: int) -> bool:
    return gain.p < 0.05 and gain.estimate.value * sign > 0


def _gain(gain: Paired, against: str) -> str:
    value, interval = gain.estimate.value, claims.as_range(gain.estimate, " %")
    if not claims.has_interval(gain.estimate):
        return f"{claims.as_number(value, 1, '+')} % against {against}; there is no interval, so nothing can be concluded."
    if not gain.p < 0.05:
        found = f"no difference found from {against}, {claims.as_number(value, 1, '+')} % perplexity"
    else:
        found = f"**{abs(value):.1f} % {'higher' if value > 0 else 'lower'}** perplexity than {against}"
    return f"{found} (95 % interval {interval}; {claims.as_p(gain.p)} after Holm's correction)."


def findings(ranked: pd.DataFrame, changes: pd.DataFrame, length: int, trained_at: int) -> str:
    """Who predicts best at a context longer than the one trained at (`measure.ranking`), and what that context does to
    each model (`measure.changes`)."""
    absent = list(ranked[ranked.bits.isna()].label)
    found = [] if ranked.bits.isna().all() else _winner(ranked, length, trained_at)
    known = changes[changes.p_holm.notna()]
    ways = {
        "Use the longer context": known[known.differs & (known.percent < 0)],
        "Not found to gain or lose by it": known[~known.differs],
        "Worse with it": known[known.differs & (known.percent > 0)],
    }
    for way, rows in ways.items():
        if len(rows):
            found.append(f"**{way}**: {claims.as_list(rows)}.")
    if known.empty:
        found.append("There is no interval for what the longer context does, so nothing can be concluded about it.")
    if absent:
        found.append(f"No positions beyond {trained_at:,} tokens: {claims.joined(absent)}.")
    found.append(
        "Percentages are differences in perplexity of the last tokens of each window with 95 % intervals, paired by seed and "
        f"document: first between models at {length:,} tokens of context, then between {length:,} and {trained_at:,} tokens. "
        "They count as found where p < 0.05 after Holm's correction, the first over all pairs of models. Half of the intervals "
        f"reach less than {_reach(ranked):.1f} % to either side: smaller differences between models are not found."
    )
    return "\n\n".join(found)


def _reach(rows: pd.DataFrame) -> float:
    return float(((rows.high - rows.low) / 2).median())


def _winner(ranked: pd.DataFrame, length: int, trained_at: int) -> list[str]:
    best, others = ranked.iloc[0], ranked[ranked.p_holm.notna()]
    interval = Estimate(best.bits, best.bits_low, best.bits_high)
    known = (
        f"95 % interval {claims.as_range(interval, digits=3)} over documents"
        if claims.has_interval(interval)
        else "no interval"
    )
    said = f"{best.label} predicts best at {length:,} tokens of context: {best.bits:.3f} bits per byte"
    measured = f"{known}, trained at {trained_at:,}, {best.seeds} seed{'s' if best.seeds > 1 else ''}"
    alike = others[~others.differs]
    if others.empty:
        return [f"{said} ({measured}); there is no interval for any difference, so nothing can be concluded."]
    found = [f"**{said}** ({measured})."]
    if len(alike):
        found.append(f"**No difference found** from it: {claims.as_list(alike)}.")
    if len(worse := others[others.differs]):
        nearest = worse.iloc[0]
        found.append(
            f"{len(worse)} of {len(others)} others are worse, the nearest {nearest.label} {claims.as_percent(nearest)}."
        )
    return found


def lengths_table(table: pd.DataFrame) -> Styler:
    """`lengths.frame`: one row for each model and length trained at, one column for each length measured at."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault(f"{row.label}, trained at {row.trained_at}", {})
        cells[f"at {row.length}"] = tables.interval([row.perplexity, row.low, row.high])
    return tables.styled(pd.DataFrame(shown).T)


def contexts_table(table: pd.DataFrame, bits: bool = False) -> Styler:
    """`measure.frame`, of one way to measure: one row for each model, one column for each context length.

    Args:
        bits: bits per byte instead of perplexity.
    """
    columns, digits = (["bits", "bits_low", "bits_high"], 3) if bits else (["perplexity", "low", "high"], 1)
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        shown.setdefault(row.label, {})[f"at {row.length:,}"] = tables.interval(
            [getattr(row, name) for name in columns], digits
        )
    return tables.styled(pd.DataFrame(shown).T.fillna("–"))


def last_tokens_table(ranked: pd.DataFrame, changes: pd.DataFrame) -> Styler:
    """`measure.ranking` beside `measure.changes`: every model at the longest context, best first."""
    changed = changes.set_index("label")
    shown = pd.DataFrame(
        {
            "bits per byte": [tables.interval([r.bits, r.bits_low, r.bits_high], 3) for r in ranked.itertuples()],
            "% against the best": [tables.interval([r.percent, r.low, r.high]) for r in ranked.itertuples()],
            "p (Holm)": [tables.p_value(value) for value in ranked.p_holm],
            "% against the trained length": [
                tables.interval(changed.loc[label, ["percent", "low", "high"]].tolist()) if label in changed.index else "–"
                for label in ranked.label
            ],
            "p (Holm) ": [tables.p_value(changed.p_holm.get(label, math.nan)) for label in ranked.label],
        },
        index=list(ranked.label),
    )
    return tables.styled(shown)


def by_length_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Perplexity by the context measured at (`lengths.frame`), one panel for each length trained at."""
    trained = sorted(table.trained_at.unique())
    figure, axes = plt.subplots(
        len(trained), 1, sharex=True, sharey=True, squeeze=False, figsize=(figures.WIDTH, 3.2 * len(trained))
    )
    for ax, length in zip(axes[:, 0], trained, strict=True):
        for label, rows in table[table.trained_at == length].groupby("label", sort=False):
            ax.plot(rows.length, rows.perplexity, marker=".", label=label, **styles[label])
            ax.fill_between(rows.length, rows.low, rows.high, color=styles[label]["color"], alpha=0.12, lw=0)
        ax.axvline(length, color="0.6", lw=0.8, zorder=0)
        ax.set(title=f"Perplexity, trained at {length}", xlabel="context, tokens", ylabel="", xscale="log", yscale="log")
        ax.label_outer()
        ax.set_xticks(sorted(table.length.unique()))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        figures.plain_log(ax)
    figures.figure_legend(figure, axes[0, 0].get_legend_handles_labels()[0])
    return figure


def contexts_figure(
    table: pd.DataFrame, styles: dict[str, dict[str, Any]], value: str = "perplexity", title: str = ""
) -> Figure:
    """What a model does at other contexts (`measure.frame`, `measure.paths`), one panel for each family.

    Args:
        value: `perplexity`, drawn without bands, which would show how documents differ, and all models share those; or
            `percent`, the paired change, with 95 % bands. That is drawn up to 100 %: what is above has broken.
    """
    known = table[table[value].notna()]
    figure, panels = figures.stacked_panels(list(known.drop_duplicates("label").panel))
    for panel, ax in panels.items():
        for nth, (label, rows) in enumerate(known[known.panel == panel].groupby("label", sort=False)):
            ax.plot(
                rows.length, rows[value], marker=figures.MARKS[nth % len(figures.MARKS)], ms=5, label=label, **styles[label]
            )
            if value == "percent":
                ax.fill_between(rows.length, rows.low, rows.high, color=styles[label]["color"], alpha=0.12, lw=0)
        for length in table.trained_at.unique():
            ax.axvline(length, color="0.6", lw=0.8, zorder=0)
        scale = "log" if value == "perplexity" else "linear"
        ax.set(title=panel, xlabel="context, tokens", ylabel="", xscale="log", yscale=scale)
        ax.set_xticks(sorted(table.length.unique()))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        if value == "perplexity":
            figures.plain_log(ax)
        else:
            ax.axhline(0, color="0.4", lw=1, zorder=0)
            ax.set_ylim(max(known.low.min(), -50), min(known.high.max(), 100))
        figures.panel_legend(ax)
    figure.suptitle(title, x=0.01, ha="left")
    return figure
