import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict


class DeBERTa(PerLayer):
    """Disentangled attention: queries and keys are each scored against the distance, too. He et al. 2020 (arXiv 2006.03654).

    score(i, j) = (q_i · k_j + q_i · A p_d + k_j · B p'_d) / sqrt(3K),  d = min(i - j, max_distance - 1),

    with vectors p_d and p'_d of every distance, as wide as the model and shared by all layers, and matrices A and B per layer
    and head. p belongs to the distance from a query back to a key, p' to the same distance seen from the key: two halves of
    the paper's one table, which share their middle row, d = 0. (Its distances to later tokens, those of the other sign, a
    causal model never meets.) The authors' code reads p' from the same half as p. Biases of projections, and the
    absolute positions that DeBERTa adds before its last layers, are not here.

    A p and B p' are computed once per row of the table and picked by distance. Everything starts N(0, 0.02), as in the paper.

    Options:
        max_distance: the distance from which on all keys share a row (the paper: 512, the length trained at); `None` is the
            context length trained at.
    """

    class Options(Strict):
        max_distance: int | None = Field(None, ge=1, le=65_536)

    family = "bias"
    title = "DeBERTa"
    paper = "arXiv 2006.03654"
    year = 2020
    extrapolates = True
    absorbs = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.rows = options.max_distance or shape.seq_len
        N, H, K, D = shape.layers, shape.heads, shape.head_dim, shape.hidden
        self.table = nn.Parameter(torch.empty(2 * self.rows - 1, D))  # row rows - 1 is distance 0
        self.by_query = nn.Parameter(torch.empty(N, H, K, D))
        self.by_key = nn.Parameter(torch.empty(N, H, K, D))

    def temperature(self, query_BT: Tensor) -> Tensor | None:
        return torch.full(
            (1, 1, 1, 1), 1 / math.sqrt(3), device=query_BT.device
        )  # scores of variance 1, as they are three sums

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        K, rows = self.shape.head_dim, self.rows
        to_key_DR, to_query_DR = self.table[rows - 1 :].mT, self.table[:rows].flip(0).mT
        B, H, T, _ = q_BHTK.shape
        distance_B1TS = (query_BT[:, None, :, None] - key_BS[:, None, None, :]).clamp(0, rows - 1)
        # The temperature is in q already.
        of_q_BHTR = (q_BHTK[..., :K] @ (self.by_query[self.layer] @ to_key_DR).type_as(q_BHTK)).float() / math.sqrt(K)
        of_k_BHSR = (k_BHSK[..., :K] @ (self.by_key[self.layer] @ to_query_DR).type_as(k_BHSK)).float() / math.sqrt(3 * K)
        wanted_BHTS = of_q_BHTR.gather(-1, distance_B1TS.expand(B, H, T, -1))
        offered_BHST = of_k_BHSR.gather(-1, distance_B1TS.mT.expand(B, H, -1, T))
        return wanted_BHTS + offered_BHST.mT

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.max_distance is None else f"{cls.title} {options.max_distance}"
