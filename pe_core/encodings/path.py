import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pe_core.encodings.base import PerLayer, linear
from pe_core.schema import Shape, Strict

_AT_ONCE = 64  # keys whose transforms are multiplied out together; half as many take the compiler twice as long


class PaTH(PerLayer):
    """PaTH: keys reach a query through a product of one small transform for each token in between. Yang et al. 2025
    (arXiv 2505.16381).

    score(i, j) = q_i · H_i H_(i-1) … H_(j+1) k_j / sqrt(K),  H_t = I - β_t w_t w_tᵀ,

    a generalised Householder reflection: β = 1 erases the direction w, β = 2 mirrors it, β = 0 does nothing. Per head,
    w_t = v_t / |v_t| with v = silu(conv(U D x)), of rank `rank`, conv a causal convolution over three tokens, each dimension
    by itself; β_t = 2 · sigmoid(a · x_t + c). x is the layer's normalised input. That is the authors' layer without its
    optional forget gate and normalised queries and keys; layers and heads have parameters of their own (D is shared by heads).

    U D x and β of every token are kept with its keys, K + 1 numbers a head. Products are taken anew from the query
    backwards, `_AT_ONCE` = C keys at a time: with W and B = β W the chunk's rows, the product over it is
    I - Wᵀ (I + L)⁻¹ B, L the strictly lower part of B Wᵀ. Exact, and quadratic in length as attention is: T · S · (3K + 2C)
    multiplications for T queries and S keys, where q kᵀ takes T · S · K; everything in fp32. Authors' kernels, on a GPU,
    also skip what causality hides. A token decoded alone costs S · (3K + 2C), plus S · C · (2K + C) for the chunks' own.

    Starts: D and U scaled to their inputs, N(0, 1/sqrt(D)) and N(0, 1/sqrt(rank)), the convolution passing each token
    through, a N(0, 0.02), c zero, so that β is about 1. (N(0, 0.02) for all of them would leave |v| so small that its
    gradients swamp the others' under a common clip.) A key thus loses a random direction per token at first: what is K
    tokens away has faded to 1/e.

    Published:
        Better than RoPE and other recent encodings on synthetic tasks and in language modelling at moderate scale.

    Options:
        rank: of the map from x to v (the authors': 32).
    """

    class Options(Strict):
        rank: int = Field(32, ge=1, le=4_096)

    family = "content"
    title = "PaTH"
    paper = "arXiv 2505.16381"
    year = 2025
    extrapolates = False
    absorbs = False
    reads_positions = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        N, H, K, R = shape.layers, shape.heads, shape.head_dim, options.rank
        self.state_size = K + 1
        self.down = nn.Parameter(torch.empty(N, R, shape.hidden))
        self.up = nn.Parameter(torch.empty(N, H * K, R))
        self.conv = nn.Parameter(torch.empty(N, 3, H, K))
        self.a = nn.Parameter(torch.empty(N, H, shape.hidden))
        self.c = nn.Parameter(torch.empty(N, H))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        if name in ("down", "up"):
            parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
        elif name == "conv":
            parameter.zero_()[:, -1] = 1
        elif name == "c":
            parameter.zero_()
        else:
            super().init_parameter(name, parameter, generator)

    def token_state(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor | None:
        v_BTHK = linear(linear(x_BTD, self.down[self.layer]), self.up[self.layer]).unflatten(-1, self.conv.shape[2:])
        beta_BTH = 2 * linear(x_BTD, self.a[self.layer], self.c[self.layer]).sigmoid()
        return torch.cat((v_BTHK, beta_BTH[..., None]), dim=-1).transpose(1, 2)

    def scores(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        assert token_state_BHSE is not None
        scale = 1 / math.sqrt(q_BHTK.shape[-1])
        with torch.autocast(q_BHTK.device.type, enabled=False):
            return scale * self._products(q_BHTK.float(), k_BHSK.float(), key_BS, token_state_BHSE)

    def _products(self, q_BHTK: Tensor, k_BHSK: Tensor, key_BS: Tensor, token_state_BHSE: Tensor) -> Tensor:
        """q_i · H_i … H_(j+1) k_j, (B, H, T, S); of keys after the query nothing is promised but finite numbers."""
        T, S = q_BHTK.shape[2], k_BHSK.shape[2]
        w_BHSK = F.normalize(F.silu(short_convolution(token_state_BHSE[..., :-1], self.conv[self.layer], key_BS)), dim=-1)
        b_BHSK = token_state_BHSE[..., -1:] * w_BHSK
        seen_TS = torch.ones(T, S, device=q_BHTK.device).tril(S - T)
        columns = []
        for start in reversed(range(0, S, _AT_ONCE)):
            w, b, k = (x_BHSK[:, :, start : start + _AT_ONCE] for x_BHSK in (w_BHSK, b_BHSK, k_BHSK))
            L = (b @ w.mT).tril(-1)
            one = torch.eye(L.shape[-1], device=L.device)
            inverse = torch.linalg.solve_triangular(L + one, one.expand_as(L), upper=False, unitriangular=True)
            # Transforms up to each query's own; those of later tokens have no part in its row.
            passed = (q_BHTK @ w.mT * seen_TS[:, start : start + _AT_ONCE]) @ inverse
            columns.append(q_BHTK @ k.mT - passed @ (b @ k.mT).tril(-1))
            q_BHTK = q_BHTK - passed @ b  # moved back to where the chunk begins
        return torch.cat(columns[::-1], dim=-1)

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.rank == 32 else f"{cls.title} rank {options.rank}"


def short_convolution(x_BHSE: Tensor, taps_CHE: Tensor, position_BS: Tensor) -> Tensor:
    """Each number's causal convolution over its last C values, zeros before the first; the last tap is the token's own.

    Where positions do not rise another document begins, and what stands before it counts as zeros.
    """
    C, S = len(taps_CHE), x_BHSE.shape[2]
    before = F.pad(x_BHSE, (0, 0, C - 1, 0))
    document_BS = F.pad(position_BS.diff() <= 0, (1, 0)).cumsum(-1)
    earlier_BS = F.pad(document_BS, (C - 1, 0), value=-1)
    shifted = []
    for lag in range(C):
        same_B1S1 = (earlier_BS[:, lag : lag + S] == document_BS)[:, None, :, None]
        shifted.append((before[:, :, lag : lag + S] * taps_CHE[lag, :, None].float()) * same_B1S1)
    return torch.stack(shifted).sum(0)
