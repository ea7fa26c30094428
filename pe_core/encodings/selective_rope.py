import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import PerLayer, linear
from pe_core.encodings.path import short_convolution
from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class SelectiveRoPE(PerLayer):
    """Selective RoPE: each token determines by how much the pairs rotate. Movahedi et al. 2025 (arXiv 2511.17388).

    As RoPE on the whole head, but pair m of head h stands at the angle

        base^(-2m/K) · Σ φ_t over the tokens t up to the position,

    where RoPE has φ = 1. φ = conv(U D x̂), of rank `rank`, conv a causal convolution over four tokens, each pair by
    itself; x̂ is the layer's normalised input, in H parts of length 1. Layers have parameters of their own.

    The abstract idea leaves choices open. Taken here are the defaults of the authors' code: base 500,000, fixed frequencies,
    rank 16, four tokens, no gate on φ. `bias` is theirs too, off by default there and here: it adds exp(c), c = 0 at first, so
    that training starts as RoPE.

    U D x̂ of every token is kept with its keys, K/2 numbers a head; convolution, sum and rotation are done anew for all of
    them, in fp32, so that scores have to be written out. (A cache of turned keys would need a running angle beside it.)

    Starts: D and U scaled to their inputs, N(0, 1/sqrt(D)) and N(0, 1/sqrt(rank)), the convolution passing each token
    through: the fastest pair turns by about ±sqrt(H/D) at first, 0.2 radians a token at nano. Authors draw all three from
    N(0, 0.02), which leaves angles near zero: no encoding at first.

    Options:
        base: pair m turns by base^(-2m/K) of φ.
        rank: of the map from x̂ to φ.
        bias: whether to add exp(c), one c per layer, head and pair.

    Raises:
        ConfigError: if the head dimension is odd.
    """

    class Options(Strict):
        base: float = Field(500_000.0, gt=1)
        rank: int = Field(16, ge=1, le=4_096)
        bias: bool = False

    family = "rotary"
    title = "Selective RoPE"
    paper = "arXiv 2511.17388"
    year = 2025
    extrapolates = False
    absorbs = False
    reads_positions = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if shape.head_dim % 2:
            raise ConfigError(f"encoding 'selective_rope': head dimension {shape.head_dim}: an even number is needed")
        N, H, M, R = shape.layers, shape.heads, shape.head_dim // 2, options.rank
        self.state_size = M
        self.down = nn.Parameter(torch.empty(N, R, shape.hidden))
        self.up = nn.Parameter(torch.empty(N, H * M, R))
        self.conv = nn.Parameter(torch.empty(N, 4, H, M))
        self.c = nn.Parameter(torch.empty(N, H, 1, M)) if options.bias else None

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name in ("down", "up"):
            parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
        else:
            parameter.zero_()
            if name == "conv":
                parameter[:, -1] = 1

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        parts_BTHP = F.normalize(x_BTD.float().unflatten(-1, (self.shape.heads, -1)), dim=-1)
        low_BTR = linear(parts_BTHP.flatten(-2), self.down[self.layer])
        phi_BTHM: Tensor = linear(low_BTR, self.up[self.layer]).unflatten(-1, self.conv.shape[2:])
        return phi_BTHM.transpose(1, 2)

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        assert token_state_BHSE is not None
        K = q_BHTK.shape[-1]
        angle_BHSM = short_convolution(token_state_BHSE, self.conv[self.layer], key_BS)
        if self.c is not None:
            angle_BHSM = angle_BHSM + self.c[self.layer].float().exp()
        exponent_M = torch.arange(0, K, 2, device=q_BHTK.device, dtype=torch.float32) / K
        return turned_scores(q_BHTK, k_BHSK, angle_BHSM.cumsum(2) / self.options.base**exponent_M)

    @classmethod
    def label(cls, options: Options) -> str:
        changed = [f"base {options.base:g}"] * (options.base != 500_000) + [f"rank {options.rank}"] * (options.rank != 16)
        return ", ".join([cls.title, *changed, *["bias"] * options.bias])


def turned_scores(q_BHTK: Tensor, k_BHSK: Tensor, angle_BHSM: Tensor) -> Tensor:
    """Scores (B, H, T, S) of queries and keys whose pairs stand at angles of their own token; queries are the last T."""
    T, angle_BHSK = q_BHTK.shape[2], angle_BHSM.repeat(1, 1, 1, 2)
    cos, sin = angle_BHSK.cos(), angle_BHSK.sin()
    q_BHTK, k_BHSK = RoPE._turn(q_BHTK, cos[:, :, -T:], sin[:, :, -T:]), RoPE._turn(k_BHSK, cos, sin)
    return (q_BHTK @ k_BHSK.mT).float() / math.sqrt(q_BHTK.shape[-1])
