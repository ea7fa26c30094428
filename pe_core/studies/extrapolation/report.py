"""What longer contexts do to models, in sentences, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from pandas.io.formats.style import Styler

from pe_core.records import Record
from pe_core.report import claims, figures, tables
from pe_core.stats import Estimate, Paired


def gains(found: dict[str, Paired], against: str) -> str:
    """Which models longer windows help (`lengths.gains`), one sentence each, significant where the corrected p < 0.05; and what
    could have been found."""
    said = [f"{name}: {_gain(gain, against)}" for name, gain in found.items()]
    smallest = [gain.detectable for gain in found.values() if claims.has_interval(gain.estimate)]
    if smallest:
        said.append(f"The smallest difference that four of five such comparisons would find is {np.median(smallest):.1f} %.")
    return "\n\n".join(said)


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
    return f"{found} (interval {interval}; {claims.as_p(gain.p)}, both corrected for all models)."


def findings(ranked: pd.DataFrame, changes: pd.DataFrame, length: int, trained_at: int) -> str:
    """Who predicts best at a context longer than the one trained at (`measure.ranking`), and what that context does to
    each model (`measure.changes`)."""
    absent = list(ranked[ranked.bits.isna()].label)
    found = [] if ranked.bits.isna().all() else _winner(ranked, length, trained_at)
    known = changes[changes.p_holm.notna()]
    ways = {
        "Use the longer context": known[known.differs & (known.percent < 0)],
        "No significant change with the longer context": known[~known.differs],
        "Worse with the longer context": known[known.differs & (known.percent > 0)],
    }
    for way, rows in ways.items():
        if len(rows):
            found.append(f"**{way}**: {claims.as_list(rows)}.")
    if known.empty:
        found.append("There is no interval for what the longer context does, so nothing can be concluded about it.")
    if absent:
        found.append(f"No positions beyond {trained_at:,} tokens: {claims.joined(absent)}.")
    found.append(
        "Percentages are differences in perplexity of the last tokens of each window, paired by seed and document: first "
        f"between models at {length:,} tokens of context, then between {length:,} and {trained_at:,} tokens. They are "
        "significant where p < 0.05 after Holm's correction, the first over all pairs of models; brackets are intervals "
        f"corrected in the same way. Half of these intervals reach less than {_reach(ranked):.1f} % to either side: smaller "
        "differences between models are not found."
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


def way_styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and dash of every label in `measure.frame` where few models are read in many ways: a colour each, as their family
    would give all but one colour."""
    labels, dashes = list(dict.fromkeys(table.label)), ("-", "--", ":")
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    return {label: {"color": colours[n % 10], "linestyle": dashes[n // 10 % 3]} for n, label in enumerate(labels)}


def length_map(table: pd.DataFrame, trained_at: int) -> Figure:
    """`measure.paths` at a glance: one row a model, one column a context length beyond the trained one, the change in percent;
    best at the longest first, bold where it is significant."""
    beyond = table[table.length > trained_at]
    if beyond.empty:
        figure, ax = plt.subplots(figsize=(figures.WIDTH, 0.6))
        ax.set_title(f"No model has positions beyond {trained_at:,} tokens", fontsize=11)
        ax.axis("off")
        return figure
    longest = beyond.length.max()
    order = beyond[beyond.length == longest].sort_values("percent").label
    values, found = (beyond.pivot(index="label", columns="length", values=name).loc[order] for name in ("percent", "differs"))
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 1.1 + 0.28 * len(values)))
    ax.imshow(values, cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto", alpha=0.75)
    for y, label in enumerate(values.index):
        for x, length in enumerate(values.columns):
            number = claims.as_number(values.loc[label, length], 0, "+")
            weight = "bold" if found.loc[label, length] else "normal"
            ax.text(x, y, number, ha="center", va="center", fontsize=9, fontweight=weight)
    ax.set_xticks(range(len(values.columns)), [f"{length:,}" for length in values.columns])
    ax.set_yticks(range(len(values)), values.index, fontsize=9)
    ax.xaxis.tick_top()
    ax.grid(visible=False)
    ax.set_title(f"Perplexity of the last tokens by context,\n% against {trained_at} tokens; bold: significant", fontsize=11)
    said = [
        f"{label}: {', '.join(f'{values.loc[label, length]:+.0f} at {length:,}' for length in values.columns)}"
        for label in order
    ]
    return figures.set_alt_text(figure, f"Change of perplexity in percent against {trained_at} tokens. {'; '.join(said)}.")


def reach(found: pd.DataFrame, trained: Sequence[Record]) -> str:
    """How much context is used (`lengths.reach`), vocabulary by vocabulary, with the size of the runs."""
    rows, trained_at = found[found.source == "all"], trained[0].experiment.seq_len
    seeds = len({record.config["seed"] for record in trained})
    size = f"{trained[0].label}, {trained[0].config['preset']}, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    said = []
    for vocabulary, part in _apart(rows).groupby("vocabulary", sort=False):
        parts = [f"{_context(row.length, trained_at)} after {row.read}" for row in part.itertuples()]
        said.append(f"with a {vocabulary.replace(' ', ' of ')}, {claims.joined(parts)}")
    return f"**As good as all {trained_at} tokens of context: {'; '.join(said)}** ({size})."


def _context(length: float, trained_at: int) -> str:
    return f"nothing shorter than {trained_at}" if math.isnan(length) else f"{length:.0f}"


def context_use_figure(table: pd.DataFrame, trained_at: int) -> Figure:
    """What less context costs (`lengths.context_use`): a panel for each vocabulary, a line for each amount of training."""
    rows = _apart(table[table.source == "all"])
    shades = plt.get_cmap("viridis")(np.linspace(0.1, 0.8, rows.read.nunique()))
    title = "{}: perplexity, % above that with " + str(trained_at)
    panels = {title.format(name): part for name, part in rows.groupby("vocabulary", sort=False)}
    return _cost_panels(panels, "read", dict(zip(rows.read.unique(), shades, strict=True)))


def by_source_figure(table: pd.DataFrame, trained_at: int) -> Figure:
    """The same for each kind of text, after most training: a panel for each vocabulary."""
    rows = _apart(table[table.source != "all"])
    colours = dict(zip(rows.source.unique(), figures.FAMILY_COLOURS.values(), strict=False))
    last = [part[part.read == part.read.iloc[-1]] for _, part in rows.groupby("vocabulary", sort=False)]
    return _cost_panels({f"{part.setting.iloc[0]}: % above {trained_at}": part for part in last}, "source", colours)


def _apart(table: pd.DataFrame) -> pd.DataFrame:
    """A setting's two halves (`lengths.by_setting`) as columns vocabulary and read."""
    return table.join(table.setting.str.split(", ", expand=True).set_axis(["vocabulary", "read"], axis=1))


def _cost_panels(panels: dict[str, pd.DataFrame], line: str, colours: dict[str, Any]) -> Figure:
    """One below the other, by title; in each a line with its band for every value of a column."""
    figure, axes = plt.subplots(
        len(panels), 1, sharex=True, sharey=True, squeeze=False, figsize=(figures.WIDTH, 3 * len(panels))
    )
    for ax, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
        for name, part in rows.groupby(line, sort=False):
            ax.plot(part.length, part.percent, marker=".", color=colours[name], label=name)
            ax.fill_between(part.length, part.low, part.high, color=colours[name], alpha=0.15, lw=0)
        ax.axhline(0, color="0.4", lw=1, zorder=0)
        ax.set_xscale("log", base=2)
        ax.set(title=title[:1].upper() + title[1:], xlabel="context, at most so many tokens", ylabel="")
        ax.set_xticks(sorted(rows.length.unique()))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.legend(fontsize=9)
        ax.label_outer()
    return figure


def context_use_table(table: pd.DataFrame) -> Styler:
    """`lengths.context_use`: a row for each setting and kind of text, a column for each length."""
    shown: dict[tuple[str, str], dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault((row.setting, row.source), {})
        cells[f"{row.length} tokens"] = tables.interval([row.percent, row.low, row.high])
    return tables.styled(pd.DataFrame(shown).T)
