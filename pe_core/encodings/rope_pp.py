import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape


class RoPEPlusPlus(RoPE):
    """RoPE++: half of the heads score by the imaginary part of what RoPE takes the real part of. Liu et al. 2025
    (arXiv 2512.07525).

    Queries and keys as complex numbers q_m, k_m, one a pair m of dimensions, θ_m its frequency in `rope`:

        A(i, j) = Σ_m q_m · conj(k_m) · exp(i θ_m (i - j)),

    head 2n scores by Re A, as RoPE does, head 2n + 1 by Im A, which is Re A of the query turned back by a quarter turn. Both
    heads have one query, key and value, but each its own part of the output projection. With equal queries and keys the real
    head's scores fall with the distance as Σ cos(θ_m (i - j)), the imaginary head's grow as Σ sin(θ_m (i - j)), which looks
    further away.

    This is the paper's RoPE++_EH: as many heads as RoPE, half the weights of queries, keys and values, half the keys and
    values to cache (here both heads' are kept). Its RoPE++_EC has twice the heads. In latent attention, which the paper does
    not treat, every head has its own query and values, and all share what turns of the keys.

    Options:
        rotary_pct: fraction of the head dimension that rotates, as in `rope`, but 1 here. The rest scores by q · k in both.
        base: as in `rope`.

    Raises:
        ConfigError: if R = rotary_pct · K is not an even number, or heads do not come in pairs.
    """

    class Options(RoPE.Options):
        rotary_pct: float = Field(1.0, gt=0, le=1)

    family = "rotary"
    title = "RoPE++"
    paper = "arXiv 2512.07525"
    year = 2025
    tied_heads = 2

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if shape.heads % 2:
            raise ConfigError(f"encoding 'rope_pp': heads come in pairs, and there are {shape.heads}")

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.waves(positions_BT)
        real = self._turn(q_BHTK[:, 0::2], cos, sin)
        imaginary = self._turn(q_BHTK[:, 1::2], sin, -cos)  # cosine and sine a quarter turn before
        return torch.stack((real, imaginary), dim=2).flatten(1, 2), self._turn(k_BHTK, cos, sin)
