import math
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict

_AT_ONCE = 2**24  # hidden values held at once, 64 MB: one piece while training, pieces at long lengths
_EPS = 1e-6  # the authors': the first token's normaliser may be log 1


class FIRE(PerLayer):
    """FIRE: a small network computes the bias from the distance, relative to the query's position. Li et al. 2023
    (arXiv 2310.04418).

    score(i, j) = q_i · k_j / sqrt(K) + f_h(x),  x = ln(1 + c(i - j)) / ln(1 + c · max(L, i)),

    with f(x) = W relu(v x + b), `width` hidden values and H outputs. c and L are learned, kept positive by their absolute
    value as in the authors' code, which also starts c at 0.1 and learns L as a multiple of its first value.

    Beyond L positions, x says what fraction of the text so far lies between query and key, so that it stays in [0, 1]
    however long the text (progressive interpolation). The bias thus depends on where the query stands: shifting all
    positions changes it, unless all queries stay below L.

    What the paper leaves open or to its code, and what is here: v, b and W start as PyTorch's linear layers do, uniform
    within 1/sqrt(inputs). W has no offset: a constant per head changes no attention weight and could learn nothing.

    Published:
        Generalises to longer contexts better than others, in language modelling and on benchmarks of long texts.

    Options:
        width: hidden values (the authors': 32).
        threshold: what L starts from; `None` is a quarter of the context length trained at, as 512 of 2,048 in the paper.
        shared: one f, c and L for all layers (the paper's FIRE-S); otherwise, the paper's default, each layer has its own.
    """

    class Options(Strict):
        width: int = Field(32, ge=1, le=4_096)
        threshold: float | None = Field(None, gt=0)
        shared: bool = False

    family = "bias"
    title = "FIRE"
    paper = "arXiv 2310.04418"
    year = 2023
    extrapolates = True
    shift_invariant = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        N, M = 1 if options.shared else shape.layers, options.width
        self.threshold = options.threshold or shape.seq_len / 4
        self.c = nn.Parameter(torch.empty(N))
        self.multiple = nn.Parameter(torch.empty(N))
        self.v = nn.Parameter(torch.empty(N, M))
        self.b = nn.Parameter(torch.empty(N, M))
        self.W = nn.Parameter(torch.empty(N, M, shape.heads))

    def for_layer(self, layer: int) -> Self:
        return super().for_layer(0 if self.options.shared else layer)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name in ("c", "multiple"):
            parameter.fill_({"c": 0.1, "multiple": 1.0}[name])
        else:
            limit = 1 / math.sqrt(self.options.width) if name == "W" else 1.0
            parameter.uniform_(-limit, limit, generator=generator)

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        c, multiple, v_M, b_M, W_MH = (p[self.layer].float() for p in (self.c, self.multiple, self.v, self.b, self.W))
        # Later keys are masked, but their logarithm of a negative number would still reach the gradients as NaN.
        distance_BTS = (query_BT[:, :, None] - key_BS[:, None, :]).clamp(min=0).float()
        most_BT1 = torch.maximum(query_BT[:, :, None].float(), (multiple * self.threshold).abs())
        x_BTS = torch.log1p(c.abs() * distance_BTS) / (torch.log1p(c.abs() * most_BT1) + _EPS)
        queries = max(1, _AT_ONCE // (x_BTS.shape[0] * x_BTS.shape[2] * len(v_M)))
        with torch.autocast(x_BTS.device.type, enabled=False):
            pieces = [(x[..., None] * v_M + b_M).relu() @ W_MH for x in x_BTS.split(queries, dim=1)]
        return torch.cat(pieces, dim=1).permute(0, 3, 1, 2)

    @classmethod
    def label(cls, options: Options) -> str:
        changed = [f"width {options.width}"] * (options.width != 32) + ["shared"] * options.shared
        changed += [] if options.threshold is None else [f"L {options.threshold:g}"]
        return ", ".join([cls.title, *changed])
