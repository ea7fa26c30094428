"""Causal attention, multi-head and multi-head latent. It calls an encoding's hooks and never asks which encoding it is.

Shapes: B batch, T queries, S keys (S > T when earlier keys come from a cache), D hidden, H heads, K head dimension,
C latent dimension, R dimension of decoupled positional keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer

from pe_core import flex
from pe_core.encodings.base import Encoding

if TYPE_CHECKING:
    from transformers import Cache

    from pe_core.model_config import LabConfig


class Positions:
    """Where the queries and keys of one forward pass stand, and who may look at whom.

    Args:
        query_BT: positions of the queries; key_BS: positions of all keys, cached ones included.
        visible_BTS: True where query t may look at key s. `None` when the plain causal rule says it all, so
            that attention can use its fast path.
        padding_BT: True where a query's token is padding. `None` where no token is.
        whole: True for whole windows, each token one position after the last, and nothing cached or padded.
    """

    def __init__(
        self,
        query_BT: Tensor,
        key_BS: Tensor,
        visible_BTS: Tensor | None = None,
        padding_BT: Tensor | None = None,
        whole: bool = False,
    ) -> None:
        self.query_BT, self.key_BS, self.visible_BTS, self.padding_BT = query_BT, key_BS, visible_BTS, padding_BT
        self.whole = whole

    @property
    def visible(self) -> Tensor:
        """Boolean (B or 1, 1, T, S), the last T keys being the queries' own."""
        if self.visible_BTS is not None:
            return self.visible_BTS[:, None]
        T, S = self.query_BT.shape[1], self.key_BS.shape[1]
        # Compared as 32-bit numbers, of which a vector holds as many as of scores: compiled so, softmax takes half the time.
        key_S = torch.arange(S, dtype=torch.int32, device=self.query_BT.device)
        return (key_S <= key_S[S - T :, None])[None, None]


def documents(positions: Positions) -> Tensor:
    """Which document each query belongs to, (B, T), counted from 0: one begins where a position is not above the last token's
    that is no padding."""
    query_BT, padding_BT = positions.query_BT, positions.padding_BT
    if padding_BT is None:
        return F.pad((query_BT.diff() <= 0).long(), (1, 0)).cumsum(-1)
    query_BT = query_BT.expand(len(padding_BT), -1)
    index_BT = torch.arange(query_BT.shape[1], device=query_BT.device).masked_fill(padding_BT, -1).cummax(-1).values
    before_BT = F.pad(index_BT[:, :-1], (1, 0), value=-1)  # where the last token stands that is no padding
    falls_BT = query_BT <= query_BT.gather(1, before_BT.clamp(min=0))
    return (falls_BT & (before_BT >= 0) & ~padding_BT).cumsum(-1)


# Compiled for a CPU, written-out scores beat the fused kernel while they fit the caches: its backward pass is slow.
_EXPLICIT_UP_TO = 512
_BLOCK = 128  # queries whose scores are written out at once where nothing is trained: 8 MB against 2,048 keys of 8 heads


def attend(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    bias: Tensor | None,
    positions: Positions,
    scale: float,
    path: str,
    scores_BHTS: Tensor | None = None,
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """softmax(scale · q kᵀ + bias, masked) v, with the weights (B, H, T, S) where the path computes them.

    Args:
        path: `sdpa` is the fastest exact kernel that fits (no mask at all where the causal rule suffices);
            `eager` writes the scores out, in fp32, and returns the weights.
        scores_BHTS: to be used in place of scale · q kᵀ; weigh: in place of the softmax.
    """
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    explicit_is_faster = q_BHTK.device.type == "cpu" and S <= _EXPLICIT_UP_TO and torch.compiler.is_compiling()
    if path == "eager" or scores_BHTS is not None or weigh is not None or explicit_is_faster:
        if scores_BHTS is None:
            scores_BHTS = scale * (q_BHTK @ k_BHSK.mT).float()
        weights = _weights(scores_BHTS, bias, positions, weigh)
        return weights.type_as(v_BHSK) @ v_BHSK, weights
    # A single query sees every key; T = S is the kernel's own causal mask; anything between needs the mask spelt out.
    if bias is None and positions.visible_BTS is None and T in (1, S):
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=T > 1, scale=scale), None
    mask = positions.visible
    if bias is not None:
        mask = torch.where(mask, bias, -torch.inf)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, scale=scale), None


def _weights(
    scores_BHTS: Tensor, bias: Tensor | None, positions: Positions, weigh: Callable[[Tensor], Tensor] | None
) -> Tensor:
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    scores_BHTS = scores_BHTS.masked_fill(~positions.visible, -torch.inf)
    return scores_BHTS.softmax(-1) if weigh is None else weigh(scores_BHTS)


class _Attention(nn.Module):
    """What both kinds share: the encoding's hooks around one softmax."""

    def __init__(self, config: LabConfig, encoding: Encoding, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        # In a list so that the encoding's parameters stay the model's, not every layer's.
        self._encoding = [encoding]

    @property
    def encoding(self) -> Encoding:
        return self._encoding[0]

    @property
    def weigh(self) -> Callable[[Tensor], Tensor] | None:
        return self.encoding.attention_weights if self.encoding.replaces_softmax else None

    def sharpened(self, q_BHTK: Tensor, positions: Positions) -> Tensor:
        """Queries times the encoding's temperature, which multiplies all scores alike."""
        factor = self.encoding.temperature(positions.query_BT)
        return q_BHTK if factor is None else (factor * q_BHTK).type_as(q_BHTK)

    def token_state(self, x_BTD: Tensor, positions: Positions, cache: Cache | None) -> Tensor | None:
        """What the encoding keeps of all tokens, zeros for padding. In a cache it lives in layers after the model's own."""
        token_state_BHSE = self.encoding.token_state(x_BTD, positions.query_BT)
        if token_state_BHSE is not None and positions.padding_BT is not None:
            token_state_BHSE = token_state_BHSE.masked_fill(positions.padding_BT[:, None, :, None], 0)
        if token_state_BHSE is not None and cache is not None:
            layer = self.config.num_hidden_layers + self.layer
            while len(cache.layers) <= layer:
                cache.layers.append(DynamicLayer())
            token_state_BHSE = cache.update(token_state_BHSE, token_state_BHSE[..., :0], layer)[0]
        return token_state_BHSE

    def attend(
        self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, token_state_BHSE: Tensor | None, positions: Positions
    ) -> tuple[Tensor, Tensor | None]:
        T, query_BT, key_BS = q_BHTK.shape[2], positions.query_BT, positions.key_BS
        fast = positions.whole and self.config._attn_implementation == "sdpa"
        in_kernel = fast and self.encoding.bias_by_distance and flex.pays(q_BHTK, T)
        in_blocks = fast and T > _EXPLICIT_UP_TO and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not in_kernel and not in_blocks:
            return self._attend(q_BHTK, k_BHSK, v_BHSK, token_state_BHSE, positions)
        last = self.encoding.bias(q_BHTK[:, :, -1:], k_BHSK, query_BT[:, -1:], key_BS, token_state_BHSE)
        if in_kernel and last is not None:
            return flex.attend(q_BHTK, k_BHSK, v_BHSK, last, self.scale), None
        if not in_blocks or (last is None and not self.encoding.replaces_scores and not self.encoding.replaces_softmax):
            return self._attend(q_BHTK, k_BHSK, v_BHSK, token_state_BHSE, positions)
        parts = []  # as from a cache: each block of queries against the keys up to its own last, half of all products
        for start, end in pairwise([*range(0, T, _BLOCK), T]):
            state = None if token_state_BHSE is None else token_state_BHSE[:, :, :end]
            block = q_BHTK[:, :, start:end], k_BHSK[:, :, :end], v_BHSK[:, :, :end]
            parts.append(self._attend(*block, state, Positions(query_BT[:, start:end], key_BS[:, :end]))[0])
        return torch.cat(parts, dim=2), None

    def _attend(
        self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, token_state_BHSE: Tensor | None, positions: Positions
    ) -> tuple[Tensor, Tensor | None]:
        given = q_BHTK, k_BHSK, positions.query_BT, positions.key_BS, token_state_BHSE
        bias, scores_BHTS = self.encoding.bias(*given), self.encoding.scores(*given)
        path = self.config._attn_implementation
        return attend(q_BHTK, k_BHSK, v_BHSK, bias, positions, self.scale, path, scores_BHTS, self.weigh)

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


class MultiHeadAttention(_Attention):
    """GPT-NeoX attention: one fused projection whose output holds (q, k, v) head by head, and an output projection."""

    def __init__(self, config: LabConfig, encoding: Encoding, layer: int) -> None:
        super().__init__(config, encoding, layer)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size // encoding.tied_heads)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BTD: Tensor, positions: Positions, cache: Cache | None = None) -> tuple[Tensor, Tensor | None]:
        B, T, D = x_BTD.shape
        qkv = self.query_key_value(x_BTD).view(B, T, -1, 3 * self.head_dim).transpose(1, 2)
        if self.encoding.tied_heads > 1:
            qkv = qkv.repeat_interleave(self.encoding.tied_heads, dim=1)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k = self.encoding.transform_qk(q, k, positions.query_BT, x_BTD)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        q = self.sharpened(q, positions)
        out_BHTK, weights = self.attend(q, k, v, self.token_state(x_BTD, positions, cache), positions)
        return self.dense(out_BHTK.transpose(1, 2).reshape(B, T, D)), weights


class LatentAttention(_Attention):
    """Multi-head latent attention: keys and values of all heads from one small latent per token, which alone is cached.

    DeepSeek-V2 (arXiv 2405.04434), equations 9 to 19, with full-rank queries (its query compression saves memory in
    training, not in the cache), no biases, and RMSNorm on the latent:

        c_t = RMSNorm(W_DKV x_t)  (C)      k_t = W_UK c_t,  v_t = W_UV c_t  (H · K each)      q_t = W_Q x_t  (H · K)

    An encoding that rotates queries and keys gets R dimensions of its own (decoupled: one positional key k_R = W_KR x_t
    for all heads, one positional query per head); the scores are (q · k + q_R · k_R) / sqrt(K + R). Cached per token
    and layer: C + R numbers instead of 2 · H · K.

    Two exact forms. Expanded: k and v are computed from the latents; fast for whole windows. Absorbed:
    q · (W_UK c) = (W_UKᵀ q) · c, so queries meet the latents themselves and neither k nor v is ever made; for decoding.
    A bias is added after that product and commutes with it; a rotation that depends on both positions would stand
    between W_UKᵀ and q and does not, which is why rotary encodings are decoupled.

    Parameters a layer: D·H(K+R) + D(C+R) + C + 2·C·H·K + D² + D.
    """

    def __init__(self, config: LabConfig, encoding: Encoding, layer: int) -> None:
        super().__init__(config, encoding, layer)
        D, H, K, C, R = config.hidden_size, self.heads, self.head_dim, config.latent_dim, config.decoupled_dim
        self.latent_dim, self.decoupled = C, R
        # A window is computed expanded, a cache is read absorbed, unless the encoding looks at the keys themselves.
        self.form = config.latent_form if encoding.absorbs and not encoding.turns_by_head else "expanded"
        self.query = nn.Linear(D, H * (K + R), bias=False)
        self.down = nn.Linear(D, C + R, bias=False)
        self.latent_norm = nn.RMSNorm(C, eps=config.layer_norm_eps)
        self.up = nn.Linear(C, H * 2 * K, bias=False)
        self.dense = nn.Linear(D, D)

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim + self.decoupled)

    def forward(self, x_BTD: Tensor, positions: Positions, cache: Cache | None = None) -> tuple[Tensor, Tensor | None]:
        B, T, D = x_BTD.shape
        H, K, R, encoding = self.heads, self.head_dim, self.decoupled, self.encoding
        q_BHTK, turning = self.query(x_BTD).view(B, T, H, K + R).transpose(1, 2).split((K, R), dim=-1)
        latent, shared = self.down(x_BTD)[:, None].split((self.latent_dim, R), dim=-1)
        latent = self.latent_norm(latent.to(self.latent_norm.weight.dtype)).type_as(shared)
        if R:
            # Rotated as one key of many, so that any encoding can do it; kept for every head where heads turn it differently.
            turning, shared = encoding.transform_qk(turning, shared.expand(-1, H, -1, -1), positions.query_BT, x_BTD)
            shared = shared if encoding.turns_by_head else shared[:, :1]
        q_BHTK, turning = self.sharpened(q_BHTK, positions), self.sharpened(turning, positions)
        if cache is not None:
            latent, shared = cache.update(latent, shared, self.layer)
        token_state_BHSE = self.token_state(x_BTD, positions, cache)
        weights: Tensor | None
        if self.form == "absorbed" or (self.form == "auto" and latent.shape[2] > T):
            out_BHTK, weights = self._absorbed(q_BHTK, turning, latent[:, 0], shared[:, 0], token_state_BHSE, positions)
        else:
            k_BHSK, v_BHSK = self.up(latent[:, 0]).view(B, -1, H, 2 * K).transpose(1, 2).chunk(2, dim=-1)
            if R:
                q_BHTK, k_BHSK = torch.cat((q_BHTK, turning), -1), torch.cat((k_BHSK, shared.expand(-1, H, -1, -1)), -1)
            out_BHTK, weights = self.attend(q_BHTK, k_BHSK, v_BHSK, token_state_BHSE, positions)
        return self.dense(out_BHTK.transpose(1, 2).reshape(B, T, D)), weights

    def _absorbed(
        self,
        q_BHTK: Tensor,
        turning_BHTR: Tensor,
        latent_BSC: Tensor,
        shared_BSR: Tensor,
        token_state_BHSE: Tensor | None,
        positions: Positions,
    ) -> tuple[Tensor, Tensor]:
        up_k_HKC, up_v_HKC = self.up.weight.view(self.heads, 2 * self.head_dim, self.latent_dim).chunk(2, dim=1)
        # einsum folds the heads into the queries: the latents are read once, not copied for every head.
        q_BHTC = torch.einsum("bhtk,hkc->bhtc", q_BHTK, up_k_HKC)
        scores_BHTS = torch.einsum("bhtc,bsc->bhts", q_BHTC, latent_BSC)
        if self.decoupled:
            scores_BHTS = scores_BHTS + torch.einsum("bhtr,bsr->bhts", turning_BHTR, shared_BSR)
        bias = self.encoding.bias(q_BHTK, latent_BSC[:, None], positions.query_BT, positions.key_BS, token_state_BHSE)
        weights = _weights(self.scale * scores_BHTS.float(), bias, positions, self.weigh)
        seen_BHTC = torch.einsum("bhts,bsc->bhtc", weights.type_as(latent_BSC), latent_BSC)
        return torch.einsum("bhtc,hkc->bhtk", seen_BHTC, up_v_HKC), weights


ATTENTIONS: dict[str, type[_Attention]] = {"mha": MultiHeadAttention, "mla": LatentAttention}
