import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.alibi import geometric_slopes
from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict


class DAPE(PerLayer):
    """DAPE V2: a small convolution reads each row of scores and corrects it. Zheng et al. 2024 (arXiv 2410.04798).

    score(i, ·) = s + b + conv2(leaky(conv1([s, b]))),  s_j = q_i · k_j / sqrt(K),  b_j = -slope_h · (i - j),

    s and b the scores and ALiBi's biases of all H heads of one row, 2H channels; both convolutions run along the keys, over
    three of them, to `width` channels and back to H; leaky is LeakyReLU(0.01). Keys that the query may not see are zero in
    both convolutions' inputs. (The authors' code zeroes them in the first one's alone: a row then depends on whether later
    keys are there, and a cache changes it.) The paper also builds on KERPLE and FIRE.

    Nine times H · width multiplications a pair of tokens; q kᵀ takes K · H. Convolutions start uniform in ±1/sqrt(their
    inputs), as in torch, whose defaults the authors keep; layers have parameters of their own.

    Options:
        width: channels between the convolutions (the authors': 32).
    """

    class Options(Strict):
        width: int = Field(32, ge=1, le=1_024)

    family = "content"
    title = "DAPE V2"
    paper = "arXiv 2410.04798"
    year = 2024
    extrapolates = True
    absorbs = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        N, H, W = shape.layers, shape.heads, options.width
        # Taps by key (one before, itself, one after): products of matrices are faster than a convolution with one row.
        self.taps1, self.offset1 = nn.Parameter(torch.empty(N, W, 3 * 2 * H)), nn.Parameter(torch.empty(N, W))
        self.taps2, self.offset2 = nn.Parameter(torch.empty(N, 3 * H, W)), nn.Parameter(torch.empty(N, H))
        self.slopes = geometric_slopes(H)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        inputs = 3 * (2 * self.shape.heads if name.endswith("1") else self.options.width)
        parameter.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).clamp(min=0).float()
        bias_BHTS = -torch.tensor(self.slopes, device=q_BHTK.device)[:, None, None] * distance_B1TS
        scores_BHTS = (q_BHTK @ k_BHSK.mT).float() / math.sqrt(q_BHTK.shape[-1])
        T, S = query_BT.shape[1], key_BS.shape[1]
        # Where positions do not rise another document begins: padding, too, is always another one.
        document_BS = F.pad(key_BS.diff() <= 0, (1, 0)).cumsum(-1)
        seen_BTS = (document_BS[:, -T:, None] == document_BS[:, None]).tril(S - T)
        rows_BCTS = torch.cat((scores_BHTS, bias_BHTS.expand_as(scores_BHTS)), dim=1) * seen_BTS[:, None]
        taps1, offset1, taps2, offset2 = (
            parameter[self.layer].float() for parameter in (self.taps1, self.offset1, self.taps2, self.offset2)
        )
        with torch.autocast(q_BHTK.device.type, enabled=False):
            near_BCTS = torch.cat([_neighbour(rows_BCTS, key) for key in range(3)], dim=1)
            hidden_BWTS = torch.einsum("wc,bcts->bwts", taps1, near_BCTS) + offset1[:, None, None]
            hidden_BWTS = F.leaky_relu(hidden_BWTS, 0.01) * seen_BTS[:, None]
            by_key = torch.einsum("hw,bwts->bhts", taps2, hidden_BWTS).chunk(3, dim=1)
        corrected_BHTS = torch.stack([_neighbour(part, key) for key, part in enumerate(by_key)]).sum(0)
        return bias_BHTS + corrected_BHTS + offset2[:, None, None]

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.width == 32 else f"{cls.title} {options.width}"


def _neighbour(x_BCTS: Tensor, key: int) -> Tensor:
    """What stands at the key before (0), the key itself (1) or the one after (2), zeros beyond the ends."""
    return F.pad(x_BCTS, (1, 1))[..., key : key + x_BCTS.shape[-1]]
