"""Who answers right, in sentences, tables and figures."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from pandas.io.formats.style import Styler

from pe_core.report import claims, figures, tables
from pe_core.stats import Estimate


def findings(ranked: pd.DataFrame, verdicts: pd.DataFrame, learned: list[str], asked: list[str]) -> str:
    """Who answers right beyond the trained length (`ranking`), and whether the paper's order holds (`claims`)."""
    if missed := [name for name in asked if name not in learned]:
        left = f"Not learned by any model, even within the trained length, and left out: {claims.joined(missed)}."
    else:
        left = "Every task was learned by some model."
    if ranked.empty:
        return f"{left} So nothing can be said about longer ones."
    said = [
        f"{row.label} {100 * row.score:.0f} %"
        + ("" if math.isnan(row.low) else f" ({claims.as_range(Estimate(row.score, 100 * row.low, 100 * row.high), digits=0)})")
        for row in ranked.itertuples()
    ]
    found = [
        f"Answers right beyond the trained length, over {claims.joined(learned)}: {'; '.join(said)}."
        + (" 95 % intervals over seeds." if ranked.low.notna().any() else " One seed gives no interval.")
    ]
    known = verdicts[verdicts.p_holm.notna()]
    if known.empty:
        found.append("No pair of the paper's models has an interval here, so nothing can be concluded about its order.")
    else:
        holds, turned, unclear = (int((known.verdict == way).sum()) for way in ("holds", "reversed", "no difference found"))
        if holds == len(known):
            verdict = "**The paper's order holds**"
        elif turned:
            verdict = f"**The paper's order {'holds in part' if holds else 'does not hold'}**"
        else:
            verdict = (
                "**Nothing contradicts the paper's order**"
                if holds
                else "**No difference found** for or against the paper's order"
            )
        found.append(
            f"{verdict}: of {len(known)} pairs {holds} stand in it, {turned} in the opposite one, and for {unclear} no "
            "difference is found (paired by seed and task, p < 0.05 after Holm's correction). The smallest difference that "
            f"four of five such comparisons would find is {100 * known.detectable.median():.0f} points."
        )
    return "\n\n".join([*found, left])


def able(found: pd.DataFrame) -> str:
    """Who answers 95 % of questions right within the trained length, and who still does beyond it (`measure.able`)."""
    said = []
    for task, rows in found.groupby("task", sort=False):
        parts = []
        for row in rows.itertuples():
            count = len(row.labels)
            where = f"at {row.tokens} tokens" if row.beyond else f"at up to {row.tokens} tokens, as in training,"
            who = f" ({'; '.join(row.labels)})" if 0 < count <= claims.FEW else ""
            parts.append(f"{where} {count or 'none'} of {row.models}{who}")
        said.append(f"**{task}**, models that answer at least 95 % of questions right: {', '.join(parts)}.")
    return "\n\n".join(said) or "No task was given to all encodings."


def accuracy_table(table: pd.DataFrame, name: str = "whole") -> Styler:
    """`measure.frame`: one row for each task and model, one column for each length, and a row of chance for each task.

    Args:
        name: `whole` answers, or their `symbols`; in percent.
    """
    shown: dict[tuple[str, str], dict[str, str]] = {}
    for task, part in table.groupby("task", sort=False):
        for row in part.itertuples():
            cells = shown.setdefault((task, row.label), {"task": task, "model": row.label})
            value = [100 * getattr(row, name + end) for end in ("", "_low", "_high")]
            cells[f"{row.factor:g} ×"] = tables.interval(value, 0)
        for row in part.drop_duplicates("factor").itertuples():
            cells = shown.setdefault((task, "chance"), {"task": task, "model": "chance"})
            cells[f"{row.factor:g} ×"] = f"{100 * getattr(row, f'chance_{name}'):.0f}"
    return tables.styled(pd.DataFrame(list(shown.values())).fillna("–")).hide()


def claims_table(table: pd.DataFrame) -> Styler:
    """`measure.claims`: what the paper says, pair by pair, and what was found here."""
    shown = pd.DataFrame(
        {
            "the paper": [f"{row.better} above {row.worse}" for row in table.itertuples()],
            "difference here, points": [
                tables.interval([100 * r.difference, 100 * r.low, 100 * r.high]) for r in table.itertuples()
            ],
            "p (Holm)": [tables.p_value(value) for value in table.p_holm],
            "here": table.verdict,
        }
    )
    return tables.styled(shown).hide()


def accuracy_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Share of answers right by length (`frame`), with 95 % bands over seeds, one panel for each task; dotted: chance, a
    line at the length trained at."""
    names = list(dict.fromkeys(table.task))
    figure, axes = figures.paired_panels(len(names), 2.3)
    for ax, name in zip(axes, names, strict=True):
        part = table[table.task == name]
        for label, rows in part[part.whole.notna()].groupby("label", sort=False):
            ax.plot(rows.tokens, rows.whole, marker=".", label=label, **styles[label])
            ax.fill_between(rows.tokens, rows.whole_low, rows.whole_high, color=styles[label]["color"], alpha=0.12, lw=0)
        chance = part.drop_duplicates("tokens")
        ax.plot(chance.tokens, chance.chance_whole, color="0.4", lw=1, ls=":")
        ax.axvline(float((part.tokens / part.factor).mean()), color="0.6", lw=0.8, zorder=0)
        ax.set(title=name, xlabel="", ylabel="", ylim=(-0.03, 1.03), xscale="log")
        ticks = sorted(part.tokens.unique())
        ax.set_xticks([t for t, before in zip(ticks, [0, *ticks], strict=False) if t > 1.4 * before])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    handles = {str(line.get_label()): line for ax in axes for line in ax.lines if line.get_label() in styles}
    figure.legend(handles.values(), list(handles), loc="outside lower left", ncols=2, fontsize=9)
    return figure


def answers_figure(table: pd.DataFrame) -> Figure:
    """Percent of answers right at the trained length and beyond (`frame`): one row a model, best first, two tasks side by
    side; names in their families' colours."""
    shares = table[table.factor >= 1].assign(percent=lambda rows: 100 * rows.whole)
    order = (
        shares.groupby("label", sort=False).whole.apply(lambda whole: whole.fillna(0).mean()).sort_values(ascending=False).index
    )
    families = dict(zip(table.label, table.family, strict=True))
    names = list(dict.fromkeys(table.task))
    figure, axes = figures.paired_panels(len(names), 0.2 + 0.25 * len(order))
    said = []
    for ax, name in zip(axes, names, strict=True):
        grid = shares[shares.task == name].pivot(index="label", columns="tokens", values="percent").reindex(order)
        shown = grid.map(lambda value: "–" if math.isnan(value) else f"{value:.0f}")
        sns.heatmap(grid.fillna(0), annot=shown, fmt="", cmap="Blues", vmin=0, vmax=115, cbar=False, lw=0.6, ax=ax,
                    annot_kws={"fontsize": 10})  # fmt: skip
        ax.set(title=name, xlabel="tokens", ylabel="")
        for label in ax.get_yticklabels():
            label.set(color=figures.readable(figures.family_colour(families[label.get_text()])), fontsize=10)
        rows = [f"{label} {', '.join(row)}" for label, row in zip(order, shown.itertuples(index=False), strict=True)]
        said.append(f"{name} at {', '.join(map(str, grid.columns))} tokens: {'; '.join(rows)}")
    return figures.set_alt_text(figure, f"Percent of answers right. {'. '.join(said)}.")


def depths_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Share of answers right by where in the question they stand (`measure.depths`, of one task), one panel for each length."""
    lengths = sorted(table.tokens.unique())
    figure, axes = figures.paired_panels(len(lengths), 2.5)
    for ax, tokens in zip(axes, lengths, strict=True):
        for label, rows in table[table.tokens == tokens].groupby("label", sort=False):
            ax.plot(rows.depth, rows.whole, marker=".", label=label, **styles[label])
            ax.fill_between(rows.depth, rows.low, rows.high, color=styles[label]["color"], alpha=0.12, lw=0)
        ax.set(title=f"{tokens} tokens", xlabel="depth (0: first)", ylabel="", xlim=(0, 1), ylim=(-0.03, 1.03))
    figures.figure_legend(figure, axes[0].get_legend_handles_labels()[0])
    return figure
