"""Position encodings, discovered by file name.

An encoding is one file in this folder with one subclass of `Encoding` (see `base`); the file's name is the encoding's name.
Nothing outside that file may ask which encoding it is.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError, unknown
from pe_core.schema import Shape, Strict


class _Encodings(Mapping[str, type[Encoding]]):
    """Name -> class, for every file in this package's folders but `base`. A new file is seen at the next use."""

    @property
    def _there(self) -> list[str]:
        return _names(*((folder, os.stat(folder).st_mtime_ns) for folder in __path__))

    def __iter__(self) -> Iterator[str]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, name: object) -> bool:
        return name in self._there

    def __getitem__(self, name: str) -> type[Encoding]:
        if name not in self:
            raise KeyError(name)
        return _defined(importlib.import_module(f"{__name__}.{name}"))


@cache
def _defined(module: ModuleType) -> type[Encoding]:
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Encoding)]
    found = [value for value in classes if value.__module__ == module.__name__]
    if len(found) != 1:
        file = module.__name__.rpartition(".")[2]
        raise ConfigError(f"encodings/{file}.py defines {len(found)} subclasses of Encoding; it must define one")
    return found[0]


@cache
def _names(*folders: tuple[str, int]) -> list[str]:
    """Of folders that last changed at these times: reading ten thousand records asks fifty thousand times."""
    found = {name[:-3] for folder, _ in folders for name in os.listdir(folder) if name.endswith(".py")}
    return sorted(name for name in found - {"__init__", "base"} if name.isidentifier())


ENCODINGS: Mapping[str, type[Encoding]] = _Encodings()


def _class(name: str) -> type[Encoding]:
    try:
        return ENCODINGS[name]
    except KeyError:
        raise ConfigError(unknown("encoding", name, ENCODINGS)) from None


def options(name: str, values: Mapping[str, Any]) -> Strict:
    """The validated options of encoding `name`. Raises ConfigError for an unknown encoding, option or value."""
    cls = _class(name)
    try:
        return cls.Options(**values)
    except ConfigError as error:
        raise ConfigError(f"encoding '{name}': {error}") from None


def build(name: str, values: Mapping[str, Any], shape: Shape) -> Encoding:
    """Encoding `name` with `values` as its options, for a model of this shape. Raises ConfigError."""
    return _class(name)(shape, options(name, values))


def transforms_qk(name: str) -> bool:
    """Whether encoding `name` transforms queries and keys."""
    return _class(name).transform_qk is not Encoding.transform_qk


def label(name: str, values: Mapping[str, Any]) -> str:
    """The short name of encoding `name` with these options, for tables and figures: what its file says, and any option with
    another value than its own that this does not tell apart."""
    cls, chosen = _class(name), options(name, values)
    said = cls.label(chosen)
    for option, about in cls.Options.model_fields.items():
        value, default = getattr(chosen, option), about.default
        if value == default or not isinstance(value, str | int | float):
            continue
        if cls.label(chosen.model_copy(update={option: default})) == said:
            said += f", {option.replace('_', ' ')} {format(value, 'g') if isinstance(value, float) else value}"
    return said


def length_extensions(name: str, values: Mapping[str, Any], trained: int, length: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and options of the encodings that may stand in for encoding `name` with these options, without more training, in
    contexts of `length` tokens, more than the `trained` ones, by a remark for labels. Each says itself for which it does."""
    own = options(name, values).model_dump()
    offered = {other: cls.stands_in_for(name, own, trained, length) for other, cls in ENCODINGS.items()}
    return {remark: (other, found) for other, by_remark in offered.items() for remark, found in by_remark.items()}


def with_content(scores_BHTS: Tensor, q_BHTK: Tensor, k_BHSK: Tensor, own: int) -> Tensor:
    """Scores of the last `own` dimensions, divided by sqrt(own), and of those before them, which latent attention keeps for
    content alone and no encoding touches; divided by the square root of all."""
    if (K := q_BHTK.shape[-1]) == own:
        return scores_BHTS
    content_BHTS = (q_BHTK[..., :-own] @ k_BHSK[..., :-own].mT).float()
    return (math.sqrt(own) * scores_BHTS + content_BHTS) / math.sqrt(K)
