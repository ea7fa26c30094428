"""Figures: a frame in, Axes out. One look, one colour per encoding family; nothing is measured here.

Figures are vectors on a transparent ground, drawn narrow enough to be read on a phone. The site's style sheet turns them
for dark pages (light for dark, hues kept). Each carries a description of what it shows, made of its own data (`describe`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
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

from pe_core import files
from pe_core.errors import ConfigError, unknown

# Okabe & Ito's colours: told apart under every common form of colour blindness.
FAMILY_COLOURS = {
    "none": "#000000",
    "absolute": "#CC79A7",
    "rotary": "#0072B2",
    "bias": "#D55E00",
    "content": "#009E73",
    "hybrid": "#E69F00",
    "window": "#56B4E9",
}
_DASHES = ("-", "--", ":", "-.")
MARKS = "osD^vPX*"


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


def save(figure: Figure, file: str | Path) -> Path:
    """Draw a figure into a file, on white. Raises ConfigError: its ending is none that can be drawn."""
    file = Path(file)
    kinds = sorted(figure.canvas.get_supported_filetypes())
    if file.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(unknown("picture format", file.suffix or file.name, ["." + kind for kind in kinds]))
    with files.writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, facecolor="white", dpi=150)
    plt.close(figure)
    return file


def describe(figure: Figure) -> str:
    """What the figure shows, in words, for those who cannot see it: what its maker said (`set_alt_text`), else where each
    labelled line of each panel begins and ends."""
    said: str | None = getattr(figure, "alt_text", None)
    if said is not None:
        return said
    return " ".join(filter(None, map(_panel, figure.axes)))


def set_alt_text(figure: Figure, words: str) -> Figure:
    """Give a figure its description."""
    figure.alt_text = words  # type: ignore[attr-defined]
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


def styles(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and dash of every label in a frame with `label` and `family`: families by colour, members by dash, and by shade
    where a family has more members than there are dashes."""
    chosen = {}
    for row, nth in _members(frame):
        shade = _mixed(family_colour(row.family), "#888888", min(0.3 * (nth // len(_DASHES)), 0.9))
        chosen[row.label] = {"color": shade, "linestyle": _DASHES[nth % len(_DASHES)]}
    return chosen


def marks(frame: pd.DataFrame) -> dict[str, str]:
    """The mark of every label in a frame with `label` and `family`. With the dash that `styles` gives it, it tells apart 32
    members of a family that all have the family's own colour."""
    # No pair of mark and dash comes twice.
    return {row.label: MARKS[(nth + nth // len(_DASHES)) % len(MARKS)] for row, nth in _members(frame)}


def _members(frame: pd.DataFrame) -> Iterator[tuple[Any, int]]:
    """Each label's first row, and its number among the labels of its family."""
    first = frame.drop_duplicates("label")
    return zip(first.itertuples(), first.groupby("family", observed=True, dropna=False).cumcount(), strict=True)


def learning_curves(history: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> Figure:
    """Training and held-out perplexity by epoch, one above the other; a ring marks the epoch whose weights are reported."""
    figure, axes = plt.subplots(2, 1, sharex=True, sharey=True, figsize=(WIDTH, 6.0))
    for ax, side in zip(axes, ("training", "held-out"), strict=True):
        ends: list[tuple[float, str]] = []
        for label, of_label in history[history.side == side].groupby("label", sort=False):
            last = []
            for _, rows in of_label.groupby("run", sort=False):  # one line a seed: their spread is the luck of training
                ax.plot(rows.epoch, rows.perplexity, marker=".", lw=1.2, ms=4, **styles[label])
                best = rows[rows.best].iloc[0]
                ax.plot(best.epoch, best.perplexity, "o", ms=8, mfc="none", color=styles[label]["color"])
                last.append(rows.perplexity.iloc[-1])
            ends.append((sum(last) / len(last), label))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=f"{side.capitalize()} perplexity", xlabel="epoch" if side == "held-out" else "", ylabel="", yscale="log")
        plain_log(ax)
        _name(ax, ends, styles)
    best = history[history.best & (history.side == "held-out")].groupby("label", sort=False)
    said = [f"{name} {_span(rows.perplexity)} at epoch {_span(rows.epoch, 0)}" for name, rows in best]
    return set_alt_text(figure, f"Training and held-out perplexity by epoch. Lowest held-out perplexity: {'; '.join(said)}.")


def position_curves(curves: dict[str, pd.DataFrame], styles: dict[str, dict[str, Any]], ranges: Sequence[int] = ()) -> Figure:
    """Perplexity by position in the window (logarithmic), with 95 % bands over documents."""
    figure = _position_curves(curves, styles, ranges, "Perplexity by position", value="log")
    plain_log(figure.axes[0])
    return figure


def position_differences(
    ratios: dict[str, pd.DataFrame], baseline: str, styles: dict[str, dict[str, Any]], ranges: Sequence[int] = ()
) -> Figure:
    """Perplexity by position in percent against the baseline's (ratios: `comparison.curves` with it), with 95 % bands over
    documents. Beyond 100 % the scale is logarithmic."""
    columns = ["perplexity", "low", "high"]
    percents = {label: curve.assign(**(100 * (curve[columns] - 1))) for label, curve in ratios.items()}
    far = any(curve.perplexity.max() > 100 for curve in percents.values())
    scale: dict[str, Any] = {"value": "symlog", "linthresh": 100} if far else {"value": "linear"}
    figure = _position_curves(percents, styles, ranges, f"Perplexity by position against {baseline}, %", **scale)
    ax = figure.axes[0]
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.axhline(0, color="0.35", lw=1)
    return figure


_NAMED = 14  # so many labels fit beside a figure; of more there is a legend, for which the figure grows


def _position_curves(
    curves: dict[str, pd.DataFrame], styles: dict[str, dict[str, Any]], ranges: Sequence[int], title: str, **scale: Any
) -> Figure:
    """With a `scale` as `Axes.set_yscale` takes it, which has to be known before names are placed at the lines' ends."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2 + (0.23 * len(curves) if len(curves) > _NAMED else 0)))
    ax.set(title=title, xlabel="tokens the model has seen", ylabel="", xscale="log")
    ax.set_yscale(**scale)
    faint = min(0.15, 0.4 / max(len(curves), 1))  # bands overlap: models share the documents that differ
    for label, curve in curves.items():
        seen = (curve.start + curve.end + 1) / 2  # position 0 is predicted from one token
        ax.plot(seen, curve.perplexity, label=label, **styles[label])
        ax.fill_between(seen, curve.low, curve.high, color=styles[label]["color"], alpha=faint, lw=0)
    for edge in ranges:
        ax.axvline(edge, color="0.8", lw=0.8, zorder=0)
    start = min((curve.start.min() for curve in curves.values()), default=0)
    end = max((curve.end.max() for curve in curves.values()), default=1)
    ticks = [2**n for n in range(24) if start < 2**n <= end]
    ax.set_xticks(ticks if len(ticks) <= 10 else ticks[::2])
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ends = [(float(curve.perplexity.iloc[-1]), label) for label, curve in curves.items()]
    short = len(ends) <= 4 and all(len(label) <= 16 for _, label in ends)
    if len(ends) <= _NAMED:
        _name_ends(ax, ends, styles, size=12 if short else 10)
    else:
        _name(ax, ends, styles)
    return figure


def forest(table: pd.DataFrame, baseline: str) -> Figure:
    """Differences to the baseline in percent with 95 % intervals, best on top; hollow where none was found."""
    rows = table[table.percent.notna()].sort_values("percent", ascending=False).reset_index(drop=True)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.42 * len(rows)))
    for y, row in enumerate(rows.itertuples()):
        colour = family_colour(row.family)
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
    ax.set(xlabel="% higher perplexity; intervals corrected for all pairs\nhollow: no difference found")
    figure.suptitle(f"Held-out perplexity against {baseline}", x=0.02, ha="left")
    ax.grid(axis="y", visible=False)
    said = [
        f"{row.label} {row.percent:+.1f} % ({row.low:+.1f} to {row.high:+.1f}{'' if row.differs else ', no difference found'})"
        for row in rows[::-1].itertuples()
    ]
    return set_alt_text(figure, f"Held-out perplexity against {baseline}, with 95 % intervals, best first: {'; '.join(said)}.")


def preview(table: pd.DataFrame, baseline: str, target: Path) -> None:
    """The picture that stands beside a link to the site, 1200 × 630: `forest` with the site's name."""
    rows = table[table.percent.notna()].sort_values("percent").reset_index(drop=True).head(12)
    with plt.rc_context({"figure.constrained_layout.use": True, "font.size": 11}):
        figure, ax = plt.subplots(figsize=(8, 4.2), facecolor="white")
        for y, row in enumerate(rows.itertuples()):
            colour = family_colour(row.family)
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


def by_setting(table: pd.DataFrame, x: str, xlabel: str, others: Sequence[str] = (), log: bool = True) -> Figure:
    """Perplexity by one numeric setting, with intervals over seeds; models without that setting as horizontal lines."""
    figure, ax = plt.subplots()
    varied = table[table[x].notna() & ~table.label.isin(others)].sort_values(x)
    for family, rows in varied.groupby("family", sort=False):
        spread = rows[["perplexity_low", "perplexity_high"]].sub(rows.perplexity, axis=0).abs().T.fillna(0).to_numpy()
        ax.errorbar(rows[x], rows.perplexity, yerr=spread, fmt="o-", capsize=3, color=family_colour(family))
    for name, dash in zip(others, _DASHES[1:] * 3, strict=False):
        row = table[table.label == name].iloc[0]
        colour = family_colour(row.family)
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
    return set_alt_text(figure, f"Held-out perplexity by {xlabel}: {'; '.join(said)}.")


def paired_panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels, two in a row, with the same vertical axis."""
    rows = math.ceil(count / 2)
    figure, axes = plt.subplots(rows, min(count, 2), sharey=True, squeeze=False, figsize=(WIDTH, 0.5 + height * rows))
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def family_colour(family: str) -> str:
    return FAMILY_COLOURS.get(family, "#666666")


def family_legend(figure: Figure, families: Iterable[str]) -> None:
    """Whose colour is whose, below the figure, for the families that are there."""
    handles = [
        Line2D([], [], color=colour, marker="o", lw=0, label=family)
        for family, colour in FAMILY_COLOURS.items()
        if family in set(families)
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=9, columnspacing=1, handletextpad=0.2)


def _mixed(colour: str, with_: str, share: float) -> str:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(with_), strict=True))
    return to_hex((red, green, blue))


def readable(colour: str) -> str:
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


def figure_legend(figure: Any, handles: Sequence[Any]) -> None:
    """One legend for all panels, below them, where a phone has room for it."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    figure.legend(handles=handles, loc="outside lower left", ncols=2 if longest < 22 else 1, fontsize=10.5)


def plain_log(ax: Axes) -> None:
    """Ticks a reader can read off a logarithmic axis: 20, 50, 100 rather than powers of ten."""
    low, high = ax.get_ylim()
    ticks = [m * 10**e for e in range(-1, 6) for m in (1, 1.5, 2, 3, 4, 5, 7) if low <= m * 10**e <= high]
    if len(ticks) > 8:
        ticks = [t for t in ticks if str(t).lstrip("0.")[0] in "125" and "5" not in str(t)[1:]]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def _name(ax: Axes, ends: list[tuple[float, str]], styles: dict[str, dict[str, Any]]) -> None:
    """Labels at the lines' ends where there are few and short ones, else one legend below."""
    if len(ends) <= 4 and all(len(label) <= 16 for _, label in ends):
        _name_ends(ax, ends, styles)
    elif not ax.figure.legends:
        figure_legend(ax.figure, [Line2D([], [], label=label, **styles[label]) for _, label in ends])


def _name_ends(ax: Axes, ends: list[tuple[float, str]], styles: dict[str, dict[str, Any]], size: float = 12) -> None:
    """Each line's label in the right margin, at its end's height or as near to it as the others leave room."""
    figure = ax.figure
    figure.canvas.draw()  # the layout must be settled before heights on paper can be compared
    right = ax.get_xlim()[1]
    ends = sorted(ends)
    at = [float(ax.transData.transform((right, value))[1]) * 72 / figure.dpi for value, _ in ends]
    for (value, label), wanted, y in zip(ends, at, _spread(at, 1.2 * size), strict=True):
        ax.annotate(
            label,
            (right, value),
            xytext=(6, y - wanted),
            textcoords="offset points",
            va="center",
            fontsize=size,
            color=readable(styles[label]["color"]),
            annotation_clip=False,
        )


def _spread(heights: list[float], step: float) -> list[float]:
    """Rising heights moved apart to at least `step`, each group that touches about its own middle."""
    groups: list[tuple[float, int]] = []  # middle and number of members
    for height in heights:
        middle, count = height, 1
        while groups and middle - groups[-1][0] < step * (count + groups[-1][1]) / 2:
            other, more = groups.pop()
            middle, count = (middle * count + other * more) / (count + more), count + more
        groups.append((middle, count))
    return [middle + step * (n - (count - 1) / 2) for middle, count in groups for n in range(count)]
