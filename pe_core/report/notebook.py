"""What every experiment notebook does first: have the processes that will train start loading what they need, refuse
parameters the notebook does not have, set the figures' look."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import yaml

from pe_core import progress
from pe_core.errors import ConfigError, shown, unknown
from pe_core.launch import processes

QUICK = 1_000  # samples
_LARGEST = 1e300  # of a number: neither infinite nor beyond what a double holds
_KINDS = {str: "text", dict: "a mapping"}
_PATHS = ("record_file", "runs_dir")  # None by default, and no numbers
_INJECTED = "# Parameters"  # the first line of the cell papermill adds below the `parameters` cell


def begin(may_be_empty: Collection[str] = (), at_most: Mapping[str, str] | None = None) -> None:
    """Call in the first cell after the parameters.

    Args:
        may_be_empty, at_most: see `parameters.allowed`.

    Raises:
        ConfigError: papermill was given a parameter the notebook does not have (papermill itself only logs a warning
            and runs for an hour with the default), or a value that would end the notebook, before training or after it.
    """
    processes.prepare()  # before figures load theirs: on another core, in as many seconds
    from pe_core.report import figures, parameters

    figures.style()
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if hasattr(shell, "set_custom_exc"):
        shell.set_custom_exc((KeyboardInterrupt,), _interrupted)
    cells = shell.user_ns.get("In", []) if shell else []
    for before, cell in pairwise(cells):
        if cell.startswith(_INJECTED):
            known, given = _assigned(before), _assigned(cell)
            given = check(known, given)
            given |= quick(known, given)
            shell.user_ns.update(given)
            parameters.allowed({**known, **given}, may_be_empty, at_most)


def _interrupted(shell: Any, kind: Any, error: Any, _: Any, **__: Any) -> list[str]:
    # In place of the hundred lines of whatever was being computed.
    line = ["Interrupted; the same command goes on from here."]
    shell._showtraceback(kind, error, line)  # IPython leaves the showing to its handlers
    return line


def say(*sentences: str) -> None:
    """Show sentences as Markdown. A name in them that holds markup, as one of a file may, is shown and not obeyed."""
    from IPython.display import Markdown, display

    display(Markdown(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", "\n\n".join(sentences))))


_TRAIN = ("sweep(", "measure.search(")  # what a cell that trains calls


def source() -> Any:
    """The parameters and the cells that trained, as they ran: for the end of a page, where its code is not in the way."""
    from IPython.core.getipython import get_ipython
    from IPython.display import Markdown

    shell = get_ipython()
    cells = [cell for cell in (shell.user_ns.get("In", []) if shell else []) if cell]
    shown = [
        cell for n, cell in enumerate(cells) if n == 0 or cell.startswith(_INJECTED) or any(call in cell for call in _TRAIN)
    ]
    code = "\n\n".join(cell.strip() for cell in shown)
    return Markdown(f"<details><summary>Parameters and training</summary>\n\n```python\n{code}\n```\n\n</details>")


def check(known: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Given parameters as the notebook's own are: lists made of what a command line can say (`-p seeds 42,43`, `-p seeds 42`),
    numbers of what papermill's YAML leaves as text or takes for another kind (`1e2`, `1e0`).

    Raises:
        ConfigError: a parameter that is not among the known ones, or one that is no switch, number or list where those are.
    """
    for name, value in given.items():
        if name not in known:
            raise ConfigError(unknown("parameter", name, known))
        if isinstance(known[name], bool) and not isinstance(value, bool):
            raise ConfigError(f"{name}={shown(value)}: True or False is needed")
    return {name: _like(name, known[name], value) for name, value in given.items()}


def _like(name: str, default: Any, value: Any) -> Any:
    """The value given, of its default's kind."""
    if isinstance(default, list):
        parts = _as_list(name, value)
        optional = None in default  # written None, none or null
        parts = [None if optional and str(part).lower() == "none" else part for part in parts]
        kinds = {type(part) for part in default if part is not None} or {str}
        # Whole numbers among fractions are fractions that happen to be whole.
        kind = float if float in kinds else next(iter(kinds)) if len(kinds) == 1 else None
        return [part if optional and part is None else _of_kind(name, kind, part) for part in parts]
    if default is None:
        if isinstance(value, list | dict) or (name in _PATHS and not isinstance(value, str | None)):
            raise ConfigError(f"{name}={shown(value)}: {'a path' if name in _PATHS else 'one value'} is needed")
        return _as_number(value) if name not in _PATHS else value
    return value if isinstance(default, bool) else _of_kind(name, type(default), value)


def _of_kind(name: str, kind: Any, value: Any) -> Any:
    if kind in (int, float):
        return _number(name, kind, value)
    if kind in _KINDS and not isinstance(value, kind):
        raise ConfigError(f"{name}={shown(value)}: {_KINDS[kind]} is needed")
    return value


def _number(name: str, kind: Any, value: Any) -> Any:
    number = _as_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not -_LARGEST <= number <= _LARGEST:
        raise ConfigError(f"{name}={shown(value)}: a number is needed")
    if kind is int and number != int(number):
        raise ConfigError(f"{name}={shown(value)}: a whole number is needed")
    return int(number) if kind is int or (isinstance(number, int) and kind is not int) else number


def _as_number(value: Any) -> Any:
    """YAML 1.1 takes `1e2` for text, papermill for a fraction."""
    try:
        return float(value) if isinstance(value, str) and value.strip()[:1] in "+-.0123456789" and value.strip() else value
    except ValueError:
        return value


def _as_list(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            if odd := re.search(r"(?:^|[\[,\s])(0\d+|\d+(?::\d+)+)(?=[\],\s]|$)", value):  # to YAML 010 is 8, 1:30 is 90
                raise ConfigError(f"{name}={shown(value)}: '{odd[1]}' is no number; write it without a leading 0 or a colon")
            value = yaml.safe_load(f"[{value.strip().removeprefix('[').removesuffix(']')}]")
        except (yaml.YAMLError, ValueError, RecursionError):  # it makes dates of some text
            raise ConfigError(f"{name}={shown(value)}: a list is needed, as in 1,2 or [1, 2]") from None
    return value if isinstance(value, list) else [value]


def quick(known: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What else changes for a quick look, below `QUICK` samples: the first seed alone, where no seeds are given. Nobody reads
    intervals over seeds off so few windows, and they cost three times the minutes."""
    samples, seeds = given.get("samples"), known.get("seeds")
    few = type(samples) is int and 0 < samples < QUICK
    if not few or "seeds" in given or not isinstance(seeds, list) or len(seeds) < 2:
        return {}
    progress.say(f"A quick look, of {samples} samples: seed {seeds[0]} alone (ask for more with seeds).")
    return {"seeds": seeds[:1]}


def _assigned(cell: str) -> dict[str, Any]:
    """Names a cell of plain assignments sets, with their values."""
    values: dict[str, Any] = {}
    # It has run already; papermill writes some values as calls, as in float("nan").
    exec(cell, values)  # noqa: S102
    del values["__builtins__"]
    return values
