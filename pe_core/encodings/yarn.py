import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape


class YaRN(RoPE):
    """YaRN: slow pairs interpolated, fast ones left alone, attention sharpened. Peng et al. 2023 (arXiv 2309.00071).

    With θ_m = base^(-2m/R) and L the length trained at, pair m completes L θ_m / 2π turns within L. Its frequency becomes

        θ_m · (1 - r_m + r_m / s),   r_m = 0 from `beta_fast` turns up, 1 from `beta_slow` down, a ramp between,

    and the rotated dimensions of queries and keys are multiplied by 0.1 · ln(s) + 1, which makes the softmax sharper.
    It has no parameters: train with it, or set it in the configuration of a model trained with `rope`, with that
    model's `rotary_pct` and `base`.

    The paper's ramp is linear in the number of turns. The authors' code and transformers make it linear in the pair's
    index m, between the indices of the two bounds rounded outwards, and this is what is done here. The paper scales all
    of the logits; where only part of a head rotates this part alone is scaled, again as in transformers.

    Published:
        Extends a context with ten times fewer tokens and 2.5 times fewer training steps than earlier methods.

    Options:
        factor: the s above, how many times longer the context becomes; 1 is RoPE.
        beta_fast: turns within L from which a pair keeps its frequency (the paper: 32, for Llama).
        beta_slow: turns within L up to which a pair is interpolated in full (the paper: 1).
        original_length: the L above; `None` takes the context length trained at.
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: wavelengths before scaling run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if beta_fast is not above beta_slow, or R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        factor: float = Field(4.0, ge=1)
        beta_fast: float = Field(32.0, gt=0)
        beta_slow: float = Field(1.0, gt=0)
        original_length: int | None = Field(None, ge=1)

    family = "rotary"
    title = "YaRN"
    paper = "arXiv 2309.00071"
    year = 2023
    extrapolates = True  # as far as its factor reaches

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if options.beta_fast <= options.beta_slow:
            raise ConfigError(
                f"encoding 'yarn': beta_fast={options.beta_fast:g}: must be greater than beta_slow={options.beta_slow:g}"
            )
        self.sharpening = 0.1 * math.log(options.factor) + 1

    def ramp(self) -> tuple[float, float]:
        """Index m of the last pair that keeps its frequency, and of the first that is interpolated in full."""
        R, length = self.rotary_dim, self.options.original_length or self.shape.seq_len

        def index(turns: float) -> float:
            return R * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(self.base))

        first = max(math.floor(index(self.options.beta_fast)), 0)
        last = max(min(math.ceil(index(self.options.beta_slow)), R - 1), first)
        return first, last if last > first else first + 0.001  # a step is a very steep ramp

    def frequencies(self, device: torch.device) -> Tensor:
        (first, last), frequencies = self.ramp(), super().frequencies(device)
        pairs = torch.arange(self.rotary_dim // 2, device=device, dtype=torch.float32)
        interpolated = ((pairs - first) / (last - first)).clamp(0, 1)
        slower: Tensor = frequencies / self.options.factor
        return frequencies - interpolated * (frequencies - slower)  # a factor of 1 changes no bit

    def waves(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().waves(positions_BT)
        return cos * self.sharpening, sin * self.sharpening

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return f"{super().label(options)}, factor {options.factor:g}"

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        return {"YaRN": {**options, "factor": length / trained}} if name == "rope" else {}
