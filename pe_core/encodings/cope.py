import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pe_core.encodings.base import PerLayer
from pe_core.schema import Shape, Strict


class CoPE(PerLayer):
    """CoPE: positions are counts of the keys that a query chooses to count. Golovneva et al. 2024 (arXiv 2405.18719).

    score(i, j) = q_i · (k_j + e[p_ij]) / sqrt(K),
    p_ij = min(P - 1, Σ g_ik over k = j … i),  g_ik = sigmoid(q_i · k_k / sqrt(K)),

    with one table of vectors e[0] … e[P - 1] per layer, shared by the layer's heads. p is no whole number: q_i · e[p] lies on
    the line between its values at the two nearest. A query's own key counts, so that p_ii is its own gate.

    The paper writes products without 1/sqrt(K); here both products and the gates have it, as the attention has. The table
    starts at zero, as in the paper's code: no encoding at first, and no gradient for the gates until the table has one.

    Positions are counts of content: position ids are not read. Products of queries and keys are needed twice, in the gates
    and in the scores; beyond those, T · P · K operations for q · e, and about ten operations and two look-ups a pair.

    Published:
        Solves selective copying, counting and Flip-Flop tasks where other encodings fail, and lowers perplexity on text and
        code.

    Options:
        npos_max: the P above; keys further away than P - 1 counts share the last vector (the paper's language models: 64).
    """

    class Options(Strict):
        npos_max: int = Field(64, ge=2, le=65_536)

    family = "content"
    title = "CoPE"
    paper = "arXiv 2405.18719"
    year = 2024
    extrapolates = True
    absorbs = False
    reads_positions = False

    def __init__(self, shape: Shape, options: Options) -> None:
        super().__init__(shape, options)
        self.tables = nn.Parameter(torch.empty(shape.layers, options.npos_max, shape.head_dim))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        parameter.zero_()

    def bias(
        self, q_BHTK: Tensor, k_BHSK: Tensor, query_BT: Tensor, key_BS: Tensor, token_state_BHSE: Tensor | None
    ) -> Tensor | None:
        table_PK = self.tables[self.layer].type_as(q_BHTK)
        P, K = table_PK.shape
        scale = 1 / math.sqrt(K)
        scores_BHTS = scale * (q_BHTK @ k_BHSK.mT).float()
        T, S = scores_BHTS.shape[-2:]
        later_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).triu(S - T + 1)
        # From the query backwards: what lies beyond a key, padding included, has no part in its count, to the bit.
        gates_BHTS = scores_BHTS.sigmoid().masked_fill(later_TS, 0)
        count_BHTS = gates_BHTS.flip(-1).cumsum(-1).flip(-1).clamp(max=P - 1)
        below_BHTS = count_BHTS.detach().floor().clamp(max=P - 2)
        # Another encoding's rotation, in a mix, may have appended dimensions.
        at_BHTP = scale * (q_BHTK[..., :K] @ table_PK.mT).float()
        index_BHTS = below_BHTS.long()
        start_BHTS, step_BHTS = at_BHTP[..., :-1].gather(-1, index_BHTS), at_BHTP.diff(dim=-1).gather(-1, index_BHTS)
        return start_BHTS + (count_BHTS - below_BHTS) * step_BHTS

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.npos_max == 64 else f"{cls.title} {options.npos_max}"
