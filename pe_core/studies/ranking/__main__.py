"""`python -m pe_core.studies.ranking [FOLDER]`: derive the study's sentences again from its published records."""

from __future__ import annotations

import sys
from pathlib import Path

from pe_core import encodings, paths, records
from pe_core.errors import RecordError, told
from pe_core.studies.ranking import measure, report


def derived(folder: Path = paths.PUBLISHED) -> str:
    """Who leads, who differs from RoPE on all dimensions, and what changed with training, from the records alone."""
    budgets = measure.by_budget(records.load_study(folder / "ranking"))
    if not budgets:
        raise RecordError(f"no ranking is published in '{folder}'")
    baseline = encodings.label("rope", {"rotary_pct": 1.0})
    return report.answer(measure.leaders(budgets), measure.differences(budgets, baseline), baseline)


if __name__ == "__main__":
    with told():
        print(derived(Path(sys.argv[1]) if len(sys.argv) > 1 else paths.PUBLISHED).replace("**", ""))
