"""How fast training is, in sentences, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from pe_core.report import figures, tables
from pe_core.studies.throughput import measure


def answer(found: Sequence[dict[str, Any]]) -> str:
    """`sentence` for every kind of machine, one paragraph each."""
    return "\n\n".join(sentence(record) for record in found)


def sentence(record: dict[str, Any]) -> str:
    """The answer on one machine: how many times faster, and how many targets were met."""
    found, rows = measure.targets([record]), measure.frame(record).set_index(["shape", "contender"])
    faster = " and ".join(
        f"**{rows.loc[(shape, measure.DEFAULTS), 'ours_over_it']:.1f} times** at {shape.split(',')[0]}"
        for shape in (measure.NANO, measure.PYTHIA)
        if (shape, measure.DEFAULTS) in rows.index
    )
    known = found[found.measured.notna()]
    return (
        f"On {measure.machine(record)} ({record['threads']} threads), training here runs {faster} as fast as the Trainer of "
        f"transformers at its defaults. Of {len(known)} targets {int(known.met.sum())} were met."
    )


def conditions(found: Sequence[dict[str, Any]]) -> str:
    """On what, with what and how often each record was measured."""
    return "\n\n".join(map(_conditions, found))


def _conditions(record: dict[str, Any]) -> str:
    versions, instructions = record["versions"], f" ({record['instructions']})" if "instructions" in record else ""
    return (
        f"Measured on {record['created'][:10]}: {measure.machine(record)}{instructions}, {record['threads']} threads, torch "
        f"{versions['torch']}, transformers {versions['transformers']}, commit {versions['git']}; {record['rounds']} rounds, "
        "contenders in turn."
    )


def slow(machines: Sequence[dict[str, Any]], least: float = 0.6) -> str:
    """Which encodings train slower than that share of the speed without one; their own pages count their operations."""
    found = sorted((relative, name) for name, relative in measure.by_encoding(machines).items() if relative < least)
    if not found:
        return f"No encoding trains at less than {least:g} of the speed without one."
    named = ", ".join(f"[{name}](../encodings/{name}.html) ({relative:.2f})" for relative, name in found)
    return f"Below {least:g}: {named}. Their pages say what they compute beyond the scores, and how many operations that takes."


def throughput_table(rows: pd.DataFrame) -> Styler:
    """Every contender at every shape and machine (`frames`): speed, ours over it, share of the limit, memory, start."""
    ranges = zip(rows.ours_over_it, rows.lowest_ratio, rows.highest_ratio, strict=True)
    shown = pd.DataFrame(
        {
            "shape": rows["shape"],
            "contender": rows.contender,
            "tokens/s": rows.tokens_per_second.map("{:,.0f}".format),
            "ours is": [f"{middle:.2f} × [{low:.2f}, {high:.2f}]" for middle, low, high in ranges],
            "of the limit": rows.limit.map(lambda share: "–" if math.isnan(share) else f"{share:.0%}"),
            "peak memory": rows.peak_memory_mb.map("{:,.0f} MB".format),
            "ready after": rows.ready_seconds.map("{:.1f} s".format),
            "machine": rows.machine,
        }
    )
    return tables.styled(shown).hide()


def targets_table(found: pd.DataFrame) -> Styler:
    """`measure.targets`: what was aimed at beside what was measured."""
    signs = found.sign.map({">=": "at least", "<=": "at most"})
    shown = pd.DataFrame(
        {
            "what": found.what,
            "target": signs + " " + found.target.map("{:g}".format),
            "measured": found.measured.map("{:.2f}".format).str.replace("nan", "–"),
            "met": found.met.map({True: "yes", False: "no"}),
            "machine": found.machine,
        }
    )
    return tables.styled(shown).hide()


def throughput_figure(rows: pd.DataFrame) -> Figure:
    """Tokens per second of every contender (`measure.frames`), one panel a machine and shape."""
    rows = rows[(rows.contender != "ours, evaluation") & ~rows["shape"].str.endswith("one run a core")]
    panels = rows.groupby(["machine", "shape"], sort=False)
    figure, axes = plt.subplots(len(panels), 1, figsize=(figures.WIDTH, 2.4 * len(panels)), squeeze=False)
    said = []
    for ax, ((machine, shape), part) in zip(axes[:, 0], panels, strict=True):
        part = part.iloc[::-1]
        colours = [
            "#0072B2" if name == "ours" else "#BBBBBB" if name.startswith("limit") else "#666666" for name in part.contender
        ]
        ax.barh(part.contender, part.tokens_per_second, color=colours)
        for y, rate in enumerate(part.tokens_per_second):
            ax.annotate(f"{rate:,.0f}", (rate, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set(xlim=(0, part.tokens_per_second.max() * 1.18))
        ax.set_title(f"{shape}: tokens per second\n{machine}", fontsize=11)
        ax.grid(axis="y", visible=False)
        ax.set_xticks([])
        rates = [f"{name} {rate:,.0f}" for name, rate in zip(part.contender, part.tokens_per_second, strict=True)]
        said.append(f"{shape} on {machine}: {', '.join(rates[::-1])}")
    return figures.set_alt_text(figure, f"Tokens per second. {'; '.join(said)}.")


def encodings_figure(relative: dict[str, float]) -> Figure:
    """Training speed under every encoding over that under none."""
    rows = pd.DataFrame({"name": list(relative), "relative": list(relative.values())}).sort_values("relative")
    figure, ax = plt.subplots(figsize=(figures.WIDTH, 0.8 + 0.28 * len(rows)))
    ax.barh(rows.name, rows.relative, color="#0072B2")
    ax.axvline(0.6, color="0.4", lw=1, ls="--")
    ax.set(title="Training speed over that without encoding", xlabel="dashed: the target, 0.6")
    ax.grid(axis="y", visible=False)
    said = [f"{row.name} {row.relative:.2f}" for row in rows[::-1].itertuples(index=False)]
    return figures.set_alt_text(figure, f"Training speed over that without encoding: {'; '.join(said)}.")
