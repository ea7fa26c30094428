"""Encodings one hook at a time: small inputs, attention as the model computes it, and formulas written out as loops."""

import math

import torch

from pe_core import encodings
from pe_core.schema import Shape

H, K, L = 4, 16, 64  # heads, head dimension, length trained at
D = H * K


@torch.no_grad()
def build(name, heads=H, head_dim=K, layers=2, noise=0.2, **options):
    """The encoding of layer 1, its parameters as initialised and some noise on them, so that nothing is small or equal."""
    hooks = encodings.build(name, options, Shape(heads * head_dim, heads, head_dim, layers, L))
    generator = torch.Generator().manual_seed(0)
    for own, parameter in hooks.named_parameters():
        hooks.init_parameter(own, parameter, generator)
        parameter += noise * torch.randn(parameter.shape, generator=generator)
    return hooks.for_layer(layers - 1)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(B=1, T=20, seed=0):
    """Queries, keys and the layer's input."""
    return randn(B, H, T, K, seed=seed), randn(B, H, T, K, seed=seed + 1), randn(B, T, D, seed=seed + 2)


def weights(hooks, q, k, x, T=None):
    """Attention weights (B, H, T, S) of the last T queries, through every hook, as attention.py calls them; and the scores."""
    S = q.shape[2]
    T = T or S
    key = torch.arange(S)[None]
    q, k = hooks.transform_qk(q, k, key, x)
    factor, token_state = hooks.temperature(key[:, -T:]), hooks.token_state(x, key)
    q = q[:, :, -T:] if factor is None else factor * q[:, :, -T:]
    scores = hooks.scores(q, k, key[:, -T:], key, token_state)
    if scores is None:
        scores = (q @ k.mT).float() / math.sqrt(K)
    bias = hooks.bias(q, k, key[:, -T:], key, token_state)
    scores = scores if bias is None else scores + bias
    scores = scores.masked_fill(torch.ones(T, S).triu(S - T + 1).bool(), -math.inf)
    return hooks.attention_weights(scores), scores


def by_loops(score, T, heads=H):
    """Scores (1, H, T, T) from a formula of head, query and key, in fp64; -inf where the key comes later."""
    rows = [[[score(h, i, j) if j <= i else -math.inf for j in range(T)] for i in range(T)] for h in range(heads)]
    return torch.tensor([rows], dtype=torch.float64)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=1e-5)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def softplus(value):
    return math.log1p(math.exp(value))


def dot(a, b):
    return math.fsum(u * v for u, v in zip(a, b, strict=True))


def fp64(*tensors):
    return [tensor.detach().double().tolist() for tensor in tensors]
