import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape


class Llama3(RoPE):
    """Llama 3.1's scaled RoPE: slow pairs interpolated, fast ones left alone. Grattafiori et al. 2024 (arXiv 2407.21783).

    With θ_m = base^(-2m/R) and L the length trained at, pair m completes t = L θ_m / 2π turns within L. Its frequency becomes

        θ_m from t = high turns up,  θ_m / s up to t = low,  between r · θ_m + (1 - r) · θ_m / s,  r = (t - low) / (high - low).

    As `yarn`, with the ramp linear in the number of turns and no sharpening of the scores. It has no parameters: train with it,
    or set it in the configuration of a model trained with `rope`, with that model's `rotary_pct` and `base`. The report names
    a larger base alone; the formula is that of the released code.

    Options:
        factor: the s above, how many times longer the context becomes; 1 is RoPE (the released models': 8).
        low: turns within L up to which a pair is interpolated in full (1).
        high: turns within L from which a pair keeps its frequency (4).
        original_length: the L above; `None` takes the context length trained at (8,192).
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: wavelengths before scaling run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if high is not above low, or R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        factor: float = Field(4.0, ge=1)
        low: float = Field(1.0, gt=0)
        high: float = Field(4.0, gt=0)
        original_length: int | None = Field(None, ge=1)

    family = "rotary"
    title = "Llama 3"
    paper = "arXiv 2407.21783"
    year = 2024
    extrapolates = True  # as far as its factor reaches

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if options.high <= options.low:
            raise ConfigError(f"encoding 'llama3': high={options.high:g}: must be greater than low={options.low:g}")

    def frequencies(self, device: torch.device) -> Tensor:
        low, high, frequencies = self.options.low, self.options.high, super().frequencies(device)
        turns = (self.options.original_length or self.shape.seq_len) * frequencies / (2 * math.pi)
        interpolated = 1 - ((turns - low) / (high - low)).clamp(0, 1)
        slower = frequencies / self.options.factor
        found: Tensor = frequencies - interpolated * (frequencies - slower)  # a factor of 1 changes no bit
        return found

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return f"{super().label(options)}, factor {options.factor:g}"

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        return {"Llama 3": {**options, "factor": length / trained}} if name == "rope" else {}
