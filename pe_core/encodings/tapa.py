import math

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.encodings.rope import whole_share
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class TAPA(Encoding):
    """Token-aware phase attention: query and key determine how their score oscillates with distance. Wang et al. 2025
    (arXiv 2509.12635).

    score(i, j) = q_A · k_A / sqrt(A) · cos(2π (i - j)^alpha · q_P · k_P / sqrt(P)),

    where the first A = amplitude · K dimensions of a head are q_A and k_A, the other P = K - A are q_P and k_P. Where RoPE
    turns every token at the same speed, the phase here depends on both tokens, and grows slowly with distance. Nothing is
    learned beyond the attention's own weights. Both products are made in fp32: a phase is no place for rounding.
    In a `mix`, a temperature multiplies the phase too.

    Options:
        alpha: the exponent of the distance (the paper's: 0.1).
        amplitude: fraction of the head's dimensions that are amplitude (the paper's: 0.5).

    Raises:
        ConfigError: amplitude · K is not a whole number, or leaves no dimension to the phase.
    """

    class Options(Strict):
        alpha: float = Field(0.1, gt=0, le=2)
        amplitude: float = Field(0.5, gt=0, lt=1)

    family = "content"
    title = "TAPA"
    paper = "arXiv 2509.12635"
    year = 2025
    extrapolates = False
    absorbs = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.first = whole_share(self, "amplitude", options.amplitude, shape.head_dim, step=1)
        if self.first == shape.head_dim:
            raise ConfigError(
                f"encoding 'tapa': amplitude={options.amplitude:g} leaves no dimension of {shape.head_dim} to the phase"
            )

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).clamp(min=0).float()
        A, K = self.first, q_BHTK.shape[-1]
        with torch.autocast(q_BHTK.device.type, enabled=False):
            q_BHTK, k_BHSK = q_BHTK.float(), k_BHSK.float()
            phase_BHTS = q_BHTK[..., A:] @ k_BHSK[..., A:].mT / math.sqrt(K - A)
            amplitude_BHTS = q_BHTK[..., :A] @ k_BHSK[..., :A].mT / math.sqrt(A)
        return amplitude_BHTS * torch.cos(2 * math.pi * distance_B1TS**self.options.alpha * phase_BHTS)

    @classmethod
    def label(cls, options: Options) -> str:
        alpha = "" if options.alpha == 0.1 else f" alpha {options.alpha:g}"
        return cls.title + alpha + ("" if options.amplitude == 0.5 else f", {100 * options.amplitude:.4g} % amplitude")
