"""The cost of decoding, as a table."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

from pe_core.report import tables


def decoding_table(table: pd.DataFrame) -> Styler:
    """`measure.table`: one row a model, cache size and speed at every context."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault(row.label, {})
        cells[f"cache at {row.context:,}"] = f"{row.cache_bytes / 1e3:,.0f} kB"
        cells[f"tokens/s at {row.context:,}"] = f"{row.tokens_per_second:,.0f}"
    rows = pd.DataFrame(shown).T
    return tables.styled(rows[sorted(rows.columns, key=lambda name: name.startswith("tokens"))])
