import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


def name_of(encoding: Encoding) -> str:
    """What an encoding is called: its file's name."""
    return type(encoding).__module__.rpartition(".")[2]


def whole_share(encoding: Encoding, option: str, share: float, dimensions: int, step: int = 2, least: int = 0) -> int:
    """So many of the dimensions as an option asks for.

    Raises:
        ConfigError: that is not a multiple of `step` from `least` on. Rounded, the label would say another share than is used,
            and a positive one could be none.
    """
    asked, found = share * dimensions, step * round(share * dimensions / step)
    if abs(asked - found) > 1e-3 or (asked > 0) != (found > 0) or 0 < found < least:
        near = [step * n for n in range(dimensions // step + 1) if n == 0 < least or step * n >= least]
        near = sorted(sorted(near, key=lambda n: abs(n - asked))[:2])
        raise ConfigError(
            f"encoding '{name_of(encoding)}': {option}={share:g} of {dimensions} dimensions is "
            f"{asked:g}; {'an even' if step == 2 else 'a whole'} number is needed: "
            f"{option}={' or '.join(f'{n / dimensions:.6g}' for n in near)}, say"
        )
    return found


class RoPE(Encoding):
    """Rotary position embedding. Su et al. 2021 (arXiv 2104.09864).

    The first R = rotary_pct · K dimensions of each query and key form R/2 pairs (m, m + R/2), as in GPT-NeoX.
    At position p pair m turns by the angle

        p · base^(-2m/R),

    so that q_i · k_j depends on i - j alone.

    Options:
        rotary_pct: fraction of the head dimension that rotates (Pythia: 0.25); 0 is NoPE.
        base: wavelengths run from 2π to 2π · base.

    Raises:
        ConfigError: if R is not an even whole number.
    """

    class Options(Strict):
        rotary_pct: float = Field(0.25, ge=0, le=1)
        base: float = Field(10_000.0, gt=1)

    family = "rotary"
    title = "RoPE"
    paper = "arXiv 2104.09864"
    year = 2021
    extrapolates = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.base = options.base
        self.rotary_dim = whole_share(self, "rotary_pct", options.rotary_pct, shape.head_dim)

    # What encodings that build on this one override: the frequencies, or the waves made of them.

    def frequencies(self, device: torch.device) -> Tensor:
        """Angle per position of each pair, (R/2,), in fp32: bf16 cannot tell position 257 from 258."""
        exponent = torch.arange(0, self.rotary_dim, 2, device=device, dtype=torch.float32) / self.rotary_dim
        frequencies: Tensor = 1.0 / self.base**exponent
        return frequencies

    def waves(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every angle, (B, 1, T, R), in fp32; both halves of R hold the same."""
        frequencies = self.frequencies(positions_BT.device)
        angle_B1TR = (positions_BT[:, None, :, None].float() * frequencies).repeat(1, 1, 1, 2)
        return angle_B1TR.cos(), angle_B1TR.sin()

    def wavelengths(self) -> Tensor:
        found = super().wavelengths()
        if self.rotary_dim:
            found[: self.rotary_dim] = (2 * torch.pi / self.frequencies(found.device)).repeat(2)
        return found

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        if self.rotary_dim == 0:
            return q_BHTK, k_BHTK
        cos, sin = self.waves(positions_BT)
        return self._turn(q_BHTK, cos, sin), self._turn(k_BHTK, cos, sin)

    @staticmethod
    def _turn(x_BHTK: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor) -> Tensor:
        R = cos_B1TR.shape[-1]
        turned, kept = x_BHTK[..., :R].float(), x_BHTK[..., R:]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos_B1TR + torch.cat((-second, first), dim=-1) * sin_B1TR
        return torch.cat((turned.type_as(x_BHTK), kept), dim=-1)

    @classmethod
    def label(cls, options: Options) -> str:
        base = "" if options.base == 10_000 else f", base {options.base:g}"
        return f"{cls.title} {100 * options.rotary_pct:.4g} %{base}"
