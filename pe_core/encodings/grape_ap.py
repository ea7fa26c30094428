import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.alibi import geometric_slopes
from pe_core.encodings.base import PerLayer, linear
from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class GrapeAP(PerLayer):
    """GRAPE-AP: the penalty for distance is a sum over the tokens in between, each term depending on the query. Zhang et al.
    2025 (arXiv 2512.07805).

    score(i, j) = q_i · k_j / sqrt(K) + s_h · Σ log sigmoid(p_i · R(l) p̂_l / P) over l = j + 1 … i,

    with p = W x of P dimensions per head and layer, x the layer's normalised input, p̂ = p / rms(p), R(l) a rotation of every
    pair of p̂'s dimensions by l radians, and s_h the slopes of ALiBi, fixed. Where `fox` and `cable` sum what a token charges
    everybody, the price here depends on the query too ("path-integral additive"). The formula is that of the authors' code,
    where the query's p is neither normalised nor turned, so that scores depend on absolute positions. Its normalised queries
    and keys are not position encoding and not here.

    p of every token is kept with its keys, P numbers a head; T · S · P multiplications and a running sum over keys, in fp32. W
    starts N(0, 0.5/sqrt(D)), as in the authors' code: near zero p, which charges ln 2 a token, is ALiBi with 0.69 of its
    slopes.

    Options:
        dims: the P above, even (the authors': 8).

    Raises:
        ConfigError: dims is odd.
    """

    class Options(Strict):
        dims: int = Field(8, ge=2, le=1_024)

    family = "content"
    title = "GRAPE-AP"
    paper = "arXiv 2512.07805"
    year = 2025
    shift_invariant = False
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if options.dims % 2:
            raise ConfigError(f"encoding 'grape_ap': dims={options.dims}: an even number is needed")
        self.state_size = options.dims
        self.w = nn.Parameter(torch.empty(shape.layers, shape.heads * options.dims, shape.hidden))
        self.slopes = geometric_slopes(shape.heads)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        parameter.normal_(0, 0.5 / parameter.shape[-1] ** 0.5, generator=generator)

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        p_BTHP: Tensor = linear(x_BTD, self.w[self.layer]).unflatten(-1, (self.shape.heads, -1))
        return p_BTHP.transpose(1, 2)

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        assert token_state_BHSE is not None
        p_BHSP, (T, S) = token_state_BHSE, (query_BT.shape[1], key_BS.shape[1])
        normal_BHSP = F.rms_norm(p_BHSP, p_BHSP.shape[-1:], eps=1e-6)
        angle_B1SP = key_BS[:, None, :, None].float().expand(-1, 1, -1, p_BHSP.shape[-1])
        with torch.autocast(q_BHTK.device.type, enabled=False):
            turned_BHSP = RoPE._turn(normal_BHSP, angle_B1SP.cos(), -angle_B1SP.sin())  # backwards, as the authors turn
            charged_BHTS = F.logsigmoid(p_BHSP[:, :, -T:] @ turned_BHSP.mT / p_BHSP.shape[-1])
        # Padding, whose p is zero, charges nothing; nor do tokens after the query.
        free_BHTS = (p_BHSP == 0).all(-1)[:, :, None] | torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).triu(S - T + 1)
        charged_BHTS = charged_BHTS.masked_fill(free_BHTS, 0)
        total_BHTS = charged_BHTS.flip(-1).cumsum(-1).flip(-1) - charged_BHTS  # without the key's own
        return torch.tensor(self.slopes, device=q_BHTK.device)[:, None, None] * total_BHTS

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.dims == 8 else f"{cls.title} of {options.dims}"
