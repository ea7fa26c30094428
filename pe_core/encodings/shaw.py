import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict


class Shaw(PerLayer):
    """Relative keys: each distance has a learned vector, which is added to the key. Shaw et al. 2018 (arXiv 1803.02155).

    score(i, j) = q_i · (k_j + a_d) / sqrt(K),  d = min(i - j, max_distance),

    with one table of vectors a_0 … a_max_distance per layer, shared by the layer's heads. (The paper's table also has the
    distances to later tokens, which a causal model never looks at.) q_i · a_d is computed once per query and row of the
    table and then picked by distance: no vector per pair of tokens is ever made.

    The paper adds vectors to the values as well and finds that those to the keys alone do as well; like most later work
    this is the keys alone, so that all encodings here change scores and nothing else. It leaves open how the vectors
    start: here N(0, 0.02), like every matrix.

    Published:
        Translation improves on absolute sinusoidal positions by 1.3 BLEU (English to German) and 0.3 BLEU (English to
        French).

    Options:
        max_distance: the distance from which on all keys share one vector (the paper's base model: 16).
    """

    class Options(Strict):
        max_distance: int = Field(16, ge=1, le=65_536)

    family = "bias"
    title = "Shaw"
    paper = "arXiv 1803.02155"
    year = 2018
    extrapolates = True
    # absorbs stays True: the queries that `bias` reads are the same whether latent attention makes its keys or not.

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.tables = nn.Parameter(torch.empty(shape.layers, options.max_distance + 1, shape.head_dim))

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        table_RK = self.tables[self.layer].type_as(q_BHTK)
        R, K = table_RK.shape
        # Another encoding's rotation, in a mix, may have appended dimensions.
        score_BHTR = (q_BHTK[..., :K] @ table_RK.mT).float() / math.sqrt(K)
        B, H, T, _ = score_BHTR.shape
        distance_B1TS = query_BT[:, None, :, None] - key_BS[:, None, None, :]
        return score_BHTR.gather(-1, distance_B1TS.clamp(0, R - 1).expand(B, H, T, -1))

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.max_distance == 16 else f"{cls.title} {options.max_distance}"
