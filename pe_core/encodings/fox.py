import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import PerLayer, linear
from pe_core.schema import Shape, Strict


class FoX(PerLayer):
    """Forgetting attention: each token determines how much of the preceding text is kept. Lin et al. 2025 (arXiv 2503.02130).

    score(i, j) = q_i · k_j / sqrt(K) + Σ log f_t over t = j + 1 … i,  f_t = sigmoid(w_h · x_t + b_h),

    with w and b per head and layer, x the layer's normalised input. A constant f is ALiBi with slope -log f.

    log f of every token is kept with its keys, one number a head; their running total C is taken anew over all of them, so
    that C_i - C_j has the same bits whether the keys are cached or not. Gates and totals are fp32.

    w starts N(0, 0.02) and b at 0, as in the authors' code: f is about 0.5 at first, each token halves what came before.
    Their "Pro" blocks (output gates, normalised queries and keys, shifted keys) are not position encoding and not here.

    Published:
        Better than a transformer with RoPE in long-context language modelling, length extrapolation and short downstream
        tasks, on par with it on long ones.

    Options:
        start: what b starts from; 0 is the authors', 5 (x-transformers' choice) forgets almost nothing at first.
    """

    class Options(Strict):
        start: float = Field(0.0, ge=-20, le=20)

    family = "content"
    title = "FoX"
    paper = "arXiv 2503.02130"
    year = 2025
    extrapolates = True
    reads_positions = False
    state_size = 1

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.w = nn.Parameter(torch.empty(shape.layers, shape.heads, shape.hidden))
        self.b = nn.Parameter(torch.empty(shape.layers, shape.heads))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name == "b":
            parameter.fill_(self.options.start)
        else:
            super().init_parameter(name, parameter, generator)

    def log_gates(self, gates_BTH: Tensor) -> Tensor:
        """log f of the gates' inputs w · x + b; what an encoding that builds on this one overrides."""
        return F.logsigmoid(gates_BTH)

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        gates_BTH = linear(x_BTD, self.w[self.layer], self.b[self.layer])
        return self.log_gates(gates_BTH).mT[..., None]

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        assert token_state_BHSE is not None
        total_BHS = token_state_BHSE[..., 0].cumsum(-1)
        return total_BHS[:, :, -query_BT.shape[1] :, None] - total_BHS[:, :, None, :]

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.start == 0 else f"{cls.title} from {options.start:g}"
