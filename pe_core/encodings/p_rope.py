import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE, name_of, whole_share
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class PRoPE(RoPE):
    """p-RoPE: RoPE on all dimensions without its lowest frequencies. Barbero et al. 2024 (arXiv 2410.06205).

    Dimensions m and m + K/2 form a pair. Per position pair m turns by the angle

        base^(-2m/K)  where m < p · K/2,  0  where not,

    the former as in RoPE; the others, which would be the slowest, compare content alone at any distance.

    Not the same as `rope` with rotary_pct = p, which spreads fewer frequencies over the whole range, slow ones included.

    Published:
        Lower perplexity than RoPE in models of Gemma 2B's size.

    Options:
        p: fraction of the frequencies that is kept; the paper's best is 0.75. 1 is RoPE at 100 %, 0 is NoPE.
        base: wavelengths, those dropped included, run from 2π to 2π · base.

    Raises:
        ConfigError: if the head dimension is odd, or p · K/2 is not a whole number.
    """

    class Options(Strict):
        p: float = Field(0.75, ge=0, le=1)
        base: float = Field(10_000.0, gt=1)

    family = "rotary"
    title = "p-RoPE"
    paper = "arXiv 2410.06205"
    year = 2024

    def __init__(self, shape: Shape, options: Options) -> None:
        if shape.head_dim % 2:
            raise ConfigError(f"encoding '{name_of(self)}': head dimension {shape.head_dim}: an even number is needed")
        super().__init__(shape, RoPE.Options(rotary_pct=1.0, base=options.base))
        self.options = options
        self.kept = whole_share(self, "p", options.p, shape.head_dim) // 2
        if not self.kept:
            self.rotary_dim = 0

    def frequencies(self, device: torch.device) -> Tensor:
        frequencies = super().frequencies(device)
        return frequencies * (torch.arange(len(frequencies), device=device) < self.kept)

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        base = "" if options.base == 10_000 else f", base {options.base:g}"
        return f"p-RoPE, p = {options.p:g}{base}"
