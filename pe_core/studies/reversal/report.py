"""Who knows facts the way round they were not stated, in sentences, tables and figures."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from pe_core.report import claims, figures, tables
from pe_core.stats import Estimate


def findings(table: pd.DataFrame) -> str:
    """Whether any model knows facts the way round they were not stated (`measure.frame`, one kind of phrasing)."""
    stated, reverse = (table[table.stated == way] for way in ("this way", "other way"))
    if stated.empty or reverse.empty:
        return "No model was trained on facts in one direction alone, so nothing can be said about the curse."
    learned = stated.groupby("label", sort=False).known.all()
    able, unable = (list(learned.index[learned == was]) for was in (True, False))
    found, said = reverse[reverse.label.isin(able) & reverse.known], []
    for row in found.itertuples():
        forward = stated[(stated.label == row.label) & (stated.direction == row.direction)].gain
        share = f", {100 * row.gain / forward.iloc[0]:.1f} % of the gain where it was stated" if len(forward) else ""
        interval = claims.as_range(Estimate(row.gain, row.gain_low, row.gain_high), digits=2)
        said.append(
            f"**{row.label} softens the reversal curse** ({row.direction}): asked the way round that was not stated, the right "
            f"answer gains {row.gain:.2f} nats over others (95 % interval {interval}, {claims.as_p(row.p_holm)}){share}."
        )
    if rest := [label for label in able if label not in set(found.label)]:
        p = reverse[reverse.label.isin(rest)].p_holm
        who = f"{rest[0]} was not" if len(rest) == 1 else f"None of {claims.joined(rest)} was"
        said.append(
            f"**{who} found to soften the reversal curse**: asked the way round that was not stated, the right answer is not "
            f"found to be likelier than others ({len(p)} test{'s' if len(p) > 1 else ''}, smallest {claims.as_p(p.min())})."
            + _little(stated[stated.label.isin(rest)])
        )
    if unable:
        said.append(
            f"Nothing can be said about {claims.joined(unable)}: even asked the way they were stated, facts were not found to "
            "be known."
        )
    return "\n\n".join([*said, *(_directions(label, table[table.label == label]) for label in learned.index)])


def _little(stated: pd.DataFrame) -> str:
    """How far a model that knows little of what it was told can show anything."""
    shares, chance = 100 * stated["first"], 100 * stated.chance.mean()
    if shares.max() >= 50:
        return ""
    return (
        f" But the models learned few facts: even asked the way they were stated, facts rank first for {shares.min():.0f} to "
        f"{shares.max():.0f} % of questions only (chance {chance:.0f} %). Whether the curse holds for models that have "
        "learned their facts, this cannot show."
    )


def _directions(label: str, table: pd.DataFrame) -> str:
    """How often a model ranks the right answer first, by the way the facts were stated."""
    asked = {
        "this way": "asked the way they were stated",
        "other way": "asked the other way",
        "both ways": "asked either way where both were stated",
    }
    parts = []
    for way, words in asked.items():
        shares = [f"{100 * share:.0f}" for share in sorted(table[table.stated == way]["first"])]
        if shares:
            parts.append(f"{'–'.join(dict.fromkeys((shares[0], shares[-1])))} % {words}")
    return f"{label}: the right answer ranks first for {', '.join(parts)} (chance {100 * table.chance.mean():.0f} %)."


def ranks_table(table: pd.DataFrame) -> Styler:
    """`measure.frame`: one row a model, direction and way the facts were stated."""
    rows = list(table.itertuples())
    shown = pd.DataFrame(
        {
            "model": table.label,
            "asked for": table.direction,
            "stated": table.stated,
            "facts": table.facts,
            "ranked first, %": [tables.interval([100 * r.first, 100 * r.first_low, 100 * r.first_high], 0) for r in rows],
            "gain, nats": [tables.interval([r.gain, r.gain_low, r.gain_high], 2) for r in rows],
            "p (Holm)": [tables.p_value(r.p_holm) for r in rows],
            "mean rank": [tables.interval([r.rank, r.rank_low, r.rank_high]) for r in rows],
            "perplexity": [tables.interval([r.perplexity, r.perplexity_low, r.perplexity_high]) for r in rows],
            "written exactly, %": [tables.interval([100 * r.exact, 100 * r.exact_low, 100 * r.exact_high], 0) for r in rows],
        }
    )
    return tables.styled(shown).hide()


def ranks_figure(table: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Share of facts whose right answer ranks first (`frame`), by how they were stated, one panel for each direction."""
    directions, labels = list(dict.fromkeys(table.direction)), list(dict.fromkeys(table.label))
    ways = [way for way in ("this way", "other way", "both ways", "never") if way in set(table.stated)]
    size = (figures.WIDTH, 3.3 * len(directions))
    figure, axes = plt.subplots(len(directions), 1, sharex=True, sharey=True, squeeze=False, figsize=size)
    said = []
    for ax, direction in zip(axes[:, 0], directions, strict=True):
        part = table[table.direction == direction]
        for nth, label in enumerate(labels):
            rows = part[part.label == label]
            at = [ways.index(way) + 0.6 * ((nth + 0.5) / len(labels) - 0.5) for way in rows.stated]
            colour = styles[label]["color"]
            ax.vlines(at, 100 * rows.first_low, 100 * rows.first_high, color=colour, lw=2)
            ax.plot(at, 100 * rows["first"], "osD^vP"[nth % 6], ms=6, color=colour, label=label)
            shares = [f"{100 * row.first:.0f} % {row.stated}" for row in rows[["first", "stated"]].itertuples(index=False)]
            said.append(f"{label} ({direction}): {', '.join(shares)}")
        ax.axhline(100 * part.chance.mean(), color="0.4", lw=1, ls="--")
        ax.set_xticks(range(len(ways)), [way.replace(" ", "\n") for way in ways])
        ax.set(title=f"Right answer ranked first, %: {direction}", ylim=(-3, 103), xlim=(-0.5, len(ways) - 0.5))
        ax.set(xlabel="stated in training", ylabel="")
        ax.label_outer()
        ax.grid(axis="x", visible=False)
    figures.figure_legend(figure, axes[0, 0].get_legend_handles_labels()[0])
    return figures.set_alt_text(
        figure, f"Share of facts whose right answer ranks first, by how they were stated. {'; '.join(said)}."
    )
