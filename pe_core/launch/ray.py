"""A sweep on a Ray cluster: one trial a GPU, or a core, on whichever machine is free.

A trial whose worker process ends early is tried again. Where all machines see the runs folder it goes on from its
checkpoint; where `runs` is a URL, trials train in a folder of their machine's own and copy what they have finished there, and
this machine copies it back.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pe_core import data, files, paths, progress, records, runner
from pe_core.config import Experiment
from pe_core.errors import ConfigError, LabError, RecordError, TrainingError
from pe_core.launch import processes
from pe_core.records import RECORD, Record

RETRIES = 3  # of a trial, after its worker or its machine died
_LOCK_SECONDS = 120.0  # the worker whose trial this was may take a while to die
_EVERY = 0.5  # seconds between two looks at what the trials say
_ATTEMPTS = 3  # to start a cluster of this machine
_STORE = 100 * 2**20  # bytes; trials send each other nothing


def sweep(experiments: Sequence[Experiment], address: str, runs: str | Path | None, fresh: bool) -> list[Record]:
    """`run` every experiment on the cluster at `address`; the records come in the order given.

    Args:
        address: as Ray takes it: `auto`, `ray://host:10001`, or `local` for a cluster of this machine's own.
        runs: a folder that all machines see, or a URL of any file system fsspec knows (`s3://bucket/runs`), from which the
            records are then copied into this machine's default folder.

    Raises:
        LabError: there is no Ray or no cluster, or at the end, where some runs failed: what was trained is kept.
    """
    waiting = {one.digest(""): one for one in experiments}
    labels = runner.distinct_labels(waiting)
    url = str(runs) if runs is not None and "://" in str(runs) else None
    folder = paths.runs(None if url else runs)
    if url:
        _system(url)  # refused before anything starts
        if starts := [one.start for one in experiments if one.start]:
            raise ConfigError(f"start='{starts[0]}': with runs='{url}' no worker has that run; name a folder that all see")
    with _connected(address) as ray:
        names, failures = _each(ray, waiting, labels, url or str(folder), fresh)
    if url:
        for name in names.values():
            download(url, folder / name, fresh)
    processes.raise_all({labels[key]: error for key, error in failures.items()}, len(waiting))
    return [records.load(folder / names[one.digest("")]) for one in experiments]


def _each(
    ray: Any, waiting: dict[str, Experiment], labels: dict[str, str], runs: str, fresh: bool
) -> tuple[dict[str, str], dict[str, Exception]]:
    """Ids of the runs that were trained, and the errors of those that were not."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The messages have to outlive every machine but the one this process is connected to.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    board = progress.Board(list(labels.values()))
    # A process for each trial, as in a sweep on one machine: what is compiled for one counts against a limit for the next.
    trial = ray.remote(max_calls=1, max_retries=RETRIES)(_trial)
    gpus = ray.cluster_resources().get("GPU", 0) >= 1
    running = {
        trial.options(num_cpus=1, num_gpus=int(one.device.startswith("cuda") or (one.device == "auto" and gpus))).remote(
            one, runs, fresh, labels[key], messages
        ): key
        for key, one in waiting.items()
    }
    names: dict[str, str] = {}
    failures: dict[str, Exception] = {}
    try:
        while running:
            ended, _ = ray.wait(list(running), timeout=_EVERY)
            for message in messages.get_nowait_batch(messages.qsize()):
                board.show(message)
            for one in ended:
                key = running.pop(one)
                try:
                    error, name = ray.get(one)
                except ray.exceptions.RayTaskError as mistake:  # in the code: it comes up as it is
                    error, name = mistake, ""
                except ray.exceptions.RayError as death:
                    error, name = TrainingError(f"its worker died {RETRIES + 1} times ({type(death).__name__})"), ""
                if error is None:
                    names[key] = name
                else:
                    failures[key] = error
                    progress.say(f"{labels[key]} failed: {error}")
    finally:
        for one in running:
            ray.cancel(one, force=True)
        board.close()
    return names, failures


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected as long as it is needed, or as it was. Raises ConfigError: it is not installed, or no cluster answers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what runs here
    try:
        import ray
    except ImportError:
        raise ConfigError(f"address='{address}': Ray is not installed: pip install 'position-encoding-lab[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}  # trials report by themselves
    if address == "local":
        # Whoever reaches Ray's ports can run code: a cluster of this machine alone is reached from it alone.
        quiet |= {"include_dashboard": False, "object_store_memory": _STORE, "_node_ip_address": "127.0.0.1"}
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(address=address, **quiet)
            break
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"address='{address}': no Ray cluster answers there ({str(error).splitlines()[0]})") from None
        except Exception as error:  # a bare one: Ray waits for 30 seconds, which a busy machine may not start within
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == _ATTEMPTS:
                raise TrainingError(f"address='{address}': Ray did not start in {_ATTEMPTS} attempts") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _trial(one: Experiment, runs: str, fresh: bool, label: str, messages: Any) -> tuple[LabError | None, str]:
    """Runs in a worker: trains one experiment, returns (error, id of the run)."""
    progress.to_parent(messages.put, label)
    url = runs if "://" in runs else None
    try:
        root = paths.runs(Path(tempfile.gettempdir()) / f"pe_core-{os.getuid()}" if url else runs)
        one = one.resolved()
        with files.Lock(root / ".locks" / "data.lock"):  # of several trials the first one fills the cache
            name = runner.run_id(one, data.prepare(one, root / ".cache"))
        if url and not fresh and _holds(url, name):
            progress.say(f"already trained, in {url}.")
            return None, name
        folder = runner.run(one, root, fresh, _LOCK_SECONDS).folder
        if url:
            upload(folder, url)
            shutil.rmtree(folder)
    except LabError as error:
        return error, ""
    return None, name


def upload(folder: Path, url: str) -> None:
    """Copy a run's folder to below a URL. Its record comes last: where that is, all is."""
    system, base = _system(url)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path == folder / RECORD):
        target = f"{base}/{folder.name}/{path.relative_to(folder).as_posix()}"
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        system.put_file(str(path), target)


def download(url: str, folder: Path, fresh: bool = False) -> None:
    """Copy a run's folder from below a URL, unless it is here already. Raises RecordError: it is not there."""
    if (folder / RECORD).exists() and not fresh:
        return
    if not _holds(url, folder.name):
        raise RecordError(f"run {folder.name}: no record in '{url}'; do this machine and the workers see the same there?")
    system, base = _system(url)
    source = f"{base}/{folder.name}"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        for path in system.find(source):
            target = Path(partial) / folder.name / path.rpartition(f"{source}/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(path, str(target))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(Path(partial) / folder.name, folder)


def _holds(url: str, name: str) -> bool:
    system, base = _system(url)
    return bool(system.exists(f"{base}/{name}/{RECORD}"))


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. Raises ConfigError: its package is not installed, or it is none."""
    import fsspec

    try:
        system, base = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"runs='{url}': {str(error).splitlines()[0]}") from None
    return system, base.rstrip("/")
