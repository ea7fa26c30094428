"""What a throughput record (`make bench`) means: ratios, fractions of the machine's limit, targets met and missed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pe_core import files, paths
from pe_core.errors import RecordError

FOLDER = "throughput"  # of records, one file a kind of machine
DEFAULTS = "Trainer, defaults"
TUNED = {"bf16": "Trainer, bf16 and compiled", "fp32": "Trainer, compiled"}
LIMITS = {"bf16": "limit: bf16 products", "fp32": "limit: fp32 products"}
NANO, PYTHIA, AT_ONCE = "nano, 8 × 128", "pythia-70m, 8 × 128", "nano, 8 × 128, one run a core"


def load(path: str | Path | None = None) -> list[dict[str, Any]]:
    """Throughput records: the one in that file, or one for each kind of machine, those that `make bench` made here before those
    that the book publishes.

    Raises:
        RecordError: there is none, or a file is not one.
    """
    if path:
        return [_load(Path(path))]
    found = {file.name: file for root in (paths.PUBLISHED, paths.runs()) for file in (root / FOLDER).glob("*.json")}
    if not found:
        raise RecordError("no throughput record; `make bench` makes one")
    return [_load(file) for file in sorted(found.values(), key=lambda file: (paths.runs() not in file.parents, file.name))]


def _load(file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = files.from_json(file.read_text())
        frame(record)
    except OSError:
        raise RecordError(f"no throughput record at '{file}'; `make bench` makes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"'{file}' is not a throughput record ({error})") from None
    return record


def file_name(record: dict[str, Any]) -> str:
    """One for each kind of machine: "amd-epyc-bf16.json"."""
    return re.sub(r"[^a-z0-9]+", "-", machine(record).lower()).strip("-") + ".json"


def machine(record: dict[str, Any]) -> str:
    """The processor, and the number format that is faster on it: "AMD EPYC, bf16"."""
    return f"{record['device']}, {_format(record)}"


def _format(record: dict[str, Any]) -> str:
    return str(record.get("precision", "bf16"))


def frame(record: dict[str, Any]) -> pd.DataFrame:
    """One row per shape and contender; `limit` is its share of the speed at that shape of the matrix products alone, in the
    number format that is faster there; machine says where."""
    rows = pd.DataFrame(record["rows"])
    limits = rows[rows.contender == LIMITS[_format(record)]].set_index("shape").tokens_per_second
    rows["limit"] = rows.tokens_per_second / rows["shape"].map(limits)
    return rows.assign(machine=machine(record))


def frames(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`frame` of every machine's record."""
    return pd.concat([frame(record) for record in found], ignore_index=True)


def by_encoding(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Training speed at nano under each encoding over that under none, on the first machine where that was measured."""
    rows: list[dict[str, Any]] = next((record["encodings"] for record in found if record.get("encodings")), [])
    return {row["contender"].partition(" · ")[2]: 1 / row["ours_over_it"] for row in rows}


def targets(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What was aimed at on a quiet two-core machine of each kind, beside what was measured: columns what, measured, sign,
    target, met, machine."""
    return pd.concat([_targets(record) for record in found], ignore_index=True)


def _targets(record: dict[str, Any]) -> pd.DataFrame:
    rows = frame(record).set_index(["shape", "contender"])

    def of(shape: str, contender: str, column: str) -> float:
        return float(rows.loc[(shape, contender), column]) if (shape, contender) in rows.index else math.nan

    def faster(shape: str, contender: str) -> float:
        return of(shape, contender, "ours_over_it")

    encodings = by_encoding([record])
    slowest = min(encodings, key=lambda name: encodings[name], default="none")
    seconds = {row["what"]: row["seconds"] for row in record.get("start_up", [])}
    format_, products = _format(record), f"share of the {_format(record)} products' speed"
    bf16 = format_ == "bf16"
    tuned = "in bf16, compiled" if bf16 else "compiled"
    aims = [
        ("pythia-70m: times the Trainer's defaults", faster(PYTHIA, DEFAULTS), ">=", 2.3 if bf16 else 1.0),
        (f"pythia-70m: times the Trainer {tuned}", faster(PYTHIA, TUNED[format_]), ">=", 1.3 if bf16 else 1.0),
        (f"pythia-70m: {products}", of(PYTHIA, "ours", "limit"), ">=", 0.75),
        ("pythia-70m: peak memory over the Trainer's", _over(of, PYTHIA, DEFAULTS), "<=", 0.75 if bf16 else 0.8),
        ("nano: times the Trainer's defaults", faster(NANO, DEFAULTS), ">=", 2.0 if bf16 else 1.35),
        (f"nano: times the Trainer {tuned}", faster(NANO, TUNED[format_]), ">=", 1.6 if bf16 else 1.0),
        (f"nano: {products}", of(NANO, "ours", "limit"), ">=", 0.6 if bf16 else 0.8),
        ("nano: two runs at once, times the Trainer's defaults", faster(AT_ONCE, DEFAULTS), ">=", 2.6 if bf16 else 1.6),
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
    return found.assign(machine=machine(record))


def _over(of: Any, shape: str, contender: str) -> float:
    return float(of(shape, "ours", "peak_memory_mb") / of(shape, contender, "peak_memory_mb"))
