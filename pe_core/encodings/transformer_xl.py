import math

import torch
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape


class TransformerXL(PerLayer):
    """Transformer-XL's relative encoding: each query is also scored against the distance, as sinusoids. Dai et al. 2019
    (arXiv 1901.02860).

    score(i, j) = ((q_i + u) · k_j + (q_i + v) · W r_(i-j)) / sqrt(K),

    with r_d the sinusoidal vector of distance d (sin(d ω_m) and cos(d ω_m), ω_m = 10,000^(-2m/D)), W a matrix per head and
    layer, and u and v vectors per head and layer: how much a key is wanted whatever the query, and a distance. (The paper's u
    and v are one pair for all layers; here each layer has its own, as in XLNet and with the authors' option `untie_r`.)

    sin((i - j) ω) and cos((i - j) ω) are sums of products of the sine and cosine of i ω and of j ω, so that (q + v) · W r is
    one product of a vector of D numbers by query with one by key: no distance is looked up, and T · S · D multiplications a
    head take the place of the paper's shift. In fp32, whose angles bf16 could not tell apart.

    W, u and v start N(0, 0.02), as the authors' do.

    Published:
        With segment recurrence, dependencies 450 % longer than a plain transformer's.
    """

    family = "bias"
    title = "Transformer-XL"
    paper = "arXiv 1901.02860"
    year = 2019
    extrapolates = False
    absorbs = False

    def __init__(self, shape: Shape, options: PerLayer.Options) -> None:
        super().__init__(shape, options)
        N, H, K, D = shape.layers, shape.heads, shape.head_dim, shape.hidden
        self.w = nn.Parameter(torch.empty(N, H, K, D - D % 2))
        self.u = nn.Parameter(torch.empty(N, H, K))
        self.v = nn.Parameter(torch.empty(N, H, K))

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        K = self.shape.head_dim
        w_HKD, u_HK, v_HK = (weight[self.layer].float() for weight in (self.w, self.u, self.v))
        with torch.autocast(q_BHTK.device.type, enabled=False):
            wanted_BH1S = u_HK[:, None] @ k_BHSK[..., :K].float().mT
            sin_part, cos_part = ((q_BHTK[..., :K].float() + v_HK[:, None]) @ w_HKD).chunk(2, dim=-1)
            (sin_q, cos_q), (sin_k, cos_k) = self._waves(query_BT), self._waves(key_BS)
            by_query_BHTD = torch.cat((sin_part * sin_q + cos_part * cos_q, cos_part * sin_q - sin_part * cos_q), dim=-1)
            by_key_B1SD = torch.cat((cos_k, sin_k), dim=-1)
            return (wanted_BH1S + by_query_BHTD @ by_key_B1SD.mT) / math.sqrt(K)

    def _waves(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        D = self.w.shape[-1]
        exponent = torch.arange(0, D, 2, device=positions_BT.device, dtype=torch.float32) / D
        angle_B1TD = positions_BT[:, None, :, None].float() / 10_000**exponent
        return angle_B1TD.sin(), angle_B1TD.cos()
