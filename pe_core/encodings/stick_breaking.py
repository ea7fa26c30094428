from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pe_core.encodings.base import Encoding
from pe_core.schema import Strict


class StickBreaking(Encoding):
    """Stick-breaking attention: each key takes a share of what nearer keys have left. Tan et al. 2024 (arXiv 2410.17980).

    weight(i, j) = β_ij · Π (1 - β_ik) over k = j + 1 … i - 1,  β_ij = sigmoid(q_i · k_j / sqrt(K)),  j < i,

    in place of the softmax: of two keys alike the nearer wins, which is all the position information there is. The query's
    own key has no share. What no key took, Π (1 - β_ik) over all k < i, is the rest.

    Computed as exp(s_ij - Σ softplus(s_ik) over k = j … i - 1), s the score, summed from the query backwards in fp32: exact
    where weights are large, zero where they vanish, never a product of thousands of factors.
    A pair costs two exponentials, a logarithm and a running sum over keys, which no compiler fuses with what stands around it;
    a softmax takes one exponential. Training at nano runs at 0.6 of the speed without encoding for that reason.

    Nothing is learned beyond the attention's own weights. With small weights β is 0.5 at first: the nearest key gets half, the
    next a quarter, and so on.

    Published:
        Competitive with softmax and RoPE on downstream tasks; trained at 2,048 tokens, it reads 16,384 with a lower
        perplexity.

    Options:
        rest: `own` gives the rest to the token itself, so that weights add up to 1; `nothing` drops it, and the first token
            sees nothing at all. The paper's formula is the second; its authors' code also has the first, and a learned
            vector that takes the rest.
    """

    class Options(Strict):
        rest: Literal["own", "nothing"] = "own"

    family = "content"
    title = "Stick-breaking"
    paper = "arXiv 2410.17980"
    year = 2024
    extrapolates = True
    reads_positions = False

    def attention_weights(self, scores_BHTS: Tensor) -> Tensor:
        T, S = scores_BHTS.shape[-2:]
        own_TS = torch.ones(T, S, dtype=torch.bool, device=scores_BHTS.device).tril(S - T).triu(S - T)
        hidden_BHTS = own_TS | (scores_BHTS == -torch.inf)
        scores_BHTS = scores_BHTS.masked_fill(hidden_BHTS, 0)
        taken_BHTS = F.softplus(scores_BHTS).masked_fill(hidden_BHTS, 0).flip(-1).cumsum(-1).flip(-1)
        weights_BHTS = (scores_BHTS - taken_BHTS).exp().masked_fill(hidden_BHTS, 0)
        if self.options.rest == "nothing":
            return weights_BHTS
        return torch.where(own_TS, (-taken_BHTS[..., :1]).exp(), weights_BHTS)

    @classmethod
    def label(cls, options: Options) -> str:
        return cls.title if options.rest == "own" else f"{cls.title}, no rest"
