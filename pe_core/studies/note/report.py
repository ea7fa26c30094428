"""The results note beside our own records: the same quantities, point by point, and its mistakes computed on our runs."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from pe_core import comparison, encodings, metrics, recipes
from pe_core.comparison import Groups
from pe_core.records import Record
from pe_core.report import claims, tables
from pe_core.stats import Estimate
from pe_core.studies.note import measure, published

Row = tuple[str, str, str, str]
# What the note compares NoPE with, in its own words, and our short name of the same model.
_THEIR_BASELINES = {"RoPE 25 %": "rope", "ALiBi + MLA": "mla-alibi"}


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
        rows.append(("NoPE, perplexity", f"{published.PERPLEXITY['NoPE']:.1f}", f"{sum(values) / len(values):.1f}", _CANNOT))
    for label, other in zip(_THEIR_BASELINES, (rope, alibi), strict=True):
        if nope and other:
            ours = comparison.difference(nope, other).estimate
            theirs = published.DEGRADATION_PERCENT[label]
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
    (first, *_, last), edges = published.POSITIONS, record.metrics["position_bins"]
    theirs = 100 * (last[2] / first[2] - 1)
    ours = metrics.change(record.heldout, (edges[0]["start"], edges[0]["end"]), (edges[-1]["start"], edges[-1]["end"]))
    rows = [
        ("NoPE, best epoch", str(published.BEST_EPOCH), str(record.best_epoch), "cannot agree: another learning rate and size"),
        ("NoPE, last positions against first, %", f"{theirs:+.1f}", _shown(ours), _direction(theirs, ours)),
    ]
    if found := measure.recorded(record):
        ratio = claims.as_estimate(found["ratio"])
        inside = ratio.low <= published.REVERSAL["ratio"] <= ratio.high
        verdict = "the note's number lies in our interval" if inside else "the note's number lies outside our interval"
        rows.append(("NoPE, reversal ratio", f"{published.REVERSAL['ratio']:.3f}", _shown(ratio, 3, ""), verdict))
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
    row = claims.judged(comparison.verdicts(found), latent[0].label, plain[0].label)
    return f"The same ALiBi with latent attention: {claims.judgement(row)}, with ordinary attention."


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
    runs = group(found, "rope") or next(iter(found.values()), None)
    if not runs:
        return pd.DataFrame(columns=["bytes per token", "bits per byte", "perplexity"])
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


def reversal(trained: list[Record]) -> str:
    """What the note's reversal ratio can and cannot mean."""
    return "\n\n".join([*map(_ratio, trained), _NOT_A_CURSE])


_NOT_A_CURSE = (
    "This is **not** a reversal curse. The curse is about facts learned in one direction; none of these sentences was put "
    "into the training text, so the ratio tells only which wording looks odder to the model."
)


def ratio_after_training(never: list[Record], trained: list[Record]) -> str:
    """The note's reversal ratio for the same sentences, never seen and trained on (forward alone)."""
    said = []
    for before, after in zip(never, trained, strict=True):
        if before.config.get("facts") == "note":
            said.append(f"{before.label}: all runs were trained on the note's sentences, so there is nothing to compare.")
            continue
        ratios = [claims.as_estimate(measure.reversal(record)["ratio"]) for record in (before, after)]
        if not all(map(claims.has_interval, ratios)):
            said.append(f"{before.label}: too few facts fit into a window, so nothing can be concluded.")
            continue
        first, second = (f"{ratio.value:.3g} (95 % interval {ratio.low:.3g} to {ratio.high:.3g})" for ratio in ratios)
        said.append(
            f"{before.label}: the ratio is {first} where the sentences were never seen, and {second} where the forward ones "
            f"were trained on."
        )
    return "\n\n".join(said)


def _ratio(record: Record) -> str:
    numbers = measure.reversal(record)
    ratio = claims.as_estimate(numbers["ratio"])
    if not numbers["facts"]:
        return f"{record.label}: no fact fits into a window, so there is no interval and nothing can be concluded."
    if not claims.has_interval(ratio):
        facts = "a single fact gives" if numbers["facts"] == 1 else f"{numbers['facts']} facts give"
        return f"{record.label}: the ratio is {ratio.value:.2f}; {facts} no interval, so nothing can be concluded."
    if claims.excludes(ratio, 1):
        found = f"the {'forward' if ratio.value > 1 else 'backward'} sentences are the more surprising ones"
    else:
        found = "the interval contains 1, so neither direction is significantly harder"
    return (
        f"{record.label}: over {numbers['facts']} facts the ratio is {ratio.value:.2f} "
        f"(95 % interval {claims.as_range(ratio, digits=2)}): {found}."
    )


def degradation_table(record: Record, baselines: list[Record]) -> Styler:
    """How much higher a run's perplexity is than each baseline's, paired on the same windows; the note's beside it."""
    columns = {}
    for baseline in baselines:
        difference = record.difference_to(baseline)
        columns[f"{record.label} against {baseline.label}"] = {
            "perplexity": tables.interval(difference["absolute"], 2),
            "percent": tables.interval(difference["percent"]),
        }
        theirs = [name for name, short in _THEIR_BASELINES.items() if group({"": [baseline]}, short)]
        for name in theirs:
            columns["the note"] = {
                "perplexity": f"{published.DEGRADATION[name]:.1f}",
                "percent": f"{published.DEGRADATION_PERCENT[name]:.1f}",
            }
    return tables.styled(pd.DataFrame(columns))


def positions_table(trained: list[Record]) -> Styler:
    """Perplexity in the note's position ranges, one column per run, the note's NoPE column last."""
    columns = {
        record.label: {
            f"{row['start']}–{row['end']}": tables.interval([row[k] for k in ("perplexity", "low", "high")])
            for row in record.metrics["position_bins"]
        }
        for record in trained
    }
    table = pd.DataFrame(columns)
    theirs = {f"{start}–{end}": f"{value:.1f}" for start, end, value in published.POSITIONS}
    table["the note (NoPE)"] = [theirs.get(name, "") for name in table.index]
    return tables.styled(table)


def reversal_table(trained: list[Record]) -> Styler:
    """The note's four reversal numbers, one column per run, the note's NoPE column last."""
    digits = {"forward": 1, "backward": 1, "ratio": 3, "gap": 1}
    columns = {
        record.label: {name: tables.interval(measure.reversal(record)[name], places) for name, places in digits.items()}
        for record in trained
    }
    table = pd.DataFrame(columns)
    table["the note (NoPE)"] = [f"{published.REVERSAL[name]:,.{places}f}" for name, places in digits.items()]
    table.index = pd.Index(["forward perplexity", "backward perplexity", "ratio forward / backward", "gap backward - forward"])
    return tables.styled(table)
