"""Windows, temperatures, sinks, and ways to read longer texts with trained rotations. For all encodings: test_encodings.py."""

import math

import pytest
import torch
from helpers import tiny_model
from hooks import D, H, K, L, build, close, inputs, randn, weights
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from pe_core import encodings
from pe_core.errors import ConfigError
from pe_core.schema import Shape

T = 40


def distances(length=T):
    positions = torch.arange(length)
    return positions[:, None] - positions


def turned(x, position, pct=1.0, base=10_000.0):
    """One vector turned as RoPE does, pair by pair."""
    R = int(pct * len(x))
    out = x.double().clone()
    for m in range(R // 2):
        angle = position * base ** (-2 * m / R)
        a, b = float(x[m]), float(x[m + R // 2])
        out[m], out[m + R // 2] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
    return out


def by_positions(q, k, place, pct=1.0):
    """Scores where query i and key j are turned by the positions that `place(i, j)` gives; -inf where it gives none."""
    length = q.shape[2]
    scores = torch.full((1, H, length, length), -math.inf, dtype=torch.float64)
    for i in range(length):
        for j in range(i + 1):
            if (at := place(i, j)) is not None:
                for h in range(H):
                    scores[0, h, i, j] = turned(q[0, h, i], at[0], pct) @ turned(k[0, h, j], at[1], pct) / math.sqrt(K)
    return scores


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 40])
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("kind", ["sliding", "chunks"])
def test_a_window_sees_what_it_says(kind, size, sinks):
    q, k, x = inputs(T=T)
    seen = weights(build("window", kind=kind, size=size, sinks=sinks), q, k, x)[0][0, 0] > 0
    for i in range(T):
        for j in range(T):
            near = i - j < size if kind == "sliding" else i // size == j // size
            assert bool(seen[i, j]) == (j <= i and (near or j < sinks)), (i, j)


def test_a_window_as_long_as_the_text_is_no_window(tiny, ids):
    assert torch.equal(tiny("window", {"size": 12})(ids).logits, tiny("window", {"size": 13})(ids).logits)
    torch.testing.assert_close(tiny("window", {"size": 12})(ids).logits, tiny("none")(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_window_is_half_the_length_trained_at_by_default():
    assert build("window").size == L // 2
    assert encodings.label("window", {}) == "Window"
    assert encodings.label("window", {"size": 64, "sinks": 4}) == "Window 64, 4 sinks"
    assert encodings.label("window", {"size": 64, "kind": "chunks"}) == "Chunks 64"


# --- temperatures and sinks ------------------------------------------------------------------------------------------


def test_scalable_softmax_by_hand():
    """s starts where the mean temperature of the length trained at is 1."""
    hooks, (q, k, x) = build("temperature", noise=0.0), inputs(T=T)
    mean = sum(math.log(n) for n in range(1, L + 1)) / L
    torch.testing.assert_close(hooks.s, torch.full((2, H), 1 / mean))
    hooks.s.data.copy_(randn(2, H))
    expected = (q @ k.mT) / math.sqrt(K) * hooks.s[1][:, None, None] * torch.arange(1, T + 1).log()[:, None]
    later = torch.ones(T, T).triu(1).bool()
    close(weights(hooks, q, k, x)[1], expected.masked_fill(later, -math.inf))


def test_llama_4_by_hand():
    """Nothing changes below `start` keys; 8,192 and 0.1 are the released models'."""
    hooks = encodings.build("temperature", {"kind": "steps", "start": 8_192}, Shape(D, H, K, 2, L))
    assert not list(hooks.parameters())
    queries = torch.tensor([[0, 8_190, 8_191, 16_382, 16_383, 81_919]])
    expected = [1.0, 1.0, *(1 + 0.1 * math.log(1 + n) for n in (1, 1, 2, 10))]
    torch.testing.assert_close(hooks.temperature(queries)[0, 0, :, 0], torch.tensor(expected))


def test_a_temperature_in_some_heads_leaves_the_others_alone():
    steps = {"encoding": "temperature", "options": {"kind": "steps", "start": 1, "scale": 1.0}, "heads": [1, 3]}
    hooks = encodings.build("mix", {"parts": [steps]}, Shape(D, H, K, 2, L)).for_layer(0)
    factor = hooks.temperature(torch.arange(5)[None])
    assert torch.equal(factor[0, [0, 3]], torch.ones(2, 5, 1))
    torch.testing.assert_close(factor[0, 1, :, 0], 1 + torch.arange(2, 7).log())


@torch.no_grad()
def test_temperature_and_latent_attention(ids):
    """All of the scores are multiplied, in both of latent attention's forms."""
    forms = [tiny_model("temperature", attention_kind="mla", latent_form=form)(ids).logits for form in ("absorbed", "expanded")]
    torch.testing.assert_close(*forms, atol=1e-4, rtol=1e-4)
    model = tiny_model("mix", {"parts": [{"encoding": "rope"}, {"encoding": "temperature"}]}, attention_kind="mla")
    attention, hooks = model.layers[0].attention, model.layers[0].attention.encoding
    q = randn(1, H, 12, K)
    torch.testing.assert_close(
        attention.sharpened(q, _positions(12)), hooks.temperature(torch.arange(12)[None]) * q, atol=0, rtol=0
    )


def _positions(length):
    from pe_core.attention import Positions

    positions = torch.arange(length)[None]
    return Positions(positions, positions)


def test_a_sink_equals_gpt_oss():
    hooks, (q, k, x) = build("sink"), inputs(T=T)

    class Module(torch.nn.Module):
        num_key_value_groups, training, sinks = 1, False, hooks.b[1]

    mask = torch.full((T, T), -math.inf).triu(1)[None, None]
    _, expected = eager_attention_forward(Module(), q, k, q, mask, 1 / math.sqrt(K))
    close(weights(hooks, q, k, x)[0], expected)


# --- longer texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "window"), [(1, 8), (3, 8), (4, 10), (None, 8)])
def test_self_extend_by_hand(group, window):
    q, k, x = inputs(T=T)

    def place(i, j):
        if i - j < window:
            return i, j
        return (window, 0) if group is None else (i // group + window - window // group, j // group)

    hooks = build("self_extend", group=group, window=window, rotary_pct=0.5)
    close(weights(hooks, q, k, x)[1], by_positions(q, k, place, 0.5), atol=1e-4)


def test_self_extend_stays_within_the_length_trained_at():
    """With the group that `rope` chooses for a longer text, no distance is greater than training's greatest."""
    for trained, length in ((128, 256), (128, 2_048), (64, 192), (128, 1_000)):
        _, options = encodings.length_extensions("rope", {"rotary_pct": 1.0}, trained, length)["Self-Extend"]
        hooks = encodings.build("self_extend", options, Shape(D, H, K, 2, trained))
        (query, key, far), _ = hooks.regions(torch.arange(length)[None], torch.arange(length)[None])
        assert (query[0, :, None] - key[0])[far[0]].max() < trained


def test_lambda_mask_by_hand():
    q, k, x = inputs(T=T)
    window, sinks = 9, 3

    def place(i, j):
        if i - j < window:
            return i, j
        return (window, 0) if j < sinks else None

    close(
        weights(build("lambda_mask", window=window, sinks=sinks, rotary_pct=1.0), q, k, x)[1], by_positions(q, k, place), 1e-4
    )


def test_dual_chunk_by_hand():
    q, k, x = inputs(T=T)
    s, longest = 6, 10

    def place(i, j):
        chunks = i // s - j // s
        return (i % s, min(s + i % s, longest - 1), longest - 1)[min(chunks, 2)], j % s

    close(
        weights(build("dual_chunk", chunk=s, original_length=longest, rotary_pct=1.0), q, k, x)[1],
        by_positions(q, k, place),
        1e-4,
    )


def test_dual_chunk_equals_the_paper():
    """Its figure's example: chunks of 6, a model of 10, a text of 12."""
    hooks = build("dual_chunk", chunk=6, original_length=10)
    positions = torch.arange(12)[None]
    (inter, key, _), (successive, _, _), (within, _, _) = hooks.regions(positions, positions)
    assert key.tolist() == within.tolist() == [[0, 1, 2, 3, 4, 5] * 2]
    assert successive.tolist() == [[6, 7, 8, 9, 9, 9] * 2]
    assert inter.tolist() == [[9] * 12]


@pytest.mark.parametrize("name", ["self_extend", "lambda_mask", "dual_chunk"])
def test_short_texts_are_read_as_by_rope(name, tiny, ids):
    """Up to the window, or the length trained at."""
    options = {"rotary_pct": 0.5, "base": 500.0}
    for kind in ("mha", "mla"):
        expected = tiny("rope", options, attention_kind=kind)(ids).logits
        torch.testing.assert_close(tiny(name, options, attention_kind=kind)(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_limits():
    with pytest.raises(
        ConfigError, match=r"^encoding 'dual_chunk': chunk=64: from half the length trained at, 64, to one less is needed$"
    ):
        build("dual_chunk", chunk=64)
    with pytest.raises(ConfigError, match=r"^encoding 'llama3': high=1: must be greater than low=1$"):
        build("llama3", high=1.0)


def test_labels():
    assert encodings.label("self_extend", {"group": None}) == "ReRoPE 25 %"
    assert encodings.label("self_extend", {"rotary_pct": 1.0, "group": 8}) == "Self-Extend 100 %, by 8"
    assert encodings.label("lambda_mask", {"rotary_pct": 1.0}) == "Λ-mask 100 %, 10 sinks"
    assert encodings.label("dual_chunk", {"chunk": 96}) == "Dual chunk 25 %, chunks of 96"
