import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.encodings.path import short_convolution
from pe_core.schema import Shape, Strict


class KeyShift(PerLayer):
    """Shifted keys: each key is mixed with the keys just before it. Allen-Zhu 2025 (Canon layers, arXiv 2512.17351).

    score(i, j) = q_i · (k_j + Σ w_c ⊙ k_(j - c) over c = 0 … taps - 1) / sqrt(K),

    w one number for each head's dimension, tap and layer. This is Canon's causal convolution with a residual, four taps long,
    on the keys alone: the smallest part of what that paper puts before, within and after attention and MLP, and a test of how
    little lets a model without positions see order. A query can look for "the token after x", not for a distance. Before a
    text's beginning stand zeros.

    w starts uniform in ±1/sqrt(taps), as theirs. In a `mix` keys are shifted as its other members have turned them.

    Options:
        taps: tokens a key shows, its own included (Canon: 4).
    """

    class Options(Strict):
        taps: int = Field(4, ge=2, le=64)

    family = "content"
    title = "Key shift"
    paper = "arXiv 2512.17351"
    year = 2025
    extrapolates = True
    absorbs = False
    reads_positions = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.w = nn.Parameter(torch.empty(shape.layers, options.taps, shape.heads, shape.head_dim))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        limit = 1 / math.sqrt(self.options.taps)
        parameter.uniform_(-limit, limit, generator=generator)

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        K = self.shape.head_dim  # another encoding's rotation, in a mix, may have appended dimensions
        shifted_BHSK = short_convolution(k_BHSK[..., :K].float(), self.w[self.layer], key_BS).type_as(q_BHTK)
        return (q_BHTK[..., :K] @ shifted_BHSK.mT).float() / math.sqrt(K)

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.taps == 4 else f"{cls.title} {options.taps}"
