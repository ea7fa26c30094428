"""Figures: a frame in, Axes out. One look, one colour per encoding family; nothing is measured here.

Figures are vectors on a transparent ground, drawn narrow enough to be read on a phone. The site's style sheet turns them
for dark pages (light for dark, hues kept). Each carries a description of what it shows, made of its own data (`describe`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import ScaledTranslation

# Okabe & Ito's colours: told apart under every common form of colour blindness.
FAMILY_COLOURS = {
    "none": "#000000",
    "absolute": "#CC79A7",
    "rotary": "#0072B2",
    "bias": "#D55E00",
    "content": "#009E73",
    "hybrid": "#E69F00",
}
_DASHES = ("-", "--", ":", "-.")
_MARKS = "osD^vPX*"
_BANDS = 3  # lines in a panel of many that still have theirs


WIDTH = 5.2  # inches; at 350 pixels, a phone's column, labels are still 10 pixels high


def style() -> None:
    """Set the figures' look; called once at the top of a notebook. Vector figures, fonts that read on a phone."""
    sns.set_theme(context="notebook", style="whitegrid", rc={"axes.spines.right": False, "axes.spines.top": False})
    plt.rcParams.update({"figure.figsize": (WIDTH, 3.6), "figure.constrained_layout.use": True, "grid.alpha": 0.4})
    plt.rcParams.update({"svg.hashsalt": "lab", "svg.fonttype": "path", "axes.titlelocation": "left", "legend.frameon": False})
    plt.rcParams.update({"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"})
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})  # the same figure is the same bytes
        get_ipython().display_formatter.mimebundle_formatter.for_type(Figure, _described)
    except (ImportError, AttributeError):
        pass  # outside IPython there is nothing to set


def _described(figure: Figure, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
    """What a notebook keeps beside the drawing: the description (see `publish.clean`), and what dark themes have to know."""
    return {}, {"image/svg+xml": {"alt": describe(figure)}, "needs_background": "light"}


def describe(figure: Figure) -> str:
    """What the figure shows, in words, for those who cannot see it: what its maker said (`say`), else where each labelled
    line of each panel begins and ends."""
    said: str | None = getattr(figure, "said", None)
    if said is not None:
        return said
    return " ".join(filter(None, map(_panel, figure.axes)))


def say(figure: Figure, words: str) -> Figure:
    """Give a figure its description."""
    figure.said = words  # type: ignore[attr-defined]
    return figure


def _panel(ax: Axes) -> str:
    lines = []
    for line in ax.get_lines():
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        known = np.isfinite(y)
        if not str(line.get_label()).startswith("_") and known.any():
            (x0, *_, x1), (y0, *_, y1) = ([*values[known], values[known][-1]] for values in (x, y))
            lines.append(f"{line.get_label()} from {y0:.4g} at {x0:.4g} to {y1:.4g} at {x1:.4g}")
    title = ax.get_title(loc="left") or ax.get_title()
    axis = f" by {ax.get_xlabel()}" if lines and ax.get_xlabel() else ""
    return f"{title}{axis}{': ' if lines and title else ''}{'; '.join(lines)}." if title or lines else ""


def looks(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and dash of every label in a frame with `label` and `family`: families by colour, members by dash, and by shade
    where a family (or a `panel`, where the frame has that) has more members than there are dashes."""
    chosen: dict[str, dict[str, Any]] = {}
    used: Counter[str] = Counter()
    beside = frame.get("panel", frame.family)  # those who have to be told apart
    for label, family, panel in zip(frame.label, frame.family, beside, strict=True):
        if label in chosen:
            continue
        nth = used[panel]
        used[panel] += 1
        shade = _mixed(_colour(family), "#888888", min(0.3 * (nth // len(_DASHES)), 0.9))
        chosen[label] = {"color": shade, "linestyle": _DASHES[nth % len(_DASHES)]}
    return chosen


def learning_curves(history: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Training and held-out perplexity by epoch, one above the other; a ring marks the epoch whose weights are reported."""
    figure, axes = plt.subplots(2, 1, sharex=True, sharey=True, figsize=(WIDTH, 6.0))
    for ax, side in zip(axes, ("training", "held-out"), strict=True):
        ends: list[tuple[float, str]] = []
        for label, of_label in history[history.side == side].groupby("label", sort=False):
            last = []
            for _, rows in of_label.groupby("run", sort=False):  # one line a seed: their spread is the luck of training
                ax.plot(rows.epoch, rows.perplexity, marker=".", lw=1.2, ms=4, **looks[label])
                best = rows[rows.best].iloc[0]
                ax.plot(best.epoch, best.perplexity, "o", ms=8, mfc="none", color=looks[label]["color"])
                last.append(rows.perplexity.iloc[-1])
            ends.append((sum(last) / len(last), label))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=f"{side.capitalize()} perplexity", xlabel="epoch" if side == "held-out" else "", ylabel="", yscale="log")
        _plain_log(ax)
        _name(ax, ends, looks)
    best = history[history.best & (history.side == "held-out")].groupby("label", sort=False)
    said = [f"{name} {_span(rows.perplexity)} at epoch {_span(rows.epoch, 0)}" for name, rows in best]
    return say(figure, f"Training and held-out perplexity by epoch. Lowest held-out perplexity: {'; '.join(said)}.")


def position_curves(curves: dict[str, pd.DataFrame], looks: dict[str, dict[str, Any]], ranges: Sequence[int] = ()) -> Figure:
    """Perplexity by position in the window (logarithmic), with 95 % bands over documents."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2))
    _position_curves(ax, curves, looks, ranges)
    ax.set(title="Perplexity by position")
    _name(ax, [(curve.perplexity.iloc[-1], label) for label, curve in curves.items()], looks)
    return figure


def position_panels(
    curves: dict[str, pd.DataFrame], looks: dict[str, dict[str, Any]], families: dict[str, str], ranges: Sequence[int] = ()
) -> Figure:
    """`position_curves`, one panel for each family.

    Args:
        families: of each label.
    """
    figure, panels = _stack([families[label] for label in curves])
    for family, ax in panels.items():
        within = {label: curve for label, curve in curves.items() if families[label] == family}
        _position_curves(ax, within, looks, ranges, bands=len(within) <= _BANDS)
        for nth, line in enumerate(line for line in ax.lines if line.get_label() in curves):
            line.set(marker=_MARKS[nth % len(_MARKS)], markersize=4)
        ax.set(title=family)
        _legend_below(ax)
    return figure


def _stack(of_each: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each name, one below the other, with the same vertical axis and room for a legend below each.

    Args:
        of_each: the panel of each line.
    """
    lines = Counter(of_each)
    height = sum(2.3 + 0.19 * math.ceil(count / 2) for count in lines.values())
    figure, axes = plt.subplots(len(lines), 1, sharey=True, squeeze=False, figsize=(WIDTH, 0.5 + height))
    return figure, dict(zip(lines, axes.flat, strict=True))


def _legend_below(ax: Axes) -> None:
    """Two columns, a fixed way below the panel: under the name of its axis, however high it is."""
    assert isinstance(ax.figure, Figure)
    below = ax.transAxes + ScaledTranslation(0, -38 / 72, ax.figure.dpi_scale_trans)
    ax.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, borderaxespad=0, ncols=2)


def _position_curves(
    ax: Axes, curves: dict[str, pd.DataFrame], looks: dict[str, dict[str, Any]], ranges: Sequence[int], bands: bool = True
) -> None:
    faint = min(0.15, 0.4 / len(curves))  # bands overlap: models share the documents that differ
    for label, curve in curves.items():
        seen = (curve.start + curve.end + 1) / 2  # position 0 is predicted from one token
        ax.plot(seen, curve.perplexity, label=label, **looks[label])
        if bands:
            ax.fill_between(seen, curve.low, curve.high, color=looks[label]["color"], alpha=faint, lw=0)
    for edge in ranges:
        ax.axvline(edge, color="0.8", lw=0.8, zorder=0)
    ax.set(xlabel="tokens the model has seen", ylabel="", xscale="log", yscale="log")
    start, end = min(curve.start.min() for curve in curves.values()), max(curve.end.max() for curve in curves.values())
    ticks = [2**n for n in range(24) if start < 2**n <= end]
    ax.set_xticks(ticks if len(ticks) <= 10 else ticks[::2])
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    _plain_log(ax)


def forest(table: pd.DataFrame, baseline: str) -> Figure:
    """Differences to the baseline in percent with 95 % intervals, best on top; hollow where none was found."""
    rows = table[table.percent.notna()].sort_values("percent", ascending=False).reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.42 * len(rows)))
    for y, row in enumerate(rows.itertuples()):
        colour = _colour(row.family)
        ax.plot([row.low, row.high], [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        ax.plot(row.percent, y, "o", ms=7, color=colour, mfc=colour if row.differs else "white")
        ax.annotate(
            f"{row.percent:+.1f} %".replace("-", "−"),
            (row.percent, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    ax.axvline(0, color="0.4", lw=1)
    ax.set_yticks(range(len(rows)), rows.label)
    ax.set_ylim(-0.6, len(rows) - 0.2)
    ax.set(xlabel="% higher perplexity, with 95 % interval\nhollow: no difference found")
    figure.suptitle(f"Held-out perplexity against {baseline}", x=0.02, ha="left")
    ax.grid(axis="y", visible=False)
    said = [
        f"{row.label} {row.percent:+.1f} % ({row.low:+.1f} to {row.high:+.1f}{'' if row.differs else ', no difference found'})"
        for row in rows[::-1].itertuples()
    ]
    return say(figure, f"Held-out perplexity against {baseline}, with 95 % intervals, best first: {'; '.join(said)}.")


def preview(table: pd.DataFrame, baseline: str, target: Path) -> None:
    """The picture that stands beside a link to the site, 1200 × 630: `forest` with the site's name."""
    rows = table[table.percent.notna()].sort_values("percent").reset_index(drop=True).head(12)
    with plt.rc_context({"figure.constrained_layout.use": True, "font.size": 11}):
        figure, ax = plt.subplots(figsize=(8, 4.2), facecolor="white")
        for y, row in enumerate(rows.itertuples()):
            colour = _colour(row.family)
            ax.plot([row.low, row.high], [y, y], color=colour, lw=5, solid_capstyle="butt")
            ax.plot(row.percent, y, "o", ms=11, color=colour, mfc=colour if row.differs else "white", mew=2)
        ax.axvline(0, color="0.4", lw=1)
        ax.set_yticks(range(len(rows)), rows.label)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set(xlabel=f"held-out perplexity against {baseline}, %, with 95 % intervals")
        ax.grid(axis="y", visible=False)
        sns.despine(ax=ax)
        figure.suptitle("Position Encoding Lab: which one, and by how much?", x=0.02, ha="left", fontsize=17, fontweight="bold")
        figure.savefig(target, dpi=150, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def dose(table: pd.DataFrame, x: str, xlabel: str, others: Sequence[str] = (), log: bool = True) -> Figure:
    """Perplexity by one numeric setting, with intervals over seeds; models without that setting as horizontal lines."""
    figure, ax = plt.subplots()
    varied = table[table[x].notna() & ~table.label.isin(others)].sort_values(x)
    for family, rows in varied.groupby("family", sort=False):
        spread = rows[["perplexity_low", "perplexity_high"]].sub(rows.perplexity, axis=0).abs().T.fillna(0).to_numpy()
        ax.errorbar(rows[x], rows.perplexity, yerr=spread, fmt="o-", capsize=3, color=_colour(family))
    for name, dash in zip(others, _DASHES[1:] * 3, strict=False):
        row = table[table.label == name].iloc[0]
        colour = _colour(row.family)
        ax.axhline(row.perplexity, color=colour, ls=dash, lw=1.2)
        ax.annotate(name, (1, row.perplexity), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                    va="center", color=colour, annotation_clip=False)  # fmt: skip
    if log:
        ax.set_xscale("log", base=2)
        ticks = sorted(varied[x].unique())
        ax.set_xticks(ticks, [f"{tick:.2g}" if tick < 1 else f"{tick:,.0f}" for tick in ticks], fontsize=10)
    ax.set(title="Held-out perplexity", xlabel=xlabel, ylabel="")
    said = [f"{row.perplexity:.1f} at {getattr(row, x):g}" for row in varied.itertuples()]
    said += [f"{name} {table[table.label == name].iloc[0].perplexity:.1f}" for name in others]
    return say(figure, f"Held-out perplexity by {xlabel}: {'; '.join(said)}.")


def throughput(rows: pd.DataFrame) -> Figure:
    """Tokens per second of every contender (`speed.frame`), one panel a shape."""
    rows = rows[(rows.contender != "ours, evaluation") & ~rows["shape"].str.endswith("one run a core")]
    shapes = list(dict.fromkeys(rows["shape"]))
    figure, axes = plt.subplots(len(shapes), 1, figsize=(WIDTH, 2.4 * len(shapes)), squeeze=False)
    said = []
    for ax, shape in zip(axes[:, 0], shapes, strict=True):
        part = rows[rows["shape"] == shape].iloc[::-1]
        colours = [
            "#0072B2" if name == "ours" else "#BBBBBB" if name.startswith("limit") else "#666666" for name in part.contender
        ]
        ax.barh(part.contender, part.tokens_per_second, color=colours)
        for y, rate in enumerate(part.tokens_per_second):
            ax.annotate(f"{rate:,.0f}", (rate, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set(title=f"{shape}: tokens per second", xlim=(0, part.tokens_per_second.max() * 1.18))
        ax.grid(axis="y", visible=False)
        ax.set_xticks([])
        rates = [f"{name} {rate:,.0f}" for name, rate in zip(part.contender, part.tokens_per_second, strict=True)]
        said.append(f"{shape}: {', '.join(rates[::-1])}")
    return say(figure, f"Tokens per second. {'; '.join(said)}.")


def encoding_speed(relative: dict[str, float]) -> Figure:
    """Training speed under every encoding over that under none."""
    rows = pd.DataFrame({"name": list(relative), "relative": list(relative.values())}).sort_values("relative")
    figure, ax = plt.subplots(figsize=(WIDTH, 0.8 + 0.28 * len(rows)))
    ax.barh(rows.name, rows.relative, color="#0072B2")
    ax.axvline(0.6, color="0.4", lw=1, ls="--")
    ax.set(title="Training speed over that without encoding", xlabel="dashed: the target, 0.6")
    ax.grid(axis="y", visible=False)
    said = [f"{row.name} {row.relative:.2f}" for row in rows[::-1].itertuples(index=False)]
    return say(figure, f"Training speed over that without encoding: {'; '.join(said)}.")


def by_length(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Perplexity by the context measured at (`lengths.frame`), one panel for each length trained at."""
    trained = sorted(table.trained_at.unique())
    figure, axes = plt.subplots(len(trained), 1, sharex=True, sharey=True, squeeze=False, figsize=(WIDTH, 3.2 * len(trained)))
    for ax, length in zip(axes[:, 0], trained, strict=True):
        for label, rows in table[table.trained_at == length].groupby("label", sort=False):
            ax.plot(rows.length, rows.perplexity, marker=".", label=label, **looks[label])
            ax.fill_between(rows.length, rows.low, rows.high, color=looks[label]["color"], alpha=0.12, lw=0)
        ax.axvline(length, color="0.6", lw=0.8, zorder=0)
        ax.set(title=f"Perplexity, trained at {length}", xlabel="context, tokens", ylabel="", xscale="log", yscale="log")
        ax.label_outer()
        ax.set_xticks(sorted(table.length.unique()))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        _plain_log(ax)
    _legend(figure, axes[0, 0].get_legend_handles_labels()[0])
    return figure


def contexts(table: pd.DataFrame, looks: dict[str, dict[str, Any]], value: str = "perplexity", title: str = "") -> Figure:
    """What a model does at other contexts (`extrapolation.frame`, `extrapolation.paths`), one panel for each family.

    Args:
        value: `perplexity`, drawn without bands, which would show how documents differ, and all models share those; or
            `percent`, the paired change, with 95 % bands. That is drawn up to 100 %: what is above has broken.
    """
    known = table[table[value].notna()]
    figure, panels = _stack(list(known.drop_duplicates("label").panel))
    for panel, ax in panels.items():
        for nth, (label, rows) in enumerate(known[known.panel == panel].groupby("label", sort=False)):
            ax.plot(rows.length, rows[value], marker=_MARKS[nth % len(_MARKS)], ms=5, label=label, **looks[label])
            if value == "percent":
                ax.fill_between(rows.length, rows.low, rows.high, color=looks[label]["color"], alpha=0.12, lw=0)
        for length in table.trained_at.unique():
            ax.axvline(length, color="0.6", lw=0.8, zorder=0)
        scale = "log" if value == "perplexity" else "linear"
        ax.set(title=panel, xlabel="context, tokens", ylabel="", xscale="log", yscale=scale)
        ax.set_xticks(sorted(table.length.unique()))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        if value == "perplexity":
            _plain_log(ax)
        else:
            ax.axhline(0, color="0.4", lw=1, zorder=0)
            ax.set_ylim(max(known.low.min(), -50), min(known.high.max(), 100))
        _legend_below(ax)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def probes(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """How well position can be read off, by layer (`diagnostics.probes`), with 95 % bands over documents."""
    figure, ax = plt.subplots()
    for label, rows in table.groupby("label", sort=False):
        ax.plot(rows.layer, rows.r2, marker=".", label=label, **looks[label])
        ax.fill_between(rows.layer, rows.low, rows.high, color=looks[label]["color"], alpha=0.15, lw=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
        title="R² of position, linear probe",
        xlabel="after layer (0: embeddings)",
        ylabel="",
        ylim=(min(-0.05, table.low.min()), 1.02),
    )
    _legend(figure, ax.get_legend_handles_labels()[0])
    return figure


def order(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Rise of the loss where earlier tokens are shuffled, and where they are removed (`diagnostics.order`)."""
    kept, labels = sorted(table.kept.unique()), list(dict.fromkeys(table.label))
    figure, axes = plt.subplots(2, 1, sharex=True, sharey=True, figsize=(WIDTH, 6.4))
    for ax, change in zip(axes, ("shuffled", "removed"), strict=True):
        for nth, label in enumerate(labels):
            rows = table[(table.change == change) & (table.label == label)]
            at = [kept.index(n) + 0.6 * ((nth + 0.5) / len(labels) - 0.5) for n in rows.kept]
            ax.vlines(at, rows.low, rows.high, color=looks[label]["color"], lw=2)
            ax.plot(at, rows.rise, _MARKS[nth % len(_MARKS)], ms=5, color=looks[label]["color"], label=label)
        ax.axhline(0, color="0.4", lw=1)
        ax.set_xticks(range(len(kept)), [f"{n}" for n in kept])
        ax.set(title=f"Loss when {change}, nats more", xlabel="nearest tokens left in place", ylabel="")
        ax.grid(axis="x", visible=False)
    _legend(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def heads(table: pd.DataFrame, looks: dict[str, dict[str, Any]], even: dict[str, float]) -> Figure:
    """Every head of every model and seed (`diagnostics.heads`), by layer; dashed: attention spread evenly."""
    titles = {"distance": "Mean distance, tokens", "entropy": "Entropy, nats", "first": "Share on first token"}
    labels = list(dict.fromkeys(table.label))
    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(WIDTH, 7.6))
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for nth, label in enumerate(labels):
            rows = table[table.label == label]
            at = rows.layer + 0.7 * ((nth + 0.5) / len(labels) - 0.5)
            ax.plot(at, rows[name], _MARKS[nth % len(_MARKS)], ms=4, alpha=0.7, color=looks[label]["color"], label=label)
        ax.axhline(even[name], color="0.4", lw=1, ls="--")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=title, xlabel="layer", ylabel="")
        ax.grid(axis="x", visible=False)
    _legend(figure, axes[0].get_legend_handles_labels()[0])
    means = table.groupby("label", sort=False)[list(titles)].mean()
    said = [
        f"{title}: {', '.join(f'{label} {value:.2g}' for label, value in means[name].items())}, spread evenly {even[name]:.2g}"
        for name, title in titles.items()
    ]
    return say(figure, f"Means over all heads. {'. '.join(said)}.")


def profiles(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Share of attention by distance (`diagnostics.profiles`), both axes logarithmic; the token itself stands at 1."""
    figure, ax = plt.subplots()
    for label, rows in table[table.share > 0].groupby("label", sort=False):
        ax.plot(rows.distance + 1, rows.share, label=label, **looks[label])
    ax.set(title="Attention by distance", xlabel="distance + 1, tokens", ylabel="share", xscale="log", yscale="log")
    _legend(figure, ax.get_legend_handles_labels()[0])
    return figure


def norms(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Length of the residual stream before the last norm, by position (`diagnostics.norms`)."""
    figure, ax = plt.subplots()
    for label, rows in table[table.layer == table.layer.max()].groupby("label", sort=False):
        ax.plot(rows.position + 1, rows.norm, label=label, **looks[label])
    ax.set(title="Length of hidden states", xlabel="position", ylabel="", xscale="log", ylim=(0, None))
    _legend(figure, ax.get_legend_handles_labels()[0])
    return figure


def tasks(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Share of answers right by length (`tasks.frame`), with 95 % bands over seeds, one panel for each task; dotted: chance, a
    line at the length trained at."""
    names = list(dict.fromkeys(table.task))
    figure, axes = _panels(len(names), 2.3)
    for ax, name in zip(axes, names, strict=True):
        part = table[table.task == name]
        for label, rows in part[part.whole.notna()].groupby("label", sort=False):
            ax.plot(rows.tokens, rows.whole, marker=".", label=label, **looks[label])
            ax.fill_between(rows.tokens, rows.whole_low, rows.whole_high, color=looks[label]["color"], alpha=0.12, lw=0)
        chance = part.drop_duplicates("tokens")
        ax.plot(chance.tokens, chance.chance_whole, color="0.4", lw=1, ls=":")
        ax.axvline(float((part.tokens / part.factor).mean()), color="0.6", lw=0.8, zorder=0)
        ax.set(title=name, xlabel="", ylabel="", ylim=(-0.03, 1.03), xscale="log")
        ticks = sorted(part.tokens.unique())
        ax.set_xticks([t for t, before in zip(ticks, [0, *ticks], strict=False) if t > 1.4 * before])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
    handles = {str(line.get_label()): line for ax in axes for line in ax.lines if line.get_label() in looks}
    figure.legend(handles.values(), list(handles), loc="outside lower left", ncols=2, fontsize=9)
    return figure


def answers(table: pd.DataFrame) -> Figure:
    """Percent of answers right at the trained length and beyond (`tasks.frame`): one row a model, best first, two tasks side by
    side; names in their families' colours."""
    shares = table[table.factor >= 1].assign(percent=lambda rows: 100 * rows.whole)
    order = (
        shares.groupby("label", sort=False).whole.apply(lambda whole: whole.fillna(0).mean()).sort_values(ascending=False).index
    )
    families = dict(zip(table.label, table.family, strict=True))
    names = list(dict.fromkeys(table.task))
    figure, axes = _panels(len(names), 0.2 + 0.25 * len(order))
    said = []
    for ax, name in zip(axes, names, strict=True):
        grid = shares[shares.task == name].pivot(index="label", columns="tokens", values="percent").reindex(order)
        shown = grid.map(lambda value: "–" if math.isnan(value) else f"{value:.0f}")
        sns.heatmap(grid.fillna(0), annot=shown, fmt="", cmap="Blues", vmin=0, vmax=115, cbar=False, lw=0.6, ax=ax,
                    annot_kws={"fontsize": 10})  # fmt: skip
        ax.set(title=name, xlabel="tokens", ylabel="")
        for label in ax.get_yticklabels():
            label.set(color=_ink(_colour(families[label.get_text()])), fontsize=10)
        rows = [f"{label} {', '.join(row)}" for label, row in zip(order, shown.itertuples(index=False), strict=True)]
        said.append(f"{name} at {', '.join(map(str, grid.columns))} tokens: {'; '.join(rows)}")
    return say(figure, f"Percent of answers right. {'. '.join(said)}.")


def depths(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Share of answers right by where in the question they stand (`tasks.depths`, of one task), one panel for each length."""
    lengths = sorted(table.tokens.unique())
    figure, axes = _panels(len(lengths), 2.5)
    for ax, tokens in zip(axes, lengths, strict=True):
        for label, rows in table[table.tokens == tokens].groupby("label", sort=False):
            ax.plot(rows.depth, rows.whole, marker=".", label=label, **looks[label])
            ax.fill_between(rows.depth, rows.low, rows.high, color=looks[label]["color"], alpha=0.12, lw=0)
        ax.set(title=f"{tokens} tokens", xlabel="depth (0: first)", ylabel="", xlim=(0, 1), ylim=(-0.03, 1.03))
    _legend(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels, two in a row, with the same vertical axis."""
    rows = math.ceil(count / 2)
    figure, axes = plt.subplots(rows, min(count, 2), sharey=True, squeeze=False, figsize=(WIDTH, 0.5 + height * rows))
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def curse(table: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> Figure:
    """Share of facts whose right answer ranks first (`curse.frame`), by how they were stated, one panel for each direction."""
    directions, labels = list(dict.fromkeys(table.direction)), list(dict.fromkeys(table.label))
    ways = [way for way in ("this way", "other way", "both ways", "never") if way in set(table.stated)]
    size = (WIDTH, 3.3 * len(directions))
    figure, axes = plt.subplots(len(directions), 1, sharex=True, sharey=True, squeeze=False, figsize=size)
    said = []
    for ax, direction in zip(axes[:, 0], directions, strict=True):
        part = table[table.direction == direction]
        for nth, label in enumerate(labels):
            rows = part[part.label == label]
            at = [ways.index(way) + 0.6 * ((nth + 0.5) / len(labels) - 0.5) for way in rows.stated]
            colour = looks[label]["color"]
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
    _legend(figure, axes[0, 0].get_legend_handles_labels()[0])
    return say(figure, f"Share of facts whose right answer ranks first, by how they were stated. {'; '.join(said)}.")


def _colour(family: str) -> str:
    return FAMILY_COLOURS.get(family, "#666666")


def _mixed(colour: str, with_: str, share: float) -> str:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(with_), strict=True))
    return to_hex((red, green, blue))


def _ink(colour: str) -> str:
    """The colour, darkened until small print in it can be read on white (4.5 : 1, as WCAG asks)."""
    for step in range(20):
        darker = _mixed(colour, "#000000", 0.05 * step)
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(darker)]
        if 1.05 / (0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]) >= 4.5:
            break
    return darker


def _span(values: pd.Series, digits: int = 1) -> str:
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _legend(figure: Any, handles: Sequence[Any]) -> None:
    """One legend for all panels, below them, where a phone has room for it."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    figure.legend(handles=handles, loc="outside lower left", ncols=2 if longest < 22 else 1, fontsize=10.5)


def _plain_log(ax: Axes) -> None:
    """Ticks a reader can read off a logarithmic axis: 20, 50, 100 rather than powers of ten."""
    low, high = ax.get_ylim()
    ticks = [m * 10**e for e in range(-1, 6) for m in (1, 1.5, 2, 3, 4, 5, 7) if low <= m * 10**e <= high]
    if len(ticks) > 8:
        ticks = [t for t in ticks if str(t).lstrip("0.")[0] in "125" and "5" not in str(t)[1:]]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def _name(ax: Axes, ends: list[tuple[float, str]], looks: dict[str, dict[str, Any]]) -> None:
    """Labels at the lines' ends where there are few and short ones, else one legend below."""
    if len(ends) <= 4 and all(len(label) <= 16 for _, label in ends):
        _name_ends(ax, ends, looks)
    elif not ax.figure.legends:
        _legend(ax.figure, [Line2D([], [], label=label, **looks[label]) for _, label in ends])


def _name_ends(ax: Axes, ends: list[tuple[float, str]], looks: dict[str, dict[str, Any]]) -> None:
    """Each line's label in the right margin, at its end's height or just above the label below it."""
    figure = ax.figure
    figure.canvas.draw()  # the layout must be settled before heights on paper can be compared
    right, height, lowest = ax.get_xlim()[1], 14.0, -math.inf
    for value, label in sorted(ends):
        y = float(ax.transData.transform((right, value))[1])
        lowest = max(y, lowest + height * figure.dpi / 72)
        ax.annotate(
            label,
            (right, value),
            xytext=(6, (lowest - y) * 72 / figure.dpi),
            textcoords="offset points",
            va="center",
            color=_ink(looks[label]["color"]),
            annotation_clip=False,
        )
