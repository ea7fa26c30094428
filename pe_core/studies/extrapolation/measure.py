"""Trained at one context length, read at longer ones: does more context help, do no harm, or break the model?

Press et al. 2022 (arXiv 2108.12409) ask it. All lengths are measured on the same tokens (see `lengths`). A reading is one model
at one length, seed by seed, as trained or with a rescaled encoding in place of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pe_core import comparison, encodings, metrics, progress, records, stats
from pe_core.errors import ConfigError, LabError, RecordError, unknown
from pe_core.launch import processes
from pe_core.metrics import HeldOut
from pe_core.records import Record
from pe_core.stats import Estimate, Paired
from pe_core.studies.extrapolation import lengths

_VERSION = 1  # part of the file's name: raise it when the code below measures something else
_ABOUT = ("label", "family", "trained_at", "length")
_NOTHING = Estimate(math.nan, math.nan, math.nan)


class Reading(NamedTuple):
    """Held-out losses of one model at one context length, by seed; empty where it has no such positions.

    Attributes:
        cut: windows cut into pieces of `length` tokens (`lengths.heldout`).
        slid: tokens with at least half the context before them (`lengths.sliding`).
        remark: what stands in for the model's own encoding, if anything does.
    """

    label: str
    family: str
    trained_at: int
    length: int
    cut: dict[int, HeldOut]
    slid: dict[int, HeldOut]
    remark: str = ""


def windows(record: Record, longest: int) -> int:
    """Windows of the longest length that hold about as many tokens as the model's own held-out ones; at least two."""
    experiment = record.experiment
    return max(2, round(experiment.heldout_windows * experiment.seq_len / longest))


def measure(
    trained: Sequence[Record], at: Sequence[int], count: int | None = None, stand_ins: Sequence[str] | None = None
) -> list[Reading]:
    """Every model at every length, as trained and, beyond the length trained at, with each encoding that may stand in for its
    own (`encodings.length_extensions`). Computed once, then read from the runs' folders; on a CPU several runs at once.

    Args:
        count: windows of the longest length that are read; `None` is `windows`.
        stand_ins: encodings that may stand in for a model's own; `None` is every one that can.

    Raises:
        ConfigError: a length that is not an even divisor of the longest.
        RecordError: a published run was not read at these lengths.
    """
    at = sorted(set(at))
    for length in at:
        if at[-1] % length or length % 2:
            raise ConfigError(f"length={length}: an even divisor of longest={at[-1]} is needed")
    here = [record for record in trained if record.has_weights]  # published runs have their readings
    if len(here) > 1:
        lengths.text(here[0], at[-1], count or windows(here[0], at[-1]))  # before several processes would build it at once
    processes.for_each_run(_measure_folder, here, at, count, stand_ins)
    found: dict[tuple[str, int], Reading] = {}
    said: set[str] = set()
    for record in progress.bar(trained, "Other lengths", unit=" runs"):
        for length in at:
            for remark, losses in _of(record, length, at[-1], count, stand_ins).items():
                label = f"{record.label}, {remark}" if remark else record.label
                empty = Reading(label, record.family, record.config["seq_len"], length, {}, {}, remark)
                reading = found.setdefault((label, length), empty)
                if isinstance(losses, LabError):
                    if label not in said:
                        progress.say(f"{label}, from {length} tokens on: {losses}")
                    said.add(label)
                else:
                    reading.cut[record.config["seed"]], reading.slid[record.config["seed"]] = losses
    for record in here:
        _keep(record, list(found.values()))
        lengths.pack(record)
    return list(found.values())


def _keep(record: Record, readings: Sequence[Reading]) -> None:
    """Bits per byte of the last tokens, by what stands in for the encoding and by length, in the run's folder: what the page of
    an encoding shows (`recorded`), a thousandth of the losses they are computed from."""
    tokens, bits = scored(readings), dict[str, dict[int, float | None]]()
    for reading in readings:
        if reading.label == (f"{record.label}, {reading.remark}" if reading.remark else record.label):
            part = reading.slid.get(record.config["seed"])
            value = metrics.bits_per_byte(last(part, tokens)).value if part else None
            bits.setdefault(reading.remark, {})[reading.length] = value
    at = "_".join(str(length) for length in sorted({reading.length for reading in readings}))
    record.keep(f"extrapolation-{_VERSION}-{at}.json", {"tokens": tokens, "bits": bits})


def recorded(record: Record) -> dict[str, dict[int, float | None]]:
    """Bits per byte of the last tokens of a model that was read at other lengths: by what stood in for its encoding ("" for its
    own), by length. `None` where it has no such positions. Empty where it was not read; the most lengths where it was several
    times.

    Raises:
        RecordError: what was kept cannot be read.
    """
    files = sorted(
        (file.name for file in record.folder.glob(f"extrapolation-{_VERSION}-*.json")), key=lambda name: name.count("_")
    )
    if not files:
        return {}
    kept = record.kept(files[-1])
    try:
        return {remark: {int(length): value for length, value in by.items()} for remark, by in kept["bits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise record.unreadable(files[-1], error) from None


def _measure_folder(folder: Path, at: list[int], count: int | None, stand_ins: Sequence[str] | None) -> None:
    record = records.load(folder)
    for length in at:
        _of(record, length, at[-1], count, stand_ins)


def _of(
    record: Record, length: int, longest: int, count: int | None, stand_ins: Sequence[str] | None
) -> dict[str, tuple[HeldOut, HeldOut] | LabError]:
    """Losses of a model at one length, by what stands in for its encoding ("" for its own), or why there are none."""
    trained, count = record.config["seq_len"], count or windows(record, longest)
    own: tuple[str | None, dict[str, Any] | None] = None, None
    others = encodings.length_extensions(record.config["encoding"], record.config["options"], trained, max(length, trained))
    found: dict[str, tuple[HeldOut, HeldOut] | LabError] = {}
    allowed = {remark: swap for remark, swap in others.items() if stand_ins is None or swap[0] in stand_ins}
    for remark, swap in {"": own, **allowed}.items():
        given = (record, length, longest, count, *(swap if length > trained else own))
        try:
            found[remark] = lengths.heldout(*given), lengths.sliding(*given)
        except ConfigError as error:
            found[remark] = error
        except RecordError as error:
            if record.has_weights or not remark:
                raise
            found[remark] = error  # the run was published before there was this way to read it
    return found


def last(slid: HeldOut, tokens: int = lengths.LAST) -> HeldOut:
    """The last tokens of each window, or as many as every length scores there: the same ones at every length."""
    T = slid.tokens.shape[1]
    return slid.positions(T - tokens, T)


def scored(readings: Sequence[Reading]) -> int:
    """How many tokens at the end of a window every length scores with half its context before them: `LAST`, or fewer."""
    return min(lengths.LAST, min(reading.length for reading in readings) // 2)


def frame(readings: Sequence[Reading]) -> pd.DataFrame:
    """Three rows for each reading, one for each way to measure, the mean over seeds with intervals over documents.

    Returns:
        columns label, family, trained_at, length, measure (`non-overlapping`, `sliding window`, `last tokens`),
        perplexity, low, high, bits, bits_low, bits_high (per byte); NaN where an encoding has no such positions.
    """
    rows, tokens = [], scored(readings)
    for reading in readings:
        about = _about(reading)
        ends = _ends(reading, tokens)
        for name, parts in (("non-overlapping", reading.cut), ("sliding window", reading.slid), ("last tokens", ends)):
            whole = comparison.pool(list(parts.values())) if parts else None
            perplexity, bits = (metrics.perplexity(whole), metrics.bits_per_byte(whole)) if whole else (_NOTHING, _NOTHING)
            row = {**about, "measure": name, "perplexity": perplexity.value, "low": perplexity.low, "high": perplexity.high}
            rows.append({**row, "bits": bits.value, "bits_low": bits.low, "bits_high": bits.high})
    return pd.DataFrame(rows)


def ranking(readings: Sequence[Reading], length: int | None = None) -> pd.DataFrame:
    """All models on the last tokens at one length, best first, each against the best, paired by seed and document.

    Args:
        length: `None` is the longest.

    Returns:
        columns label, family, seeds, bits, bits_low, bits_high (per byte), and percent (of the best one's perplexity), low,
        high, p, p_holm, differs, as in `comparison.frame`. Models without such positions come last, all NaN. Holm's correction
        is for all pairs of models, so that the best one may be picked after looking. Seed variances are not pooled: models that
        break at a length vary far more than those that do not.
    """
    longest, tokens = max(reading.length for reading in readings), scored(readings)
    at = [reading for reading in readings if reading.length == (length or longest)]
    ends = {reading.label: _ends(reading, tokens) for reading in at}
    losses = {label: comparison.pool(list(parts.values())).loss if parts else math.inf for label, parts in ends.items()}
    best = min(losses, key=lambda label: losses[label])
    rows = []
    for reading in sorted(at, key=lambda reading: losses[reading.label]):
        parts = ends[reading.label]
        bits = metrics.bits_per_byte(comparison.pool(list(parts.values()))) if parts else _NOTHING
        against = _paired(parts, ends[best]) if reading.label != best else Paired(_NOTHING, math.nan)
        rows.append(
            {
                "label": reading.label,
                "family": reading.family,
                "seeds": len(parts),
                "bits": bits.value,
                "bits_low": bits.low,
                "bits_high": bits.high,
                "against": against,
            }
        )
    others = [_paired(ends[a], ends[b]).p for a, b in combinations(ends, 2) if best not in (a, b) and ends[a] and ends[b]]
    return _corrected(rows, others)


def changes(readings: Sequence[Reading]) -> pd.DataFrame:
    """What the longest context does to each model: `paths` at that length. Below zero the model uses what it sees beyond the
    trained length."""
    table = paths(readings)
    return table[table.length == max(reading.length for reading in readings)].reset_index(drop=True)


def paths(readings: Sequence[Reading]) -> pd.DataFrame:
    """Perplexity of the last tokens at every length from the one trained at on, against that at the length trained at, paired
    by seed and document, with Holm's correction for the models of each length.

    Returns:
        columns label, family, trained_at, length, percent, low, high, p, p_holm, differs; models without such positions
        are left out.
    """
    tokens, own = scored(readings), {reading.label: reading for reading in readings if reading.length == reading.trained_at}
    by_length: dict[int, list[dict[str, Any]]] = {}
    for reading in readings:
        if reading.length >= reading.trained_at and reading.slid and reading.label in own:
            change = _paired(_ends(reading, tokens), _ends(own[reading.label], tokens))
            by_length.setdefault(reading.length, []).append({**_about(reading), "against": change})
    return pd.concat(map(_corrected, by_length.values()), ignore_index=True) if by_length else _corrected([])


def _about(reading: Reading) -> dict[str, Any]:
    return {name: getattr(reading, name) for name in _ABOUT}


def curves(readings: Sequence[Reading], baseline: str | None = None) -> dict[str, pd.DataFrame]:
    """Perplexity by position in the longest windows for each model (`metrics.position_curve`), the mean over seeds. From a
    quarter of the trained length on: before, each position has few tokens, and no model has met anything new. With a baseline,
    and but for it: their ratio to the baseline's, of the same seeds and windows."""
    longest = max(reading.length for reading in readings)
    found = {reading.label: reading for reading in readings if reading.length == longest and reading.cut}
    common = set.intersection(*(set(reading.cut) for reading in found.values())) if found else set()
    pools = {
        label: comparison.pool([part for seed, part in reading.cut.items() if seed in common or baseline is None])
        for label, reading in found.items()
    }
    if baseline is not None and baseline not in pools:
        raise RecordError(unknown("baseline", baseline, pools))
    of = pools.pop(baseline) if baseline is not None else None
    drawn = {label: metrics.position_curve(heldout, against=of) for label, heldout in pools.items()}
    return {label: curve[curve.start >= found[label].trained_at // 4] for label, curve in drawn.items()}


def _ends(reading: Reading, tokens: int) -> dict[int, HeldOut]:
    return {seed: last(part, tokens) for seed, part in reading.slid.items()}


def _paired(ours: dict[int, HeldOut], theirs: dict[int, HeldOut]) -> Paired:
    """The difference in nats over the seeds both have; unknown where they share none."""
    pairs = [(part, theirs[seed]) for seed, part in ours.items() if seed in theirs]
    return comparison.paired(pairs) if pairs else Paired(_NOTHING, math.nan)


def _corrected(rows: list[dict[str, Any]], others: Sequence[float] = ()) -> pd.DataFrame:
    """With differences (`against`, in nats) in percent, p-values and intervals corrected for these rows and other tests."""
    found = [comparison.percent(one) for one in stats.corrected([row["against"] for row in rows], others)]
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else [*_ABOUT, "against"]).drop(columns="against")
    table[["percent", "low", "high"]] = np.array([one.estimate for one in found]).reshape(-1, 3)
    return table.assign(p_holm=[one.p for one in found], differs=[one.p < 0.05 for one in found])
