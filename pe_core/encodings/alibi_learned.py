import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.alibi import geometric_slopes
from pe_core.encodings.base import Encoding
from pe_core.schema import Shape, Strict


class LearnedALiBi(Encoding):
    """ALiBi with one learned slope per head, the same in every layer. Press et al. 2022 (arXiv 2108.12409).

    score(i, j) = q_i · k_j / sqrt(K) - exp(s_h) · (i - j), so that a slope stays positive.

    The paper tried learned slopes and found no gain; it does not say how it kept them positive or whether layers shared
    them. Sharing keeps the comparison with the fixed series to H numbers.

    Options:
        start: the slopes training begins with: `per-head` is the paper's geometric series, a number is one for all heads.
    """

    class Options(Strict):
        start: Literal["per-head"] | Annotated[float, Field(gt=0)] = "per-head"

    family = "bias"
    title = "ALiBi learned"
    paper = "arXiv 2108.12409"
    year = 2022
    bias_by_distance = True
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.log_slope = nn.Parameter(torch.empty(shape.heads))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        heads, start = self.shape.heads, self.options.start
        slopes = geometric_slopes(heads) if start == "per-head" else [start] * heads
        parameter.copy_(torch.tensor([math.log(slope) for slope in slopes]))

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).float()
        return -self.log_slope.float().exp()[:, None, None] * distance_B1TS

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.start == "per-head" else f"{cls.title} from {options.start:g}"
