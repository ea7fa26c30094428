import math

import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE, whole_share
from pe_core.schema import Shape

_PAPERS = 0.3125


class ClippedRoPE(RoPE):
    """Clipped RoPE: the lowest frequencies fade out to zero. Li et al. 2026 (arXiv 2602.05258).

    The paper's name is CoPE; here it is not, because contextual position encoding (`cope`) had that name before.

    Of the R/2 pairs of `rope` the last n = clipped · R/2 are slowed down: pair R/2 - n + t, t = 0 … n - 1, turns by

        θ · (1 + cos(π t / (n - 1))) / 2  per position,  θ its frequency in `rope`,

    so that the first of them is left alone and the last does not turn at all. (A hard clip sets all n to zero, which is what
    `p_rope` does; the paper finds that it rings.) Frequencies are slowed down, amplitudes stay. The formula is that of the
    authors' code, where n is 20 of 64 for Llama 3; it has no parameters. Train with it, or set it in the configuration of a
    model trained with `rope`.

    Options:
        clipped: fraction of the pairs that are slowed down, 0 is RoPE. Of the paper's fraction, the default, n is rounded, to
            2 at least.
        rotary_pct: fraction of the head dimension that rotates. As in `rope`, but 1 here.
        base: wavelengths before clipping run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number, or n, of another fraction, not a whole one above 1.
    """

    class Options(RoPE.Options):
        rotary_pct: float = Field(1.0, ge=0, le=1)
        clipped: float = Field(_PAPERS, ge=0, le=1)

    family = "rotary"
    title = "Clipped RoPE"
    paper = "arXiv 2602.05258"
    year = 2026
    extrapolates = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        pairs = self.rotary_dim // 2
        if options.clipped == _PAPERS:
            self.slowed = min(max(round(options.clipped * pairs), 2), pairs) if pairs > 1 else 0
            return
        self.slowed = whole_share(self, "clipped", options.clipped, self.rotary_dim, least=4) // 2

    def frequencies(self, device: torch.device) -> Tensor:
        frequencies = super().frequencies(device)
        if not self.slowed:
            return frequencies
        taper = (1 + torch.cos(torch.linspace(0, math.pi, self.slowed, device=device))) / 2
        taper = torch.cat((taper[:-1], taper.new_zeros(1)))  # the last one to the bit
        return torch.cat((frequencies[: -self.slowed], frequencies[-self.slowed :] * taper))

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return super().label(options) + ("" if options.clipped == _PAPERS else f", {100 * options.clipped:.4g} % clipped")
