"""Losses at context lengths other than the one trained at, on the same held-out text.

Windows of the longest length are cut into windows of each shorter one, so that every length predicts the same tokens of
the same documents and differences can be paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pe_core import comparison, data, encodings, files, hardware, metrics, progress, records, stats
from pe_core.config import Experiment
from pe_core.data.dataset import Data, Tokens
from pe_core.errors import ConfigError, RecordError
from pe_core.metrics import HeldOut
from pe_core.records import Record

WINDOWS = 64  # of the longest length
LAST = 64  # tokens at the end of a window, scored at every length
PACKED = "lengths.npz"  # of a run: what `pack` wrote
_SCORES = 2**22  # scores held at once, for each head: one window of 2,048 tokens, four of 1,024


def heldout(
    record: Record, length: int, longest: int, windows: int = WINDOWS, encoding: str | None = None, options: Any = None
) -> HeldOut:
    """Held-out losses of a trained model by document and position (D, length). Computed once, then read from its folder.

    Args:
        length: the context measured at, a divisor of `longest`; windows of `longest` tokens are what is cut.
        encoding, options: another encoding in place of the one trained with (rescaled rotations, say); the weights stay.

    Raises:
        ConfigError: `length` does not divide `longest`, or the encoding has no positions beyond the trained ones.
    """
    if longest % length:
        raise ConfigError(f"length={length}: a divisor of longest={longest} is needed")

    def measure(held: Data) -> HeldOut:
        starts = range(0, longest, length)
        tokens = np.concatenate([held.test[:, start : start + length + 1] for start in starts])
        documents = np.concatenate([held.test_documents[:, start : start + length] for start in starts])
        return HeldOut.of(_losses(record, tokens, encoding, options), documents, held.token_bytes[tokens[:, 1:]])

    return _once(measure, "heldout", record, length, longest, windows, encoding, options)


def sliding(
    record: Record, length: int, longest: int, windows: int = WINDOWS, encoding: str | None = None, options: Any = None
) -> HeldOut:
    """As `heldout`, but of tokens with at least half the context before them alone: (D, longest / 2).

    In each window of N = `longest` tokens the second half is scored. Piece k = 0, 1, …, N/L - 1 of L = `length` tokens begins
    at token N/2 - L/2 + k · L/2 and gives the losses of its own second half, so that the stride is L/2, each token of the
    window's second half is scored once, at every length, and predicted from L/2 + 1 to L tokens. The last piece ends where the
    window does: there a longer context holds all of a shorter one's, and more.

    Raises:
        ConfigError: as `heldout`; `length` is odd.
    """
    if longest % length or length % 2:
        raise ConfigError(f"length={length}: an even divisor of longest={longest} is needed")
    half, N = length // 2, longest

    def measure(held: Data) -> HeldOut:
        starts = range((N - length) // 2, N - length + 1, half)
        tokens = np.concatenate([held.test[:, start : start + length + 1] for start in starts])
        losses = _losses(record, tokens, encoding, options)[:, half:]
        # Pieces stood one below the other; here the scored halves of a window stand side by side again.
        losses_MT = np.concatenate(np.split(losses, len(starts)), axis=1)
        return HeldOut.of(losses_MT, held.test_documents[:, N // 2 :], held.token_bytes[held.test[:, N // 2 + 1 :]])

    return _once(measure, "sliding", record, length, longest, windows, encoding, options)


def _once(
    measure: Callable[[Data], HeldOut],
    kind: str,
    record: Record,
    length: int,
    longest: int,
    windows: int,
    encoding: str | None,
    options: Any,
) -> HeldOut:
    """What was measured before, read from the run's folder or, of a published run, from what `pack` wrote; else measured.

    Raises:
        ConfigError: the encoding has no such positions.
        RecordError: a published run was not read so, or what was kept cannot be read.
    """
    _need_positions(record, length, encoding, options)
    name = f"{kind}-{length}-of-{longest}x{windows}"
    if encoding is not None:
        # Options at their defaults are left out, so that one added later does not rename what was measured before it.
        chosen = encodings.options(encoding, options or {}).model_dump(exclude_defaults=True)
        name += f"-{encoding}-{Experiment(encoding=encoding).model_copy(update={'options': chosen}).digest('')}"
    file = record.folder / f"{name}.npz"
    if not file.exists():
        if not record.has_weights:
            return _unpacked(record, name)
        measure(text(record, longest, windows)).save(file)
    return _load(record, file)


def _load(record: Record, file: Path) -> HeldOut:
    try:
        return HeldOut.load(file)
    except Exception as error:  # numpy, zipfile and zlib raise many kinds over a damaged file
        raise record.unreadable(file.name, error, "cannot be read") from None


def _need_positions(record: Record, length: int, encoding: str | None, options: Any) -> None:
    """Raises ConfigError: the encoding the model has, or is read with, ends before so many tokens."""
    name, given = (record.config["encoding"], record.config["options"]) if encoding is None else (encoding, options or {})
    most = encodings.build(name, given, record.experiment.shape).longest_text
    if most is not None and length > most:
        raise ConfigError(f"the encoding has positions for {most} tokens, not for {length}")


def pack(record: Record) -> None:
    """Keep all that `heldout` and `sliding` measured of a run in one small file, which is published: losses, tokens and bytes
    by document, added up over ranges of positions.

    Sums over whole windows stay exact, and over the `LAST` tokens of `sliding`, or as many as a measured length scores; of
    `heldout` at the longest length also those over the ranges of `metrics.position_curve`. Within a range all stands at its
    first position.
    """
    measured = sorted([*record.folder.glob("heldout-*-of-*.npz"), *record.folder.glob("sliding-*-of-*.npz")])
    packed, arrays = record.folder / PACKED, dict[str, Any]()
    if packed.exists() and all(file.stat().st_mtime_ns < packed.stat().st_mtime_ns for file in measured):
        return
    ends = {min(LAST, int(file.stem.split("-")[1]) // 2) for file in measured}
    for file in measured:
        kind, length, _, longest = file.stem.split("x")[0].split("-")
        found = _load(record, file)
        T = found.tokens.shape[1]
        starts = [0, *sorted(T - end for end in ends if end < T)]
        if kind == "heldout":
            starts = metrics.published_edges(T)[:-1].tolist() if length == longest else [0]
        sums = [np.add.reduceat(array, starts, axis=1) for array in found]
        arrays[file.stem] = sums[0].astype(np.float32)
        shared = _shared(file.stem)  # tokens and bytes are those of the text, whatever read it
        arrays |= {f"{shared} starts": np.array([*starts, T], np.uint32)}
        arrays |= {f"{shared} tokens": sums[1].astype(np.uint32), f"{shared} bytes": sums[2].astype(np.uint32)}
    if arrays:
        files.write(packed, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def _shared(name: str) -> str:
    return "-".join(name.split("-")[:4])


def _unpacked(record: Record, name: str) -> HeldOut:
    """What `pack` wrote of a published run."""
    packed = record.folder / PACKED
    try:
        with packed.open("rb") as file, np.load(file) as arrays:  # numpy leaves a damaged file open
            *starts, T = arrays[f"{_shared(name)} starts"].tolist()
            sizes = (arrays[f"{_shared(name)} {part}"].astype(np.int64) for part in ("tokens", "bytes"))
            sums = [arrays[name].astype(np.float64), *sizes]
    except (FileNotFoundError, KeyError):
        raise RecordError(f"run {record.run}: no weights in '{record.folder}'; train it again to read other lengths") from None
    except Exception as error:  # as in `_load`
        raise RecordError(f"run {record.run}: '{packed}' cannot be read ({error}); get it from the repository again") from None
    whole = [np.zeros((len(part), T), part.dtype) for part in sums]
    for spread, part in zip(whole, sums, strict=True):
        spread[:, starts] = part
    return HeldOut(*whole)


def text(record: Record, longest: int, windows: int) -> Data:
    """So many test windows, spread over all of them, that are cut. Raises ConfigError for a run on a task, which has its own
    lengths."""
    if record.experiment.task:
        raise ConfigError(
            f"run {record.run}: '{record.experiment.corpus}' is no text that could be cut; see studies.task_accuracy"
        )
    wanted = record.experiment.model_copy(update={"seq_len": longest, "draw_len": None, "samples": 10 * windows})
    held = data.prepare(wanted, record.folder.parent / ".cache")
    chosen = np.unique(np.linspace(0, len(held.test) - 1, min(windows, len(held.test))).round().astype(int))
    return replace(held, test=held.test[chosen], test_documents=held.test_documents[chosen])


def _losses(record: Record, tokens: Tokens, encoding: str | None, options: Any) -> NDArray[np.float32]:
    from pe_core.loss import EVALUATION_TOKENS, LossFunction
    from pe_core.model import LabForCausalLM

    other = {} if encoding is None else {"encoding": encoding, "encoding_options": options or {}}
    experiment = record.experiment.model_copy(update={"compile": "off", "device": hardware.device("auto")})
    with progress.quiet_transformers():
        model = LabForCausalLM.from_pretrained(record.folder / records.MODEL, **other).eval().to(experiment.device)
    return LossFunction(model, experiment).evaluate(tokens, at_once=min(EVALUATION_TOKENS, _SCORES // (tokens.shape[1] - 1)))


def frame(records: Sequence[Record], lengths: Sequence[int], longest: int, windows: int = WINDOWS) -> pd.DataFrame:
    """Perplexity of each model at each length, the mean over seeds, with intervals over documents.

    Returns:
        columns label, family, trained_at, length, perplexity, low, high; NaN where an encoding has no such positions.
    """
    rows = []
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.label, record.config["seq_len"]), []).append(record)
    for (label, trained_at), group in groups.items():
        for length in lengths:
            try:
                parts = [heldout(record, length, longest, windows) for record in group]
                estimate = metrics.perplexity(comparison.pool(parts))
            except ConfigError as error:
                progress.say(f"{label}, {length}: {error}")
                estimate = stats.Estimate(float("nan"), float("nan"), float("nan"))
            row = {"label": label, "family": group[0].family, "trained_at": trained_at, "length": length}
            rows.append({**row, "perplexity": estimate.value, "low": estimate.low, "high": estimate.high})
        for record in group:
            pack(record)
    return pd.DataFrame(rows)


def difference(
    records: Sequence[Record], baseline: Sequence[Record], longest: int, length: int | None = None, windows: int = WINDOWS
) -> stats.Paired:
    """By how many nats a token the loss of one group is higher than another's on the same text, paired by seed and document.

    Args:
        length: the context both are measured at; `None` measures each at the length it was trained at.
    """

    def at(record: Record) -> HeldOut:
        return heldout(record, length or record.config["seq_len"], longest, windows)

    return comparison.paired([(at(a), at(b)) for a, b in comparison.by_seed(records, baseline)])


def by_setting(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by what they were trained with and how much they read, least first: "vocabulary 4,096, 0.8 M tokens"."""
    found: dict[tuple[int, int], list[Record]] = {}
    for record in records:
        read = record.experiment.samples * record.experiment.seq_len
        found.setdefault((-record.experiment.vocabulary, read), []).append(record)
    return {f"vocabulary {-vocab:,}, {read / 1e6:.1f} M tokens": group for (vocab, read), group in sorted(found.items())}


def context_use(groups: Mapping[str, Sequence[Record]], at: Sequence[int], windows: int = WINDOWS) -> pd.DataFrame:
    """How much is lost with less context: perplexity with `length` tokens of it against all that a model was trained with, on
    the same tokens, paired by seed and document (`sliding`).

    Returns:
        columns setting, source (`all`, or one of a mixture's), length, bytes (that so many tokens stand for), percent, low,
        high (95 %), seeds; a row for every length but the longest.

    Raises:
        ConfigError: a length that is not an even divisor of the one trained at.
    """
    rows = []
    for setting, group in groups.items():
        T = group[0].experiment.seq_len
        whole = [sliding(record, T, T, windows) for record in group]
        per_token = float(whole[0].bytes.sum() / whole[0].tokens.sum())
        parts = {"all": slice(None), **_sources(group[0], windows)}
        for length in sorted(length for length in at if length < T):
            pairs = [(sliding(record, length, T, windows), all_of_it) for record, all_of_it in zip(group, whole, strict=True)]
            for source, part in parts.items():
                nats = comparison.paired([(_rows(a, part), _rows(b, part)) for a, b in pairs])
                value, low, high = comparison.percent(nats).estimate
                about = {"setting": setting, "source": source, "length": length, "bytes": length * per_token}
                rows.append({**about, "percent": value, "low": low, "high": high, "seeds": len(group)})
        for record in group:
            pack(record)
    return pd.DataFrame(rows)


def _rows(heldout: HeldOut, part: slice) -> HeldOut:
    return HeldOut(heldout.losses[part], heldout.tokens[part], heldout.bytes[part])


def _sources(record: Record, windows: int) -> dict[str, slice]:
    """Which rows of `sliding` belong to each source of a mixture, as `comparison.sources` says of a run's own losses. Kept in
    the run's folder, as it takes the text to say so."""
    T = record.experiment.seq_len
    name = f"sources-of-{T}x{windows}.json"
    if (kept := record.kept(name)) is not None:
        return {source: slice(*ends) for source, ends in kept.items()}
    measured = np.unique(data.prepare(record.experiment, record.folder.parent / ".cache").test_documents)
    present = np.unique(text(record, T, windows).test_documents[:, T // 2 :])
    found = {}
    for source, part in comparison.sources(record).items():
        start, end = np.searchsorted(present, measured[[part.start, part.stop - 1]])
        found[source] = slice(int(start), int(end) + int(measured[part.stop - 1] in present))
    found = {source: part for source, part in found.items() if part.stop > part.start}
    record.keep(name, {source: [part.start, part.stop] for source, part in found.items()})
    return found


def reach(table: pd.DataFrame, within: float = 1.0) -> pd.DataFrame:
    """The shortest context that is as good as all of it: perplexity is less than `within` percent higher, by the upper end of
    the 95 % interval, there and at every longer length.

    Returns:
        columns setting, source, length (NaN where none of those measured is), bytes.
    """
    rows = []
    for (setting, source), part in table.groupby(["setting", "source"], sort=False):
        enough = part.sort_values("length", ascending=False)
        enough = enough[(enough.high < within).cummin()]
        shortest = enough.iloc[-1] if len(enough) else {"length": math.nan, "bytes": math.nan}
        rows.append({"setting": setting, "source": source, "length": shortest["length"], "bytes": shortest["bytes"]})
    return pd.DataFrame(rows)


def gains(
    records: Sequence[Record], longest: int, length: int | None = None, windows: int = WINDOWS
) -> dict[str, stats.Paired]:
    """For each label: by how many percent perplexity is higher if trained at the longest length than if at the shortest, on the
    same text; p and intervals corrected for the labels. Negative means that longer windows help.

    Args:
        length: the context both are measured at; `None` measures each at the length it was trained at.
    """
    found = {}
    for label in dict.fromkeys(record.label for record in records):
        group = [record for record in records if record.label == label]
        ends = [end(record.config["seq_len"] for record in group) for end in (min, max)]
        short, long = ([record for record in group if record.config["seq_len"] == length] for length in ends)
        found[f"{label}, {ends[1]} tokens"] = difference(long, short, longest, length, windows)
    return dict(zip(found, map(comparison.percent, stats.corrected(list(found.values()))), strict=True))
