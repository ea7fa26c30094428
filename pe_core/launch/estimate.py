"""What a sweep would cost, by the runs that are there: `python -m pe_core estimate --trials 1000`.

A trial takes its tokens of an epoch times its epochs at the measured tokens per second, a pass over the held-out windows
after each epoch and one at the end, and its start-up. Not counted: preparing the data, which all trials share.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, harmonic_mean
from typing import Any, NamedTuple

from pe_core.config import Experiment
from pe_core.errors import RecordError
from pe_core.records import Record

# What a run has to share with a trial for its speed to tell of the trial's, and for its epochs to.
_SPEED = ("preset", "attention", "seq_len", "batch_size", "device", "precision", "compile")
_EPOCHS = ("corpus", "samples", "epochs", "patience", "schedule", "lr", "facts", "facts_rate")
_FEW_EPOCHS = 10  # runs that could not train so many say nothing of when others stop


class Cost(NamedTuple):
    """What one trial costs.

    Attributes:
        seconds: of one worker.
        tokens_per_second: of training.
        epochs: until it stops.
        known: whether any run tells of the epochs; where none does, they are the most there can be.
        differing: settings in which the runs that tell of the epochs differ from the trial.
        own: whether a run of the same encoding tells of the speed; where none does, it is that of all encodings.
        runs: ids of the finished runs this was taken from.
    """

    seconds: float
    tokens_per_second: float
    epochs: float
    known: bool
    differing: tuple[str, ...]
    own: bool
    runs: frozenset[str]


def trial(experiment: Experiment, found: Sequence[Record], published: Sequence[Record] = ()) -> Cost:
    """The cost of a resolved experiment by finished runs of the same size: of its encoding, or of all where there is none.

    Args:
        published: runs of another machine: they tell after how many epochs training stops, and of the speed where no run of
            this machine does.

    Raises:
        RecordError: no run tells of its speed.
    """
    alike = _alike(experiment, found) or _alike(experiment, published)
    if not alike:
        wanted = ", ".join(f"{name}={getattr(experiment, name)}" for name in _SPEED)
        kind = "on a task" if experiment.task else "on text"
        raise RecordError(f"no finished run {kind} of {wanted} to go by; a short one will do, as with `run --epochs 1`")
    own = [record for record in alike if record.config["encoding"] == experiment.encoding]
    alike = own or alike
    stopped, differing = _stopped([*alike, *_alike(experiment, published)], experiment)
    early = experiment.schedule == "constant"  # under another schedule every epoch is trained
    epochs = (
        min(fmean(len(record.history) for record in stopped), experiment.epochs) if stopped and early else experiment.epochs
    )
    rate = harmonic_mean([record.runtime["tokens_per_second"] for record in alike])
    windows = experiment.samples / (1 - (experiment.facts_rate or 0))
    training = windows * experiment.seq_len * epochs / rate
    measuring = fmean(_seconds_an_evaluation(record) for record in alike) * (epochs + 1)
    start_up = fmean(record.runtime["startup_seconds"] for record in alike)
    return Cost(
        training + measuring + start_up,
        rate,
        epochs,
        bool(stopped) or not early,
        differing if early else (),
        bool(own),
        frozenset(record.run for record in alike),
    )


def sweep(
    experiments: Sequence[Experiment], found: Sequence[Record], trials: int, workers: int, published: Sequence[Record] = ()
) -> dict[str, Any]:
    """The cost of so many trials, an equal number of each experiment, by so many workers at a time (see `trial`)."""
    costs = [trial(experiment.resolved(), found, published) for experiment in experiments]
    seconds = fmean(cost.seconds for cost in costs)
    return {
        "trials": trials,
        "workers": workers,
        "worker_hours": trials * seconds / 3600,
        "hours": -(-trials // workers) * seconds / 3600,  # the last round may be a short one, but takes as long
        "seconds_a_trial": seconds,
        "tokens_per_second": harmonic_mean([cost.tokens_per_second for cost in costs]),
        "epochs": fmean(cost.epochs for cost in costs),
        "epochs_known": all(cost.known for cost in costs),
        "epochs_of_other": sorted({name for cost in costs for name in cost.differing}),
        "without_runs": sorted({e.encoding for e, cost in zip(experiments, costs, strict=True) if not cost.own}),
        "runs": len(frozenset.union(*(cost.runs for cost in costs))),
    }


def sentence(cost: dict[str, Any]) -> str:
    """The same in words, with what it is taken from."""
    epochs = (
        f"{cost['epochs']:.1f} epochs" if cost["epochs_known"] else f"all {cost['epochs']:.0f} epochs, the most there can be"
    )
    if cost["epochs_of_other"]:
        epochs += f" (as runs with another {' and '.join(cost['epochs_of_other'])} stopped)"
    guessed = f" No run with {', '.join(cost['without_runs'])}: taken from all encodings." if cost["without_runs"] else ""
    return (
        f"{_count(cost['trials'], 'trial')}: {_time(cost['worker_hours'])} of one worker, {_time(cost['hours'])} with "
        f"{cost['workers']} at a time. A trial takes {cost['seconds_a_trial']:,.0f} s: {epochs} at "
        f"{cost['tokens_per_second']:,.0f} tokens/s, evaluation and start-up, by {_count(cost['runs'], 'finished run')}."
        + guessed
    )


def _count(number: int, of: str) -> str:
    return f"{number:,} {of}{'s' if number != 1 else ''}"


def _time(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def _alike(experiment: Experiment, found: Sequence[Record]) -> list[Record]:
    """Runs on one device that say how fast this experiment trains. On a task of few symbols other products are fast."""
    alike = [record for record in found if _one_device(record) and _shared(record, experiment, _SPEED)]
    return [record for record in alike if bool(record.experiment.task) == bool(experiment.task)]


def _stopped(found: Sequence[Record], experiment: Experiment) -> tuple[list[Record], tuple[str, ...]]:
    """The runs that could stop early as the experiment can and differ from it in the fewest settings; and in which."""
    apart: dict[tuple[str, ...], list[Record]] = {}
    for record in found:
        if record.experiment.schedule == "constant" and record.experiment.epochs >= min(experiment.epochs, _FEW_EPOCHS):
            differing = tuple(name for name in _EPOCHS if not _shared(record, experiment, [name]))
            apart.setdefault(differing, []).append(record)
    nearest = min(apart, key=lambda differing: (len(differing), differing), default=())
    return apart.get(nearest, []), nearest


def _one_device(record: Record) -> bool:
    return record.runtime["tokens_per_second"] is not None and record.runtime.get("processes", 1) == 1


def _shared(record: Record, experiment: Experiment, names: Sequence[str]) -> bool:
    return all(record.config.get(name) == getattr(experiment, name) for name in names)


def _seconds_an_evaluation(record: Record) -> float:
    return float(record.runtime["eval_seconds"] / (len(record.history) + 1))
