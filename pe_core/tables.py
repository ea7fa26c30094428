"""Tables: records in, a pandas Styler out, ready for a notebook. No metric is computed here."""

from __future__ import annotations

import math
import zlib
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from pe_core import note
from pe_core.records import Record
from pe_core.studies.note import measure


def interval(estimate: dict[str, float | None] | Any, digits: int = 1) -> str:
    """`58.2 [56.0, 60.5]`; without an interval (a single document) the value alone; without a value a dash."""
    value, low, high = estimate.values() if isinstance(estimate, dict) else estimate
    if value is None or value != value:
        return "–"
    if low is None or low != low:
        return f"{value:,.{digits}f}"
    return f"{value:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


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
        "windows of {seq_len} tokens".format(**config): "{train:,} training, {heldout:,} held-out".format(**data["windows"]),
        "documents": "{train:,} training, {heldout:,} held-out".format(**data["documents"]),
        "tokenizer": data["tokenizer"],
        **(
            {"facts": "{name}, {windows:,} of the training windows, {sentences:,} sentences an epoch".format(**data["facts"])}
            if data.get("facts")
            else {}
        ),
        "model": f"{config['preset']}, {record.parameters:,} parameters",
        **({"starts from": f"the best weights of {config['start']}"} if config.get("start") else {}),
        "training": "AdamW, learning rate {lr:g}, weight decay {weight_decay:g}, batch {batch_size}, gradient norm clipped "
        "at {clip:g}, at most {epochs} epochs, patience {patience}".format(**config),
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
    return _style(pd.DataFrame(columns))


def degradation(record: Record, baselines: list[Record]) -> Styler:
    """How much higher a run's perplexity is than each baseline's, paired on the same windows; the note's beside it."""
    columns = {}
    for baseline in baselines:
        difference = record.difference_to(baseline)
        columns[f"{record.label} against {baseline.label}"] = {
            "perplexity": interval(difference["absolute"], 2),
            "percent": interval(difference["percent"]),
        }
        if baseline.label in note.DEGRADATION:
            columns["the note"] = {
                "perplexity": f"{note.DEGRADATION[baseline.label]:.1f}",
                "percent": f"{note.DEGRADATION_PERCENT[baseline.label]:.1f}",
            }
    return _style(pd.DataFrame(columns))


def comparison(table: pd.DataFrame, baseline: str) -> Styler:
    """`comparison.frame`, best first: perplexity over seeds, the paired difference to the baseline, and what it cost."""
    rows = table.sort_values("perplexity")
    shown = pd.DataFrame(
        {
            "held-out perplexity": [interval([r.perplexity, r.perplexity_low, r.perplexity_high]) for r in rows.itertuples()],
            f"% against {baseline}": [interval([r.percent, r.low, r.high]) for r in rows.itertuples()],
            "p (Holm)": [_p(value) for value in rows.p_holm],
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
    return _style(shown)


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
    return _style(pd.DataFrame(rows)).hide()


def _rate(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.0f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def positions(trained: list[Record]) -> Styler:
    """Perplexity in the note's position ranges, one column per run, the note's NoPE column last."""
    columns = {
        record.label: {
            f"{row['start']}–{row['end']}": interval([row[k] for k in ("perplexity", "low", "high")])
            for row in record.metrics["position_bins"]
        }
        for record in trained
    }
    table = pd.DataFrame(columns)
    theirs = {f"{start}–{end}": f"{value:.1f}" for start, end, value in note.POSITIONS}
    table["the note (NoPE)"] = [theirs.get(name, "") for name in table.index]
    return _style(table)


def reversal(trained: list[Record]) -> Styler:
    """The note's four reversal numbers, one column per run, the note's NoPE column last."""
    digits = {"forward": 1, "backward": 1, "ratio": 3, "gap": 1}
    columns = {
        record.label: {name: interval(measure.reversal(record)[name], places) for name, places in digits.items()}
        for record in trained
    }
    table = pd.DataFrame(columns)
    table["the note (NoPE)"] = [f"{note.REVERSAL[name]:,.{places}f}" for name, places in digits.items()]
    table.index = pd.Index(["forward perplexity", "backward perplexity", "ratio forward / backward", "gap backward - forward"])
    return _style(table)


def throughput(rows: pd.DataFrame) -> Styler:
    """Every contender at every shape (`speed.frame`): speed, ours over it, share of the limit, memory, seconds until ready."""
    ranges = zip(rows.ours_over_it, rows.lowest_ratio, rows.highest_ratio, strict=True)
    shown = pd.DataFrame(
        {
            "shape": rows["shape"],
            "contender": rows.contender,
            "tokens/s": rows.tokens_per_second.map("{:,.0f}".format),
            "ours is": [f"{middle:.2f} × [{low:.2f}, {high:.2f}]" for middle, low, high in ranges],
            "of the limit": rows.limit.map(lambda share: "–" if math.isnan(share) else f"{share:.0%}"),
            "peak memory": rows.peak_memory_mb.map("{:,.0f} MB".format),
            "ready after": rows.ready_seconds.map("{:.1f} s".format),
        }
    )
    return _style(shown).hide()


def targets(found: pd.DataFrame) -> Styler:
    """`speed.targets`: what was aimed at beside what was measured."""
    signs = found.sign.map({">=": "at least", "<=": "at most"})
    shown = pd.DataFrame(
        {
            "what": found.what,
            "target": signs + " " + found.target.map("{:g}".format),
            "measured": found.measured.map("{:.2f}".format).str.replace("nan", "–"),
            "met": found.met.map({True: "yes", False: "no"}),
        }
    )
    return _style(shown).hide()


def decoding(table: pd.DataFrame) -> Styler:
    """`decoding.table`: one row a model, cache size and speed at every context."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault(row.label, {})
        cells[f"cache at {row.context:,}"] = f"{row.cache_bytes / 1e3:,.0f} kB"
        cells[f"tokens/s at {row.context:,}"] = f"{row.tokens_per_second:,.0f}"
    rows = pd.DataFrame(shown).T
    return _style(rows[sorted(rows.columns, key=lambda name: name.startswith("tokens"))])


def lengths(table: pd.DataFrame) -> Styler:
    """`lengths.frame`: one row for each model and length trained at, one column for each length measured at."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault(f"{row.label}, trained at {row.trained_at}", {})
        cells[f"at {row.length}"] = interval([row.perplexity, row.low, row.high])
    return _style(pd.DataFrame(shown).T)


def contexts(table: pd.DataFrame, bits: bool = False) -> Styler:
    """`extrapolation.frame`, of one way to measure: one row for each model, one column for each context length.

    Args:
        bits: bits per byte instead of perplexity.
    """
    columns, digits = (["bits", "bits_low", "bits_high"], 3) if bits else (["perplexity", "low", "high"], 1)
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        shown.setdefault(row.label, {})[f"at {row.length:,}"] = interval([getattr(row, name) for name in columns], digits)
    return _style(pd.DataFrame(shown).T.fillna("–"))


def last_tokens(ranked: pd.DataFrame, changes: pd.DataFrame) -> Styler:
    """`extrapolation.ranking` beside `extrapolation.changes`: every model at the longest context, best first."""
    changed = changes.set_index("label")
    shown = pd.DataFrame(
        {
            "bits per byte": [interval([r.bits, r.bits_low, r.bits_high], 3) for r in ranked.itertuples()],
            "% against the best": [interval([r.percent, r.low, r.high]) for r in ranked.itertuples()],
            "p (Holm)": [_p(value) for value in ranked.p_holm],
            "% against the trained length": [
                interval(changed.loc[label, ["percent", "low", "high"]].tolist()) if label in changed.index else "–"
                for label in ranked.label
            ],
            "p (Holm) ": [_p(changed.p_holm.get(label, math.nan)) for label in ranked.label],
        },
        index=list(ranked.label),
    )
    return _style(shown)


def probes(table: pd.DataFrame) -> Styler:
    """`diagnostics.probes`: one row a model, one column a layer."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        name = f"after layer {row.layer}" if row.layer else "embeddings"
        shown.setdefault(row.label, {})[name] = interval([row.r2, row.low, row.high], 2)
    return _style(pd.DataFrame(shown).T)


def order(table: pd.DataFrame) -> Styler:
    """`diagnostics.order`: one row for each model and number of tokens left in place."""
    shown: dict[tuple[str, int], dict[str, Any]] = {}
    for row in table.itertuples():
        cells = shown.setdefault((row.label, row.kept), {"model": row.label, "nearest left in place": row.kept})
        cells[f"{row.change}, nats more"] = interval([row.rise, row.low, row.high], 3)
        cells[f"p (Holm), {row.change}"] = _p(row.p_holm)
    return _style(pd.DataFrame(list(shown.values()))).hide()


def inside(table: pd.DataFrame) -> Styler:
    """`diagnostics.summary`: attention of each model, and of attention spread evenly."""
    columns = {"mean distance, tokens": ("distance", 1), "entropy, nats": ("entropy", 2), "share on first token": ("first", 3),
               "first token's length over others'": ("norm", 2)}  # fmt: skip
    shown = {
        title: [
            interval([getattr(r, name), getattr(r, f"{name}_low"), getattr(r, f"{name}_high")], n) for r in table.itertuples()
        ]
        for title, (name, n) in columns.items()
    }
    return _style(pd.DataFrame(shown, index=list(table.label)))


def values(table: pd.DataFrame) -> Styler:
    """`diagnostics.values`: one row for each model, queries and keys apart, one column for each band of wavelengths."""
    shown: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        cells = shown.setdefault(f"{row.label}, {row.of}", {})
        cells[row.band] = f"{interval([row.ratio, row.low, row.high])} of {row.dims}"
    return _style(pd.DataFrame(shown).T.fillna("–"))


def tasks(table: pd.DataFrame, name: str = "whole") -> Styler:
    """`tasks.frame`: one row for each task and model, one column for each length, and a row of chance for each task.

    Args:
        name: `whole` answers, or their `symbols`; in percent.
    """
    shown: dict[tuple[str, str], dict[str, str]] = {}
    for task, part in table.groupby("task", sort=False):
        for row in part.itertuples():
            cells = shown.setdefault((task, row.label), {"task": task, "model": row.label})
            value = [100 * getattr(row, name + end) for end in ("", "_low", "_high")]
            cells[f"{row.factor:g} ×"] = interval(value, 0)
        for row in part.drop_duplicates("factor").itertuples():
            cells = shown.setdefault((task, "chance"), {"task": task, "model": "chance"})
            cells[f"{row.factor:g} ×"] = f"{100 * getattr(row, f'chance_{name}'):.0f}"
    return _style(pd.DataFrame(list(shown.values())).fillna("–")).hide()


def claims(table: pd.DataFrame) -> Styler:
    """`tasks.claims`: what the paper says, pair by pair, and what was found here."""
    shown = pd.DataFrame(
        {
            "the paper": [f"{row.better} above {row.worse}" for row in table.itertuples()],
            "difference here, points": [interval([100 * r.difference, 100 * r.low, 100 * r.high]) for r in table.itertuples()],
            "p (Holm)": [_p(value) for value in table.p_holm],
            "here": table.verdict,
        }
    )
    return _style(shown).hide()


def curse(table: pd.DataFrame) -> Styler:
    """`curse.frame`: one row a model, direction and way the facts were stated."""
    rows = list(table.itertuples())
    shown = pd.DataFrame(
        {
            "model": table.label,
            "asked for": table.direction,
            "stated": table.stated,
            "facts": table.facts,
            "ranked first, %": [interval([100 * r.first, 100 * r.first_low, 100 * r.first_high], 0) for r in rows],
            "gain, nats": [interval([r.gain, r.gain_low, r.gain_high], 2) for r in rows],
            "p (Holm)": [_p(r.p_holm) for r in rows],
            "mean rank": [interval([r.rank, r.rank_low, r.rank_high]) for r in rows],
            "perplexity": [interval([r.perplexity, r.perplexity_low, r.perplexity_high]) for r in rows],
            "written exactly, %": [interval([100 * r.exact, 100 * r.exact_low, 100 * r.exact_high], 0) for r in rows],
        }
    )
    return _style(shown).hide()


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
    return _style(shown).hide()


def prose(table: pd.DataFrame) -> Styler:
    """Any frame of words, one row a line, without heads."""
    return _style(table, numbers=False).hide(axis="columns")


def plain(table: pd.DataFrame, digits: int = 1) -> Styler:
    """Any frame as a table without its index, numbers to so many digits."""
    return _style(table).hide().format(precision=digits, thousands=",")


def _style(table: pd.DataFrame, numbers: bool = True) -> Styler:
    """A table for a page: its look is the site's style sheet's; the same table is the same bytes."""
    align, kind = ("right", "results") if numbers else ("left", "results prose")
    styler = Styler(table, cell_ids=False, uuid=f"{zlib.crc32(table.to_csv().encode()):08x}")
    styler.set_table_styles([{"selector": "td", "props": [("text-align", align)]}])
    return styler.set_table_attributes(f'class="dataframe {kind}"')
