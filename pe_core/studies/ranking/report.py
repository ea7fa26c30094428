"""The ranking study in sentences, tables and figures. `comparison.verdicts` says what is significant."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from pandas.io.formats.style import Styler

from pe_core.comparison import NO_DIFFERENCE
from pe_core.report import claims, figures, tables


def answer(led: pd.DataFrame, table: pd.DataFrame, baseline: str) -> str:
    """Who leads after most training, who differs from the baseline there, and what changed on the way."""
    said = [f"**{_leader(led.iloc[-1])}**", moves(table, baseline), details(led, table, baseline)]
    return "\n\n".join(filter(None, said))


def details(led: pd.DataFrame, table: pd.DataFrame, baseline: str) -> str:
    """Each model's verdict at the largest budget and at the one with most models; how small a difference could be found."""
    rows = table[table.samples == led.iloc[-1].samples]
    return "\n\n".join(filter(None, [_sides(rows, baseline), widest(table, baseline), reach(led)]))


def widest(table: pd.DataFrame, baseline: str) -> str:
    """The models of the largest budget that most were trained at, by verdict, where that is not the largest of all."""
    models = table.groupby("tokens").size()
    tokens = max(models.index, key=lambda tokens: (models[tokens], tokens))
    if tokens == table.tokens.max():
        return ""
    rows = table[table.tokens == tokens].sort_values("percent")
    kinds = (("lower", "lower perplexity than"), (NO_DIFFERENCE, "no difference found from"), ("higher", "higher than"))
    parts = [f"{said} {baseline}: {', '.join(alike.label)}" for kind, said in kinds if len(alike := rows[rows.verdict == kind])]
    return (
        f"Of all {models[tokens]} others at {_tokens(tokens)} tokens, best first: {'; '.join(parts)}. Numbers are in the table."
    )


def placebo(found: pd.DataFrame) -> str:
    """Two models that are one function, at every budget (`measure.pair`): what chance makes of a comparison."""
    if found.empty:
        return ""
    first = found.iloc[0]
    parts = [f"{claims.as_percent(row)} at {_tokens(row.tokens)} tokens" for row in found.itertuples()]
    kinds = set(found.verdict)
    verdict = "no difference is found" if kinds == {NO_DIFFERENCE} else "the difference is significant, which is a false alarm"
    return (
        f"{first.a} and {first.b} are one function whose weights start from different numbers. {first.a} against {first.b}: "
        f"{'; '.join(parts)}. Here {verdict}."
    )


def headline(led: pd.DataFrame, table: pd.DataFrame, baseline: str) -> str:
    """The study in two sentences with their scale: for a README or a front page."""
    last = led.iloc[-1]
    return f"**{_leader(last)}** {moves(table, baseline)}".strip()


def _leader(row: Any) -> str:
    size = f"{row.models} models of {_tokens(row.parameters)} parameters, {row.seeds} seeds"
    scale = f"After {_tokens(row.tokens)} training tokens ({size})"
    if not row.tied:
        return f"{scale}, {row.best} has the lowest test perplexity: all others are significantly higher."
    alike = claims.joined(list(row.tied)) if len(row.tied) <= claims.FEW else f"{len(row.tied)} others"
    return f"{scale}, {row.best} has the lowest test perplexity, and no difference is found between it and {alike}."


def _sides(rows: pd.DataFrame, baseline: str) -> str:
    """Against the baseline: who is lower, who is higher, of whom nothing can be said."""
    lower, higher, alike = (
        rows[rows.verdict == verdict].sort_values("percent") for verdict in ("lower", "higher", NO_DIFFERENCE)
    )
    said = []
    if len(lower):
        said.append(f"Lower perplexity than {baseline}: {_list(lower)}.")
    if len(higher):
        said.append(f"Higher: {_list(higher)}.")
    if len(alike):
        said.append(f"No difference found: {_list(alike)}.")
    return " ".join(said)


def _list(rows: pd.DataFrame) -> str:
    return "; ".join(f"{row.label} {claims.as_percent(row)}" for row in rows.itertuples())


def moves(table: pd.DataFrame, baseline: str) -> str:
    """Whose difference from the baseline has changed since the smallest budget, as far as a corrected test finds it."""
    first, last = table.tokens.min(), table.tokens.max()
    rows = table[(table.tokens == last) & table.change_verdict.isin(["lower", "higher"])]
    if table.change_verdict.eq("").all() or not (table[table.tokens == last].change_verdict != "").any():
        return ""
    if rows.empty:
        return f"Between {_tokens(first)} and {_tokens(last)} tokens no difference from {baseline} changes significantly."
    before = table[table.tokens == first].set_index("label").percent
    parts = [
        f"{row.label}'s goes from {claims.as_number(before[row.label], 1, '+')} % to {claims.as_number(row.percent, 1, '+')} %"
        for row in rows.sort_values("change", key=abs, ascending=False).head(4).itertuples()
        if row.label in before
    ]
    return (
        f"The ranking is not that of short training: from {_tokens(first)} to {_tokens(last)} tokens, of the differences from "
        f"{baseline}, {claims.joined(parts)}."
    )


def reach(led: pd.DataFrame) -> str:
    """The smallest difference each budget's comparison could find."""
    at = ", ".join(f"{row.detectable:.1f} % at {_tokens(row.tokens)} tokens" for row in led.itertuples())
    return (
        "A difference is called significant where p < 0.05 after Holm's correction for every pair of models of a budget. Seed "
        "variance is pooled over models; brackets are intervals corrected in the same way, which exclude zero exactly where "
        "a difference is significant. The smallest "
        f"difference that four of five such comparisons would find, as a median over pairs, is {at}. Each model's learning "
        "rate is chosen at each budget anew, on validation text."
    )


def with_size(table: pd.DataFrame, baseline: str) -> str:
    """Each model's difference from the baseline at every size (`measure.by_size`), and whether it changes from the smallest to
    the largest."""
    said: list[str] = []
    seeds = claims.number_of_seeds(table.seeds.min())
    for label, rows in table.sort_values("parameters").groupby("label", sort=False):
        at = [_at_size(row) for row in rows.itertuples()]
        what = "" if said else f"'s test perplexity against {baseline}, by number of parameters"
        setting = "" if said else f" (after {_tokens(rows.tokens.iloc[0])} training tokens, {seeds})"
        change = _change(rows.iloc[0], rows.iloc[-1]) if len(rows) > 1 else ""
        said.append(f"**{label}{what}: {claims.joined(at)}**{setting}.{change}")
    sizes = table.groupby("parameters").detectable.median()
    reach = ", ".join(f"{percent:.1f} % at {_tokens(parameters)}" for parameters, percent in sizes.items())
    alone = f" {claims.ONE_SEED}" if table.seeds.min() == 1 else ""
    return "\n\n".join(
        [
            *said,
            "A change is that of the ratio of two perplexities. Verdicts and brackets are corrected for all pairs of models of "
            "a size. The smallest difference from the baseline that four of five such comparisons would find is, as a median, "
            f"{reach}.{alone}",
        ]
    )


def _at_size(row: Any) -> str:
    unsure = " (no difference found)" if row.verdict == NO_DIFFERENCE else ""
    return f"{claims.as_number(row.percent, 1, '+')} % at {_tokens(row.parameters)}{unsure}"


def _change(smallest: Any, largest: Any) -> str:
    change = claims.with_interval(largest.change, largest.change_low, largest.change_high)
    if largest.change_verdict == NO_DIFFERENCE:
        return f" From the smallest to the largest model no significant change: {change}."
    grows = "grows" if abs(largest.percent) > abs(smallest.percent) else "shrinks"
    gap = "difference changes sign" if smallest.percent * largest.percent < 0 else f"gap {grows}"
    return f" From the smallest to the largest model the {gap} significantly: {change}."


def sources(table: pd.DataFrame, baseline: str) -> str:
    """What differs between kinds of text (`measure.by_source`): the models whose verdict is not the same on all."""
    parts = []
    for label, rows in table.groupby("label", sort=False):
        kinds = {row.source: row.verdict for row in rows.itertuples()}
        if "lower" in kinds.values() and "higher" in kinds.values():
            each = [f"{claims.as_percent(row)} on {row.source}" for row in rows.itertuples()]
            parts.append(f"{label} ({'; '.join(each)})")
    if not parts:
        return f"No model is significantly better than {baseline} on one kind of text and worse on another."
    return f"**Better than {baseline} on one kind of text, worse on another**: {'; '.join(parts)}."


def against_training(table: pd.DataFrame, baseline: str, shown: int = 14) -> Figure:
    """Difference to the baseline by training tokens: a line for each of the `shown` best models of most budgets, ends labelled,
    and a small dot for each other one; hollow where no difference is found. Lines that leave the scale are named above."""
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 5.2))
    last = table[table.tokens == table.groupby("label").tokens.transform("max")].set_index("label")
    budgets = table.groupby("label").size()
    followed = last.loc[budgets.index[budgets == budgets.max()]].sort_values("percent").index[:shown]
    far = table.groupby("label").percent.apply(lambda percent: percent.abs().max()) > _FAR
    order = [label for label in followed if not far[label]] or list(followed)
    drawn = [label for label in last.index if label in order or (label not in followed and not far[label])]
    for label in drawn:
        rows = table[table.label == label].sort_values("tokens")
        colour, size = figures.family_colour(rows.family.iloc[0]), 6 if label in order else 3.5
        if label in order:
            ax.plot(rows.tokens, rows.percent, color=colour, lw=1.6, label=label)
        for row in rows.itertuples():
            fill = "white" if row.verdict == NO_DIFFERENCE else colour
            ax.plot(row.tokens, row.percent, "o", ms=size, color=colour, mfc=fill)
    ticks = sorted(table.tokens.unique())
    ax.hlines(0, ticks[0] / 1.2, ticks[-1], color="0.35", lw=1)  # ends where the baseline's name stands
    _percent_by_size(ax, ticks, "training tokens, each read once")
    small = "; small: the other models" if len(last) > len(followed) else ""
    far_off = [f"{label} {claims.as_number(last.percent[label], 0, '+')} %" for label in followed if label not in order]
    beyond = f"\noff the scale: {', '.join(far_off)}" if far_off else ""
    ax.set_title(f"Test perplexity against {baseline}\nhollow: no difference found{small}{beyond}", fontsize=11)
    ends = {label: (last.percent[label], label, figures.readable(figures.family_colour(last.family[label]))) for label in order}
    for tokens in ticks:
        here = [end for label, end in ends.items() if last.tokens[label] == tokens]
        if tokens == ticks[-1]:
            here.append((0.0, baseline, "#333333"))
        _label_ends(ax, here, float(tokens))
    figures.family_legend(figure, last.family[drawn])
    said = [
        f"{label} {', '.join(f'{p:+.1f} %' for p in table[table.label == label].sort_values('tokens').percent)}"
        for label in followed
    ]
    return figures.set_alt_text(
        figure, f"Test perplexity against {baseline} at {_ticks(ticks)} training tokens: {'; '.join(said)}."
    )


_FAR = 10  # percent: a line that goes further would press the others together


def _label_ends(ax: Any, ends: list[tuple[float, str, str]], x: float) -> None:
    """Names right of where lines end, each at its line's height or, where another is in the way, above that."""
    figure = ax.figure
    figure.canvas.draw()
    step = 11 * figure.dpi / 72
    heights: list[float] = []
    for value, label, colour in sorted(ends):
        y = float(ax.transData.transform((x, value))[1])
        heights.append(max(y, heights[-1] + step if heights else y))
        ax.annotate(label, (x, value), xytext=(8, (heights[-1] - y) * 72 / figure.dpi), textcoords="offset points", va="center",
                    fontsize=8.5, color=colour, annotation_clip=False)  # fmt: skip


def against_size(table: pd.DataFrame, baseline: str) -> Figure:
    """Difference to the baseline by number of parameters: a line for each model, with corrected intervals; hollow where no
    difference is found."""
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 4.2))
    ticks = sorted(table.parameters.unique())
    ends = [(0.0, baseline, "#333333")]
    for label, rows in table.groupby("label"):
        rows = rows.sort_values("parameters")
        colour = figures.family_colour(rows.family.iloc[0])
        spread = [rows.percent - rows.low, rows.high - rows.percent]
        ax.errorbar(rows.parameters, rows.percent, yerr=spread, color=colour, lw=1.6, capsize=3)
        for row in rows.itertuples():
            fill = "white" if row.verdict == NO_DIFFERENCE else colour
            ax.plot(row.parameters, row.percent, "o", ms=6, color=colour, mfc=fill)
        ends.append((rows.percent.iloc[-1], label, figures.readable(colour)))
    ax.axhline(0, color="0.35", lw=1)
    _percent_by_size(ax, ticks, "parameters")
    ax.set_title(f"Test perplexity against {baseline}, with corrected intervals\nhollow: no difference found", fontsize=11)
    _label_ends(ax, ends, float(ticks[-1]))
    said = [f"{row.label} {row.percent:+.1f} % at {_tokens(row.parameters)}" for row in table.itertuples()]
    return figures.set_alt_text(figure, f"Test perplexity against {baseline} by number of parameters: {'; '.join(said)}.")


def _percent_by_size(ax: Any, ticks: list[float], xlabel: str) -> None:
    ax.set_xscale("log")
    ax.set_xticks(ticks, [_tokens(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0f} %".replace("-", "−") if value else "0 %"))
    ax.set(xlabel=xlabel, ylabel="")


def source_map(table: pd.DataFrame, baseline: str) -> Figure:
    """One row a model, one column a kind of text: difference to the baseline, bold where significant."""
    order = table.groupby("label").percent.mean().sort_values().index
    kinds = list(dict.fromkeys(table.source))
    grid = table.pivot(index="label", columns="source", values="percent").loc[order, kinds]
    found = table.pivot(index="label", columns="source", values="verdict").loc[order, kinds] != NO_DIFFERENCE
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 0.9 + 0.3 * len(grid)))
    limit = float(np.nanpercentile(np.abs(grid.to_numpy()), 90)) or 1.0
    ax.imshow(grid, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", alpha=0.75)
    for y, label in enumerate(grid.index):
        for x, kind in enumerate(kinds):
            text = claims.as_number(grid.loc[label, kind], 1, "+")
            ax.text(x, y, text, ha="center", va="center", fontsize=9, fontweight="bold" if found.loc[label, kind] else "normal")
    ax.set_xticks(range(len(kinds)), kinds)
    ax.set_yticks(range(len(grid)), grid.index)
    ax.grid(visible=False)
    ax.set_title(f"% against {baseline}, by kind of text\nbold: significant", fontsize=11)
    said = [f"{label}: {', '.join(f'{kind} {grid.loc[label, kind]:+.1f}' for kind in kinds)}" for label in grid.index]
    return figures.set_alt_text(figure, f"Test perplexity in percent against {baseline} by kind of text. {'; '.join(said)}.")


def context_use(curves: pd.DataFrame, label: str) -> Figure:
    """Loss by position less the mean loss, one line for each amount of training."""
    figure, ax = plt.subplots()
    shades = plt.get_cmap("viridis")(np.linspace(0.15, 0.85, curves.tokens.nunique()))
    for colour, (count, rows) in zip(shades, curves.groupby("tokens"), strict=True):
        ax.plot((rows.start + rows.end + 1) / 2, rows.loss, color=colour, label=f"{_tokens(count)} tokens")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.axhline(0, color="0.35", lw=1)
    ax.set(xlabel="tokens the model has seen", ylabel="", title=f"{label}: loss less its mean, nats")
    ax.legend(fontsize=9)
    return figure


def table(rows: pd.DataFrame, baseline: str, by: str = "tokens") -> Styler:
    """One row a model, one column a budget (or a size, by `parameters`), the largest first, as on a phone one column is seen:
    the difference to the baseline with its interval; best last budget first."""
    cells = rows.assign(cell=[tables.marked(row) for row in rows.itertuples()])
    wide = cells.pivot(index="label", columns=by, values="cell")
    last = rows[rows[by] == rows.groupby("label")[by].transform("max")].sort_values([by, "percent"], ascending=[False, True])
    wide = wide.loc[last.label, wide.columns[::-1]].fillna("–")
    wide.columns = [f"{_tokens(column)} {by}" for column in wide.columns]
    wide.index.name = None
    wide.columns.name = f"% against {baseline}"
    return tables.styled(wide)


def rates(chosen: pd.DataFrame) -> Styler:
    """Validation loss of every model at every learning rate it was tried at, budget by budget; the rate chosen."""
    tried = [column for column in chosen.columns if isinstance(column, float)]
    losses = chosen[tried].rename(columns="{:g}".format).map(lambda loss: "—" if np.isnan(loss) else f"{loss:.3f}")
    named = pd.DataFrame({"model": chosen.label, "training windows": chosen.samples.map("{:,}".format)})
    if chosen.preset.nunique() > 1:
        named.insert(1, "size", chosen.preset)
    shown = pd.concat([named, losses], axis=1)
    shown["chosen"] = [f"{row.lr:g}{' (the last tried)' if row.at_end else ''}" for row in chosen.itertuples()]
    return tables.styled(shown).hide()


def correlations(rows: pd.DataFrame) -> Styler:
    """`measure.correlations`, an interval a row."""
    shown = pd.DataFrame(
        {
            "rankings": rows["what"],
            "models": rows.models,
            "Spearman's correlation": [tables.interval([r.value, r.low, r.high], 2) for r in rows.itertuples()],
        }
    )
    return tables.styled(shown).hide()


def _tokens(count: float) -> str:
    return f"{count / 1e6:.1f} M"


def _ticks(values: list[float]) -> str:
    return claims.joined([_tokens(value) for value in values])
