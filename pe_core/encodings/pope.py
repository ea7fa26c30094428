import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict


class PoPE(PerLayer):
    """PoPE: content sets lengths, position alone sets angles. Gopalakrishnan et al. 2025 (arXiv 2509.10534).

    score(i, j) = Σ softplus(q_im) · softplus(k_jm) · cos((i - j) · θ_m - δ_hm) / sqrt(K) over m = 0 … K - 1,
    θ_m = base^(-m/K),

    that is, every dimension is a complex number whose length is positive and whose angle is the position's; RoPE's pairs also
    bring an angle of their own, through which content and position mix. There are K frequencies instead of K/2. Queries and
    keys grow to 2K numbers, and so does the cache of keys.

    δ is a learned phase per layer, head and dimension, kept within [-2π, 0] as in the paper. Authors and x-transformers turn
    keys by it; here queries turn back, which gives the same scores and leaves keys to be shared by heads (latent attention).
    Beyond its limits a phase has no gradient, as in x-transformers: of phases that start at zero, those that the first steps
    raise, about half, stay there for good and act as zero. Weight decay takes them towards zero, never below.

    Lengths start near softplus(0) = 0.69, which makes scores 0.48 · Σ cos(…) / sqrt(K) before anything is learned: near keys
    are favoured from the start.

    Published:
        Lower perplexity than RoPE on music, genomes and text, from 124 M to 774 M parameters, and reads longer sequences
        than trained on without fine-tuning, where RoPE degrades.

    Options:
        base: wavelengths run from 2π to 2π · base.
        phase: what δ starts from: `zero`, each cosine's peak at the query's own position, or `uniform` in [-2π, 0].
    """

    class Options(Strict):
        base: float = Field(10_000.0, gt=1)
        phase: Literal["zero", "uniform"] = "zero"

    family = "rotary"
    title = "PoPE"
    paper = "arXiv 2509.10534"
    year = 2025
    extrapolates = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.phases = nn.Parameter(torch.empty(shape.layers, shape.heads, shape.head_dim))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if self.options.phase == "zero":
            parameter.zero_()
        else:
            parameter.uniform_(-2 * math.pi, 0, generator=generator)

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        K = self.shape.head_dim
        exponent_K = torch.arange(K, device=q_BHTK.device, dtype=torch.float32) / K
        angle_B1TK = positions_BT[:, None, :, None].float() / self.options.base**exponent_K
        phase_H1K = self.phases[self.layer].float().clamp(-2 * math.pi, 0)[:, None]
        return self._polar(q_BHTK, angle_B1TK - phase_H1K), self._polar(k_BHTK, angle_B1TK)

    @staticmethod
    def _polar(x_BHTK: Tensor, angle_BHTK: Tensor) -> Tensor:
        K = angle_BHTK.shape[-1]
        length = F.softplus(x_BHTK[..., :K].float())
        turned = torch.cat((length * angle_BHTK.cos(), length * angle_BHTK.sin()), dim=-1).type_as(x_BHTK)
        return torch.cat((turned, x_BHTK[..., K:]), dim=-1)  # what another member of a mix has appended stays

    @classmethod
    def label(cls, options: Options) -> str:
        changed = [f"base {options.base:g}"] * (options.base != 10_000) + ["uniform phases"] * (options.phase == "uniform")
        return ", ".join([cls.title, *changed])
