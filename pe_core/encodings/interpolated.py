from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE


class Interpolated(RoPE):
    """Position interpolation: RoPE with every position divided by a factor s. Chen et al. 2023 (arXiv 2306.15595).

    At position p pair m turns by the angle

        (p / s) · base^(-2m/R),

    so that a context s times longer than the one trained at holds no angle that training did not.

    It has no parameters: train with it, or set it in the configuration of a model trained with `rope`, with that model's
    `rotary_pct` and `base`. The paper fine-tunes after the swap and extends a
    context 4 to 16 times; without fine-tuning the nearest neighbours come closer together than the model has seen.

    Published:
        LLaMA of 7 B to 65 B parameters reads up to 32,768 tokens after at most 1,000 steps of fine-tuning.

    Options:
        factor: the s above, how many times longer the context becomes; 1 is RoPE.
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: wavelengths run from 2π · s to 2π · s · base. As in `rope`.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        factor: float = Field(4.0, ge=1)

    family = "rotary"
    title = "Interpolated"
    paper = "arXiv 2306.15595"
    year = 2023
    extrapolates = True  # as far as its factor reaches

    def frequencies(self, device: torch.device) -> Tensor:
        frequencies: Tensor = super().frequencies(device) / self.options.factor
        return frequencies

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return f"{super().label(options)}, factor {options.factor:g}"

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        return {"interpolated": {**options, "factor": length / trained}} if name == "rope" else {}
