import torch
from pydantic import Field
from torch import Tensor

from pe_core.encodings.base import Encoding
from pe_core.schema import Strict

_BASE = 10_000.0


class Sandwich(Encoding):
    """Sandwich: inner products of sinusoidal position vectors as a bias, nothing learned. Chi et al. 2022 (arXiv 2212.10356).

    score(i, j) = q_i · k_j / sqrt(K) + (P_i · P_j - dim/2) / c_h,  c_h = 8h/H for heads h = 1 … H,

        P_i · P_j = Σ_m cos((i - j) / 10000^(2m/dim)),  m = 1 … dim/2.

    Dividing by c_h gives heads shorter and longer sight, as ALiBi's slopes do. The bias falls about logarithmically with
    distance, from 0 at distance 0: the constant dim/2 changes no attention weight, and without it bf16, which masks are
    cast to in places, could not tell near distances apart.

    The sum over m is computed as that inner product, a matrix product of positions counted from the last query, since
    large angles are inexact in fp32. (Counting m from 0, as Vaswani et al. do, would make distances look 15 % longer.)

    Options:
        dim: dimension of the position vectors, independent of the model's (the paper's choice: 128).
    """

    class Options(Strict):
        dim: int = Field(128, ge=2, le=4_096, multiple_of=2)

    family = "bias"
    title = "Sandwich"
    paper = "arXiv 2212.10356"
    year = 2022
    bias_by_distance = True
    extrapolates = True

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        dim, H, device = self.options.dim, self.shape.heads, query_BT.device
        frequency_M = _BASE ** (-torch.arange(2, dim + 1, 2, device=device, dtype=torch.float32) / dim)
        last_B1 = query_BT[:, -1:]
        query_BTP, key_BSP = (
            torch.cat((angle.cos(), angle.sin()), dim=-1)
            for angle in ((positions - last_B1)[..., None].float() * frequency_M for positions in (query_BT, key_BS))
        )
        with torch.autocast(device.type, enabled=False):
            product_B1TS = (query_BTP @ key_BSP.mT)[:, None]
        compression_H11 = 8 / H * torch.arange(1, H + 1, device=device)[:, None, None]
        bias_BHTS: Tensor = (product_B1TS - dim / 2) / compression_H11
        return bias_BHTS

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.dim == 128 else f"{cls.title} {options.dim}"
