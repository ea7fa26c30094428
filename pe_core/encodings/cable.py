from torch import Tensor
from torch.nn import functional as F

from pe_core.encodings.fox import FoX


class CABLE(FoX):
    """CABLE: the penalty for distance is a sum of one cost for each token in between. Veisi et al. 2025 (arXiv 2503.08067).

    score(i, j) = q_i · k_j / sqrt(K) - Σ c_t over t = j + 1 … i,  c_t = softplus(w_h · x_t + b_h),

    with w and b per head and layer, x the layer's normalised input. A constant c is ALiBi with that slope.

    As -softplus(y) = log sigmoid(-y), this is forgetting attention (`fox`) with w and b negated: both papers, of the same
    month, arrive at one function, and only the sign of the initial weights differs. Whatever a table shows between the two is
    chance. (Lin et al. see a gate, Veisi et al. a learned ALiBi.) The formula is that of the authors' code, which keeps
    scores without 1/sqrt(K); here they keep it, as for every encoding.

    w starts N(0, 0.02) and b at 0, as in the authors' code: c is about ln 2 = 0.69 a token at first.

    Published:
        GPT-2 Medium (334 M parameters) has a lower perplexity than with other encodings on sequences longer than those
        trained on.

    Options:
        start: what b starts from; 0 is the authors'.
    """

    family = "content"
    title = "CABLE"
    paper = "arXiv 2503.08067"
    year = 2025

    def log_gates(self, gates_BTH: Tensor) -> Tensor:
        return -F.softplus(gates_BTH)
