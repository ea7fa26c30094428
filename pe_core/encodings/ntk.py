from typing import Any

from pydantic import Field

from pe_core.encodings.rope import RoPE
from pe_core.schema import Shape


class NTK(RoPE):
    """NTK-aware scaled RoPE: a larger base instead of shorter steps. bloc97 2023, in Peng et al. 2023 (arXiv 2309.00071).

    base' = base · s^(R / (R - 2)), and then RoPE. The fastest pair keeps its frequency, 1, and neighbours stay apart;
    the slowest is slowed down by exactly s, as in `interpolated`; those between lie between. It has no parameters: train
    with it, or set it in the configuration of a model trained with `rope`, with that model's `rotary_pct` and `base`.

    This is the static form, one base for every length: the dynamic one grows s with the sequence, and keys that were
    cached turned by the smaller s would no longer fit. Where it has one pair alone (R = 2) the fastest is the slowest;
    the formula has no value there, and the pair keeps its frequency: RoPE.

    Options:
        factor: the s above, how many times longer the context becomes; 1 is RoPE. Because the middle pairs are slowed
            down by less than s, the usable context grows by less than that.
        rotary_pct: fraction of the head dimension that rotates; 0 is NoPE. As in `rope`.
        base: the base that is scaled. As in `rope`.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number.
    """

    class Options(RoPE.Options):
        factor: float = Field(4.0, ge=1, le=1e6)

    family = "rotary"
    title = "NTK-aware"
    paper = "arXiv 2309.00071"
    year = 2023
    extrapolates = True  # as far as its factor reaches

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if self.rotary_dim > 2:
            self.base = options.base * options.factor ** (self.rotary_dim / (self.rotary_dim - 2))

    @classmethod
    def label(cls, options: Options) -> str:  # type: ignore[override]
        return f"{super().label(options)}, factor {options.factor:g}"

    @classmethod
    def stands_in_for(cls, name: str, options: dict[str, Any], trained: int, length: int) -> dict[str, dict[str, Any]]:
        return {"NTK": {**options, "factor": length / trained}} if name == "rope" else {}
