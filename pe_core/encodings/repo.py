import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import PerLayer, linear
from pe_core.encodings.rope import RoPE
from pe_core.errors import ConfigError
from pe_core.schema import Shape, Strict


class RePo(PerLayer):
    """Context re-positioning: RoPE at positions that tokens choose themselves. Li et al. 2025 (arXiv 2512.14391).

    As RoPE on the whole head, but head h of token t stands at the real number

        p = W_h (silu(G x_t) ⊙ C x_t),

    G and C of D/8 rows, x the layer's normalised input, layers with parameters of their own. Nothing says where in the text a
    token stands: order is seen by the causal mask alone, and what p makes of content. (Authors feed the residual stream, in a
    model that normalises after its layers.)

    The paper goes on training a finished model, with RoPE kept in the first third of its layers: a `mix` of `rope` there and
    `repo` in the others is that. Here every layer has it, from the start. G, C and W start N(0, 0.02), as theirs: positions
    near 0, no encoding at first.

    Options:
        base: wavelengths run from 2π to 2π · base. As in `rope`.

    Raises:
        ConfigError: if the head dimension is odd.
    """

    class Options(Strict):
        base: float = Field(10_000.0, gt=1)

    family = "content"
    title = "RePo"
    paper = "arXiv 2512.14391"
    year = 2025
    extrapolates = True
    reads_positions = False
    turns_by_head = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        if shape.head_dim % 2:
            raise ConfigError(f"encoding 'repo': head dimension {shape.head_dim}: an even number is needed")
        N, D, few = shape.layers, shape.hidden, max(1, shape.hidden // 8)
        self.gate = nn.Parameter(torch.empty(N, few, D))
        self.content = nn.Parameter(torch.empty(N, few, D))
        self.position = nn.Parameter(torch.empty(N, shape.heads, few))

    def positions(self, x_BTD: Tensor) -> Tensor:
        """Where each head sees each token, (B, H, T), in fp32."""
        chosen = F.silu(linear(x_BTD, self.gate[self.layer])) * linear(x_BTD, self.content[self.layer])
        return linear(chosen, self.position[self.layer]).mT

    def transform_qk(self, q_BHTK: Tensor, k_BHTK: Tensor, positions_BT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        K = q_BHTK.shape[-1]
        exponent_M = torch.arange(0, K, 2, device=q_BHTK.device, dtype=torch.float32) / K
        angle_BHTK = (self.positions(x_BTD)[..., None] / self.options.base**exponent_M).repeat(1, 1, 1, 2)
        cos, sin = angle_BHTK.cos(), angle_BHTK.sin()
        return RoPE._turn(q_BHTK, cos, sin), RoPE._turn(k_BHTK, cos, sin)

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title + ("" if options.base == 10_000 else f", base {options.base:g}")
