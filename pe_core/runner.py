"""`run(experiment) -> Record`: the one assembly line from settings to results. No step looks back."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import Timeout

from pe_core import data, distributed, encodings, files, hardware, metrics, paths, process, progress, records, saved_model
from pe_core.config import Experiment
from pe_core.data import corpora, dataset
from pe_core.data.dataset import Data
from pe_core.errors import RecordError, TrainingError, out_of_memory
from pe_core.metrics import HeldOut
from pe_core.records import Record

if TYPE_CHECKING:
    from pe_core.model import LabForCausalLM

LOCK_SECONDS = 10.0  # a run that was just killed may hold its lock for a moment
_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "botocore")


def run(
    experiment: Experiment, runs: str | Path | None = None, fresh: bool = False, lock_seconds: float | None = None
) -> Record:
    """Train and measure one model, or return the finished record of the same experiment.

    An unfinished run goes on from its checkpoint. The run's folder is `<runs>/<id>`; it holds the record, the held-out
    losses by document and position, and the model with its tokenizer.

    In several processes, as `torchrun` starts them, each trains on its part of every batch; id and results stay the same, but
    for the order of sums. All of them need to see the runs folder; only the first one writes there.

    Args:
        runs: where records are kept; `None` is the default folder (see `paths.runs`).
        fresh: forget a finished or unfinished run of the same experiment and start again.
        lock_seconds: how long to wait for another process that trains the same run; `None` is a few seconds.

    Raises:
        LabError: settings, corpus, folder or training failed; the message is one line.
    """
    process.tune()
    experiment = experiment.resolved()
    root = paths.runs(runs)
    distributed.local_rows(experiment.batch_size)  # refused before any data is read
    distributed.join(experiment.device)
    prepared = _prepared(experiment, root / ".cache")
    folder = root / run_id(experiment, prepared)
    label = experiment.label
    threads = torch.get_num_threads()
    lock = files.Lock(root / ".locks" / f"{folder.name}.lock", LOCK_SECONDS if lock_seconds is None else lock_seconds)

    def begin() -> tuple[bool, Record | None]:
        """Whether to train, and the run to start from."""
        try:
            lock.acquire()
        except Timeout:
            raise RecordError(f"run {folder.name} is being trained by another process") from None
        if not fresh and records.finished(folder):
            progress.say(f"{label}: already trained, reading {folder.name} (ask for a fresh run to train again).")
            return False, None
        start = start_record(experiment, prepared, root)  # before anything is deleted
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        files.folder(folder)
        return True, start

    try:
        train, start = distributed.on_rank_zero(begin)
        if train:
            with _memory_told(folder.name):
                _train_and_measure(experiment, prepared, folder, label, start)
        distributed.on_rank_zero(lambda: (folder / records.CHECKPOINT).unlink(missing_ok=True))
        return records.load(folder)  # as anyone will read it, not as it was in memory
    finally:
        lock.release()
        torch.set_num_threads(threads)  # a resumed run keeps to those it began with


@contextmanager
def _memory_told(run: str) -> Iterator[None]:
    """One line where memory runs short. The checkpoint is not touched."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise TrainingError(
            f"run {run}: out of memory ({' '.join(str(error).split())[:90] or type(error).__name__}); what is trained is kept: "
            "free some and give the same command, or take a smaller batch_size or preset"
        ) from None


def _prepared(experiment: Experiment, cache: Path) -> Data:
    """Its data. Of several processes, the first one makes what the others then find in the cache."""
    made: list[Data] = []
    distributed.on_rank_zero(lambda: made.append(data.prepare(experiment, cache)))
    return made[0] if made else data.prepare(experiment, cache)


# What two runs must share where one starts from the other's weights: text, its tokens and its split, and most shapes.
_SHARED_BY_START = ("corpus", "tokenizer", "vocab_size", "preset", "attention", "kv_dim")


def start_record(experiment: Experiment, prepared: Data, runs: Path) -> Record | None:
    """The run that training starts from. Raises RecordError: it is not finished here, or cannot be gone on from."""
    if experiment.start is None:
        return None
    if not all((runs / experiment.start / name).exists() for name in (records.RECORD, records.MODEL)):
        raise RecordError(f"start='{experiment.start}': no finished run of that id, with its model, in '{runs}'")
    record = records.load(runs / experiment.start)
    theirs, ours = ({**dict(one), **corpora.by_content(one)} for one in (record.experiment, experiment))
    for name in _SHARED_BY_START:
        if theirs[name] != ours[name]:
            raise RecordError(f"start='{experiment.start}': that run has {name}={theirs[name]!r}, this one {ours[name]!r}")
    if record.data["corpus_version"] != prepared.about["corpus_version"]:
        # Other documents are split in another way: some that were trained on would be held out now.
        raise RecordError(f"start='{experiment.start}': the documents of '{experiment.corpus}' are no longer that run's")
    if record.tokenizer().get_vocab() != prepared.tokenizer.get_vocab():
        raise RecordError(f"start='{experiment.start}': the tokenizer of '{experiment.corpus}' is no longer that run's")
    return record


def _take_weights(model: LabForCausalLM, experiment: Experiment, start: Record) -> None:
    """Another run's best weights, in place. An encoding's own are taken over only where the encoding is the same."""
    weights, own = start.model().state_dict(), model.state_dict()
    same = start.config["encoding"] == experiment.encoding
    taken = {name: weights[name] for name in own if name in weights and (same or not name.startswith("encoding."))}
    for name, value in taken.items():
        if value.shape != own[name].shape:
            shapes = f"{list(value.shape)}, this one {list(own[name].shape)}"
            raise RecordError(f"start='{start.run}': that run has '{name}' of shape {shapes}")
    model.load_state_dict({**own, **taken})


def _train_and_measure(experiment: Experiment, prepared: Data, folder: Path, label: str, start: Record | None) -> None:
    # Here and not above: these take seconds to load, and a process that trains in others needs none of them.
    from pe_core import tracking, trainer
    from pe_core.model import LabForCausalLM
    from pe_core.model_config import LabConfig

    made_with = versions()  # asked now: the code may be edited while a long run trains
    model = LabForCausalLM(LabConfig.of(experiment, prepared.tokenizer.eos_token_id)).initialise(experiment.seed)
    if start is not None:
        _take_weights(model, experiment, start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    progress.say(f"{label}: {_scale(experiment, prepared, parameters)}.")
    with tracking.started(folder, experiment.model_dump()) as log:
        state, compute = trainer.train(model, prepared, experiment, folder, log)

    measuring = time.perf_counter()
    checked = prepared.validation[: trainer.CHECKED]
    loss = trainer.check_loss(compute.evaluate(checked), dataset.loss_mask(checked))
    if experiment.device == "cpu" and loss != state.best_check:
        # The note's first mistake was metrics from other weights than those reported. Here that is an error.
        raise TrainingError(
            f"run {folder.name}: the restored weights give a validation loss of {loss:.9f}, "
            f"epoch {state.best_epoch} had {state.best_check:.9f}; was the code edited meanwhile? A fresh run starts again"
        )
    losses_MT = compute.evaluate(prepared.test)
    sizes = prepared.token_bytes[dataset.token_ids(prepared.test[:, 1:])]
    heldout = HeldOut.of(losses_MT, prepared.test_documents, sizes, dataset.loss_mask(prepared.test))
    measured = metrics.summarise(heldout)

    if distributed.rank() > 0:
        return
    saved_model.save(model, prepared.tokenizer, folder / records.MODEL)
    heldout.save(folder / records.LOSSES)
    record = Record(
        run=folder.name,
        label=label,
        config=experiment.model_dump(),
        data={"fingerprint": prepared.fingerprint, **prepared.about},
        parameters=parameters,
        best_epoch=state.best_epoch,
        history=state.history,
        metrics=measured,
        versions=made_with,
        runtime={
            **hardware.describe(experiment.device),
            "processes": distributed.processes(),
            "compiled": compute.compiled,
            "train_seconds": state.seconds,
            "eval_seconds": state.eval_seconds + time.perf_counter() - measuring,
            "startup_seconds": state.startup_seconds,
            "tokens_per_second": state.tokens / state.seconds if state.seconds else None,
            "peak_memory_mb": hardware.peak_memory_mb(experiment.device),
        },
        created=records.now(),
    )
    saved_model.write_card(record, folder / records.MODEL)
    record.save(folder)


_BLOCKS = "; too few documents ({}) to hold whole ones out: blocks of them are, and intervals say nothing of other texts"


def _scale(experiment: Experiment, prepared: Data, parameters: int) -> str:
    """How large a run is, and on what it trains."""
    sizes = f"{len(prepared.train):,} training, {len(prepared.validation):,} validation and {len(prepared.test):,} test windows"
    return (
        f"{parameters / 1e6:.1f} M parameters ({experiment.preset}) on {experiment.device}, {experiment.precision}"
        f"{', compiled' if experiment.compile == 'on' else ''}; {sizes} of {experiment.seq_len} tokens from {experiment.corpus}"
        + (f"; {prepared.about['facts']['windows']:,} of the training windows hold facts" if experiment.facts else "")
        + (_BLOCKS.format(prepared.about["blocks_of"]) if "blocks_of" in prepared.about else "")
    )


def distinct_labels(waiting: dict[str, Experiment]) -> dict[str, str]:
    """A label for each run: the model's and its task's, with its seed and then its id where that does not tell runs apart."""
    labels = {name: e.label + (f", {e.task}" if e.task else "") for name, e in waiting.items()}
    for suffix in ({name: f", seed {e.seed}" for name, e in waiting.items()}, {name: f" ({name[-4:]})" for name in waiting}):
        count = Counter(labels.values())
        labels = {name: label if count[label] == 1 else label + suffix[name] for name, label in labels.items()}
    return labels


def run_id(experiment: Experiment, prepared: Data) -> str:
    """The id of a resolved experiment on its data, which is the name of its folder."""
    return name_of(experiment, prepared.fingerprint)


def name_of(experiment: Experiment, fingerprint: str) -> str:
    """`<encoding>-<preset>-<digest>`. Options at their defaults are left out, as settings are, so that an option added later
    does not rename the runs made before it. Of files counts what is in them, by the fingerprint, and not their path."""
    options = encodings.options(experiment.encoding, experiment.options).model_dump(exclude_defaults=True)
    digest = experiment.model_copy(update={"options": options, **corpora.by_content(experiment)}).digest(fingerprint)
    return f"{experiment.encoding}-{experiment.preset}-{digest}"


def versions() -> dict[str, str]:
    """Versions of Python, the packages that shape a result, and this repository's commit."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found, "git": _git_commit()}


def _git_commit() -> str:
    """The commit of this checkout, marked `-dirty` where the library itself has been edited since."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "pe_core") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
