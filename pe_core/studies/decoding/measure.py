"""Generating one token at a time: how large the cache is, how fast it goes, and what latent attention can absorb."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import Cache, DynamicCache

from pe_core import encodings
from pe_core.model import LabForCausalLM
from pe_core.model_config import LabConfig
from pe_core.records import Record
from pe_core.schema import Shape

CONTEXTS = (128, 1_024, 4_096)
_NEW_TOKENS = 32


def cache_numbers(model: LabForCausalLM) -> int:
    """Numbers the cache holds per token, over all layers: 2 · H · K a layer for multi-head attention, C + R for latent."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    return _size(model(ids).past_key_values) // 2


def _size(cache: Cache) -> int:
    return sum(tensor.numel() for layer in cache.layers for tensor in (layer.keys, layer.values))


@torch.inference_mode()
def tokens_per_second(model: LabForCausalLM, context: int) -> float:
    """Decoding speed at a context of so many tokens: the median over 32 tokens, one at a time, batch of one.

    The text is random and the weights do not matter: the operations are the same.
    """
    ids = torch.randint(model.config.vocab_size, (1, context + _NEW_TOKENS), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache()
    model(ids[:, :context], past_key_values=cache, logits_to_keep=1)
    took = []
    for t in range(context, context + _NEW_TOKENS):
        began = time.perf_counter()
        model(ids[:, t : t + 1], past_key_values=cache)
        took.append(time.perf_counter() - began)
    return 1 / statistics.median(took)


def table(trained: Sequence[Record], contexts: Sequence[int] = CONTEXTS) -> pd.DataFrame:
    """Columns label, context, cache_bytes (bf16, all layers, at that context) and tokens_per_second, one row each.

    One record of each label is measured, in two rounds of which the faster one counts: something else may be at work during
    one of them. Models in fp32, on the CPU, with as many threads as the process has.
    """
    models = {record.label: model_of(record) for record in trained}
    rows: dict[tuple[str, int], tuple[int, float]] = {}
    for _ in range(2):
        for label, model in models.items():
            per_token = 2 * cache_numbers(model)
            for context in contexts:
                speed = max(tokens_per_second(model, context), rows.get((label, context), (0, 0.0))[1])
                rows[label, context] = (per_token * context, speed)
    columns = ["label", "context", "cache_bytes", "tokens_per_second"]
    return pd.DataFrame([(*key, *found) for key, found in rows.items()], columns=columns)


def model_of(record: Record) -> Any:
    """The run's model; where its weights are elsewhere, as a published run's, one of its shape with initial values: neither the
    cache nor any time depends on them."""
    if record.has_weights:
        return record.model()
    return LabForCausalLM(LabConfig.of(record.experiment, 0)).initialise(record.experiment.seed).eval()


def absorption_gap(name: str, options: dict[str, object] | None = None) -> float:
    """Largest difference between scores with keys made from latents and scores with the key projection absorbed into the
    query, relative to the largest score: what goes wrong where a rotation stands between the two.

    Made: rotate(q_i) · rotate(W c_j) + bias. Absorbed: (Wᵀ rotate(q_i)) · c_j + bias, as latents themselves cannot be rotated
    without undoing what W does to them.
    """
    H, K, C, T = 4, 32, 64, 48
    draw = torch.Generator().manual_seed(0)
    encoding = encodings.build(name, options or {}, Shape(H * K, H, K, 1, T))
    q_1HTK, c_1TC = torch.randn(1, H, T, K, generator=draw), torch.randn(1, T, C, generator=draw)
    up_HKC, x_1TD = torch.randn(H, K, C, generator=draw) / C**0.5, torch.zeros(1, T, H * K)
    positions_1T = torch.arange(T)[None]
    k_1HTK = torch.einsum("hkc,btc->bhtk", up_HKC, c_1TC)
    turned_q, turned_k = encoding.transform_qk(q_1HTK, k_1HTK, positions_1T, x_1TD)
    made = turned_q @ turned_k.mT / K**0.5
    absorbed = torch.einsum("bhtk,hkc,bsc->bhts", turned_q, up_HKC, c_1TC) / K**0.5
    bias = encoding.bias(turned_q, turned_k, positions_1T, positions_1T, None)
    if bias is not None:
        made, absorbed = made + bias, absorbed + bias
    visible = torch.ones(T, T).tril().bool()
    return float(((made - absorbed)[..., visible].abs().max() / made[..., visible].abs().max()).detach())
