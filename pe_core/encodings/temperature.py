from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict


class Temperature(PerLayer):
    """Scores that grow with the number of keys, so that attention does not become diffuse. Nakanishi 2025 (arXiv 2501.19399).

    score(i, j) = s(n) · q_i · k_j / sqrt(K),  n = i + 1 keys that query i sees,  where s is

        ssmax:  s_h · ln n, s_h learned for each head and layer (scalable softmax)
        steps:  1 + scale · ln(⌊n / start⌋ + 1), fixed (Llama 4, on its layers without encoding)

    As n grows, a softmax of scores that stay as they are spreads over ever more keys. No encoding by itself, though with s a
    query does learn how many tokens stand before it; a part for `mix`, with any other one, whose biases grow only where they
    read queries.

    s_h starts at 1 / mean(ln n over the context length trained at), so that the average temperature is 1: our choice, as the
    paper's start could not be read. Its variant with an offset is not here. n counts keys that a window, beside it, hides.

    Published:
        Scalable softmax lowers the loss faster in pretraining, and improves long contexts and the retrieval of key
        information.

    Options:
        kind: `ssmax` or `steps`.
        scale: of `steps` (Llama 4: 0.1).
        start: of `steps`, keys from which on scores grow (Llama 4: 8,192); `None` is the context length trained at, so that
            nothing changes within it.
    """

    class Options(Strict):
        kind: Literal["ssmax", "steps"] = "ssmax"
        scale: float = Field(0.1, ge=0, le=10)
        start: int | None = Field(None, ge=1, le=2**24)

    family = "window"
    title = "Temperature"
    paper = "arXiv 2501.19399"
    year = 2025
    shift_invariant = False
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.start = options.start or shape.seq_len
        self.s = nn.Parameter(torch.empty(shape.layers, shape.heads)) if options.kind == "ssmax" else None

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        counts = torch.arange(1, self.shape.seq_len + 1, dtype=torch.float64, device="cpu")
        parameter.fill_(1 / max(float(counts.log().mean()), 1e-6))

    def temperature(self, query_BT: Tensor) -> Tensor | None:
        n_B1T1 = (query_BT + 1)[:, None, :, None]
        if self.s is not None:
            scalable: Tensor = self.s[self.layer].float()[:, None, None] * n_B1T1.float().log()
            return scalable
        by_steps: Tensor = 1 + self.options.scale * (n_B1T1 // self.start + 1).float().log()
        return by_steps

    @classmethod
    def label(cls, options: Options) -> str:
        return "SSMax" if options.kind == "ssmax" else f"Temperature {options.scale:g}"
