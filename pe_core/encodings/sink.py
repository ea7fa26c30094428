import torch
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape


class Sink(PerLayer):
    """A learned sink: each head may attend to nothing. OpenAI 2025 (gpt-oss, arXiv 2508.10925).

    weight(i, j) = exp(score_ij) / (exp(b_h) + Σ exp(score_ik) over the keys k that i sees),

    one number b per head and layer: the softmax has one more column, which has no value. A head that finds nothing else puts
    its weight on the first token, whose key and value are then lost for content; with a sink it need not. No encoding by
    itself, though what a sink takes shrinks with the number of keys; a part for `mix`, with any other one.

    b starts at 0, an even chance with one score of 0. (The paper does not say; transformers draws it from N(0, 0.02).)
    """

    family = "window"
    title = "Sink"
    paper = "arXiv 2508.10925"
    year = 2025
    extrapolates = True
    reads_positions = False

    def __init__(self, shape: Shape, options: PerLayer.Options) -> None:
        super().__init__(shape, options)
        self.b = nn.Parameter(torch.empty(shape.layers, shape.heads))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        parameter.zero_()

    def attention_weights(self, scores_BHTS: Tensor) -> Tensor:
        B, _, T, _ = scores_BHTS.shape
        sink_BHT1 = self.b[self.layer].float()[None, :, None, None].expand(B, -1, T, 1)
        return torch.cat((scores_BHTS, sink_BHT1), dim=-1).softmax(-1)[..., :-1]
