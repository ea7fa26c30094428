from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import Encoding
from pe_core.schema import Shape, Strict

_LEAST = 0.01  # the authors' lower limit of both parameters


class Kerple(Encoding):
    """KERPLE: a learned kernel of the distance, subtracted from the scores. Chi et al. 2022 (arXiv 2205.09921).

    score(i, j) = q_i · k_j / sqrt(K) - kernel(i - j), with two positive numbers per head, shared by all layers:

        log: r1 · ln(1 + r2 · d)        power: r1 · d^r2, r2 ≤ 2 (r2 = 1 is ALiBi with slope r1)

    The authors' code sets a parameter that has left r1, r2 ≥ 0.01 or r2 ≤ 2 back to the limit before each use. Here none can:
    r1 and log's r2 are softplus(s), power's r2 is 2 · sigmoid(s), and it is s that is learned: a compiled forward pass should
    not write to parameters. They start as in that code, uniform in (0, 2) for log's r1 and power's r2, in (0, 1) for the
    other two, and not below 0.01.

    Published:
        The logarithmic kernel extrapolates best, on three large corpora.

    Options:
        kind: `log`, which the paper finds to extrapolate best, or `power`.
    """

    class Options(Strict):
        kind: Literal["log", "power"] = "log"

    family = "bias"
    title = "KERPLE"
    paper = "arXiv 2205.09921"
    year = 2022
    bias_by_distance = True
    extrapolates = True

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.power = options.kind == "power"
        self.free_r1 = nn.Parameter(torch.empty(shape.heads))
        self.free_r2 = nn.Parameter(torch.empty(shape.heads))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """r1 and r2 of each head, (H,), in fp32."""
        r1, free_r2 = F.softplus(self.free_r1.float()), self.free_r2.float()
        return r1, 2 * free_r2.sigmoid() if self.power else F.softplus(free_r2)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        wide = (name == "free_r2") == self.power
        parameter.uniform_(0, 2 if wide else 1, generator=generator).clamp_(min=_LEAST)
        if wide and self.power:
            parameter.copy_((parameter / 2).clamp(max=0.999).logit())
        else:
            parameter.copy_(parameter.expm1().log())

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        # Later keys are masked, but their logarithm of a negative number would still reach the gradients as NaN.
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).clamp(min=0).float()
        r1_H11, r2_H11 = (r[:, None, None] for r in self.kernel())
        return -r1_H11 * (distance_B1TS.pow(r2_H11) if self.power else torch.log1p(r2_H11 * distance_B1TS))

    @classmethod
    def label(cls, options: Options) -> str:
        return f"{cls.title} {options.kind}"
