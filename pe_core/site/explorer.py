"""The results explorer: what it shows, made from the published records. `book/_static/explorer.js` draws it in the page,
without a server."""

from __future__ import annotations

import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

import pandas as pd

from pe_core import comparison, files, metrics, records, stats
from pe_core.comparison import Groups
from pe_core.config import Experiment
from pe_core.encodings import ENCODINGS
from pe_core.metrics import HeldOut
from pe_core.records import Record
from pe_core.report import figures
from pe_core.site import index

FIRST = 5  # models shown before a visitor chooses
POINTS = 12  # ranges of positions


def place(found: Sequence[Record]) -> str:
    """The explorer's data and the place it is drawn in."""
    against = index.baseline()
    data = {
        "baseline": against,
        "families": figures.FAMILY_COLOURS,
        "settings": [_setting(group, against) for group in comparison.settings(found)],
    }
    text = index.script_json(files.without_nan(data))
    table = "<p>The explorer needs JavaScript; every number it shows also stands in the tables of the experiments.</p>"
    return f'<div id="explorer">{table}</div>\n<script type="application/json" id="explorer-data">{text}</script>'


def first_models(found: Groups, against: str) -> list[str]:
    """The models shown to begin with: the baseline, the one without position encoding, then the best of each family that has
    none yet, best first. Where families are fewer than that, the best of the rest."""
    losses = {label: sum(record.metrics["loss"] for record in group) / len(group) for label, group in found.items()}
    ranked = sorted(losses, key=lambda label: losses[label])
    chosen = [label for label in (against, comparison.of_encoding(found, "none")) if label in found]
    families = {found[label][0].family for label in chosen if label}
    for label in ranked:
        if label not in chosen and found[label][0].family not in families:
            families.add(found[label][0].family)
            chosen.append(label)
    chosen += [label for label in ranked if label not in chosen]
    return [label for label in chosen if label][:FIRST]


def _setting(group: Sequence[Record], against: str) -> dict[str, Any]:
    """One setting, its models, and what tells it from others: `id` for addresses, `series` shared with the settings that
    differ in the amount of text alone."""
    found, record = comparison.groups(group), group[0]
    changed = _changed(record)
    judged = _Judged(found, against)
    frame = records.frame(list(group))
    styles, marks = figures.styles(frame), figures.marks(frame)
    return {
        "id": _digest({**changed, "fingerprint": record.data["fingerprint"]}),
        "series": _digest({name: value for name, value in changed.items() if name != "samples"}),
        "name": index.named(group),
        "tokens": int(record.data["windows"]["train"]) * record.experiment.seq_len,
        "first": [html.unescape(label) for label in first_models(found, against)],
        "models": [
            {**_model(label, found, judged), "dash": styles[label]["linestyle"], "mark": marks[label]} for label in found
        ],
    }


def _changed(record: Record) -> dict[str, Any]:
    """The settings that are not as usual and that models compared with each other share. A setting that this library gets later
    leaves them, and so every address, as they are."""
    usual = dict(Experiment())
    shared = ((name, value) for name, value in record.experiment if name not in comparison.COMPARED)
    return {name: value for name, value in shared if value != usual[name]}


def _digest(said: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:8]


class _Judged:
    """What is found of each model of a setting against the baseline, where that was trained too."""

    def __init__(self, found: Groups, against: str) -> None:
        self.baseline = found.get(against, [])
        compared = bool(self.baseline) and len(found) > 1
        self.overall = comparison.frame(found, against).set_index("label") if compared else pd.DataFrame()
        self._at = cache(partial(differences_at, found, against) if compared else lambda start, end: {})

    def of(self, label: str) -> tuple[list[float] | None, bool]:
        """The difference in percent with its interval, and whether it is found."""
        if label not in self.overall.index or math.isnan(self.overall.percent[label]):
            return None, False
        row = self.overall.loc[label]
        return _rounded([row.percent, row.low, row.high]), bool(row.differs)

    def at(self, label: str, start: int, end: int) -> list[float]:
        """`differences_at` positions [start, end), of one model; empty of the baseline itself and where there is none."""
        return self._at(start, end).get(label, [])


def differences_at(found: Groups, against: str, start: int, end: int) -> dict[str, list[float]]:
    """By how many percent each model's perplexity at positions [start, end) is above the baseline's, with its interval, as
    `comparison.verdicts` has it: the intervals are corrected for all pairs of models."""
    judged = comparison.verdicts(found, (slice(None), slice(start, end)))
    return {row.a: [row.percent, row.low, row.high] for row in judged[judged.b == against].itertuples()}


def _model(label: str, found: Groups, judged: _Judged) -> dict[str, Any]:
    group = found[label]
    pooled, encoding = comparison.pooled(group), group[0].config["encoding"]
    percent, differs = judged.of(label)
    return {
        "label": html.unescape(label),
        "family": group[0].family if group[0].family in figures.FAMILY_COLOURS else "unknown",
        "page": f"encodings/{encoding}.html" if encoding in ENCODINGS else None,
        "colour": figures.family_colour(group[0].family),
        "seeds": len(group),
        "perplexity": _rounded(metrics.perplexity(pooled)),
        "bits": _rounded(metrics.bits_per_byte(pooled)),
        "percent": percent,
        "differs": differs,
        "positions": _positions(label, pooled, judged),
        "epochs": _epochs(group, judged.baseline),
    }


def _positions(label: str, pooled: HeldOut, judged: _Judged) -> list[list[Any]]:
    """[start, end, bytes per token, perplexity, low, high], and where there is a baseline its [percent, low, high]."""
    rows = []
    for at in metrics.position_curve(pooled, POINTS).itertuples():
        part = pooled.positions(at.start, at.end)
        percent = _rounded(judged.at(label, at.start, at.end))
        size = _rounded([part.bytes.sum() / part.tokens.sum()])
        rows.append([int(at.start), int(at.end), *size, *_rounded([at.perplexity, at.low, at.high]), *percent])
    return rows


def _epochs(group: Sequence[Record], baseline: Sequence[Record]) -> list[list[Any]]:
    """[epoch, validation perplexity, low, high], and where there is a baseline its [percent, low, high]. Intervals are over
    seeds."""
    rows = []
    for epoch in sorted({row["epoch"] for record in group for row in record.history}):
        ours, theirs = _validation(group, epoch), _validation(baseline, epoch)
        ends = [math.exp(value) for value in stats.over_seeds(list(ours.values()))]
        differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        percent = [100 * math.expm1(value) for value in stats.over_seeds(differences)] if differences else []
        rows.append([int(epoch), *_rounded([*ends, *percent])])
    return rows


def _validation(group: Iterable[Record], epoch: int) -> dict[int, float]:
    """Validation loss after an epoch by seed, of the runs that went on so long."""
    rows = ((record, row) for record in group for row in record.history if row["epoch"] == epoch)
    return {record.config["seed"]: row["val_loss"] for record, row in rows}


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
