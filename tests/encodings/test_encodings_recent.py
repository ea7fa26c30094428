"""Relative and content encodings of Transformer-XL, DeBERTa and 2024 to 2026, against their formulas written out in fp64."""

import math

import pytest
import torch
from hooks import D, H, K, L, build, by_loops, close, dot, fp64, inputs, sigmoid, softplus, weights
from torch.nn import functional as F

from pe_core import encodings
from pe_core.errors import ConfigError
from pe_core.schema import Shape

T = 12


def product(q, k, h, i, j):
    return dot(q[0][h][i], k[0][h][j])


def silu(value):
    return value * sigmoid(value)


def matrix(rows, vector):
    return [dot(row, vector) for row in rows]


def turn(x, angles):
    """Pairs (m, m + K/2) of x turned, each by its angle."""
    half = len(x) // 2
    first = [x[m] * math.cos(a) - x[m + half] * math.sin(a) for m, a in enumerate(angles)]
    return first + [x[m] * math.sin(a) + x[m + half] * math.cos(a) for m, a in enumerate(angles)]


def test_transformer_xl_by_hand():
    hooks, (q, k, x) = build("transformer_xl"), inputs(T=T)
    q_, k_, w, u, v = fp64(q, k, hooks.w[1], hooks.u[1], hooks.v[1])

    def score(h, i, j):
        rates = [10_000 ** (-2 * m / D) for m in range(D // 2)]
        r = [math.sin((i - j) * rate) for rate in rates] + [math.cos((i - j) * rate) for rate in rates]
        query = q_[0][h][i]
        content = dot([a + b for a, b in zip(query, u[h], strict=True)], k_[0][h][j])
        return (content + dot([a + b for a, b in zip(query, v[h], strict=True)], matrix(w[h], r))) / math.sqrt(K)

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-4)


@pytest.mark.parametrize("max_distance", [None, 5, 1])
def test_deberta_by_hand(max_distance):
    """The paper's formula, its table of 2k rows and its index δ, of which a causal model meets 2k - 1."""
    hooks, (q, k, x) = build("deberta", max_distance=max_distance), inputs(T=T)
    half = max_distance or L
    q_, k_, a, b = fp64(q, k, hooks.by_query[1], hooks.by_key[1])
    (rows,) = fp64(torch.cat((torch.zeros(1, D), hooks.table)))

    def delta(i, j):
        return min(max(i - j + half, 0), 2 * half - 1)

    def score(h, i, j):
        wanted = dot(q_[0][h][i], matrix(a[h], rows[delta(i, j)]))
        # One row below δ's own: a distance that is cut off shares the row of the last one that is not.
        offered = dot(k_[0][h][j], matrix(b[h], rows[max(delta(j, i), 1)]))
        return (product(q_, k_, h, i, j) + wanted + offered) / math.sqrt(3 * K)

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-4)


def test_grape_ap_by_hand():
    hooks, (q, k, x) = build("grape_ap"), inputs(T=T)
    q_, k_, w, x_ = fp64(q, k, hooks.w[1].view(H, 8, D), x[0])

    def score(h, i, j):
        p, charged = matrix(w[h], x_[i]), 0.0
        for token in range(j + 1, i + 1):
            other = matrix(w[h], x_[token])
            rms = math.sqrt(dot(other, other) / 8 + 1e-6)
            # The authors turn clockwise.
            charged += math.log(sigmoid(dot(p, turn([value / rms for value in other], [-token] * 4)) / 8))
        return product(q_, k_, h, i, j) / math.sqrt(K) + 2 ** (-8 * (h + 1) / H) * charged

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-4)


def test_grape_ap_starts_near_alibi():
    hooks, (q, k, x) = build("grape_ap", noise=0.0), inputs(T=T)
    bias = weights(hooks, q, k, 0 * x + 1e-9)[1] - weights(encodings.build("none", {}, Shape(D, H, K, 2, L)), q, k, x)[1]
    assert torch.isclose(bias[0, 0, -1, 0], torch.tensor(-math.log(2) / 4 * (T - 1)), rtol=1e-2)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.7, "amplitude": 0.25}], ids=str)
def test_tapa_by_hand(options):
    hooks, (q, k, x) = build("tapa", **options), inputs(T=T)
    alpha, A = options.get("alpha", 0.1), int(options.get("amplitude", 0.5) * K)
    q_, k_ = fp64(q, k)

    def score(h, i, j):
        query, key = q_[0][h][i], k_[0][h][j]
        phase = dot(query[A:], key[A:]) / math.sqrt(K - A)
        return dot(query[:A], key[:A]) / math.sqrt(A) * math.cos(2 * math.pi * (i - j) ** alpha * phase)

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-3)


def test_tapa_limits():
    with pytest.raises(ConfigError, match=r"^encoding 'tapa': amplitude=0\.01 of 16 dimensions is 0\.16; a whole number"):
        build("tapa", amplitude=0.01)


def test_repo_by_hand():
    hooks, (q, k, x) = build("repo"), inputs(T=T)
    q_, k_, x_, gate, content, position = fp64(q, k, x[0], hooks.gate[1], hooks.content[1], hooks.position[1])
    places = []
    for token in x_:
        chosen = [silu(g) * c for g, c in zip(matrix(gate, token), matrix(content, token), strict=True)]
        places.append(matrix(position, chosen))

    def score(h, i, j):
        rates = [10_000 ** (-2 * m / K) for m in range(K // 2)]
        turned = (turn(y[0][h][t], [places[t][h] * rate for rate in rates]) for y, t in ((q_, i), (k_, j)))
        return dot(*turned) / math.sqrt(K)

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-3)


def test_repo_starts_as_no_encoding():
    hooks, (q, k, x) = build("repo", noise=0.0), inputs(T=T)
    none = weights(encodings.build("none", {}, Shape(D, H, K, 2, L)), q, k, x)[0]
    close(weights(hooks, q, k, x)[0], none, 1e-2)


def test_carope_by_hand():
    hooks, (q, k, x) = build("carope"), inputs(T=T)
    q_, k_, x_, w, c = fp64(q, k, x[0], hooks.w[1], hooks.c[1])

    def score(h, i, j):
        f = [1 / (1 + softplus(dot(w[h], token) + c[h])) for token in x_]
        angles = [math.fsum(f[t] ** m for t in range(j + 1, i + 1)) for m in range(K // 2)]
        return dot(turn(q_[0][h][i], angles), k_[0][h][j]) / math.sqrt(K)

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-4)


def test_carope_starts_as_rope():
    """To the extent that w · x is small: exactly, where x is zero."""
    hooks, (q, k, x) = build("carope", noise=0.0), inputs(T=T)
    rope = encodings.build("rope", {"rotary_pct": 1.0}, Shape(D, H, K, 2, L))
    close(weights(hooks, q, k, 0 * x)[1], weights(rope, q, k, x)[1], 1e-4)


def test_bam_by_hand():
    hooks, (q, k, x) = build("bam"), inputs(T=T)
    q_, k_, a, b = fp64(q, k, hooks.a[1], hooks.b[1])

    def score(h, i, j):
        return product(q_, k_, h, i, j) / math.sqrt(K) - math.exp(a[h]) * (i - j + 1e-5) ** b[h]

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-4)


@torch.no_grad()
def test_bam_with_exponent_one_is_alibi():
    hooks, (q, k, x) = build("bam", noise=0.0), inputs(T=T)
    hooks.b.fill_(1.0)
    hooks.a.copy_(torch.tensor([[-2.0 * (h + 1) * math.log(2) for h in range(H)]] * 2))
    close(weights(hooks, q, k, x)[0], weights(encodings.build("alibi", {}, Shape(D, H, K, 2, L)), q, k, x)[0], 1e-4)


def test_dape_equals_its_convolutions_row_by_row():
    """Each row alone, cut off where the query stands, through torch's one-dimensional convolutions."""
    hooks, (q, k, x) = build("dape", width=5), inputs(T=T)
    plain = q @ k.mT / math.sqrt(K)
    taps1, taps2 = hooks.taps1[1].view(5, 3, 2 * H).mT, hooks.taps2[1].view(3, H, 5).permute(1, 2, 0)
    slopes = torch.tensor([2 ** (-8 * (h + 1) / H) for h in range(H)])
    expected = torch.full((1, H, T, T), -math.inf)
    for i in range(T):
        bias = -slopes[:, None] * (i - torch.arange(i + 1))
        row = torch.cat((plain[0, :, i, : i + 1], bias))
        hidden = F.leaky_relu(F.conv1d(row, taps1, hooks.offset1[1], padding=1), 0.01)
        expected[0, :, i, : i + 1] = plain[0, :, i, : i + 1] + bias + F.conv1d(hidden, taps2, hooks.offset2[1], padding=1)
    close(weights(hooks, q, k, x)[1], expected, 1e-4)


@pytest.mark.parametrize("taps", [2, 4])
def test_key_shift_by_hand(taps):
    hooks, (q, k, x) = build("key_shift", taps=taps), inputs(T=T)
    q_, k_, w = fp64(q, k, hooks.w[1])

    def score(h, i, j):
        key = list(k_[0][h][j])
        for lag in range(min(taps, j + 1)):
            key = [a + b * c for a, b, c in zip(key, w[taps - 1 - lag][h], k_[0][h][j - lag], strict=True)]
        return dot(q_[0][h][i], key) / math.sqrt(K)

    close(weights(hooks, q, k, x)[1], by_loops(score, T), 1e-4)


def test_without_positions_shifted_keys_see_the_order_that_no_encoding_cannot(tiny):
    """One layer: whether b follows a or a follows b, the last token's logits are the same without encoding."""
    ids = torch.tensor([[3, 5, 7, 9], [5, 3, 7, 9]])
    first, second = tiny("none", num_hidden_layers=1)(ids).logits[:, -1]
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    first, second = tiny("key_shift", num_hidden_layers=1)(ids).logits[:, -1]
    assert (first - second).abs().max() > 0.01


def test_labels():
    assert encodings.label("dape", {"width": 8}) == "DAPE V2 8"
    assert encodings.label("tapa", {"alpha": 0.5}) == "TAPA alpha 0.5"
    assert encodings.label("key_shift", {"taps": 2}) == "Key shift 2"
    assert encodings.label("grape_ap", {"dims": 16}) == "GRAPE-AP of 16"
    assert encodings.label("deberta", {"max_distance": 16}) == "DeBERTa 16"
    assert encodings.label("repo", {"base": 5e5}) == "RePo, base 500000"
