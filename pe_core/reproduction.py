"""The results note beside our own records: the same quantities, point by point, and its mistakes computed on our runs."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pandas as pd

from pe_core import comparison, encodings, metrics, note, recipes, words
from pe_core.comparison import Groups
from pe_core.records import Record
from pe_core.stats import Estimate

Row = tuple[str, str, str, str]


def group(found: Groups, name: str) -> list[Record] | None:
    """The runs of the model with this short name (`recipes.model`), or `None` where it is not on record."""
    wanted = recipes.model(name)
    options = encodings.options(wanted["encoding"], wanted.get("options", {})).model_dump()
    for runs in found.values():
        made = runs[0].experiment
        kind = made.encoding, made.attention
        if kind == (wanted["encoding"], wanted.get("attention", "mha")) and made_options(runs[0]) == options:
            return runs
    return None


def made_options(record: Record) -> dict[str, Any]:
    """All of a run's encoding options, those its record does not name at their defaults."""
    return encodings.options(record.config["encoding"], record.config["options"]).model_dump()


def point_by_point(found: Groups) -> pd.DataFrame:
    """Each of the note's numbers beside ours, with what can be said about their agreement."""
    nope, rope, alibi = (group(found, name) for name in ("none", "rope", "mla-alibi"))
    rows: list[Row] = []
    if nope:
        values = [record.metrics["perplexity"]["value"] for record in nope]
        rows.append(("NoPE, perplexity", f"{note.PERPLEXITY['NoPE']:.1f}", f"{sum(values) / len(values):.1f}", _CANNOT))
    for label, other in (("RoPE 25 %", rope), ("ALiBi + MLA", alibi)):
        if nope and other:
            ours = comparison.difference(nope, other).estimate
            theirs = note.DEGRADATION_PERCENT[label]
            rows.append((f"NoPE against {label}, %", f"{theirs:+.1f}", _shown(ours), _direction(theirs, ours)))
    if nope and rope and alibi:
        named = ((rope, "RoPE"), (alibi, "ALiBi + MLA"), (nope, "NoPE"))
        order = sorted((sum(map(_loss, runs)) / len(runs), name) for runs, name in named)
        ours_in_order = ", ".join(name for _, name in order)
        theirs_in_order = "RoPE, ALiBi + MLA, NoPE"
        verdict = "the same order" if ours_in_order == theirs_in_order else "another order"
        rows.append(("order, lowest perplexity first", theirs_in_order, ours_in_order, verdict))
    if nope:
        rows += _of_nope(nope[0])
    return pd.DataFrame(rows, columns=["quantity", "the note", "here", "agreement"])


_CANNOT = "cannot agree: other text, tokenizer and size"


def _of_nope(record: Record) -> list[Row]:
    """What the note measured on NoPE alone, from one run, as there."""
    (first, *_, last), edges = note.POSITIONS, record.metrics["position_bins"]
    theirs = 100 * (last[2] / first[2] - 1)
    ours = metrics.change(record.heldout, (edges[0]["start"], edges[0]["end"]), (edges[-1]["start"], edges[-1]["end"]))
    rows = [
        ("NoPE, best epoch", str(note.BEST_EPOCH), str(record.best_epoch), "cannot agree: another learning rate and size"),
        ("NoPE, last positions against first, %", f"{theirs:+.1f}", _shown(ours), _direction(theirs, ours)),
    ]
    if "reversal" in record.metrics:
        numbers = record.metrics["reversal"]["ratio"]
        ratio = Estimate(*(math.nan if numbers[name] is None else numbers[name] for name in Estimate._fields))
        inside = ratio.low <= note.REVERSAL["ratio"] <= ratio.high
        verdict = "the note's number lies in our interval" if inside else "the note's number lies outside our interval"
        rows.append(("NoPE, reversal ratio", f"{note.REVERSAL['ratio']:.3f}", _shown(ratio, 3, ""), verdict))
    return rows


def _shown(estimate: Estimate, digits: int = 1, sign: str = "+") -> str:
    low, high = f"{estimate.low:{sign}.{digits}f}", f"{estimate.high:{sign}.{digits}f}"
    return f"{estimate.value:{sign}.{digits}f} [{low}, {high}]".replace("-", "−")


def _direction(theirs: float, ours: Estimate) -> str:
    if ours.low > 0 or ours.high < 0:
        same = (ours.value > 0) == (theirs > 0)
        inside = ", and its size lies in our interval" if ours.low <= theirs <= ours.high else ", another size"
        return f"the same direction{inside}" if same else "the opposite direction"
    return "not settled here: our interval contains 0"


def agreement(table: pd.DataFrame) -> str:
    """How many of the note's numbers point the same way here, in one sentence."""
    if table.empty:
        return "None of the note's models is on record, so nothing can be compared."
    same = table.agreement.str.startswith(("the same", "the note's number lies in"))
    cannot = table.agreement.str.startswith("cannot")
    return (
        f"**{int(same.sum())} of the {int((~cannot).sum())} quantities that can be compared agree** in direction, order or "
        f"size; {int(cannot.sum())} cannot agree, because data, tokenizer or size differ."
    )


def mixed(found: Groups) -> str:
    """Mistake 3, computed: what another attention alone does to the same encoding."""
    latent, plain = group(found, "mla-alibi"), group(found, "alibi-one")
    if not latent or not plain:
        return "ALiBi with and without latent attention are not both on record, so what attention alone does is not known."
    difference = comparison.difference(latent, plain)
    return words.paired("The same ALiBi with latent attention", difference, "ALiBi with ordinary attention")


def one_seed(found: Groups, name: str = "alibi", baseline: str = "rope") -> pd.DataFrame:
    """Mistake 4, computed: the gap that two single runs show, for every pair of seeds, in percent."""
    runs, others = group(found, name), group(found, baseline)
    if not runs or not others:
        return pd.DataFrame(columns=["run", "against", "gap, %"])
    rows = [
        (
            f"{a.label}, seed {a.config['seed']}",
            f"{b.label}, seed {b.config['seed']}",
            100 * math.expm1(a.metrics["loss"] - b.metrics["loss"]),
        )
        for a, b in product(runs, others)
    ]
    return pd.DataFrame(rows, columns=["run", "against", "gap, %"]).sort_values("gap, %", ignore_index=True)


def _loss(record: Record) -> float:
    return float(record.metrics["loss"])


def luck(table: pd.DataFrame) -> str:
    """What those pairs say about reading a gap off single runs."""
    if len(table) < 2:
        return "Too few seeds are on record to say what single runs would show."
    low, high = table["gap, %"].min(), table["gap, %"].max()
    return (
        f"From the same code and data, the gap between single runs lies anywhere between {low:+.1f} and {high:+.1f} %. "
        f"**One run each cannot tell these apart.**"
    ).replace("-", "−")


def tokenizers(found: Groups, bytes_per_token: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0)) -> pd.DataFrame:
    """Mistake 6, computed: the perplexity that one and the same quality of prediction has under longer tokens."""
    runs = group(found, "rope") or next(iter(found.values()))
    bits = sum(record.metrics["bits_per_byte"]["value"] for record in runs) / len(runs)
    own = sum(record.metrics["loss"] for record in runs) / len(runs) / (bits * math.log(2))
    lengths = sorted([*bytes_per_token, own])
    return pd.DataFrame(
        {
            "bytes per token": [f"{n:.2f}{' (this tokenizer)' if n == own else ''}" for n in lengths],
            "bits per byte": [f"{bits:.3f}" for _ in lengths],
            "perplexity": [f"{math.exp(bits * math.log(2) * n):,.1f}" for n in lengths],
        }
    )
