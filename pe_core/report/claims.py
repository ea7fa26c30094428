"""Sentences a notebook says about its results, computed from the records: no claim is typed by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from pe_core import comparison as comparison_of_groups
from pe_core import metrics, progress, stats
from pe_core.records import Record
from pe_core.stats import Estimate, Paired


def comparison(record: Record, baseline: Record) -> str:
    """The difference between two runs on the same windows, in one sentence with its interval."""
    percent = record.difference_to(baseline)["percent"]
    measured = (
        f"95 % interval {as_range(percent, ' %')}, paired over {record.held_out}, "
        f"{record.data['windows']['train']:,} training windows, {record.parameters / 1e6:.1f} M parameters, one seed"
    )
    said = f"{record.label} has {abs(percent.value):.1f} % {_more(percent.value)} perplexity than {baseline.label}"
    if not has_interval(percent):
        return f"{said}; {no_interval(record)}, so nothing can be concluded."
    if excludes(percent):
        found = f"**{said}**"
    else:
        change = f"{as_number(percent.value, 1, '+')} % perplexity"
        found = f"**No difference found** between {record.label} and {baseline.label}: {change}"
    return f"{found} ({measured})."


def answer(record: Record, baselines: list[Record]) -> str:
    """What a run amounts to: its comparison with each baseline, or, with none, its perplexity alone."""
    if baselines:
        return "\n\n".join(comparison(record, baseline) for baseline in baselines)
    perplexity = as_estimate(record.metrics["perplexity"])
    measured = f"95 % interval {as_range(perplexity)}" if has_interval(perplexity) else no_interval(record)
    return (
        f"**{record.label} reaches a held-out perplexity of {perplexity.value:.1f}** ({measured}). "
        f"No baseline was trained, so nothing can be said about what the encoding costs."
    )


def lowest(table: pd.DataFrame, what: str, trained: list[Record]) -> str:
    """A comparison in one sentence (`comparison.frame`): which of the models called `what` has the lowest perplexity, of which
    others no difference from it is found, and how large the runs were."""
    best = table.loc[table.perplexity.idxmin()]
    known = table[table.p_holm.notna()]
    size, lead = sentence_scale(trained), f"{best.label} has the lowest test perplexity, {best.perplexity:.1f}"
    if known.empty:
        return f"Of {len(table)} {what} {lead}; there is no interval for any difference, so nothing can be concluded ({size})."
    tied = [label for label in table[table.leads].label if label != best.label]
    alike = f"{len(tied)} others" if len(tied) > FEW else joined(tied) if tied else ""
    rest = f"no difference is found between it and {alike}" if tied else "all others are significantly higher"
    return f"Of {len(table)} {what} **{lead}**; {rest} ({size})."


def sentence_scale(trained: list[Record]) -> str:
    """How large runs were, for the end of a sentence."""
    record, seeds = trained[0], len({record.config["seed"] for record in trained})
    return (
        f"{record.parameters / 1e6:.1f} M parameters, {record.data['windows']['train']:,} training windows of "
        f"{record.experiment.seq_len} tokens, {number_of_seeds(seeds)}"
    )


ONE_SEED = "With a single seed the intervals cover the choice of documents only, not variance across seeds."


def number_of_seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def ranking(table: pd.DataFrame, baseline: str) -> str:
    """What a comparison of several models found (`comparison.frame`): the best one, who differs from the baseline after
    Holm's correction, and who is not found to."""
    known = table[table.p_holm.notna()]
    if known.empty:
        return "There is no interval for any difference, so nothing can be concluded."
    best = table.loc[table.perplexity.idxmin()]
    tied = [label for label in table[table.leads].label if label != best.label]
    alike = (
        f"; no difference is found between it and {joined(tied) if len(tied) <= FEW else f'{len(tied)} others'}" if tied else ""
    )
    found = [f"**{best.label} has the lowest perplexity, {best.perplexity:.1f}**{_seeds(best)}{alike}."]
    differing, rest = known[known.differs], known[~known.differs]
    sides = {"better": differing[differing.percent < 0], "worse": differing[differing.percent > 0]}
    found += [f"Significantly {word} than {baseline}: {as_list(rows)}." for word, rows in sides.items() if len(rows)]
    if len(rest):
        found.append(f"**No difference found** from {baseline}: {as_list(rest)}.")
    found.append(
        "Percentages are differences in held-out perplexity, paired by seed and document; a difference is called significant "
        "where p < 0.05 after Holm's correction for every pair of models. Intervals are corrected in the same way and exclude "
        "zero exactly where a difference is significant. The smallest difference that four of five such comparisons would find "
        f"is {known.detectable.median():.1f} %."
    )
    if table.seeds.max() == 1:
        found.append(ONE_SEED)
    return "\n\n".join(found)


def cost_of_no_position(found: comparison_of_groups.Groups) -> str:
    """How much position information matters: no encoding against the best one (`comparison.groups`), with its interval."""
    nope = comparison_of_groups.of_encoding(found, "none")
    if nope is None:
        return (
            "No model without position encoding was trained, so nothing can be said about what position information is worth."
        )
    means = {label: stats.over_seeds([r.metrics["perplexity"]["value"] for r in group]).value for label, group in found.items()}
    best = min(means, key=lambda label: means[label])
    if best == nope:
        return f"No encoding did better than {nope}."
    row = judged(comparison_of_groups.verdicts(found), nope, best)
    estimate = Estimate(row.percent, row.low, row.high)
    if row.verdict == comparison_of_groups.NO_DIFFERENCE:
        return f"No difference is found between {nope} and the best, {best}: {as_percent(row)}."
    return (
        f"Without position information ({nope}) perplexity is {means[nope]:.1f}, {estimate.value:.0f} % above the best, "
        f"{best} (interval {as_range(estimate, ' %')}, corrected for all pairs)."
    )


def judged(verdicts: pd.DataFrame, label: str, other: str) -> Any:
    """The row of `comparison.verdicts` for one pair."""
    return next(verdicts[(verdicts.a == label) & (verdicts.b == other)].itertuples())


def scale(group: list[Record]) -> str:
    """How large the runs were, to stand beside their numbers."""
    record, seeds = group[0], len({record.config["seed"] for record in group})
    windows, tokens, corpus = record.data["windows"]["train"], record.experiment.seq_len, record.experiment.corpus
    return (
        f"{windows:,} training windows of {tokens} tokens from {corpus}, "
        f"{record.parameters / 1e6:.1f} M parameters, {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{record.held_out}."
    )


def as_percent(row: Any) -> str:
    return with_interval(row.percent, row.low, row.high)


def with_interval(percent: float, low: float, high: float) -> str:
    return f"{percent:+.1f} % [{low:+.1f}, {high:+.1f}]".replace("-", "−")


FEW = 6  # models whose numbers a sentence still carries; those of more stand in the figure and table below it


def as_list(rows: pd.DataFrame) -> str:
    """Models with their differences in percent. Of many, those with the three largest, or, where none differs, all names."""
    if len(rows) > FEW and not rows.differs.any():
        return "; ".join(rows.label)
    rows = rows.sort_values("percent", key=abs, ascending=False)
    shown = rows.head(3) if len(rows) > FEW else rows
    rest = [f"{len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    return "; ".join([*(f"{row.label} {as_percent(row)}" for row in shown.itertuples()), *rest])


def _seeds(row: Any) -> str:
    if math.isnan(row.perplexity_low):
        return " (one seed)"
    return (
        f" (95 % interval over {row.seeds} seeds {as_range(Estimate(row.perplexity, row.perplexity_low, row.perplexity_high))})"
    )


def paired(name: str, difference: Paired, baseline: str) -> str:
    """One paired difference in percent of perplexity, with its interval."""
    estimate = difference.estimate
    change = f"{as_number(estimate.value, 1, '+')} %"
    if not has_interval(estimate):
        return f"{name}: {change} against {baseline}; there is no interval, so nothing can be concluded."
    if excludes(estimate):
        found = f"**{abs(estimate.value):.1f} % {_more(estimate.value)}** perplexity than {baseline}"
    else:
        found = f"no difference found from {baseline}, {change} perplexity"
    return f"{name}: {found} (95 % interval {as_range(estimate, ' %')})."


def versus(found: comparison_of_groups.Groups, both: list[tuple[str, str]]) -> str:
    """The first model of each pair against the second, one sentence each: the verdicts corrected for all pairs of models."""
    verdicts = comparison_of_groups.verdicts(found)
    return "\n\n".join(f"{label}: {judgement(judged(verdicts, label, other))}." for label, other in both)


def judgement(row: Any) -> str:
    """The verdict on one pair (a row of `comparison.verdicts`), with its corrected interval."""
    if math.isnan(row.p_holm):
        return f"{as_number(row.percent, 1, '+')} % against {row.b}; there is no interval, so nothing can be concluded"
    interval = as_range(Estimate(row.percent, row.low, row.high), " %")
    if row.verdict == comparison_of_groups.NO_DIFFERENCE:
        return f"no difference found from {row.b}, {as_number(row.percent, 1, '+')} % perplexity ({interval})"
    return f"**{abs(row.percent):.1f} % {row.verdict}** perplexity than {row.b} ({interval})"


def pairs(found: dict[str, list[Record]]) -> str:
    """Each group against the one before it, two and two: the second in percent of the first's perplexity."""
    labels = list(found)
    return versus(found, list(zip(labels[1::2], labels[::2], strict=True)))


def learning_curve(record: Record) -> str:
    """The learning curve as the note prints it."""
    return "\n".join(
        [record.label, *map(progress.epoch_line, record.history), progress.ending_line(record.history, record.config["epochs"])]
    )


def use_of_context(record: Record) -> str:
    """Whether late positions are easier than early ones: the last position range against the first."""
    first, *_, last = [(row["start"], row["end"]) for row in record.metrics["position_bins"]] * 2
    if first == last:
        return f"{record.label}: the windows are too short to compare early with late positions."
    change = metrics.change(record.heldout, first, last)
    ranges = f"positions {last[0]}–{last[1]} than at positions {first[0]}–{first[1]}"
    found = f"perplexity is {abs(change.value):.0f} % {_more(change.value)} at {ranges}"
    if not has_interval(change):
        return f"{record.label}: {found}; {no_interval(record)}, so nothing can be concluded."
    if not excludes(change):
        found = f"no difference found in perplexity, higher or lower, at {ranges}"
    return f"{record.label}: {found} (95 % interval of the change {as_range(change, ' %', 0)})."


def first_and_last(ratios: dict[str, pd.DataFrame], baseline: str) -> str:
    """How models compare with the baseline where least and where most of the window is known (`comparison.curves` with it);
    nothing where there is no other model."""
    said = []
    for label, curve in ratios.items():
        percents = 100 * (curve[["perplexity", "low", "high"]] - 1)
        early, late = (with_interval(*percents.iloc[n]) for n in (0, -1))
        said.append(f"{label} {early}, then {late}")
    if not said:
        return ""
    first, last = (next(iter(ratios.values())).iloc[n] for n in (0, -1))
    return (
        f"Against {baseline}, after {first.end:.0f} token{'s' if first.end > 1 else ''} and after {last.start + 1:.0f} to "
        f"{last.end:.0f}: {'; '.join(said)}. Brackets here are 95 % intervals over documents alone: they leave out what "
        "another seed would change, and are not corrected for the number of models."
    )


def as_p(value: float) -> str:
    if math.isnan(value):
        return "p unknown"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def joined(names: list[str]) -> str:
    between = "; " if any(", " in name for name in names) else ", "
    return names[0] if len(names) == 1 else f"{between.join(names[:-1])} and {names[-1]}"


def as_estimate(numbers: dict[str, float | None]) -> Estimate:
    """An estimate as records keep it, in JSON, where NaN is null."""
    return Estimate(*(math.nan if (number := numbers[name]) is None else number for name in Estimate._fields))


def has_interval(estimate: Estimate) -> bool:
    """Whether there is an interval; without one, nothing is a finding."""
    return not (math.isnan(estimate.low) or math.isnan(estimate.high))


def excludes(estimate: Estimate, nothing: float = 0) -> bool:
    """Whether the interval lies on one side of `nothing`. False for NaN ends, as any comparison with them is."""
    return estimate.low > nothing or estimate.high < nothing


def no_interval(record: Record) -> str:
    alone = record.metrics["documents"] == 1
    return f"{'a single held-out document gives' if alone else f'{record.held_out} give'} no interval"


def as_range(estimate: Estimate, unit: str = "", digits: int = 1) -> str:
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}{unit}".replace("-", "−")


def as_number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _more(value: float) -> str:
    return "higher" if value > 0 else "lower"
