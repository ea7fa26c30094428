"""The hooks of a position encoding, each a no-op: what a file of this folder overrides.

Tensor names carry their shape: B batch, T queries, S keys (the queries' own tokens are the last T of them), D hidden, H heads,
K head dimension, E numbers kept.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.schema import Shape, Strict


class Encoding(nn.Module):
    """The base of every position encoding; each hook is a no-op, so that the base itself encodes nothing.

    A subclass states what it is (`family`, `title`, `paper`, `year`), declares its settings as a nested
    `Options`, and overrides the hooks it needs. One instance serves every layer, unless `for_layer` says otherwise.

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
    # Heads, one beside the other, that have one query, key and value: multi-head attention projects them once.
    tied_heads: int = 1
    # True where `transform_qk` turns a token's keys in one head otherwise than in another.
    turns_by_head: bool = False
    # True where `bias` depends on the head and the distance alone (and neither `scores` nor `attention_weights` is
    # overridden): then a GPU need not hold it for every pair of tokens.
    bias_by_distance: bool = False
    # False where only the order of the tokens counts: whatever position they are given changes nothing, to the bit.
    reads_positions: ClassVar[bool] = True
    # Whether a text longer than those trained on meets no angle, vector or index that is new: what lies further than any
    # trained distance fades on, shares a value, or is squeezed into the trained range. None where it is not stated.
    extrapolates: ClassVar[bool | None] = None
    # The E of `token_state`; 0 where nothing is kept.
    state_size: int = 0
    # Tokens of the longest text that can be read at all (evaluation mode), where there is such an end.
    longest_text: int | None = None

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__()
        self.shape, self.options = shape, options

    def for_layer(self, layer: int) -> Encoding | Self:
        """The encoding that layer `layer` (from 0) uses: itself, unless layers differ."""
        return self

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """Token embeddings with absolute positions mixed in."""
        return x_BTD

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys transformed by their own positions, before they meet (keys are cached as returned).

        `x_BTD` is the layer's normalised input. The last dimension may grow, the scale of the scores stays 1/sqrt(K).
        """
        return q_BHTK, k_BHTK

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores before the softmax, broadcastable to (B, H, T, S), or `None` for nothing.

        `query_BT` and `key_BS` are positions, `token_state_BHSE` is what `token_state` returned for every key. Entries where
        the key lies after the query are masked later.
        """
        return None

    def temperature(self, query_BT: Tensor) -> Tensor | None:
        """What each query's scores are multiplied by before any bias, broadcastable to (B, H, T, 1), or `None` for 1."""
        return None

    # The next three are for encodings that go beyond a transform of q and k or a bias; most need none of them.

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        """Numbers (B, H, T, E), fp32, that later tokens need of these ones besides keys and values; cached with them.

        Padding keeps zeros, whatever is returned for it: choose numbers of which zero means that nothing is there. Sums pass
        over padding wherever it stands; a convolution does on the left and the right of a text, not between its tokens.
        """
        return None

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        """Scores (B, H, T, S) in place of q kᵀ / sqrt(K), or `None` for those. `bias` is added to them all the same."""
        return None

    def attention_weights(self, scores_BHTS: Tensor) -> Tensor:
        """Scores, -inf where a key may not be seen, to attention weights."""
        return scores_BHTS.softmax(-1)

    @property
    def replaces_scores(self) -> bool:
        """Whether `scores` is another function than the product of queries and keys."""
        return type(self).scores is not Encoding.scores

    @property
    def replaces_softmax(self) -> bool:
        """Whether `attention_weights` is another function than the softmax."""
        return type(self).attention_weights is not Encoding.attention_weights

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
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
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        """Options with which this encoding can take the place of encoding `name`, of the same parameters, in a trained model
        that reads `length` tokens, more than the `trained` ones: by a remark for labels."""
        return {}


class PerLayer(Encoding):
    """An encoding whose layers have parameters of their own: they are stacked, and `self.layer` says whose are meant."""

    layer = 0

    def for_layer(self, layer: int) -> Self:
        here = copy.copy(self)  # a view: the parameters stay the model's
        here.layer = layer
        return here


def linear(x: Tensor, weight: Tensor, offset: Tensor | None = None) -> Tensor:
    """x Wᵀ + offset in fp32, autocast or not: for what is summed over many tokens, where errors of bf16 add up."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float(), None if offset is None else offset.float())
