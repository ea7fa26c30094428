"""What settings are checked by, and the dimensions an encoding is built for: below everything that has settings."""

from __future__ import annotations

from typing import Any, NamedTuple

import pydantic
from pydantic import field_validator

from pe_core.errors import ConfigError, shown, text_fault, unknown


class Strict(pydantic.BaseModel):
    """A frozen set of named values that refuses unknown names, wrong types and numbers that are not numbers.

    Raises:
        ConfigError: one line that names the setting, its bad value and what is allowed.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(self._one_line(error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        # pydantic reads True as 1; a notebook parameter `samples=True` is a slip, not one window.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("True and False are not allowed here")
        if isinstance(value, str) and (fault := text_fault(value)):
            raise ValueError(fault)
        return value

    @classmethod
    def _one_line(cls, error: pydantic.ValidationError) -> str:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else cls.__name__
        if first["type"] == "extra_forbidden":
            return unknown("setting", name, cls.model_fields)
        # A setting that may be of several types fails once for each of them.
        reasons = [
            one["msg"].removeprefix("Value error, ").removeprefix("Input ")
            for one in error.errors()
            if one["loc"][:1] == first["loc"][:1]
        ]
        return f"{name}={shown(first['input'])}: {' or '.join(reasons)}"


class Shape(NamedTuple):
    """Model dimensions: D hidden, H heads, K head dimension, layers, and the context length trained at."""

    hidden: int
    heads: int
    head_dim: int
    layers: int
    seq_len: int
