import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.p_rope import PRoPE
from pe_core.schema import Shape, Strict


class FoPE(PRoPE):
    """Fourier position embedding: each pair turns with several frequencies at once. Hua et al. 2024 (arXiv 2412.17739).

    RoPE on all dimensions, of whose frequencies ω_m those that make no full turn within the trained length, ω_m < 2π/L, are
    zero; for each of the other D pairs, in place of cos(p ω_m) and sin(p ω_m),

        Σ c_nm cos(p ω_n) / Σ c_nm over n = 0 … D - 1,  Σ s_nm sin(p ω_n) / Σ s_nm over n = 0 … D - 1

    with c and s the unit matrix plus small numbers, drawn once for each head and not trained. (Linear layers and activations
    mix frequencies; here attention allows for it.)

    The numbers are drawn as in the authors' code, N(0, sigma · sqrt(2 / (D (D + H)))) for H heads (the text says N(0, sigma)),
    and divided by their sum, as there. Two things follow the text instead: a pair of frequency zero is left alone (in the code
    its sine is 1, as its cosine), and all D pairs have a series (in the code at most K/4). What multiplies a pair is no
    rotation, so that scores depend on absolute positions a little.

    Published:
        From 60 M to 1.2 B parameters lower perplexity than RoPE beyond the trained length, slightly higher than ALiBi, and a
        passkey found at any position.

    Options:
        sigma: how much of the other frequencies is mixed in; 0 is RoPE without its slow pairs.
        base: wavelengths, before slow ones are dropped, run from 2π to 2π · base.

    Raises:
        ConfigError: if the head dimension is odd.
    """

    class Options(Strict):
        sigma: float = Field(0.3, ge=0, le=10)
        base: float = Field(10_000.0, gt=1)

    family = "rotary"
    title = "FoPE"
    paper = "arXiv 2412.17739"
    year = 2024
    extrapolates = True
    shift_invariant = False
    turns_by_head = True

    def __init__(self, shape: Shape, options: Options) -> None:
        pairs = max(shape.head_dim // 2, 1)
        turning = sum(options.base ** (-m / pairs) >= 2 * math.pi / shape.seq_len for m in range(pairs))
        super().__init__(shape, PRoPE.Options(p=turning / pairs, base=options.base))
        self.options = options
        self.mixed = nn.Parameter(torch.empty(2, shape.heads, self.kept, self.kept), requires_grad=False)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        D = max(self.kept, 1)
        parameter.normal_(0, self.options.sigma * math.sqrt(2 / (D * (D + self.shape.heads))), generator=generator)
        parameter += torch.eye(self.kept, device=parameter.device)

    def waves(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        angle_B1TD = positions_BT[:, None, :, None].float() * self.frequencies(positions_BT.device)[: self.kept]
        with torch.autocast(positions_BT.device.type, enabled=False):
            mixed = self.mixed.float() / self.mixed.float().sum(-2, keepdim=True)
            cos_BHTD, sin_BHTD = angle_B1TD.cos() @ mixed[0], angle_B1TD.sin() @ mixed[1]
        left = self.rotary_dim // 2 - self.kept
        padded = F.pad(cos_BHTD, (0, left), value=1.0), F.pad(sin_BHTD, (0, left))
        return padded[0].repeat(1, 1, 1, 2), padded[1].repeat(1, 1, 1, 2)

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        sigma = "" if options.sigma == 0.3 else f", σ = {options.sigma:g}"
        return f"{cls.title}{sigma}" + ("" if options.base == 10_000 else f", base {options.base:g}")
