"""`sweep(experiments) -> records`: many runs, several at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pe_core import data, distributed, paths, progress, records
from pe_core.config import Experiment
from pe_core.data.dataset import Data
from pe_core.errors import ConfigError, LabError
from pe_core.launch import processes
from pe_core.records import Record
from pe_core.runner import distinct_labels, run, run_id, start_record


def sweep(
    experiments: Iterable[Experiment],
    runs: str | Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    address: str | None = None,
    published: Iterable[Record] = (),
) -> list[Record]:
    """`run` every experiment; the records come in the order given.

    On a CPU several runs train at once, one process each, sharing the cores. All settings are checked and all data is
    prepared before the first one trains.

    Args:
        workers: runs at a time; `None` is one a core on a CPU, and one on a GPU.
        address: of a Ray cluster that trains them, one a GPU or a core of all its machines: `auto`, `ray://host:10001`, or
            `local`. `runs` is then a folder all of them see, or a URL such as `s3://bucket/runs` (see `launch.ray`).
        published: finished runs whose weights are elsewhere. Those asked for are taken instead of trained (not on a cluster).

    Raises:
        LabError: settings or data are bad, or at the end, where some runs failed: what was trained is kept.
    """
    if distributed.processes() > 1:
        raise ConfigError("a sweep starts processes of its own; `torchrun` and `accelerate launch` are for one run")
    if address is not None:
        from pe_core.launch import ray  # here: Ray is an extra, and takes seconds to load

        if workers is not None:
            raise ConfigError(f"workers={workers}: on a cluster its GPUs and cores decide how many run at a time")
        return ray.sweep(list(experiments), address, runs, fresh)
    chosen = [experiment.resolved() for experiment in experiments]
    runs = paths.runs(runs)
    names, waiting, found = [], {}, {record.run: record for record in published}
    made: dict[tuple[Any, ...], Data] = {}  # a sweep of a hundred runs has a few kinds of data
    for experiment in chosen:
        key = tuple(getattr(experiment, name) for name in data.SETTINGS)
        if key not in made:
            made[key] = data.prepare(experiment, runs / ".cache")
        prepared = made[key]
        names.append(name := run_id(experiment, prepared))
        if name not in found and (fresh or not records.finished(runs / name)):
            start_record(experiment, prepared, runs)
            waiting[name] = experiment
    on_cpu = all(experiment.device == "cpu" for experiment in chosen)
    # By the runs asked for, not by those left: a sweep that goes on gives each run as many cores as it had.
    workers = min(workers or (processes.cores() if on_cpu else 1), len(set(names)))
    labels = distinct_labels(waiting)
    if waiting and (workers > 1 or on_cpu):  # one alone as well: its process is a fresh one, with the fastest settings
        processes.map_processes(run, {labels[name]: (e, runs, fresh) for name, e in waiting.items()}, workers)
        return [found.get(name) or records.load(runs / name) for name in names]
    failures: dict[str, Exception] = {}
    for name, experiment in zip(names, chosen, strict=True):
        if name in found:
            continue
        if name not in waiting:
            progress.say(f"{experiment.label}: already trained, reading {name} (ask for a fresh run to train again).")
            found[name] = records.load(runs / name)
            continue
        try:
            found[name] = run(experiment, runs, fresh)
        except LabError as error:
            failures[labels.get(name, name)] = error
            progress.say(f"{labels.get(name, name)} failed: {error}")
    processes.raise_all(failures, len(names))
    return [found[name] for name in names]
