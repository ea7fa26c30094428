"""Where things are kept. The only module that knows folders; nothing depends on the working directory of a notebook."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pe_core.errors import ConfigError, RecordError

_LONGEST_NAME = 255  # bytes, on usual file systems
ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "book" / "records"  # of the site, a folder a study


def runs(folder: str | Path | None = None, reading: bool = False) -> Path:
    """The folder of run records: `folder`, else `$PE_RUNS`, else `runs/` of this checkout, else of the working directory.

    Args:
        reading: nothing will be written, so that it need not be writable and is not made.

    Raises:
        RecordError: it cannot be created or written to; for reading, the one that was named is not there.
    """
    if "://" in str(folder):
        raise RecordError(f"runs='{folder}': a URL is for sweeps with an address; elsewhere name a folder")
    default = (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / "runs"
    path = Path(os.path.realpath(expanded(str(folder or os.environ.get("PE_RUNS") or default))))
    if reading:
        if folder and not path.is_dir():
            raise RecordError(f"runs folder '{path}' does not exist")
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RecordError(f"runs folder '{path}' cannot be written to: {error.strerror}") from None
    return path


def need_checkout() -> None:
    """Raises RecordError: this is an installed package, which has no book."""
    if not (ROOT / "pyproject.toml").exists():
        raise RecordError(f"this command works on the book of a checkout of the repository, and '{ROOT}' is none")


def expanded(name: str) -> Path:
    """The path, with `~` as the home folder where there is one. Raises ConfigError for what no file can be called."""
    if "\0" in name:
        raise ConfigError(f"'{name}': names of files and folders hold no NUL")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in name.split("/")):
        raise ConfigError(f"'{name[:60]}…': names of files and folders have at most {_LONGEST_NAME} bytes")
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def cache() -> Path:
    """Tokens and other things that can be made again."""
    return runs() / ".cache"
