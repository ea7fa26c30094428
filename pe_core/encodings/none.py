from pe_core.encodings.base import Encoding


class NoPE(Encoding):
    """No position encoding: score(i, j) = q_i · k_j / sqrt(K).

    Order still reaches the model through the causal mask, since token i sees exactly i tokens before it.
    Haviv et al. 2022 (arXiv 2203.16634); Kazemnejad et al. 2023 (arXiv 2305.19466).
    """

    family = "none"
    title = "NoPE"
    paper = "arXiv 2203.16634"
    year = 2022
    extrapolates = True
    reads_positions = False
