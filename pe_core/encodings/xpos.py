import math

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape

_GAMMA = 0.4
_LARGEST = 60.0  # e^60 ≈ 1e26 leaves twelve decades of fp32 and bf16 above it, and as many below e^-60


class XPos(RoPE):
    """xPos: RoPE whose pairs fade with distance, the fast ones first. Sun et al. 2022 (arXiv 2212.10554).

    Queries turn as in RoPE and are multiplied by ζ_m^(p/B), keys by ζ_m^(-p/B), with pairs m = 0 … R/2 - 1 and

        ζ_m = (2m/R + γ) / (1 + γ),  γ = 0.4,

    so that pair m of q_i · k_j carries the factor ζ_m^((i - j)/B): it depends on the distance alone and never exceeds 1.

    Each of the two factors alone grows or shrinks with the position. Authors and x-transformers centre positions on the
    window's middle to keep them near 1, which moves with the window, while keys in a cache stay as they are. Here position
    0 is the centre, always: any fixed centre gives the same scores, relative precision does not depend on a factor's
    size, and position 4,096 multiplies by e^±10 at most, harmless in fp32 and bf16, which share a range of e^±87.

    The paper also evaluates with attention confined to blocks; this is the encoding alone.

    Published:
        Strong both within the trained length and beyond it.

    Options:
        scale_base: the B above (the authors': 512); the larger, the slower a pair fades. Pair 0 halves every 0.55 · B.
        rotary_pct: fraction of the head dimension that rotates and fades; the authors' code rotates all of it. 0 is NoPE.
        base: wavelengths run from 2π to 2π · base.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number; at a position where a factor would pass e^60, which is
            about 48 · scale_base.
    """

    class Options(RoPE.Options):
        rotary_pct: float = Field(1.0, ge=0, le=1)
        scale_base: float = Field(512.0, gt=0)

    family = "rotary"
    title = "xPos"
    paper = "arXiv 2212.10554"
    year = 2022
    extrapolates = False  # the paper's models do, with attention confined to blocks

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.last = math.floor(_LARGEST * options.scale_base / -math.log(_GAMMA / (1 + _GAMMA)))
        self._check(shape.seq_len - 1)

    def _check(self, position: int) -> None:
        if self.rotary_dim and position > self.last:
            raise ConfigError(
                f"encoding 'xpos': position {position} is out of range at scale_base={self.options.scale_base:g}, "
                f"which reaches to position {self.last}"
            )

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        if self.rotary_dim == 0:
            return q_BHTK, k_BHTK
        # While compiling the number of positions is known, their values are not.
        self._check(positions_BT.shape[1] - 1 if torch.compiler.is_compiling() else int(positions_BT.max()))
        cos, sin = self.waves(positions_BT)
        grow = self.growth(positions_BT)
        shrink = 1 / grow
        return self._turn(q_BHTK, cos * shrink, sin * shrink), self._turn(k_BHTK, cos * grow, sin * grow)

    def growth(self, positions_BT: Tensor) -> Tensor:
        """ζ_m^(-p/B), what keys are multiplied by and queries divided by, (B, 1, T, R), in fp32."""
        R = self.rotary_dim
        zeta = (torch.arange(0, R, 2, device=positions_BT.device, dtype=torch.float32) / R + _GAMMA) / (1 + _GAMMA)
        power_B1TM: Tensor = positions_BT[:, None, :, None].float() * (-zeta.log() / self.options.scale_base)
        return power_B1TM.exp().repeat(1, 1, 1, 2)

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        scale = "" if options.scale_base == 512 else f", scale base {options.scale_base:g}"
        return f"{super().label(options)}{scale}"
