"""The playground: what an encoding's options do to attention, at once and without a server.

Everything a slider can choose is computed here, from the encoding's class, and embedded in the page; the script
`book/_static/playground.js` only looks it up and draws. A new encoding has its playground unasked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import prod
from typing import Any, Literal, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from pe_core import encodings
from pe_core.encodings import ENCODINGS
from pe_core.errors import LabError
from pe_core.report import figures
from pe_core.site import encoding_page, index

DISTANCES, TRIANGLE = 128, 32  # tokens: of the curves, and of the picture by query and key where one is needed
MOST = 30  # settings of one encoding
_NOTHING = -128  # stands for a key that gets no attention at all


def place(names: Sequence[str], shown: Sequence[str]) -> str:
    """HTML of a playground of encodings `names` with a panel for each of those `shown` first; with one name, without a
    choice of encodings."""
    text = index.script_json([data(name) for name in names])
    hint = "<p>The playground needs JavaScript; the pictures of each encoding stand on its page.</p>"
    first = " ".join(shown)
    return f'<div class="playground" data-shown="{first}"><script type="application/json">{text}</script>{hint}</div>'


def heading(name: str) -> str:
    """The heading of an encoding's own playground; what stands in its place where there is nothing to choose."""
    last = f"The same for the last of {DISTANCES} tokens, by distance, with the share of attention that goes there"
    if not playable(name):
        return f"{last}. A flat line is attention that looks everywhere alike."
    return f"### Try its options\n\n{last}; the [playground](../playground) puts two encodings side by side."


def playable(name: str) -> bool:
    """Whether an encoding has options that change what a picture shows."""
    return len({json.dumps(one) for one in data(name)["settings"].values()}) > 1


@cache
def data(name: str) -> dict[str, Any]:
    """An encoding's options with the values a slider can choose, and what each combination does.

    `settings` is by the indices of the values, as in `0,2`: for each head that differs the score of each key against the
    query's own, by distance (`curve`, DISTANCES numbers) and, where it is not distance alone that decides, by query and key
    (`triangle`, the rows of a triangle of TRIANGLE tokens). Numbers are bytes from -127 to 127 in base64, to be multiplied by
    `scale`/127 nats.
    """
    chosen, defaults = _grid(name), _defaults(name)
    found: dict[str, dict[str, Any]] = {}
    for indices in product(*(range(len(values)) for values in chosen.values())):
        options = {key: values[index] for (key, values), index in zip(chosen.items(), indices, strict=True)}
        if setting := _setting(name, options):
            found[",".join(map(str, indices))] = setting
    return {
        "name": name,
        "title": ENCODINGS[name].title,
        "colour": figures.FAMILY_COLOURS.get(ENCODINGS[name].family, "#666666"),
        "options": [
            {"name": key, "values": [_written(value) for value in values], "default": values.index(defaults[key])}
            for key, values in chosen.items()
        ],
        "settings": found,
    }


def _setting(name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """What one combination of options does; `None` where it is refused."""
    try:
        relative = encoding_page.scores(name, options, DISTANCES, small=True)
    except LabError:
        return None
    heads = relative[encoding_page.different(np.nan_to_num(relative, nan=-1e9).round(4))]
    i, j = np.tril_indices(TRIANGLE)
    curves, triangles = heads[:, -1, ::-1], heads[:, i, j]
    by_distance = np.allclose(triangles, curves[:, i - j], atol=1e-3, equal_nan=True)
    scale = float(np.nanmax(np.abs(curves if by_distance else np.hstack([curves, triangles])), initial=1e-3))
    packed = {"heads": len(heads), "scale": float(f"{scale:.4g}"), "curve": _packed(curves, scale)}
    return packed if by_distance else {**packed, "triangle": _packed(triangles, scale)}


def _packed(values: NDArray[np.float64], scale: float) -> str:
    whole = np.where(np.isnan(values), _NOTHING, np.round(127 * np.nan_to_num(values) / scale))
    return base64.b64encode(whole.astype(np.int8).tobytes()).decode()


def _grid(name: str) -> dict[str, list[Any]]:
    """Values for each option that has a scale or a few choices, at most MOST combinations of them."""
    chosen = {key: values for key in ENCODINGS[name].Options.model_fields if len(values := _values(name, key)) > 1}
    while prod(map(len, chosen.values())) > MOST:
        longest = max(chosen, key=lambda key: len(chosen[key]))
        if len(chosen[longest]) > 3:
            middle = chosen[longest].index(_defaults(name)[longest])
            start = min(max(middle - 1, 0), len(chosen[longest]) - 3)
            chosen[longest] = chosen[longest][start : start + 3]
        else:
            chosen.popitem()
    return chosen


def _defaults(name: str) -> dict[str, Any]:
    return encodings.options(name, {}).model_dump()


def _values(name: str, key: str) -> list[Any]:
    """The values of one option: its choices, or numbers about its default, as far as the encoding takes them."""
    field = ENCODINGS[name].Options.model_fields[key]
    default = _defaults(name)[key]
    share = any(getattr(limit, "le", None) == 1 for limit in field.metadata)
    wanted = [*_choices(field.annotation), *(_about(default, share) if isinstance(default, int | float) else [])]
    if default is not None and default not in wanted:
        return []
    return [value for value in dict.fromkeys(wanted) if encoding_page.takes(name, {key: value})]


def _choices(annotation: Any) -> Iterator[Any]:
    if annotation is bool:
        yield from (False, True)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif any(get_origin(part) is Literal for part in get_args(annotation)):  # a word, or a number of a scale such as ALiBi's
        for part in get_args(annotation):
            yield from _choices(part)
        yield from (1.0, 0.25, 0.0625, 0.015625)


def _about(default: float, share: bool) -> list[float]:
    if isinstance(default, bool):
        return []
    if share:
        return sorted({0.125, 0.25, 0.5, 1.0, default})
    if default == 0:
        return [-4.0, -2.0, default, 2.0, 4.0]
    factors = (0.01, 0.1, 1, 10, 100) if default >= 1_000 else (0.25, 0.5, 1, 2, 4)
    return [type(default)(default * factor) for factor in factors]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
