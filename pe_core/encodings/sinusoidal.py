import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class Sinusoidal(Encoding):
    """Fixed sines and cosines added to the token embeddings. Vaswani et al. 2017 (arXiv 1706.03762).

    x_p + scale · PE(p),  PE(p)[2m] = sin(p · base^(-2m/D)),  PE(p)[2m + 1] = cos(p · base^(-2m/D)),  m = 0 … D/2 - 1.

    The paper multiplies the token embeddings by sqrt(D) before the sum; what they start from it leaves to its code
    (tensor2tensor), which draws them from N(0, 1/D). Its tokens therefore start with RMS 1 beside sines of RMS 1/√2.
    Here tokens start from N(0, 0.02) and are not multiplied, the same for every encoding; sines of full size would
    drown them 35 to 1. What is kept is the paper's ratio, position to token 1/√2 to 1: both are 0.02 times smaller.

    Published:
        Nearly the same translation quality as learned positions. 1.3 B parameters, the Pile, 1,024 tokens: perplexity
        12.93, 13.05 learned, 12.51 ALiBi (Haviv et al. 2022).

    Options:
        scale: factor on the sines; 0.02 is the paper's ratio at the start of training, 1 the bare formula, 0 NoPE.
        base: wavelengths run from 2π to almost 2π · base.

    Raises:
        ConfigError: if the hidden dimension is odd.
    """

    class Options(Strict):
        scale: float = Field(0.02, ge=0)
        base: float = Field(10_000.0, gt=1)

    family = "absolute"
    title = "Sinusoidal"
    paper = "arXiv 1706.03762"
    year = 2017
    extrapolates = False
    shift_invariant = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if shape.hidden % 2:
            raise ConfigError(f"encoding 'sinusoidal': hidden dimension {shape.hidden}: an even number is needed")

    def embed(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        if self.options.scale == 0:
            return x_BTD
        sines_BTD: Tensor = self.options.scale * sinusoids(positions_BT, self.shape.hidden, self.options.base)
        return x_BTD + sines_BTD.type_as(x_BTD)

    @classmethod
    def label(cls, options: Options) -> str:
        scale = "" if options.scale == 0.02 else f", scale {options.scale:g}"
        base = "" if options.base == 10_000 else f", base {options.base:g}"
        return f"Sinusoidal{scale}{base}"


def sinusoids(positions_BT: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """PE(p) for every position, (B, T, dim), in fp32: bf16 cannot tell position 257 from 258."""
    exponent = torch.arange(0, dim, 2, device=positions_BT.device, dtype=torch.float32) / dim
    angle_BTM = positions_BT[..., None].float() * (1.0 / base**exponent)
    return torch.stack((angle_BTM.sin(), angle_BTM.cos()), dim=-1).flatten(-2)
