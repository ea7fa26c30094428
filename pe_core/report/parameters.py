"""What a notebook's parameters may be. All are checked before anything trains, those that are used long after it as well."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pe_core import hardware, paths, recipes, records
from pe_core.config import PRESETS, Experiment
from pe_core.data import tasks
from pe_core.encodings import ENCODINGS
from pe_core.errors import ConfigError, LabError, shown, text_fault, unknown

Values = Mapping[str, Any]

_LONGEST_CONTEXT = 2**20  # tokens, as of `Experiment.seq_len`
_MOST_WINDOWS = 100_000
MAY_BE_EMPTY = ("followed", "run_ids", "shared")

# Parameters that are a setting of `Experiment`, or a list of its values, under another name.
_SETTINGS = {
    "budgets": "samples",
    "contexts": "seq_len",
    "kv_dims": "kv_dim",
    "larger_budgets": "samples",
    "lengths": "seq_len",
    "note_rate": "facts_rate",
    "rates": "lr",
    "seeds": "seed",
    "torch_compile": "compile",
    "vocabularies": "vocab_size",
}
# Those that are an encoding's option.
_OPTIONS = {
    "base_fraction": ("rope", "rotary_pct"),
    "bases": ("rope", "base"),
    "fractions": ("rope", "rotary_pct"),
    "slopes": ("alibi", "slope"),
}
_MODELS = ("baseline", "encodings", "followed", "model", "models", "parts", "placebo")


def allowed(values: Values, may_be_empty: Collection[str] = (), at_most: Mapping[str, str] | None = None) -> None:
    """Check every value of a notebook's parameters that is known by name here, and how they fit each other.

    Args:
        may_be_empty: lists that may be, besides `MAY_BE_EMPTY`.
        at_most: lists none of whose numbers may be larger than another parameter's.

    Raises:
        ConfigError: one line that names the parameter, its bad value and what is allowed.
    """
    for name, value in values.items():
        text(name, value)
        parts = value if isinstance(value, list) else [value]
        if value in ([], {}) and name not in (*MAY_BE_EMPTY, *may_be_empty):
            raise ConfigError(f"{name}={value}: at least one is needed")
        if repeated := [part for n, part in enumerate(parts) if part in parts[:n]]:
            raise ConfigError(f"{name}: {shown(repeated[0])} is given twice")
        for part in parts:
            _one(name, part, values)
    for name, other in (at_most or {}).items():
        if larger := [number for number in values[name] if number > values[other]]:
            raise ConfigError(f"{name}: {larger[0]} is more than {other}={values[other]}")
    for check in _TOGETHER:
        check(values)


def text(name: str, value: Any) -> None:
    """Refuse text, within lists too, that no name or path is made of."""
    if isinstance(value, list | dict):
        for part in (*value, *(value.values() if isinstance(value, dict) else ())):
            text(name, part)
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name}={value!r}: empty text is not allowed")
    if isinstance(value, str) and (fault := text_fault(value)):
        raise ConfigError(f"{name}={shown(value)}: {fault}")


def _one(name: str, value: Any, values: Values) -> None:
    """One value: a parameter's, or one of its list's."""
    check = _CHECKS.get(name)
    setting = _SETTINGS.get(name, name if name in Experiment.model_fields else None)
    try:
        if setting is not None:
            Experiment(**{setting: value})
        if name in _OPTIONS:
            encoding, option = _OPTIONS[name]
            Experiment(encoding=encoding, options={option: value}, preset=values.get("preset", "auto")).resolved()
        if check is not None:
            check(value, values)
    except LabError as error:
        said = str(error)
        if setting is not None and said.startswith(f"{setting}="):
            raise ConfigError(f"{name}={said.removeprefix(f'{setting}=')}") from None
        raise ConfigError(said if said.startswith(f"{name}=") else f"{name}={shown(value)}: {said}") from None


def _preset(value: Any, values: Values) -> None:
    if value not in PRESETS and value != "auto":
        raise ConfigError(unknown("preset", value, [*PRESETS, "auto"]))


def _windows(value: Any, values: Values) -> None:
    if not 1 <= value <= _MOST_WINDOWS:
        raise ConfigError(f"from 1 to {_MOST_WINDOWS:,} windows can be read")


def _factor(value: Any, values: Values) -> None:
    most = _LONGEST_CONTEXT / values["seq_len"]
    if not 0 < value <= most:
        raise ConfigError(f"above 0 and at most {most:g} (contexts of {_LONGEST_CONTEXT:,} tokens) is needed")


def _share(value: Any, values: Values) -> None:
    if not 0 < value < 1:
        raise ConfigError("a share between 0 and 1 is needed")


def _run(value: Any, values: Values) -> None:
    records.load(paths.runs(values.get("runs_dir")) / value)


def _encoding(value: Any, values: Values) -> None:
    if value not in ENCODINGS:
        raise ConfigError(unknown("encoding", value, ENCODINGS))


def _file(value: Any, values: Values) -> None:
    if value is not None and not os.path.isfile(value):
        raise ConfigError("there is no such file")


_CHECKS: dict[str, Callable[[Any, Values], object]] = {
    **{name: lambda value, values: recipes.model(value) for name in _MODELS},
    **{name: lambda value, values: tasks.load(value) for name in ("shared", "tasks")},
    "device": lambda value, values: hardware.device(value),
    "factors": _factor,
    "heldout_share": _share,
    "preset": _preset,
    "presets": _preset,
    "record_file": _file,
    "run_ids": _run,
    "runs_dir": lambda value, values: paths.runs(value),
    "stand_ins": _encoding,
    "windows": _windows,
}


def _baseline_is_trained(values: Values) -> None:
    if "baseline" not in values:
        return
    models = values["models"]
    for name in ("models", "followed"):
        # The largest models are those of `models`, all where there is none.
        among = [one for one in models if one in values.get(name, ())] or models
        if recipes.model(values["baseline"]) not in [recipes.model(one) for one in among]:
            raise ConfigError(f"baseline='{values['baseline']}': one of {name} is needed ({', '.join(among)})")


def _lengths_divide(values: Values) -> None:
    if "lengths" not in values:
        return
    own = [values["seq_len"]] if "seq_len" in values else []
    longest = max(*own, *values["lengths"], 0)
    for length in (*own, *values["lengths"]):
        name = "seq_len" if length in own else "lengths"
        if longest % length or length % 2:
            raise ConfigError(f"{name}={length}: an even divisor of the longest of lengths, {longest}, is needed")
    if not own and values["lengths"][-1] != longest:
        raise ConfigError(f"lengths={shown(values['lengths'])}: the longest has to come last")


def _placebo_is_a_pair(values: Values) -> None:
    if len(values.get("placebo", "ab")) != 2:
        raise ConfigError(f"placebo={shown(values['placebo'])}: two models are needed")


def _combinations_fit(values: Values) -> None:
    for name, members in values.get("combinations", {}).items():
        try:
            options = {"parts": members, "name": name}
            Experiment(encoding="mix", options=options, preset=values.get("preset", "auto")).resolved()
        except LabError as error:
            raise ConfigError(f"combinations: {shown(name)}: {error}") from None


def _sizes_differ(values: Values) -> None:
    shapes: dict[Any, str] = {}
    for name in values.get("presets", ()):
        preset = PRESETS[name]
        shape = (preset.hidden, preset.layers, preset.heads)
        if shape in shapes:
            raise ConfigError(
                f"presets='{name}': with one vocabulary this is the size of '{shapes[shape]}', which is given too"
            )
        shapes[shape] = name


_TOGETHER = (_baseline_is_trained, _sizes_differ, _lengths_divide, _placebo_is_a_pair, _combinations_fit)
