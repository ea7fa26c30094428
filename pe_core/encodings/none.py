from pe_core.encodings.base import Encoding


class NoPE(Encoding):
    """No position encoding: attention compares content alone.

    score(i, j) = q_i · k_j / sqrt(K). Order still reaches the model through the causal mask, since
    token i sees exactly i tokens before it. Haviv et al. 2022 (arXiv 2203.16634); Kazemnejad et al. 2023 (arXiv 2305.19466).

    Published:
        1.3 B parameters, the Pile, 1,024 tokens: perplexity 13.10 without positions, 13.05 learned, 12.93 sinusoidal, 12.51
        with ALiBi (Haviv et al. 2022). On ten small tasks it generalises to longer inputs better than ALiBi and rotary
        positions (Kazemnejad et al. 2023).
    """

    family = "none"
    title = "NoPE"
    paper = "arXiv 2203.16634"
    year = 2022
    extrapolates = True
    reads_positions = False
