import math
import operator

import pytest
import torch
from helpers import tiny_config

from pe_core import ENCODINGS, attention, encodings, flex, hardware
from pe_core.attention import Positions, attend

B, H, K = 2, 3, 8
# T queries, the last of S keys: no cache, one query after a cache, several queries after a cache.
SHAPES = [(9, 9), (1, 1), (1, 9), (4, 9)]
BIASES = {
    "no bias": lambda T, S: None,
    "bias by head": lambda T, S: (1, H, T, S),
    "bias by row": lambda T, S: (B, 1, T, S),
    "bias by key": lambda T, S: (B, H, 1, S),
    "full bias": lambda T, S: (B, H, T, S),
}


def inputs(T, S, bias, padded):
    """Queries, keys, values, bias and positions; padding hides one key of row 0 and three of row 1."""
    generator = torch.Generator().manual_seed(T * 100 + S)
    q, k, v = (torch.randn(B, H, n, K, generator=generator) for n in (T, S, S))
    shape = BIASES[bias](T, S)
    bias = None if shape is None else torch.randn(shape, generator=generator)
    key = torch.arange(S).expand(B, S)
    visible = torch.ones(B, T, S, dtype=torch.bool).tril(S - T)
    if padded:
        for row, hidden in enumerate((1, 3)):
            visible[row, :, :hidden] = False
        visible |= torch.eye(S, dtype=torch.bool)[-T:]  # every query sees itself
    return q, k, v, bias, Positions(key[:, S - T :], key, visible if padded else None), visible


def softmax_loop(q, k, v, bias, visible, scale):
    """Attention written out, one query at a time, in Python floats."""
    T, S = q.shape[2], k.shape[2]
    bias = torch.zeros(1) if bias is None else bias
    q, k, v, bias = (x.double().tolist() for x in (q, k, v, bias.expand(B, H, T, S)))
    out, weights = torch.zeros(B, H, T, K), torch.zeros(B, H, T, S)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                keys = [s for s in range(S) if visible[b, t, s]]
                scores = [scale * math.fsum(map(operator.mul, q[b][h][t], k[b][h][s])) + bias[b][h][t][s] for s in keys]
                powers = [math.exp(score - max(scores)) for score in scores]
                for s, power in zip(keys, powers, strict=True):
                    weights[b, h, t, s] = power / sum(powers)
                    out[b, h, t] += power / sum(powers) * torch.tensor(v[b][h][s])
    return out, weights


@pytest.mark.parametrize("padded", [False, True], ids=["causal", "padded"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("T", "S"), SHAPES)
def test_paths_equal_the_softmax_written_out(T, S, bias, padded):
    *tensors, positions, visible = inputs(T, S, bias, padded)
    expected, expected_weights = softmax_loop(*tensors, visible, scale=0.7)
    eager, weights = attend(*tensors, positions, 0.7, "eager")
    sdpa, none = attend(*tensors, positions, 0.7, "sdpa")
    torch.testing.assert_close(weights, expected_weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(eager, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sdpa, expected, atol=1e-5, rtol=0)
    assert none is None


@pytest.mark.parametrize("padded", [False, True], ids=["causal", "padded"])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("T", "S"), SHAPES)
def test_paths_have_equal_gradients(T, S, bias, padded):
    def gradients(path):
        *tensors, positions, _ = inputs(T, S, bias, padded)
        leaves = [x.requires_grad_() for x in tensors if x is not None]
        attend(*tensors, positions, 0.7, path)[0].square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for eager, sdpa in zip(gradients("eager"), gradients("sdpa"), strict=True):
        assert sdpa.isfinite().all()
        torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["eager", "sdpa"])
def test_a_bias_towards_later_keys_changes_nothing(path):
    *tensors, positions, visible = inputs(9, 9, "full bias", padded=False)
    expected, _ = attend(*tensors, positions, 0.7, path)
    tensors[3] = tensors[3].masked_fill(~visible[:, None], 1e6)
    assert torch.equal(attend(*tensors, positions, 0.7, path)[0], expected)


@pytest.mark.parametrize("path", ["eager", "sdpa"])
@pytest.mark.parametrize("bias", ["no bias", "full bias"])
@pytest.mark.parametrize("padded", [False, True], ids=["causal", "padded"])
def test_queries_may_be_wider_than_values(path, bias, padded):
    """An encoding's `transform_qk` may append dimensions; the scale does not follow."""
    q, k, v, bias, positions, visible = inputs(4, 9, bias, padded)
    wide_q, wide_k = (torch.cat((x, x[..., :2] + 1), -1) for x in (q, k))
    expected, _ = softmax_loop(wide_q, wide_k, v, bias, visible, scale=0.7)
    torch.testing.assert_close(attend(wide_q, wide_k, v, bias, positions, 0.7, path)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", ["no bias", "full bias"])
def test_eager_softmax_is_fp32_in_a_bf16_model(bias):
    *tensors, positions, _ = inputs(9, 9, bias, padded=False)
    tensors = [x if x is None else x.bfloat16() for x in tensors]
    out, weights = attend(*tensors, positions, 0.7, "eager")
    assert out.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, 9), atol=1e-5, rtol=0)


def test_eager_bias_is_fp32_in_a_bf16_model():
    """Scores near 100 differ by less than bf16 resolves."""
    *tensors, positions, visible = inputs(9, 9, "full bias", padded=False)
    tensors = [x.bfloat16() for x in tensors[:3]] + [100 + tensors[3]]
    _, weights = attend(*tensors, positions, 0.01, "eager")
    _, expected = softmax_loop(*tensors, visible, scale=0.01)
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("T", [1, 12])
def test_every_encoding_is_the_same_on_every_path(encoding, tiny, ids, T):
    explicit, fused = (tiny(encoding, attention=path)(ids[:, :T]).logits for path in ("eager", "sdpa"))
    torch.testing.assert_close(explicit, fused, atol=1e-5, rtol=1e-5)


BY_DISTANCE = [name for name in ENCODINGS if encodings.build(name, {}, tiny_config().shape).for_layer(0).bias_by_distance]
# On a CPU the kernel is written out, and says so.
not_fused = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@torch.no_grad()
def test_a_bias_by_distance_is_stated_where_there_is_one(tiny, encoding):
    """Other queries and keys change nothing, nor do positions that are shifted."""
    hooks = tiny(encoding).encoding.for_layer(0)
    shape, positions = hooks.shape, torch.arange(9)[None]
    generator = torch.Generator().manual_seed(0)

    def bias(shift):
        q, k = torch.randn(2, 1, shape.heads, 9, shape.head_dim, generator=generator)
        token_state = hooks.token_state(torch.randn(1, 9, shape.hidden, generator=generator), positions)
        found = hooks.bias(q, k, positions + shift, positions + shift, token_state)
        return None if found is None else found.expand(1, shape.heads, 9, 9).tril()

    one, other = bias(0), bias(500)
    only = not (hooks.state_size or hooks.replaces_scores or hooks.replaces_softmax)
    assert hooks.bias_by_distance == (only and one is not None and torch.allclose(one, other, atol=1e-5))


@not_fused
@pytest.mark.parametrize("kind", ["mha", "mla"])
@pytest.mark.parametrize("name", BY_DISTANCE)
def test_a_bias_by_distance_within_the_kernel_equals_one_written_out(tiny, ids, monkeypatch, name, kind):
    model = tiny(name, attention_kind=kind).requires_grad_(False)  # the kernel has no gradients on a CPU
    expected = model.losses(ids[:, :-1], ids[:, 1:])
    calls, kernel = [], flex.attend
    monkeypatch.setattr(flex, "attend", lambda *given: calls.append(1) or kernel(*given))
    torch.testing.assert_close(model.losses(ids[:, :-1], ids[:, 1:]), expected, atol=0, rtol=0)
    assert not calls, "not on a CPU"
    monkeypatch.setattr(flex, "pays", lambda *_: True)
    torch.testing.assert_close(model.losses(ids[:, :-1], ids[:, 1:]), expected, atol=1e-5, rtol=0)
    assert len(calls) == 2, "in each layer"
    model(ids, attention_mask=(ids > 20).long())
    model(ids, position_ids=2 * torch.arange(12)[None])
    assert len(calls) == 2, "only for whole windows"


@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_a_long_window_is_read_in_blocks_of_queries(encoding, tiny, ids, monkeypatch, kind):
    """Where nothing is trained, written-out scores are made block by block: the same losses, and never all scores at once."""
    model = tiny(encoding, attention_kind=kind)
    with torch.no_grad():
        expected = model.losses(ids[:, :-1], ids[:, 1:])
        shapes, whole = [], attention.attend
        monkeypatch.setattr(attention, "attend", lambda *given: shapes.append(given[0].shape[2]) or whole(*given))
        monkeypatch.setattr(attention, "_EXPLICIT_UP_TO", 8)
        monkeypatch.setattr(attention, "_BLOCK", 5)
        torch.testing.assert_close(model.losses(ids[:, :-1], ids[:, 1:]), expected, atol=1e-5, rtol=1e-5)
    T = ids.shape[1] - 1
    assert set(shapes) in ({T}, {5, T % 5}), "blocks, or the fused kernel for the whole window"


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_DISTANCE)
def test_the_kernel_keeps_the_loss_one_graph(tiny, ids, monkeypatch, name):
    model = tiny(name).requires_grad_(False)
    expected = model.losses(ids[:, :-1], ids[:, 1:])
    monkeypatch.setattr(flex, "pays", lambda *_: torch.compiler.is_compiling())
    compiled = torch.compile(model.losses, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(ids[:, :-1], ids[:, 1:]), expected, atol=1e-5, rtol=0)


def test_the_kernel_is_for_long_windows_on_a_card():
    assert [hardware.flex(*given) for given in (("cuda", 128), ("cuda", 1_024), ("cpu", 4_096), ("mps", 4_096))] == [
        False, True, False, False,
    ]  # fmt: skip
