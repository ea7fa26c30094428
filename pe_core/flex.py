"""Attention with a bias by distance in one kernel that never writes the bias out.

FlexAttention: Dong et al. 2024 (arXiv 2412.05496).
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from pe_core import hardware


def pays(q: Tensor, keys: int) -> bool:
    """Whether it is there and faster: compiled, on a card, and for long windows (`hardware.flex`)."""
    return hardware.flex(q.device.type, keys) and torch.compiler.is_compiling()


def attend(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, last_BH1S: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ + bias, causal) v for whole windows and a bias by distance, of which the last query's is given."""
    H, S = k_BHSK.shape[1:3]
    by_distance_HS = last_BH1S[0, :, 0].flip(-1).expand(H, S).contiguous()

    def add_bias(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return score + by_distance_HS[h, (t - s).clamp(min=0)]

    def causal(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return t >= s

    blocks = create_block_mask(causal, None, None, S, S, device=q_BHTK.device)
    out_BHTK: Tensor = flex_attention(q_BHTK, k_BHSK, v_BHSK, score_mod=add_bias, block_mask=blocks, scale=scale)
    return out_BHTK
