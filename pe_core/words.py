"""Sentences a notebook says about its results, computed from the records: no claim is typed by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from pe_core import comparison as comparison_of_groups
from pe_core import metrics, progress, stats
from pe_core.records import Record
from pe_core.stats import Estimate, Paired
from pe_core.studies.note import measure


def comparison(record: Record, baseline: Record) -> str:
    """The difference between two runs on the same windows, in one sentence with its interval."""
    percent = record.difference_to(baseline)["percent"]
    measured = (
        f"95 % interval {_range(percent, ' %')}, paired over {record.metrics['documents']} held-out documents, "
        f"{record.data['windows']['train']:,} training windows, {record.parameters / 1e6:.1f} M parameters, one seed"
    )
    said = f"{record.label} has {abs(percent.value):.1f} % {_more(percent.value)} perplexity than {baseline.label}"
    if not _known(percent):
        return f"{said}; {_no_interval(record)}, so nothing can be concluded."
    if _differs(percent):
        found = f"**{said}**"
    else:
        change = f"{_number(percent.value, 1, '+')} % perplexity"
        found = f"**No difference found** between {record.label} and {baseline.label}: {change}"
    return f"{found} ({measured})."


def answer(record: Record, baselines: list[Record]) -> str:
    """What a run amounts to: its comparison with each baseline, or, with none, its perplexity alone."""
    if baselines:
        return "\n\n".join(comparison(record, baseline) for baseline in baselines)
    perplexity = _estimate(record.metrics["perplexity"])
    measured = f"95 % interval {_range(perplexity)}" if _known(perplexity) else _no_interval(record)
    return (
        f"**{record.label} reaches a held-out perplexity of {perplexity.value:.1f}** ({measured}). "
        f"No baseline was trained, so nothing can be said about what the encoding costs."
    )


def ranking(table: pd.DataFrame, baseline: str) -> str:
    """What a comparison of several models found (`comparison.frame`): the best one, who differs from the baseline after
    Holm's correction, and who is not found to."""
    known = table[table.p_holm.notna()]
    if known.empty:
        return "There is no interval for any difference, so nothing can be concluded."
    best = table.loc[table.perplexity.idxmin()]
    found = [f"**{best.label} has the lowest perplexity, {best.perplexity:.1f}**{_seeds(best)}."]
    differing, alike = known[known.differs], known[~known.differs]
    sides = {"better": differing[differing.percent < 0], "worse": differing[differing.percent > 0]}
    found += [f"Found {word} than {baseline}: {_those(rows)}." for word, rows in sides.items() if len(rows)]
    if len(alike):
        found.append(f"**No difference found** from {baseline}: {_those(alike)}.")
    found.append(
        "Percentages are differences in held-out perplexity with 95 % intervals, paired by seed and document; a difference "
        f"counts as found where p < 0.05 after Holm's correction for {len(known)} comparison{'s' if len(known) > 1 else ''}."
    )
    if table.seeds.max() == 1:
        found.append(
            "With a single seed the intervals cover the choice of documents alone, not the luck of the initial weights."
        )
    return "\n\n".join(found)


def cost_of_no_position(found: comparison_of_groups.Groups, nope: str = "NoPE") -> str:
    """How much position information matters: no encoding against the best one (`comparison.groups`), with its interval."""
    if nope not in found:
        return f"{nope} was not trained, so nothing can be said about what position information is worth."
    means = {label: stats.over_seeds([r.metrics["perplexity"]["value"] for r in group]).value for label, group in found.items()}
    best = min(means, key=lambda label: means[label])
    if best == nope:
        return f"No encoding did better than {nope}."
    estimate = comparison_of_groups.difference(found[nope], found[best]).estimate
    interval = f" (95 % interval {_range(estimate, ' %')})" if _known(estimate) else ""
    return (
        f"Without position information ({nope}) perplexity is {means[nope]:.1f}, {estimate.value:.0f} % above the best, "
        f"{best}{interval}."
    )


def scale(group: list[Record]) -> str:
    """How large the runs were, to stand beside their numbers."""
    record, seeds = group[0], len({record.config["seed"] for record in group})
    windows, tokens, corpus = record.data["windows"]["train"], record.config["seq_len"], record.config["corpus"]
    return (
        f"{windows:,} training windows of {tokens} tokens from {corpus}, "
        f"{record.parameters / 1e6:.1f} M parameters, {seeds} seed{'s' if seeds > 1 else ''}, "
        f"{record.metrics['documents']} held-out documents."
    )


def _percent(row: Any) -> str:
    return f"{row.percent:+.1f} % [{row.low:+.1f}, {row.high:+.1f}]".replace("-", "−")


_FEW = 6  # models whose numbers a sentence still carries; those of more stand in the figure and table below it


def _those(rows: pd.DataFrame) -> str:
    """Models with their differences in percent. Of many, those with the three largest, or, where none differs, all names."""
    if len(rows) > _FEW and not rows.differs.any():
        return "; ".join(rows.label)
    rows = rows.sort_values("percent", key=abs, ascending=False)
    shown = rows.head(3) if len(rows) > _FEW else rows
    rest = [f"{len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    return "; ".join([*(f"{row.label} {_percent(row)}" for row in shown.itertuples()), *rest])


def _seeds(row: Any) -> str:
    if math.isnan(row.perplexity_low):
        return " (one seed)"
    return (
        f" (95 % interval over {row.seeds} seeds {_range(Estimate(row.perplexity, row.perplexity_low, row.perplexity_high))})"
    )


def paired(name: str, difference: Paired, baseline: str) -> str:
    """One paired difference in percent of perplexity, with its interval."""
    estimate = difference.estimate
    change = f"{_number(estimate.value, 1, '+')} %"
    if not _known(estimate):
        return f"{name}: {change} against {baseline}; there is no interval, so nothing can be concluded."
    if _differs(estimate):
        found = f"**{abs(estimate.value):.1f} % {_more(estimate.value)}** perplexity than {baseline}"
    else:
        found = f"no difference found from {baseline}, {change} perplexity"
    return f"{name}: {found} (95 % interval {_range(estimate, ' %')})."


def versus(found: comparison_of_groups.Groups, both: list[tuple[str, str]]) -> str:
    """The first model of each pair against the second, one sentence each."""
    return "\n\n".join(
        paired(label, comparison_of_groups.difference(found[label], found[other]), other) for label, other in both
    )


def same_order(found: comparison_of_groups.Groups, others: comparison_of_groups.Groups, where: str) -> str:
    """Whether models rank by perplexity as others do, which stand for them one for one, in the same order."""
    means = [
        [sum(record.metrics["perplexity"]["value"] for record in group) / len(group) for group in groups.values()]
        for groups in (found, others)
    ]
    ours, theirs = ([name for _, name in sorted(zip(values, found, strict=True))] for values in means)
    if ours == theirs:
        return f"**The order is that of {where}**: {', '.join(ours)}, lowest perplexity first."
    return f"**The order is not that of {where}**: {', '.join(ours)}, lowest perplexity first; there {', '.join(theirs)}."


def pairs(found: dict[str, list[Record]]) -> str:
    """Each group against the one before it, two and two: the second in percent of the first's perplexity."""
    labels = list(found)
    return versus(found, list(zip(labels[1::2], labels[::2], strict=True)))


def gains(found: dict[str, Paired], against: str) -> str:
    """Whom longer windows help (`lengths.gains`), one sentence each."""
    return "\n\n".join(paired(name, gain, against) for name, gain in found.items())


def extrapolation(ranked: pd.DataFrame, changes: pd.DataFrame, length: int, trained_at: int) -> str:
    """Who predicts best at a context longer than the one trained at (`extrapolation.ranking`), and what that context does to
    each model (`extrapolation.changes`)."""
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
            found.append(f"**{way}**: {_those(rows)}.")
    if known.empty:
        found.append("There is no interval for what the longer context does, so nothing can be concluded about it.")
    if absent:
        found.append(f"No positions beyond {trained_at:,} tokens: {_and(absent)}.")
    found.append(
        "Percentages are differences in perplexity of the last tokens of each window with 95 % intervals, paired by seed and "
        f"document: first between models at {length:,} tokens of context, then between {length:,} and {trained_at:,} tokens. "
        "They count as found where p < 0.05 after Holm's correction."
    )
    return "\n\n".join(found)


def _winner(ranked: pd.DataFrame, length: int, trained_at: int) -> list[str]:
    best, others = ranked.iloc[0], ranked[ranked.p_holm.notna()]
    interval = Estimate(best.bits, best.bits_low, best.bits_high)
    known = f"95 % interval {_range(interval, digits=3)} over documents" if _known(interval) else "no interval"
    said = f"{best.label} predicts best at {length:,} tokens of context: {best.bits:.3f} bits per byte"
    measured = f"{known}, trained at {trained_at:,}, {best.seeds} seed{'s' if best.seeds > 1 else ''}"
    alike = others[~others.differs]
    if others.empty:
        return [f"{said} ({measured}); there is no interval for any difference, so nothing can be concluded."]
    found = [f"**{said}** ({measured})."]
    if len(alike):
        found.append(f"**No difference found** from it: {_those(alike)}.")
    if len(worse := others[others.differs]):
        nearest = worse.iloc[0]
        found.append(f"{len(worse)} of {len(others)} others are worse, the nearest {nearest.label} {_percent(nearest)}.")
    return found


def knows_position(table: pd.DataFrame) -> str:
    """Where position can be read off (`diagnostics.probes`): models by what becomes of it from the embeddings on."""
    worked_out, told = "**Work out positions that their embeddings lack**", "Were told positions and keep them"
    no_more, unknown = (
        "No layer is found that knows more of position than the embeddings",
        "No interval, so nothing can be concluded",
    )
    said: dict[str, list[str]] = {worked_out: [], told: [], no_more: [], unknown: []}
    for label, rows in table.groupby("label", sort=False):
        start, best = rows.iloc[0], rows.loc[rows.r2.idxmax()]
        first, most = (Estimate(row.r2, row.low, row.high) for row in (start, best))
        if not (_known(first) and _known(most)):
            said[unknown].append(f"{label}, R² {_number(best.r2, 2)} at most")
        elif most.low <= max(0.0, first.high):
            said[no_more].append(f"{label}, R² {_number(start.r2, 2)} ({_range(first, digits=2)})")
        else:
            reached = f"R² {_number(best.r2, 2)} ({_range(most, digits=2)}) after layer {best.layer}"
            said[told if first.low > 0 else worked_out].append(f"{label}, {reached}")
    found = [f"{verdict}: {'; '.join(models)}." for verdict, models in said.items() if models]
    return "\n\n".join([*found, "R² of a linear probe on documents it was not fitted on, with 95 % intervals over documents."])


def uses_order(table: pd.DataFrame) -> str:
    """What the order of earlier tokens is worth (`diagnostics.order`): for each number of tokens left in place, whose loss
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
    said.append("In nats, with 95 % intervals over seeds and documents; found where p < 0.05 after Holm's correction.")
    return "\n\n".join(said)


def _rise(row: Any) -> str:
    interval = "" if math.isnan(row.low) else f" ({_range(Estimate(row.rise, row.low, row.high), digits=3)})"
    return f"{row.label}, {_number(row.rise, 3, '+')}{interval}"


def tasks(ranked: pd.DataFrame, claims: pd.DataFrame, learned: list[str], asked: list[str]) -> str:
    """Who answers right beyond the trained length (`tasks.ranking`), and whether the paper's order holds (`tasks.claims`)."""
    if missed := [name for name in asked if name not in learned]:
        left = f"Not learned by any model, even within the trained length, and left out: {_and(missed)}."
    else:
        left = "Every task was learned by some model."
    if ranked.empty:
        return f"{left} So nothing can be said about longer ones."
    said = [
        f"{row.label} {100 * row.score:.0f} %"
        + ("" if math.isnan(row.low) else f" ({_range(Estimate(row.score, 100 * row.low, 100 * row.high), digits=0)})")
        for row in ranked.itertuples()
    ]
    found = [
        f"Answers right beyond the trained length, over {_and(learned)}: {'; '.join(said)}."
        + (" 95 % intervals over seeds." if ranked.low.notna().any() else " One seed gives no interval.")
    ]
    known = claims[claims.p_holm.notna()]
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
            "difference is found (paired by seed and task, p < 0.05 after Holm's correction)."
        )
    return "\n\n".join([*found, left])


def able(found: pd.DataFrame) -> str:
    """Who answers nine of ten questions right within the trained length, and who still does beyond it (`tasks.able`)."""
    said = []
    for task, rows in found.groupby("task", sort=False):
        parts = []
        for row in rows.itertuples():
            count = len(row.labels)
            where = f"at {row.tokens} tokens" if row.beyond else f"at up to {row.tokens} tokens, as in training,"
            who = f" ({'; '.join(row.labels)})" if 0 < count <= _FEW else ""
            parts.append(f"{where} {count or 'none'} of {row.models}{who}")
        said.append(f"**{task}**, models that answer at least nine of ten questions right: {', '.join(parts)}.")
    return "\n\n".join(said) or "No task was given to all encodings."


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
    if not _known(change):
        return f"{record.label}: {found}; {_no_interval(record)}, so nothing can be concluded."
    if not _differs(change):
        found = f"no difference found in perplexity, higher or lower, at {ranges}"
    return f"{record.label}: {found} (95 % interval of the change {_range(change, ' %', 0)})."


def reversal(trained: list[Record]) -> str:
    """What the note's reversal ratio can and cannot mean."""
    return "\n\n".join([*map(_ratio, trained), _NOT_A_CURSE])


_NOT_A_CURSE = (
    "This is **not** a reversal curse. The curse is about facts learned in one direction; none of these sentences was put "
    "into the training text, so the ratio tells only which wording looks odder to the model."
)


def curse(table: pd.DataFrame) -> str:
    """Whether any model knows facts the way round they were not stated (`curse.frame`, one kind of phrasing)."""
    stated, reverse = (table[table.stated == way] for way in ("this way", "other way"))
    if stated.empty or reverse.empty:
        return "No model was trained on facts in one direction alone, so nothing can be said about the curse."
    learned = stated.groupby("label", sort=False).known.all()
    able, unable = (list(learned.index[learned == was]) for was in (True, False))
    found, said = reverse[reverse.label.isin(able) & reverse.known], []
    for row in found.itertuples():
        forward = stated[(stated.label == row.label) & (stated.direction == row.direction)].gain
        share = f", {100 * row.gain / forward.iloc[0]:.1f} % of the gain where it was stated" if len(forward) else ""
        interval = _range(Estimate(row.gain, row.gain_low, row.gain_high), digits=2)
        said.append(
            f"**{row.label} softens the reversal curse** ({row.direction}): asked the way round that was not stated, the right "
            f"answer gains {row.gain:.2f} nats over others (95 % interval {interval}, {_p(row.p_holm)}){share}."
        )
    if rest := [label for label in able if label not in set(found.label)]:
        p = reverse[reverse.label.isin(rest)].p_holm
        who = f"{rest[0]} was not" if len(rest) == 1 else f"None of {_and(rest)} was"
        said.append(
            f"**{who} found to soften the reversal curse**: asked the way round that was not stated, the right answer is not "
            f"found to be likelier than others ({len(p)} test{'s' if len(p) > 1 else ''}, smallest {_p(p.min())})."
        )
    if unable:
        said.append(
            f"Nothing can be said about {_and(unable)}: even asked the way they were stated, facts were not found to be known."
        )
    return "\n\n".join([*said, *(_directions(label, table[table.label == label]) for label in learned.index)])


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


def note_ratio(never: list[Record], trained: list[Record]) -> str:
    """The note's reversal ratio for the same sentences, never seen and trained on (forward alone)."""
    said = []
    for before, after in zip(never, trained, strict=True):
        if before.config.get("facts") == "note":
            said.append(f"{before.label}: all runs were trained on the note's sentences, so there is nothing to compare.")
            continue
        ratios = [_estimate(measure.reversal(record)["ratio"]) for record in (before, after)]
        if not all(map(_known, ratios)):
            said.append(f"{before.label}: too few facts fit into a window, so nothing can be concluded.")
            continue
        first, second = (f"{ratio.value:.3g} (95 % interval {ratio.low:.3g} to {ratio.high:.3g})" for ratio in ratios)
        said.append(
            f"{before.label}: the ratio is {first} where the sentences were never seen, and {second} where the forward ones "
            f"were trained on."
        )
    return "\n\n".join(said)


def _p(value: float) -> str:
    if math.isnan(value):
        return "p unknown"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ratio(record: Record) -> str:
    numbers = measure.reversal(record)
    ratio = _estimate(numbers["ratio"])
    if not numbers["facts"]:
        return f"{record.label}: no fact fits into a window, so there is no interval and nothing can be concluded."
    if not _known(ratio):
        facts = "a single fact gives" if numbers["facts"] == 1 else f"{numbers['facts']} facts give"
        return f"{record.label}: the ratio is {ratio.value:.2f}; {facts} no interval, so nothing can be concluded."
    if _differs(ratio, 1):
        found = f"the {'forward' if ratio.value > 1 else 'backward'} sentences are the more surprising ones"
    else:
        found = "the interval contains 1, so neither direction is found to be harder"
    return (
        f"{record.label}: over {numbers['facts']} facts the ratio is {ratio.value:.2f} "
        f"(95 % interval {_range(ratio, digits=2)}): {found}."
    )


def _estimate(numbers: dict[str, float | None]) -> Estimate:
    """An estimate as records keep it, in JSON, where NaN is null."""
    return Estimate(*(math.nan if (number := numbers[name]) is None else number for name in Estimate._fields))


def _known(estimate: Estimate) -> bool:
    """Whether there is an interval; without one, nothing is a finding."""
    return not (math.isnan(estimate.low) or math.isnan(estimate.high))


def _differs(estimate: Estimate, nothing: float = 0) -> bool:
    """Whether the interval lies on one side of `nothing`. False for NaN ends, as any comparison with them is."""
    return estimate.low > nothing or estimate.high < nothing


def _no_interval(record: Record) -> str:
    documents = record.metrics["documents"]
    return f"{'a single held-out document gives' if documents == 1 else f'{documents} held-out documents give'} no interval"


def _range(estimate: Estimate, unit: str = "", digits: int = 1) -> str:
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}{unit}".replace("-", "−")


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _more(value: float) -> str:
    return "higher" if value > 0 else "lower"
