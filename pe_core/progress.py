"""Progress bars with a time to go, and the lines beside them, where a person can see them.

In a terminal and in Jupyter that is tqdm's own bar. Under papermill a cell's output goes to a file nobody is watching,
so the bar is drawn on the terminal papermill was started from, and the notebook stays free of it. Where output goes to a
file, a bar is a line every half minute. In a worker process of a sweep, bars and lines travel to the process that started
it, which shows them.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

Message = tuple[str, str, Any]  # what happened ("say", "bar", "close"), in which worker, details
# Set in a worker process: where its messages go, and the name they carry.
_send: Callable[[Message], None] | None = None
_worker = ""

_EVERY = 0.5  # seconds between two reports of a remote bar
_LINE_EVERY = 30.0  # seconds between two lines of a bar in a file
_LINE = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"


def to_parent(send: Callable[[Message], None], worker: str) -> None:
    """From now on, this process reports through `send` instead of drawing."""
    global _send, _worker
    _send, _worker = send, worker


def say(sentence: str) -> None:
    """One line a person should see now: in the notebook's output, or on the terminal."""
    if _send:
        _send(("say", _worker, sentence))
    else:
        tqdm.write(sentence, file=sys.stdout)
        sys.stdout.flush()
        if outside := _outside():
            with outside:  # a log, where nothing else would tell how far a notebook is; on a terminal there is the bar
                if not outside.isatty():
                    outside.write(f"{sentence}\n")


def epoch_line(row: dict[str, Any]) -> str:
    """One epoch as the note prints it: `Epoch  3: train_ppl=96.6 val_ppl=504.6 *`."""
    train_ppl, val_ppl = (math.exp(min(row[key], 700.0)) for key in ("train_loss", "val_loss"))
    return f"Epoch {row['epoch']:2d}: train_ppl={train_ppl:.1f} val_ppl={val_ppl:.1f}{' *' if row['improved'] else ''}"


def ending_line(history: list[dict[str, Any]], epochs: int) -> str:
    """How training ended: `-> Early stop (best epoch 3)`."""
    best = max(row["epoch"] for row in history if row["improved"])
    return f"-> {'Early stop' if len(history) < epochs else 'All epochs done'} (best epoch {best})"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars transformers draws for the writing of one small file, and without its reminders."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def bar(iterable: Iterable[Any] | None = None, label: str = "", total: int | None = None, **options: Any) -> Any:
    """A progress bar, used as tqdm's; in a file a line every half minute."""
    if _send:
        return _RemoteBar(iterable, label, total, options)
    file = sys.stderr
    if type(sys.stderr).__module__.startswith("ipykernel"):
        if outside := _outside():
            file = outside
        elif "JPY_SESSION_NAME" in os.environ:  # JupyterLab: a widget
            from tqdm.notebook import tqdm as notebook_bar

            return notebook_bar(iterable, desc=label, total=total, leave=False, **options)
    options = {"desc": label, "total": total, "file": file, "leave": False, **options}
    if file.isatty():
        return tqdm(iterable, dynamic_ncols=True, mininterval=_EVERY, **options)
    every = {"mininterval": _LINE_EVERY, "maxinterval": 2 * _LINE_EVERY + 1, "delay": _LINE_EVERY}
    known = total is not None or hasattr(iterable, "__len__")
    return _Lines(iterable, bar_format=_LINE if known else None, **every, **options)


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar for a file: lines, the first after a while, none at the end."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and self.n > self.initial and self.n != self.total:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        if not self.disable:
            self.disable: bool = True  # else the cursor would be put back to the beginning of a line
            self._decr_instances(self)


def _outside() -> TextIO | None:
    """What a notebook's kernel was started from, a terminal or a file, when no Jupyter front end is attached."""
    stream = getattr(sys.stderr, "_original_stdstream_copy", None)
    if stream is None or "JPY_SESSION_NAME" in os.environ:
        return None
    return os.fdopen(os.dup(stream), "w")


class _RemoteBar:
    """Stands for a bar that another process draws."""

    def __init__(self, iterable: Iterable[Any] | None, label: str, total: int | None, options: dict[str, Any]) -> None:
        self.iterable, self.label, self.options = iterable, label, options
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total  # type: ignore[arg-type]
        self.done = options.get("initial", 0)
        self.reported = 0.0

    def __iter__(self) -> Iterator[Any]:
        assert self.iterable is not None
        for item in self.iterable:
            yield item
            self.update()
        self.close()

    def __enter__(self) -> _RemoteBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.reported > _EVERY and _send:
            self.reported = now
            _send(("bar", _worker, (self.label, self.done, self.total, self.options)))

    def close(self) -> None:
        if _send:
            _send(("close", _worker, self.label))


class Board:
    """Shows the messages of several workers: one bar for each bar of theirs, lines marked with the worker's name."""

    def __init__(self, workers: list[str]) -> None:
        self.bars: dict[tuple[str, str], Any] = {}
        self.width = max(map(len, workers), default=0)

    def show(self, message: Message) -> None:
        kind, worker, details = message
        if kind == "say":
            say(f"{worker:<{self.width}} | {details}")
        elif kind == "bar":
            label, done, total, options = details
            key = (worker, label)
            if key not in self.bars:
                self.bars[key] = bar(None, f"{worker:<{self.width}} | {label}", total, **options)
            self.bars[key].update(done - self.bars[key].n)
        elif (worker, details) in self.bars:
            self.bars.pop((worker, details)).close()

    def close(self) -> None:
        for shown in self.bars.values():
            shown.close()
