"""Errors a user can act on: one line that names the bad value and what is allowed instead."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST = 4_096  # characters of a name: as long as a path may be


class LabError(Exception):
    """Base of every error this project raises on purpose. Its message is one line that any terminal can show: control
    characters and broken ones, of a name that a user gave, are written as escapes."""

    def __init__(self, message: object = "") -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message)))

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: a notebook (and so papermill) shows the one line, not forty frames above it.
        return [f"{type(self).__name__}: {self}"]


class ConfigError(LabError):
    """A setting has a value that cannot be used."""


class CorpusError(LabError):
    """A corpus cannot be read, or holds less text than was asked for."""


class TrainingError(LabError):
    """Training cannot go on, for example because the loss is no longer finite."""


class RecordError(LabError):
    """A run record cannot be read or written."""


class WriteError(RecordError):
    """A file cannot be written: no room, no right, or its folder is gone."""


@contextmanager
def told() -> Iterator[None]:
    """What a command's user can act on ends it with one line on stderr; Ctrl-C ends it without any."""
    try:
        yield
    except (LabError, OSError) as error:
        cause = error if isinstance(error, LabError) else f"{error.filename or 'a file'}: {error.strerror or error}"
        print(f"error: {LabError(cause)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran short. torch raises a plain RuntimeError for it on a CPU."""
    signs = ("DefaultCPUAllocator", "not enough memory", "out of memory", "Cannot allocate memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not one of the known ones, with the nearest of them as a hint."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}'{hint} (known: {', '.join(names) or 'none'})"


def shown(value: object) -> str:
    """A value in one line that is not too long."""
    given = repr(value)
    return given if len(given) < 300 else given[:297] + "..."


def text_fault(text: str) -> str | None:
    """Why no name or path is made of a text; `None` where one may be."""
    if not text.isprintable():
        return "control characters and broken ones are not allowed"
    return f"at most {LONGEST:,} characters are allowed" if len(text) > LONGEST else None
