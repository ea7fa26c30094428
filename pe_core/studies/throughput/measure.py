"""What a throughput record (`make bench`) means: ratios, fractions of the machine's limit, targets met and missed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from pe_core import paths
from pe_core.errors import RecordError

RECORD = "throughput.json"
DEFAULTS, TUNED, LIMIT = "Trainer, defaults", "Trainer, bf16 and compiled", "limit: bf16 products"
NANO, PYTHIA, AT_ONCE = "nano, 8 × 128", "pythia-70m, 8 × 128", "nano, 8 × 128, one run a core"


def load(path: str | Path | None = None) -> dict[str, Any]:
    """A throughput record; by default the one `make bench` wrote last, else the one the book publishes.

    Raises:
        RecordError: there is none, or it is not one.
    """
    measured, published = paths.runs() / RECORD, paths.ROOT / "book" / "records" / RECORD
    file = Path(path) if path else published if published.exists() and not measured.exists() else measured
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        frame(record)
    except OSError:
        raise RecordError(f"no throughput record at '{file}'; `make bench` makes one") from None
    except (ValueError, KeyError) as error:
        raise RecordError(f"'{file}' is not a throughput record ({error})") from None
    return record


def frame(record: dict[str, Any]) -> pd.DataFrame:
    """One row per shape and contender; `limit` is its share of the bf16 matrix products' speed at that shape."""
    rows = pd.DataFrame(record["rows"])
    limits = rows[rows.contender == LIMIT].set_index("shape").tokens_per_second
    rows["limit"] = rows.tokens_per_second / rows["shape"].map(limits)
    return rows


def by_encoding(record: dict[str, Any]) -> dict[str, float]:
    """Training speed at nano under each encoding over that under none."""
    return {row["contender"].partition(" · ")[2]: 1 / row["ours_over_it"] for row in record.get("encodings", [])}


def targets(record: dict[str, Any]) -> pd.DataFrame:
    """What was aimed at on a quiet two-core machine, beside what was measured."""
    rows = frame(record).set_index(["shape", "contender"])

    def of(shape: str, contender: str, column: str) -> float:
        return float(rows.loc[(shape, contender), column]) if (shape, contender) in rows.index else math.nan

    def faster(shape: str, contender: str) -> float:
        return of(shape, contender, "ours_over_it")

    encodings = by_encoding(record)
    slowest = min(encodings, key=lambda name: encodings[name], default="none")
    seconds = {row["what"]: row["seconds"] for row in record.get("start_up", [])}
    aims = [
        ("pythia-70m: times the Trainer's defaults", faster(PYTHIA, DEFAULTS), ">=", 2.3),
        ("pythia-70m: times the Trainer in bf16, compiled", faster(PYTHIA, TUNED), ">=", 1.3),
        ("pythia-70m: share of the bf16 products' speed", of(PYTHIA, "ours", "limit"), ">=", 0.75),
        ("pythia-70m: peak memory over the Trainer's", _over(of, PYTHIA, DEFAULTS), "<=", 0.75),
        ("nano: times the Trainer's defaults", faster(NANO, DEFAULTS), ">=", 2.0),
        ("nano: times the Trainer in bf16, compiled", faster(NANO, TUNED), ">=", 1.6),
        ("nano: two runs at once, times the Trainer's defaults", faster(AT_ONCE, DEFAULTS), ">=", 2.6),
        ("nano: evaluation over training, tokens/s", 1 / faster(NANO, "ours, evaluation"), ">=", 2.5),
        (f"nano: slowest encoding ({slowest}) over none", encodings.get(slowest, math.nan), ">=", 0.6),
        ("import pe_core, seconds", seconds.get("import pe_core", math.nan), "<=", 1.5),
        ("first step, nothing compiled, seconds", seconds.get("first step, nothing compiled", math.nan), "<=", 15),
        ("first step, compiled before, seconds", seconds.get("first step, compiled before", math.nan), "<=", 6),
    ]
    found = pd.DataFrame(aims, columns=["what", "measured", "sign", "target"])
    found["met"] = [
        m >= t if sign == ">=" else m <= t for m, sign, t in zip(found.measured, found.sign, found.target, strict=True)
    ]
    return found


def _over(of: Any, shape: str, contender: str) -> float:
    return float(of(shape, "ours", "peak_memory_mb") / of(shape, contender, "peak_memory_mb"))
