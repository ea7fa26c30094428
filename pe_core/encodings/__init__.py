"""Position encodings: a few hooks, and discovery by file name.

An encoding is one file in this folder with one subclass of `Encoding`; the file's name is the encoding's name.
Nothing outside that file may ask which encoding it is. Tensor names carry their shape: B batch, T queries,
S keys (the queries' own tokens are the last T of them), D hidden, H heads, K head dimension, E numbers kept.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.config import PRESETS, Shape, Strict
from pe_core.errors import ConfigError, unknown

if TYPE_CHECKING:
    import pandas as pd


class Encoding(nn.Module):
    """The base of every position encoding; each hook is a no-op, so that the base itself encodes nothing.

    A subclass states what it is (`family`, `title`, `paper`, `year`), declares its settings as a nested
    `Options`, and overrides the hooks it needs. One instance serves every layer, unless `at` says otherwise.

    Args:
        shape: the model's dimensions.
        options: this encoding's validated settings.

    Raises:
        ConfigError: from a subclass, when options and shape do not fit each other.
    """

    class Options(Strict):
        """Settings of this encoding; the base has none."""

    family: ClassVar[str] = "none"
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    # True where shifting every position by the same amount must leave the logits alone.
    shift_invariant: ClassVar[bool] = True
    # False where `bias` or `scores` read queries or keys: latent attention then has to make its keys.
    absorbs: ClassVar[bool] = True
    # True where `bias` depends on the head and the distance alone (and neither `scores` nor `weights` is overridden): then a
    # GPU need not hold it for every pair of tokens.
    bias_by_distance: bool = False
    # False where only the order of the tokens counts: whatever position they are given changes nothing, to the bit.
    reads_positions: ClassVar[bool] = True
    # Whether a text longer than those trained on meets no angle, vector or index that is new: what lies further than any
    # trained distance fades on, shares a value, or is squeezed into the trained range. None where it is not stated.
    extrapolates: ClassVar[bool | None] = None

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__()
        self.shape, self.options = shape, options

    def at(self, layer: int) -> Encoding | Self:
        """The encoding that layer `layer` (from 0) uses: itself, unless layers differ."""
        return self

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """Token embeddings with absolute positions mixed in."""
        return x_BTD

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys transformed by their own positions, before they meet (keys are cached as returned).

        `x_BTD` is the layer's normalised input, for encodings whose transform depends on content. The last
        dimension may grow, the scale of the scores stays 1/sqrt(K).
        """
        return q_BHTK, k_BHTK

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, kept_BHSE: Tensor | None) -> Tensor | None:
        """What is added to the scores before the softmax, broadcastable to (B, H, T, S), or `None` for nothing.

        `query_BT` and `key_BS` are positions, `kept_BHSE` is what `keep` returned for every key. Entries where the
        key lies after the query are masked later.
        """
        return None

    # The next three are for encodings that go beyond a transform of q and k or a bias; most need none of them.

    def keep(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        """Numbers (B, H, T, E), fp32, that later tokens need of these ones besides keys and values; cached with them.

        Padding keeps zeros, whatever is returned for it: choose numbers of which zero means that nothing is there. Sums pass
        over padding wherever it stands; a convolution does on the left and the right of a text, not between its tokens.
        """
        return None

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, kept_BHSE: Tensor | None
    ) -> Tensor | None:
        """Scores (B, H, T, S) in place of q kᵀ / sqrt(K), or `None` for those. `bias` is added to them all the same."""
        return None

    def weights(self, scores_BHTS: Tensor) -> Tensor:
        """Scores, -inf where a key may not be seen, to attention weights."""
        return scores_BHTS.softmax(-1)

    def initialise(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Initial value of this encoding's own parameter `name`, in place; the default is N(0, 0.02)."""
        parameter.normal_(0, 0.02, generator=generator)

    def wavelengths(self) -> Tensor:
        """Tokens after which each dimension of queries and keys has turned once, (K,); infinite where none does."""
        return torch.full((self.shape.head_dim,), torch.inf)

    @classmethod
    def label(cls, options: Any) -> str:
        """A short name for tables and figures, with the options that matter."""
        return cls.title

    @classmethod
    def stretched(cls, options: Any, trained: int, length: int) -> dict[str, tuple[str, dict[str, Any]]]:
        """What may stand in for this encoding, without more training, in contexts of `length` tokens, more than the `trained`
        ones: name and options of encodings with the same parameters, by a remark for labels."""
        return {}


class PerLayer(Encoding):
    """An encoding whose layers have parameters of their own: they are stacked, and `self.layer` says whose are meant."""

    layer = 0

    def at(self, layer: int) -> Self:
        here = copy.copy(self)  # a view: the parameters stay the model's
        here.layer = layer
        return here


class _Encodings(Mapping[str, type[Encoding]]):
    """Name -> class, for every file in this package's folders. Read afresh at each use, so a new file is seen."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(module.name for module in pkgutil.iter_modules(__path__)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> type[Encoding]:
        if name not in list(self):
            raise KeyError(name)
        module = importlib.import_module(f"{__name__}.{name}")
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Encoding) and value.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise ConfigError(f"encodings/{name}.py defines {len(found)} subclasses of Encoding; it must define one")
        return found[0]


ENCODINGS: Mapping[str, type[Encoding]] = _Encodings()


def _class(name: str) -> type[Encoding]:
    if name not in ENCODINGS:
        raise ConfigError(unknown("encoding", name, ENCODINGS))
    return ENCODINGS[name]


def linear(x: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
    """x Wᵀ + offset in fp32, autocast or not: for what is summed over many tokens, where errors of bf16 add up."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float(), None if offset is None else offset.float())


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


def rotates(name: str) -> bool:
    """Whether encoding `name` transforms queries and keys."""
    return _class(name).rotate is not Encoding.rotate


def label(name: str, values: Mapping[str, Any]) -> str:
    """The short name of encoding `name` with these options, for tables and figures."""
    return _class(name).label(options(name, values))


def frame(preset: str = "nano", seq_len: int = 128) -> pd.DataFrame:
    """What every encoding is, one row each, with its default options; read from the classes, so that a new file has its row.

    Returns:
        columns name, label, family, parameters (its own, in a model of this preset and length), explicit_scores (whether
        attention has to write its scores out, whatever the kernel could do), extrapolates (`None` where not stated), paper,
        year; by family, then year.

    Raises:
        ConfigError: there is no such preset.
    """
    import pandas as pd

    if preset not in PRESETS:
        raise ConfigError(unknown("preset", preset, PRESETS))
    hidden, layers, heads = PRESETS[preset].hidden, PRESETS[preset].layers, PRESETS[preset].heads
    rows = []
    for name, cls in ENCODINGS.items():
        built = build(name, {}, Shape(hidden, heads, hidden // heads, layers, seq_len))
        rows.append(
            {
                "name": name,
                "label": label(name, {}),
                "family": cls.family,
                "parameters": sum(parameter.numel() for parameter in built.parameters()),
                "explicit_scores": cls.scores is not Encoding.scores or cls.weights is not Encoding.weights,
                "extrapolates": cls.extrapolates,
                "paper": cls.paper,
                "year": cls.year,
            }
        )
    return pd.DataFrame(rows).sort_values(["family", "year", "name"], ignore_index=True)


def stretched(name: str, values: Mapping[str, Any], trained: int, length: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """What may stand in for encoding `name` with these options at a longer context: see `Encoding.stretched`."""
    return _class(name).stretched(options(name, values), trained, length)
