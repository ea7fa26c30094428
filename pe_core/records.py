"""Run records: one JSON per run, the held-out losses by document and position beside it, and all as one tidy frame."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
import pydantic_core

from pe_core import encodings, files, metrics, paths, progress, saved_model
from pe_core.config import Experiment
from pe_core.errors import ConfigError, RecordError
from pe_core.metrics import HeldOut
from pe_core.stats import Estimate

SCHEMA = 2  # 1: one held-out side, which training stopped by and results were reported on
RECORD, LOSSES, MODEL, CHECKPOINT = "record.json", "heldout.npz", saved_model.FOLDER, "checkpoint.pt"
# A study's published runs: a record a line, and the held-out losses of all of them (see `publish`).
RECORDS, ALL_LOSSES = "records.jsonl", "losses.npz"
# What may differ between two runs of the same experiment on the same machine.
_MEASURED_TIME = ("runtime", "created")


class Record(pydantic.BaseModel):
    """Everything a finished run says about itself.

    Attributes:
        run: the run's id, also the name of its folder.
        label: the encoding with its options, for tables and figures: of a record that is read, as this checkout calls them.
        config: the resolved experiment.
        data: corpus, licence, split, counts, and the fingerprint of the windows.
        parameters: number of weights.
        history: one row per epoch: `epoch`, `train_loss`, `val_loss`, `improved`.
        metrics: held-out metrics, all from the best epoch's weights (see `metrics.summarise`).
        versions: packages and the git commit.
        runtime: device, wall time, throughput, memory: what another run of the same experiment will not repeat.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    run: str
    label: str
    config: dict[str, Any]
    data: dict[str, Any]
    parameters: int
    best_epoch: int
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    versions: dict[str, str]
    runtime: dict[str, Any]
    created: str

    _folder: Path = pydantic.PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The run's folder: the record, the held-out losses, and the model. Of a published run, the folder of its name in the
        study's, which is there where something was measured later."""
        return self._folder

    @property
    def experiment(self) -> Experiment:
        return Experiment(**self.config)

    @property
    def identity(self) -> str:
        """Which model it is, whatever tables call it: encoding, all its options, attention, and what training started from."""
        settings = dict(self.config)
        try:
            settings = dict(self.experiment)  # settings and options younger than the record have their defaults
            options = encodings.options(settings["encoding"], settings["options"]).model_dump()
        except ConfigError:  # the encoding's file is gone, or another checkout's
            options = settings["options"]
        names = ("encoding", "attention", "kv_dim", "rope_dim")
        start = (settings.get("start") or "").partition("-")[0]  # its id holds the seed
        return json.dumps([*(settings.get(name) for name in names), options, start], sort_keys=True, default=str)

    @property
    def family(self) -> str:
        """The encoding's family, which gives its colour; `unknown` where its file is gone, or another checkout's."""
        name = self.config["encoding"]
        return encodings.ENCODINGS[name].family if name in encodings.ENCODINGS else "unknown"

    @property
    def has_weights(self) -> bool:
        """Whether the trained model is there: published runs have what was measured, not that."""
        return (self._folder / MODEL).exists()

    def need_text(self) -> None:
        """Raises RecordError: trained on a task, which a measurement of text cannot use."""
        if self.experiment.task:
            raise RecordError(f"run {self.run}: trained on '{self.experiment.corpus}'; a model of text is needed")

    def named(self, remark: str) -> Record:
        """The same record with a remark in its label."""
        return self.model_copy(update={"label": f"{self.label}, {remark}"})

    @cached_property
    def heldout(self) -> HeldOut:
        """Held-out losses by document and position, for curves and paired comparisons."""
        try:
            if not (self._folder / LOSSES).exists() and (self._folder.parent / ALL_LOSSES).exists():
                return self._published()
            return HeldOut.load(self._folder / LOSSES)
        except Exception as error:  # numpy, zipfile and zlib raise many kinds over a damaged file
            raise RecordError(f"run {self.run}: '{LOSSES}' cannot be read ({error})") from None

    def _published(self) -> HeldOut:
        """The losses `publish` wrote, spread over each range of positions by its tokens."""
        with np.load(self._folder.parent / ALL_LOSSES) as arrays:
            tokens, sizes = (arrays[f"{self.data['fingerprint']} {name}"].astype(np.int64) for name in ("tokens", "bytes"))
            losses = arrays[self.run].astype(np.float64)
        edges = metrics.published_edges(tokens.shape[1])
        with np.errstate(invalid="ignore"):
            means = np.nan_to_num(losses / np.add.reduceat(tokens, edges[:-1], axis=1))
        return HeldOut(tokens * means.repeat(np.diff(edges), axis=1), tokens, sizes)

    def difference_to(self, baseline: Record) -> dict[str, Estimate]:
        """How much higher this run's held-out perplexity is than the baseline's: see `metrics.difference`.

        Raises:
            RecordError: the two were measured on different text.
        """
        if self.data["fingerprint"] != baseline.data["fingerprint"]:
            raise RecordError(f"runs {self.run} and {baseline.run} were measured on different text and cannot be paired")
        return metrics.difference(self.heldout, baseline.heldout)

    def position_curve(self) -> pd.DataFrame:
        """Perplexity by position with intervals: see `metrics.position_curve`."""
        return metrics.position_curve(self.heldout)

    def model(self) -> Any:
        """The best weights, as a `transformers` model in evaluation mode. Raises RecordError where they cannot be read."""
        return saved_model.model(self._folder / MODEL)

    def tokenizer(self) -> Any:
        """The tokenizer saved with them. Raises RecordError where it cannot be read."""
        return saved_model.tokenizer(self._folder / MODEL)

    def generate(self, text: str, tokens: int = 64, temperature: float = 0.8, seed: int = 0) -> str:
        """The text continued by the run's model, sampled at a temperature (0: always the likeliest token).

        Raises:
            RecordError: the run was trained on a task, or its weights are gone or damaged.
        """
        self.need_text()
        return saved_model.generate(self._folder / MODEL, text, tokens, temperature, seed)

    def damage(self) -> str | None:
        """What is missing of a run that this machine trained, or not as it was written; `None` where all is there."""
        try:
            _ = self.heldout
        except RecordError as error:
            return str(error)
        return saved_model.damage(self._folder / MODEL)

    @property
    def held_out(self) -> str:
        """What the test side is made of, for sentences: `145 held-out documents`, or so many blocks of some documents."""
        documents, cut = self.metrics["documents"], self.data.get("blocks_of")
        of = "" if cut is None else " of one document" if cut == 1 else f" of {cut} documents"
        return f"{documents} held-out {'block' if cut else 'document'}{'' if documents == 1 else 's'}{of}"

    def keep(self, name: str, found: Any) -> None:
        """Write what the weights were found to do beside the record, as JSON, in one step: several processes may measure at
        once, and one may be killed."""
        files.write(self._folder / name, json.dumps(found, allow_nan=False) + "\n")

    def kept(self, name: str) -> Any:
        """What `keep` wrote under that name, `None` where nothing is.

        Raises:
            RecordError: it is not JSON.
        """
        file = self._folder / name
        if not file.exists():
            return None
        try:
            return files.from_json(file.read_text())
        except ValueError as error:
            raise self.unreadable(name, error) from None

    def unreadable(self, name: str, error: Exception, how: str = "is not JSON") -> RecordError:
        """The error of what was kept under that name and cannot be read."""
        return RecordError(f"run {self.run}: '{name}' {how} ({error}); delete it to measure again")

    def same_result(self, other: Record) -> bool:
        """Whether two records are identical apart from measured time and memory."""
        mine, theirs = (record.model_dump(exclude=set(_MEASURED_TIME)) for record in (self, other))
        return json.dumps(mine) == json.dumps(theirs)

    def save(self, folder: Path) -> None:
        """Write the record, last of all files and in one step: where it exists, the run is complete."""
        self._folder = folder
        files.write(folder / RECORD, json.dumps(files.without_nan(self.model_dump()), indent=1, allow_nan=False) + "\n")


# Without these nothing can be said of a run.
_NEEDED = {
    "config": ("encoding", "options", "seed"),
    "data": ("fingerprint", "windows"),
    "metrics": ("perplexity", "bits_per_byte", "documents"),
    "runtime": ("train_seconds", "tokens_per_second", "peak_memory_mb"),
    "history": ("epoch", "train_loss", "val_loss", "improved"),
}


def load(path: str | Path) -> Record:
    """The record of a run, from its folder or its JSON file.

    Raises:
        RecordError: missing, damaged, or of another schema.
    """
    file = Path(path)
    try:
        file = file / RECORD if file.is_dir() else file
        return _parsed(file.read_text(), file)
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"no run record at '{file}' ({getattr(error, 'strerror', error)})") from None


def _parsed(text: str, file: Path) -> Record:
    try:
        content = pydantic_core.from_json(text)  # four times as fast as json, and as strict as a file of our own may be read
    except ValueError as error:
        raise RecordError(f"run record '{file}' is not JSON ({error}); the command that made the run repairs it") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (1, SCHEMA):
        raise RecordError(f"run record '{file}' has schema version {version}; this version of pe_core reads 1 and {SCHEMA}")
    if version == 1 and isinstance(content.get("config"), dict):
        content["config"].setdefault("decay", "all")  # as it was before there was a choice
    try:
        record = Record(**content)
    except pydantic.ValidationError as error:
        raise RecordError(f"run record '{file}': {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None
    for part, names in _NEEDED.items():
        entries = value if isinstance(value := getattr(record, part), list) else [value]
        if missing := [name for name in names for entry in entries if name not in entry]:
            raise RecordError(f"run record '{file}': {part} lacks '{missing[0]}'")
    record._folder = file.parent
    # Tables join by label: made again, it says what the settings mean now, whatever a title was when the run was made.
    with suppress(ConfigError):  # the encoding's file is gone, or another checkout's: the name it had
        record.label = record.experiment.label
    return record


def finished(folder: Path) -> bool:
    """Whether a run's folder holds a whole finished run. Where one is damaged it is said how."""
    if not (folder / RECORD).exists():
        return False
    try:
        damage = load(folder).damage()
    except RecordError as error:
        damage = str(error)
    if damage:
        progress.say(f"Run {folder.name} is damaged: {damage}. It is trained again.")
    return damage is None


def load_all(runs: str | Path | None = None) -> list[Record]:
    """Every finished run under the runs folder, once, oldest first: those in folders of their own, and those of published
    studies. One whose record cannot be read is named and left out."""
    root, found = paths.runs(runs, reading=True), {}
    for path in sorted(root.glob(f"*/{RECORD}")):
        try:
            found[path.parent.name] = load(path)
        except RecordError as error:
            progress.say(f"Left out: {error}.")
    shared = [record for path in sorted(root.glob(f"*/{RECORDS}")) for record in load_study(path.parent)]
    # Two studies may share a run: the one beside which most was found out later.
    for record in sorted(shared, key=lambda record: -len(list(record.folder.glob("*")))):
        found.setdefault(record.run, record)
    return sorted(found.values(), key=lambda record: (record.created, record.run))


def load_study(folder: Path) -> list[Record]:
    """The runs a study published in its folder, those it shares with others among them; none where it published nothing."""
    path, found = folder / RECORDS, []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = _parsed(line, path)
        except RecordError as error:
            progress.say(f"Left out: {error}.")
            continue
        record._folder = folder / record.run
        found.append(record)
    return found


def publish(found: Sequence[Record], folder: Path) -> None:
    """One study's runs in two small files: everything their records say, and held-out losses by document and range of
    positions.

    Each document's total, the ranges of `metrics.position_curve` and those of `metrics.bins` come out as they were measured;
    within a range the losses are spread evenly. The weights stay where they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines, arrays = [], {}
    for record in sorted(found, key=lambda record: (record.created, record.run)):
        lines.append(json.dumps(files.without_nan(record.model_dump()), allow_nan=False))
        heldout, fingerprint = record.heldout, record.data["fingerprint"]
        edges = metrics.published_edges(heldout.tokens.shape[1])
        arrays[record.run] = np.add.reduceat(heldout.losses, edges[:-1], axis=1).astype(np.float32)
        arrays[f"{fingerprint} tokens"] = heldout.tokens.astype(np.uint16)
        arrays[f"{fingerprint} bytes"] = heldout.bytes.astype(np.uint32)
    files.write(folder / RECORDS, "\n".join(lines) + "\n")
    files.write(folder / ALL_LOSSES, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def frame(records: list[Record] | None = None, runs: str | Path | None = None) -> pd.DataFrame:
    """One row per run: its config, headline metrics and cost. All runs of the runs folder where none are given."""
    rows = []
    for record in load_all(runs) if records is None else records:
        try:
            rows.append(_row(record))
        except (KeyError, TypeError) as error:  # written by a version that changed the schema without a new number
            progress.say(f"Left out: run record '{record.folder / RECORD}' lacks a value ({error}).")
    return pd.DataFrame(rows)


def _row(record: Record) -> dict[str, Any]:
    measured, ends = record.metrics, {"": "value", "_low": "low", "_high": "high"}
    return {
        "run": record.run,
        "label": record.label,
        "family": record.family,
        **{name: value for name, value in record.config.items() if name != "options"},
        **{f"option_{name}": value for name, value in record.config["options"].items()},
        **{name + end: measured[name][key] for name in ("perplexity", "bits_per_byte") for end, key in ends.items()},
        "loss": measured["loss"],
        "best_epoch": record.best_epoch,
        "epochs_trained": len(record.history),
        "parameters": record.parameters,
        **{name: record.runtime[name] for name in _NEEDED["runtime"]},
        "device": record.config["device"],
        "data": record.data["fingerprint"],
    }


def history(records: list[Record]) -> pd.DataFrame:
    """One row per run, epoch and side: run, label, epoch, side (`training`, `held-out`), loss, perplexity, best."""
    rows = [
        (record.run, record.label, row["epoch"], side, row[key], math.exp(row[key]), row["epoch"] == record.best_epoch)
        for record in records
        for row in record.history
        for side, key in (("training", "train_loss"), ("held-out", "val_loss"))
    ]
    return pd.DataFrame(rows, columns=["run", "label", "epoch", "side", "loss", "perplexity", "best"])


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
