"""Trackers such as TensorBoard, off by default: `PE_TRACKER=tensorboard` shows every epoch of every run while it trains.

An environment variable and not a setting of `Experiment`: who watches a run is no part of what the run is, nor of its id.
Any tracker that `accelerate` knows; several with commas between them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pe_core import distributed
from pe_core.errors import ConfigError, unknown

PROJECT = "position-encoding-lab"
Log = Callable[[dict[str, float], int], None]


@contextmanager
def started(folder: Path, settings: dict[str, Any]) -> Iterator[Log]:
    """A function that takes values and the epoch they belong to, and hands them to the trackers of `$PE_TRACKER`.

    Trackers that write files write them into the run's folder.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    names = os.environ.get("PE_TRACKER", "").replace(" ", "")
    trackers: list[Any] = []
    # The first of several processes has them; where one does not start, no process goes on.
    distributed.on_rank_zero(lambda: trackers.extend(_start(name, folder) for name in names.split(",") if name))
    plain = {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}

    def log(values: dict[str, float], epoch: int) -> None:
        for tracker in trackers:
            tracker.log(values, step=epoch)

    try:
        for tracker in trackers:
            tracker.store_init_configuration({"run": folder.name, **plain})
        yield log
    finally:
        for tracker in trackers:
            tracker.finish()


def _start(name: str, folder: Path) -> Any:
    try:
        from accelerate import tracking
    except ImportError:
        raise ConfigError(
            f"PE_TRACKER={name}: trackers need accelerate: pip install 'position-encoding-lab[trackers]'"
        ) from None
    if name not in tracking.LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"PE_TRACKER: {unknown('tracker', name, tracking.LOGGER_TYPE_TO_CLASS)}")
    if name not in map(str, tracking.get_available_trackers()):
        raise ConfigError(f"PE_TRACKER={name}: its package is not installed")
    cls = tracking.LOGGER_TYPE_TO_CLASS[name]
    tracker = cls(PROJECT, logging_dir=folder) if cls.requires_logging_directory else cls(PROJECT)
    tracker.start()
    return tracker
