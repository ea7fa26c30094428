import torch
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape


class BAM(PerLayer):
    """Bayesian attention mechanism: a generalised Gaussian over distances. Bianchessi et al. 2025 (arXiv 2505.22842).

    score(i, j) = q_i · k_j / sqrt(K) - exp(a) · (i - j + 0.00001)^b,

    with a and b per head and layer: the logarithm of a prior over distances that the softmax multiplies with. b = 1 is ALiBi
    with slope exp(a), b = 2 a Gaussian, b between 0 and 1 a long tail; below 0 near keys lose. Both start at 0, as in the
    authors' code, where every key costs 1: no encoding at first. Their third parameter, where the prior's peak stands, is off
    there by default and not here; their scalable softmax is `temperature`, in a `mix`.

    Published:
        Retrieves at 500 times the trained length, at a perplexity comparable with others.
    """

    family = "bias"
    title = "BAM"
    paper = "arXiv 2505.22842"
    year = 2025
    bias_by_distance = True
    extrapolates = True

    def __init__(self, shape: Shape, options: PerLayer.Options) -> None:
        super().__init__(shape, options)
        self.a = nn.Parameter(torch.empty(shape.layers, shape.heads))
        self.b = nn.Parameter(torch.empty(shape.layers, shape.heads))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        parameter.zero_()

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).clamp(min=0).float()
        a_H11, b_H11 = (parameter[self.layer].float()[:, None, None] for parameter in (self.a, self.b))
        # Below e⁸⁰: an exponent far below zero would make the only key of a first token infinitely unlikely.
        return -(a_H11 + b_H11 * (distance_B1TS + 1e-5).log()).clamp(max=80).exp()
