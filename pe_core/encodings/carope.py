import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import PerLayer, linear
from pe_core.encodings.selective_rope import turned_scores
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class CARoPE(PerLayer):
    """Context-aware RoPE: each token determines how fast the frequencies fall. Veisi et al. 2025 (arXiv 2507.23083).

    As RoPE on the whole head, but pair m = 0 … K/2 - 1 of head h stands at the angle

        Σ f_t^m over the tokens t up to the position,  f_t = 1 / (1 + softplus(w_h · x_t + c_h)),

    where RoPE has f = base^(-2/K) for every token. The first pair turns by one radian a token whatever f is.

    The paper starts from RoPE and does not say how: here w starts N(0, 0.02) and c where f would be RoPE's. It calls x the
    token's embedding; here x is the layer's normalised input, and layers have parameters of their own.

    f of every token is kept with its keys, one number a head; sums and rotations are done anew for all of them, in fp32, so
    that scores have to be written out.

    Options:
        base: what training starts from, as in `rope`.

    Raises:
        ConfigError: if the head dimension is odd.
    """

    class Options(Strict):
        base: float = Field(10_000.0, gt=1)

    family = "rotary"
    title = "CARoPE"
    paper = "arXiv 2507.23083"
    year = 2025
    extrapolates = False
    absorbs = False
    reads_positions = False
    state_size = 1

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if shape.head_dim % 2:
            raise ConfigError(f"encoding 'carope': head dimension {shape.head_dim}: an even number is needed")
        self.w = nn.Parameter(torch.empty(shape.layers, shape.heads, shape.hidden))
        self.c = nn.Parameter(torch.empty(shape.layers, shape.heads))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name == "c":
            ratio = self.options.base ** (2 / self.shape.head_dim)  # 1 / f of RoPE; c = softplus⁻¹(ratio - 1)
            parameter.fill_(ratio - 1 + math.log(-math.expm1(1 - ratio)))
        else:
            super().init_parameter(name, parameter, generator)

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        return (1 / (1 + F.softplus(linear(x_BTD, self.w[self.layer], self.c[self.layer])))).mT[..., None]

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        assert token_state_BHSE is not None
        there_BHS1 = token_state_BHSE > 0  # padding keeps 0, whose power 0 would be 1
        log_BHS1 = token_state_BHSE.masked_fill(~there_BHS1, 1).log()
        powers_BHSM = (log_BHS1 * torch.arange(q_BHTK.shape[-1] // 2, device=q_BHTK.device)).exp() * there_BHS1
        return turned_scores(q_BHTK, k_BHSK, powers_BHSM.cumsum(2))

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title + ("" if options.base == 10_000 else f", base {options.base:g}")
