"""Tables: records in, a pandas Styler out, ready for a notebook. No metric is computed here."""

from __future__ import annotations

import html
import math
import zlib
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from pe_core.config import Experiment
from pe_core.records import Record


def interval(estimate: dict[str, float | None] | Any, digits: int = 1) -> str:
    """`58.2 [56.0, 60.5]`; without an interval (a single document) the value alone; without a value a dash."""
    value, low, high = estimate.values() if isinstance(estimate, dict) else estimate
    if value is None or value != value:
        return "–"
    if low is None or low != low:
        return f"{value:,.{digits}f}"
    return f"{value:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def marked(row: Any) -> str:
    """A difference in percent (a row of `comparison.verdicts`) with its interval and, where one was found, its direction."""
    mark = {"lower": " ▼", "higher": " ▲"}.get(row.verdict, "")
    return f"{row.percent:+.1f} [{row.low:+.1f}, {row.high:+.1f}]{mark}".replace("-", "−")


def duration(seconds: float) -> str:
    """`42 s`, `3.4 min`, `1.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def settings(record: Record) -> Styler:
    """The settings of a run as used, with every `auto` replaced by what it became."""
    config, data = record.config, record.data
    rows = {
        "corpus": f"{config['corpus']} ({data['corpus_about']}; {data['licence']})",
        "windows of {seq_len} tokens".format(**config): sides(data["windows"]),
        f"blocks of {data['blocks_of']} document(s)" if data.get("blocks_of") else "documents": sides(data["documents"]),
        "tokenizer": data["tokenizer"],
        **(
            {"facts": "{name}, {windows:,} of the training windows, {sentences:,} sentences an epoch".format(**data["facts"])}
            if data.get("facts")
            else {}
        ),
        "model": f"{config['preset']}, {record.parameters:,} parameters",
        **({"starts from": f"the best weights of {config['start']}"} if config.get("start") else {}),
        "training": _training(record.experiment),
        "seed": str(config["seed"]),
        "machine": f"{record.runtime['device']}"
        + (
            f", {record.runtime['threads']} thread{'s' * (record.runtime['threads'] > 1)}"
            if "threads" in record.runtime
            else ""
        )
        + (f" in each of {record.runtime['processes']} processes" if record.runtime.get("processes", 1) > 1 else "")
        + f", {config['precision']}, {'compiled' if record.runtime['compiled'] else 'not compiled'}",
        "run": record.run,
    }
    return prose(pd.DataFrame({"": rows}))


def _training(e: Experiment) -> str:
    if e.schedule == "constant":
        course = f"constant learning rate {e.lr:g}, at most {e.epochs} epochs, patience {e.patience} on validation text"
    else:
        epochs = "one epoch" if e.epochs == 1 else f"{e.epochs} epochs"
        course = f"learning rate {e.lr:g} after {100 * e.warmup:g} % warm-up, {e.schedule} decay to zero over {epochs}"
    decay = f"weight decay {e.weight_decay:g} of {e.decay}"
    return f"AdamW, {course}, {decay}, batch {e.batch_size}, gradient norm clipped at {e.clip:g}"


def sides(counts: dict[str, int]) -> str:
    """Numbers of windows or documents on each side of the split."""
    names = {"train": "training", "heldout": "held-out"}  # records of the first protocol have one held-out side
    return ", ".join(f"{count:,} {names.get(side, side)}" for side, count in counts.items())


def summary(trained: list[Record]) -> Styler:
    """One column per run: perplexity and bits per byte with intervals, best epoch, size, cost."""
    columns = {
        record.label: {
            "held-out perplexity": interval(record.metrics["perplexity"]),
            "bits per byte": interval(record.metrics["bits_per_byte"], 3),
            "best epoch": f"{record.best_epoch} of {len(record.history)}",
            "parameters": f"{record.parameters:,}",
            "training time": duration(record.runtime["train_seconds"]),
            "tokens/s": _rate(record.runtime["tokens_per_second"]),
            "peak memory": f"{record.runtime['peak_memory_mb']:,.0f} MB",
        }
        for record in trained
    }
    return styled(pd.DataFrame(columns))


def comparison(table: pd.DataFrame, baseline: str) -> Styler:
    """`comparison.frame`, best first: perplexity over seeds, the paired difference to the baseline, and what it cost."""
    rows = table.sort_values("perplexity")
    shown = pd.DataFrame(
        {
            "held-out perplexity": [interval([r.perplexity, r.perplexity_low, r.perplexity_high]) for r in rows.itertuples()],
            f"% against {baseline}": [interval([r.percent, r.low, r.high]) for r in rows.itertuples()],
            "p (Holm)": [p_value(value) for value in rows.p_holm],
            "bits per byte": [
                interval([r.bits_per_byte, r.bits_per_byte_low, r.bits_per_byte_high], 3) for r in rows.itertuples()
            ],
            "best epochs": [", ".join(map(str, epochs)) for epochs in rows.best_epoch],
            "parameters": [f"{count:,}" for count in rows.parameters],
            "tokens/s": [_rate(rate) for rate in rows.tokens_per_second],
            "peak memory": [f"{memory:,.0f} MB" for memory in rows.peak_memory_mb],
        },
        index=list(rows.label),
    )
    return styled(shown)


def runs(records: list[Record]) -> Styler:
    """Every run of a page by its id, with what it cost: the record of each stands in the book's `records` folder."""
    rows = [
        {
            "run": record.run,
            "model": record.label,
            **({"task": record.experiment.task} if record.experiment.task else {}),
            "seed": record.config["seed"],
            "perplexity": f"{record.metrics['perplexity']['value']:.2f}",
            "best epoch": f"{record.best_epoch} of {len(record.history)}",
            "training time": duration(record.runtime["train_seconds"]),
            "tokens/s": _rate(record.runtime["tokens_per_second"]),
            "threads": record.runtime.get("threads", ""),
            "commit": record.versions.get("git", ""),
        }
        for record in records
    ]
    return styled(pd.DataFrame(rows)).hide()


def _rate(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.0f}"


def p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def encodings(table: pd.DataFrame) -> Styler:
    """`recipes.encodings_frame`: one row an encoding, what it is and where it comes from."""
    answers = {True: "yes", False: "no", None: "–"}
    shown = pd.DataFrame(
        {
            "encoding": table.label,
            "name": table["name"],
            "family": table.family,
            "parameters": table.parameters.map("{:,}".format),
            "writes scores out": [answers[value] for value in table.explicit_scores],
            "extrapolates": [answers[value] for value in table.extrapolates],
            "paper": table.paper,
            "year": table.year.astype(str),
        }
    )
    return styled(shown).hide()


def prose(table: pd.DataFrame) -> Styler:
    """Any frame of words, one row a line, without heads."""
    return styled(table, numbers=False).hide(axis="columns")


def plain(table: pd.DataFrame, digits: int = 1) -> Styler:
    """Any frame as a table without its index, numbers to so many digits."""
    return styled(table).hide().format(precision=digits, thousands=",")


def styled(table: pd.DataFrame, numbers: bool = True) -> Styler:
    """A table for a page: its look is the site's style sheet's; the same table is the same bytes. What is in it is text: a
    name that holds markup, as one of a file may, is shown and not obeyed."""
    align, kind = ("right", "results") if numbers else ("left", "results prose")
    shown = table.map(_as_text).rename(index=_as_text, columns=_as_text)
    styler = Styler(shown, cell_ids=False, uuid=f"{zlib.crc32(table.to_csv().encode()):08x}")
    styler.set_table_styles([{"selector": "td", "props": [("text-align", align)]}])
    return styler.set_table_attributes(f'class="dataframe {kind}"')


def _as_text(value: Any) -> Any:
    return html.escape(value, quote=False) if isinstance(value, str) else value
