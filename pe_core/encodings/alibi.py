import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.schema import Strict


class ALiBi(Encoding):
    """Attention with linear biases. Press et al. 2022 (arXiv 2108.12409).

    score(i, j) = q_i · k_j / sqrt(K) - m_h · (i - j), with one fixed slope m_h per head.

    Published:
        A model of 1.3 B parameters trained at 1,024 tokens reads 2,048 with the perplexity of a sinusoidal model trained at
        2,048, and trains 11 % faster in 11 % less memory.

    Options:
        slope: `per-head` is the paper's geometric series, 2^(-8h/H) for h = 1 … H where H is a power of two;
            for other H the series of the next lower power of two, filled up from every second slope of the
            next higher one, as in the authors' code. A number gives every head that slope (the note: 0.0625);
            0 is NoPE.
    """

    class Options(Strict):
        slope: Literal["per-head"] | Annotated[float, Field(ge=0)] = "per-head"

    family = "bias"
    title = "ALiBi"
    paper = "arXiv 2108.12409"
    year = 2022
    bias_by_distance = True
    extrapolates = True

    def slopes(self) -> list[float]:
        """The H slopes."""
        if self.options.slope == "per-head":
            return geometric_slopes(self.shape.heads)
        return [float(self.options.slope)] * self.shape.heads

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        slopes = self.slopes()
        if not any(slopes):
            return None
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).float()
        return distance_B1TS * -torch.tensor(slopes, device=distance_B1TS.device)[:, None, None]

    @classmethod
    def label(cls, options: Options) -> str:
        return "ALiBi per head" if options.slope == "per-head" else f"ALiBi slope {options.slope:g}"


def geometric_slopes(heads: int) -> list[float]:
    """The ALiBi paper's slopes for a number of heads."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-8 * h / (2 * power)) for h in range(1, 2 * power + 1, 2)]
    return slopes + between[: heads - power]
