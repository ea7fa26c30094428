"""Writing files: whole or not at all, on the disk before anything that depends on them goes, and one line where it fails."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from pe_core.errors import LabError, WriteError

_OLD = 3_600.0  # seconds


def write(path: Path, content: Callable[[BinaryIO], Any] | str) -> None:
    """A file, as text or by a function that writes it. It is written beside, flushed to the disk and renamed: what stands at
    `path` is the old file or the whole new one, also after a power cut. A folder that stands there is renamed.

    Raises:
        WriteError: there is no room, no right, or no such folder.
    """
    temporary = _beside(path)
    with writing(path):
        try:
            with temporary.open("wb") as file:
                if isinstance(content, str):
                    file.write(content.encode())
                else:
                    content(file)
                file.flush()
                os.fsync(file.fileno())
            if path.is_dir() and not path.is_symlink():  # no work of ours, so it is kept
                path.rename(path.with_name(f"{path.name}.folder-{time.time_ns()}"))
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_folder(path: Path, content: Callable[[Path], Any]) -> None:
    """A folder, filled by a function; as `write` does."""
    temporary = _beside(path)
    with writing(path):
        try:
            temporary.mkdir(parents=True)
            content(temporary)
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def folder(path: Path) -> Path:
    """A folder that is there from now on. Raises WriteError where it cannot be made."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


class Lock(FileLock):  # type: ignore[misc, valid-type]
    """One process at a time; the lock's folder is made where it is not. Raises WriteError where the lock cannot be made."""

    def acquire(self, *arguments: Any, **named: Any) -> Any:
        path = Path(self.lock_file)
        folder(path.parent)
        try:
            return super().acquire(*arguments, **named)
        except Timeout:  # an OSError too
            raise
        except OSError as error:
            raise WriteError(f"cannot write '{path}': {error.strerror or error}") from None


def sha256(path: Path) -> str:
    """The checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_json(text: str | bytes) -> Any:
    """What a text in JSON says. Raises ValueError where it is not JSON, or nested more deeply than Python reads."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def without_nan(value: Any) -> Any:
    """NaN and infinity have no place in JSON: an unknown end of an interval is null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _beside(path: Path) -> Path:
    """Where `path` is written first; what processes that were killed an hour ago or longer left beside it is removed."""
    for left in path.parent.glob(".*.partial"):
        with suppress(OSError):
            if _alive(left) or time.time() - max(file.stat().st_mtime for file in (left, *left.rglob("*"))) <= _OLD:
                continue
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _alive(partial: Path) -> bool:
    """Whether the process that a partial file's name holds is there, on this machine."""
    number = partial.name.split(".")[-2]
    return number.isdecimal() and os.path.exists(f"/proc/{number}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails inside is told in one line that names the file and the cause.

    Raises:
        WriteError: there is no room, no right, or no such folder.
    """
    try:
        yield
    except LabError:  # of what was to be written: text that cannot be read, for example
        raise
    except Exception as error:  # torch, safetensors and tokenizers each wrap the system's error in a kind of their own
        if cause := _cause(error):
            raise WriteError(f"cannot write '{path}': {cause}") from None
        raise


def _cause(error: BaseException) -> str | None:
    """What the system said, of an error that came of it."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError):
            return chain.strerror or str(chain) or type(chain).__name__
        chain = chain.__cause__ or chain.__context__
    text = " ".join(str(error).split())
    signs = ("IoError", "I/O error", "PytorchStreamWriter", "unexpected pos", "os error", "No space left", "Permission denied")
    return text[:200] if any(sign in text for sign in signs) else None


def _sync(path: Path) -> None:
    """Flush a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
