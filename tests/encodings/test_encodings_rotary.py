"""Encodings built on RoPE: xpos, p_rope, interpolated, ntk, yarn. What holds for every encoding: test_encodings.py."""

import math
import re
import warnings

import pytest
import torch
from transformers import GPTNeoXConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

from pe_core import LabConfig, LabForCausalLM, encodings
from pe_core.attention import Positions
from pe_core.errors import ConfigError
from pe_core.schema import Shape

H, K, L = 4, 64, 256  # heads, head dimension, length trained at


def build(name, head_dim=K, seq_len=L, **options):
    return encodings.build(name, options, Shape(H * head_dim, H, head_dim, 2, seq_len))


def pair(T, seed=0, head_dim=K):
    return torch.randn(2, 1, H, T, head_dim, generator=torch.Generator().manual_seed(seed))


def turned(hooks, q, k, start=0):
    return hooks.transform_qk(q, k, start + torch.arange(q.shape[2])[None], q)


def by_transformers(kind, q, k, positions, pct=1.0, base=10_000.0, **parameters):
    """Queries and keys turned by GPT-NeoX with this kind of rope."""
    rope = {"rope_type": kind, "rope_theta": base, "partial_rotary_factor": pct, **parameters}
    config = GPTNeoXConfig(hidden_size=H * K, num_attention_heads=H, max_position_embeddings=L, rope_parameters=rope)
    return apply_rotary_pos_emb(q, k, *GPTNeoXRotaryEmbedding(config)(q, positions))


def x_rotary(R, positions, q, k, **options):
    """Queries and keys turned by x-transformers, whose pairs are neighbours: (2m, 2m + 1) for our (m, m + R/2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

    order = torch.tensor([[m, m + R // 2] for m in range(R // 2)]).flatten().tolist() + list(range(R, q.shape[-1]))
    angles, scale = RotaryEmbedding(R, **options)(positions[0])
    q_scale, k_scale = (scale, scale**-1.0)
    q, k = apply_rotary_pos_emb(q[..., order], angles, q_scale), apply_rotary_pos_emb(k[..., order], angles, k_scale)
    back = torch.tensor(order).argsort()
    return q[..., back], k[..., back]


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def close_far(actual, expected):
    """1e-5 at the first 48 positions; further on, where an angle in fp32 is known to p · 6e-8, in proportion."""
    for q_or_k, other in zip(actual, expected, strict=True):
        close(q_or_k[:, :, :48], other[:, :, :48])
        close(q_or_k, other, 2e-7 * q_or_k.shape[2] + 1e-5)


# --- equal to other implementations ----------------------------------------------------------------------------------

ROTARY = [(0.25, 10_000.0), (1.0, 10_000.0), (0.5, 500_000.0)]


@pytest.mark.parametrize(("pct", "base"), ROTARY)
@pytest.mark.parametrize("factor", [1.0, 2.5, 16.0])
def test_interpolated_equals_transformers_and_x_transformers(pct, base, factor):
    (q, k), positions = pair(300), torch.arange(300)[None]
    actual = turned(build("interpolated", rotary_pct=pct, base=base, factor=factor), q, k)
    close_far(actual, by_transformers("linear", q, k, positions, pct, base, factor=factor))
    close_far(actual, x_rotary(int(pct * K), positions, q, k, base=base, interpolation_factor=factor))
    # The paper's definition: RoPE at positions p / s, which need not be whole.
    close_far(actual, build("rope", rotary_pct=pct, base=base).transform_qk(q, k, positions.double() / factor, q))


@pytest.mark.parametrize(("pct", "base"), ROTARY)
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_ntk_equals_x_transformers(pct, base, factor):
    (q, k), positions = pair(300), torch.arange(300)[None]
    actual = turned(build("ntk", rotary_pct=pct, base=base, factor=factor), q, k)
    close_far(actual, x_rotary(int(pct * K), positions, q, k, base=base, base_rescale_factor=factor))


@pytest.mark.parametrize(("pct", "base"), ROTARY)
@pytest.mark.parametrize(("own", "length"), [(1.0, L), (1.0, 2 * L), (3.0, 2 * L), (2.0, 700)])
def test_ntk_equals_transformers_dynamic_rope_at_the_matching_length(pct, base, own, length):
    """At a length the dynamic form with factor s is the static one with factor s · length / L - (s - 1)."""
    (q, k), positions = pair(length), torch.arange(length)[None]
    actual = turned(build("ntk", rotary_pct=pct, base=base, factor=own * length / L - (own - 1)), q, k)
    close_far(actual, by_transformers("dynamic", q, k, positions, pct, base, factor=own))


YARNS = [
    {},
    {"factor": 1.0},
    {"factor": 16.0},
    {"factor": 2.0, "beta_fast": 8.0, "beta_slow": 2.0},
    {"factor": 4.0, "original_length": 4_096},
    {"factor": 4.0, "original_length": 16, "beta_fast": 2.0, "beta_slow": 1.5},
]


@pytest.mark.parametrize(("pct", "base"), ROTARY)
@pytest.mark.parametrize("options", YARNS, ids=str)
def test_yarn_equals_transformers(pct, base, options):
    (q, k), positions = pair(300), torch.arange(300)[None]
    actual = turned(build("yarn", rotary_pct=pct, base=base, **options), q, k)
    names = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_length": L} | options
    names["original_max_position_embeddings"] = names.pop("original_length")
    close_far(actual, by_transformers("yarn", q, k, positions, pct, base, **names))


@pytest.mark.parametrize(("pct", "base"), ROTARY)
@pytest.mark.parametrize(
    "options", [{}, {"factor": 1.0}, {"factor": 8.0, "low": 2.0, "high": 16.0}, {"original_length": 2_048}], ids=str
)
def test_llama3_equals_transformers(pct, base, options):
    (q, k), positions = pair(300), torch.arange(300)[None]
    actual = turned(build("llama3", rotary_pct=pct, base=base, **options), q, k)
    given = {"factor": 4.0, "low": 1.0, "high": 4.0, "original_length": L} | options
    names = {"low_freq_factor": given["low"], "high_freq_factor": given["high"], "factor": given["factor"]}
    names["original_max_position_embeddings"] = given["original_length"]
    close_far(actual, by_transformers("llama3", q, k, positions, pct, base, **names))


@torch.no_grad()
def test_rope_pp_by_hand():
    """A layer's attention in complex numbers: both heads of a pair share query, key and value, and each has its own output."""
    config = LabConfig(
        vocab_size=50, hidden_size=H * 16, num_hidden_layers=1, num_attention_heads=H, intermediate_size=8, encoding="rope_pp"
    )
    layer = LabForCausalLM(config).initialise(0).layers[0].attention
    assert layer.query_key_value.weight.shape == (3 * H * 16 // 2, H * 16)
    for parameter in layer.parameters():
        parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x, T, D = torch.randn(1, 12, H * 16, generator=torch.Generator().manual_seed(1)), 12, H * 16
    positions = torch.arange(T)[None]
    found, _ = layer(x, Positions(positions, positions))

    projected = (x[0].double() @ layer.query_key_value.weight.double().T + layer.query_key_value.bias.double()).view(
        T, -1, 3, 16
    )
    rates = 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    turn = torch.exp(1j * rates * (positions[0][:, None, None] - positions[0][None, :, None]))  # (T, S, pairs)
    out = []
    for head in range(H):
        q, k, v = projected[:, head // 2].unbind(1)
        q, k = (torch.complex(part[:, :8], part[:, 8:]) for part in (q, k))
        total = (q[:, None] * k[None].conj() * turn).sum(-1)
        scores = (total.imag if head % 2 else total.real) / 4
        out.append(scores.masked_fill(~torch.ones(T, T).tril().bool(), -math.inf).softmax(-1) @ v)
    expected = torch.cat(out, dim=-1) @ layer.dense.weight.double().T + layer.dense.bias.double()
    assert expected.shape == (T, D)
    close(found[0].double(), expected, 1e-4)


def test_rope_pp_ties_pairs_of_heads():
    with pytest.raises(ConfigError, match="heads come in pairs, and there are 3"):
        encodings.build("rope_pp", {}, Shape(48, 3, 16, 1, L))
    alone = {"parts": [{"encoding": "rope_pp", "heads": [0, 2]}]}
    with pytest.raises(ConfigError, match="'rope_pp' ties heads and has to act in all heads"):
        encodings.build("mix", alone, Shape(H * K, H, K, 2, L))
    parts = [{"encoding": "rope_pp", "layers": [0]}, {"encoding": "rope", "layers": [1]}, {"encoding": "sinusoidal"}]
    mixed = encodings.build("mix", {"parts": parts}, Shape(H * K, H, K, 2, L))
    assert [mixed.for_layer(layer).tied_heads for layer in (0, 1)] == [2, 1]


def test_clipped_rope_by_hand():
    """Llama 3's 64 pairs: 44 are left alone, 20 slowed down along half a cosine, the last to a standstill."""
    hooks, plain = build("clipped_rope", head_dim=128), build("rope", head_dim=128, rotary_pct=1.0).frequencies("cpu")
    assert hooks.slowed == 20
    ratio = (hooks.frequencies("cpu") / plain).tolist()
    assert ratio[:45] == [1.0] * 45
    for t in range(19):
        assert math.isclose(ratio[44 + t], (1 + math.cos(math.pi * t / 19)) / 2, rel_tol=1e-4, abs_tol=1e-6)
    assert ratio[63] == 0
    assert torch.equal(build("clipped_rope", clipped=0.0).frequencies("cpu"), build("rope", rotary_pct=1.0).frequencies("cpu"))
    assert build("clipped_rope", head_dim=8).slowed == 2  # 0.3125 of four pairs is 1.25, and one alone would change nothing


def test_fope_by_hand():
    """Of eight pairs, trained at 64 tokens, those that turn fully within it have a series of sines each, in fp64."""
    hooks = build("fope", head_dim=16, seq_len=64)
    hooks.init_parameter("mixed", hooks.mixed, torch.Generator().manual_seed(0))
    rates = [10_000 ** (-2 * m / 16) for m in range(8)]
    D = sum(rate >= 2 * math.pi / 64 for rate in rates)
    assert D == hooks.kept == 3
    q, _ = pair(5, head_dim=16)
    actual, _ = turned(hooks, q, q)
    c, s = hooks.mixed.double().tolist()
    for h in range(q.shape[1]):
        assert max(abs(c[h][n][m] - (n == m)) for n in range(D) for m in range(D)) < 0.5
        for p in range(5):
            for m in range(8):
                a, b = q[0, h, p, m].double(), q[0, h, p, m + 8].double()
                cos, sin = 1, 0
                if m < D:
                    cos = sum(c[h][n][m] * math.cos(p * rates[n]) for n in range(D)) / sum(c[h][n][m] for n in range(D))
                    sin = sum(s[h][n][m] * math.sin(p * rates[n]) for n in range(D)) / sum(s[h][n][m] for n in range(D))
                close(actual[0, h, p, m].double(), a * cos - b * sin, 1e-6)
                close(actual[0, h, p, m + 8].double(), b * cos + a * sin, 1e-6)
    plain = build("fope", head_dim=16, seq_len=64, sigma=0.0)
    plain.init_parameter("mixed", plain.mixed, torch.Generator())
    clipped = build("p_rope", head_dim=16, p=D / 8)
    assert torch.allclose(turned(plain, q, q)[0], turned(clipped, q, q)[0])


def test_yarn_by_hand():
    """Slow pairs are interpolated, fast ones are not, and logits grow by the square of 0.1 ln s + 1."""
    hooks = build("yarn", factor=8, rotary_pct=1.0)
    plain, actual = build("rope", rotary_pct=1.0).frequencies("cpu"), hooks.frequencies("cpu")
    turns = L * plain / (2 * math.pi)
    assert torch.equal(actual[turns > 40], plain[turns > 40])
    torch.testing.assert_close(actual[turns < 0.7], plain[turns < 0.7] / 8)
    ratio = plain / actual
    assert (ratio.diff() >= -1e-5).all()
    assert len(ratio[(ratio > 1.01) & (ratio < 7.9)]) >= 5
    q, _ = pair(1)
    close(hooks.transform_qk(q, q, torch.tensor([[0]]), q)[0], q * (0.1 * math.log(8) + 1))


@pytest.mark.parametrize(
    ("p", "base"), [(0.75, 10_000.0), (0.25, 500_000.0), (0.6875, 10_000.0), (1.0, 100.0), (0.0625, 100.0)]
)
def test_p_rope_equals_transformers(p, base):
    """Gemma 4's `proportional` rope, which GPT-NeoX does not turn by but whose frequencies can be asked for."""
    rope = {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": p}
    config = GPTNeoXConfig(hidden_size=H * K, num_attention_heads=H)
    config.rope_parameters = rope
    frequencies, _ = ROPE_INIT_FUNCTIONS["proportional"](config)
    hooks = build("p_rope", p=p, base=base)
    torch.testing.assert_close(hooks.frequencies("cpu"), frequencies)
    (q, k), positions = pair(300), torch.arange(300)[None]
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)
    close_far(turned(hooks, q, k), apply_rotary_pos_emb(q, k, angles.cos(), angles.sin()))


def test_p_rope_by_hand():
    """Of four pairs of K = 8 the slowest is left alone at p = 0.75, in fp64."""
    q, k = pair(5, head_dim=8)
    actual, _ = turned(build("p_rope", 8, p=0.75), q, k)
    for p in range(5):
        for m in range(4):
            a, b = q[0, :, p, m].double(), q[0, :, p, m + 4].double()
            angle = p * 10_000 ** (-2 * m / 8) if m < 3 else 0.0
            close(actual[0, :, p, m].double(), a * math.cos(angle) - b * math.sin(angle), 1e-6)
            close(actual[0, :, p, m + 4].double(), b * math.cos(angle) + a * math.sin(angle), 1e-6)
    assert torch.equal(actual[..., [3, 7]], q[..., [3, 7]])


def test_a_share_is_what_the_label_says_it_is():
    assert [build("p_rope", 100, p=p).kept for p in (0.02, 0.28, 0.3, 0.58, 1.0)] == [1, 14, 15, 29, 50]
    assert [build("clipped_rope", 64, clipped=c).slowed for c in (0.0625, 0.5, 1.0)] == [2, 16, 32]


@pytest.mark.parametrize(("pct", "scale_base"), [(1.0, 512.0), (0.5, 512.0), (0.25, 64.0), (1.0, 7.0)])
def test_xpos_scores_equal_x_transformers(pct, scale_base):
    """Centres differ (a moving middle there, zero here), so queries and keys do; what they give together does not."""
    (q, k), positions = pair(96), torch.arange(96)[None]
    expected = x_rotary(int(pct * K), positions, q, k, use_xpos=True, scale_base=scale_base)
    scores = torch.matmul(expected[0], expected[1].mT).tril()
    q, k = turned(build("xpos", rotary_pct=pct, scale_base=scale_base), q, k)
    torch.testing.assert_close((q @ k.mT).tril(), scores, atol=2e-4, rtol=2e-5)


def test_xpos_by_hand():
    """q_i · k_j as a sum over pairs of ζ_m^((i - j)/B) · Re(q_m conj(k_m) exp(i θ_m (i - j))), in fp64."""
    R, B = 8, 32.0
    q, k = pair(6, head_dim=R)
    q_turned, k_turned = turned(build("xpos", R, scale_base=B), q, k)
    scores = (q_turned @ k_turned.mT)[0]
    for i in range(6):
        for j in range(i + 1):
            expected = torch.zeros(H, dtype=torch.float64)
            for m in range(R // 2):
                zeta = (m / (R / 2) + 0.4) / 1.4
                a, b = (torch.complex(x[0, :, p, m].double(), x[0, :, p, m + R // 2].double()) for x, p in ((q, i), (k, j)))
                turn = complex(math.cos((i - j) * 10_000 ** (-2 * m / R)), math.sin((i - j) * 10_000 ** (-2 * m / R)))
                expected += zeta ** ((i - j) / B) * (a * b.conj() * turn).real
            close(scores[:, i, j].double(), expected, 1e-5)


# --- xpos: numbers stay in range -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_xpos_scores_do_not_depend_on_where_the_window_lies(dtype):
    (q, k), hooks = pair(128).to(dtype), build("xpos")

    def scores(start):
        q_turned, k_turned = turned(hooks, q, k, start)
        return q_turned.double() @ k_turned.double().mT

    expected = scores(0)
    for moved in (scores(3_968), scores(20_000)):
        assert moved.isfinite().all()
        # fp32 angles at position 20,000 are exact to 1e-3; bf16 keeps 8 bits of queries and keys wherever they are.
        limit = (0.01 if dtype == torch.float32 else 0.06) * expected.std()
        assert (moved - expected).tril().abs().max() < limit


def test_xpos_gradients_are_finite_at_4096_positions():
    q, k = (x.requires_grad_() for x in pair(4_096, head_dim=16))
    q_turned, k_turned = turned(build("xpos", 16), q, k)
    (q_turned[:, :, -4:] @ k_turned.mT / 4).softmax(-1).square().sum().backward()
    for x in (q_turned, k_turned, q.grad, k.grad):
        assert x.isfinite().all()
    assert q.grad[:, :, -4:].any()
    assert k.grad[:, :, -4:].any()
    assert 1e4 < k_turned.abs().max() < 1e6


def test_xpos_fades_with_distance():
    one, positions = torch.ones(1, 1, 200, K), torch.arange(200)[None]
    plain, faded = (build(name, rotary_pct=1.0).transform_qk(one, one, positions, one) for name in ("rope", "xpos"))
    size = [torch.hypot(k[0, 0, :, : K // 2], k[0, 0, :, K // 2 :]) for _, k in (plain, faded)]
    ratio = size[1] / size[0]
    assert (ratio.diff(dim=0) > 0).all()  # later keys are larger, that is, earlier ones smaller beside them
    assert (ratio[1:].diff(dim=1) < 0).all()  # the fast pairs most of all
    assert ratio[100, 0].item() == pytest.approx((0.4 / 1.4) ** (-100 / 512), rel=1e-4)


def test_xpos_names_the_position_out_of_range(tiny, ids):
    model = tiny("xpos", {"scale_base": 10})  # reaches to position 478
    assert model(ids, position_ids=467 + torch.arange(12)[None]).logits.isfinite().all()
    with pytest.raises(ConfigError, match=r"^encoding 'xpos': position 479 is out of range at scale_base=10, .* position 478$"):
        model(ids, position_ids=468 + torch.arange(12)[None])
    with pytest.raises(ConfigError, match=r"^encoding 'xpos': position 499 is out of range at scale_base=10, .*$"):
        build("xpos", seq_len=500, scale_base=10)
    assert build("xpos").last > 24_000


# --- reductions ------------------------------------------------------------------------------------------------------

EXTENSIONS = ["interpolated", "ntk", "yarn"]


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("pct", [0.25, 0.5, 1.0])
def test_a_factor_of_one_is_rope_to_the_bit(tiny, name, pct):
    ids = torch.randint(97, (2, 60), generator=torch.Generator().manual_seed(0))
    shared = {"rotary_pct": pct, "base": 5_000.0}
    rope = tiny("rope", shared)(ids).logits
    assert torch.equal(tiny(name, {**shared, "factor": 1})(ids).logits, rope)
    assert not torch.equal(tiny(name, shared)(ids).logits, rope)


@pytest.mark.parametrize("name", [*EXTENSIONS, "xpos"])
def test_nothing_rotated_is_nope_to_the_bit(tiny, ids, name):
    assert torch.equal(tiny(name, {"rotary_pct": 0})(ids).logits, tiny("none")(ids).logits)


def test_p_rope_runs_from_nope_to_rope_to_the_bit(tiny, ids):
    assert torch.equal(tiny("p_rope", {"p": 0})(ids).logits, tiny("none")(ids).logits)
    assert torch.equal(
        tiny("p_rope", {"p": 1, "base": 300})(ids).logits, tiny("rope", {"rotary_pct": 1, "base": 300})(ids).logits
    )
    half = tiny("p_rope", {"p": 0.5})(ids).logits
    assert (half - tiny("rope", {"rotary_pct": 0.5})(ids).logits).abs().max() > 1e-3  # other frequencies


def test_xpos_that_hardly_fades_is_rope(tiny, ids):
    expected = tiny("rope", {"rotary_pct": 1.0})(ids).logits
    torch.testing.assert_close(tiny("xpos", {"scale_base": 1e8})(ids).logits, expected, atol=1e-4, rtol=0)
    assert (tiny("xpos", {"scale_base": 10})(ids).logits - expected).abs().max() > 0.1


def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    plain, slowed = (build(name, rotary_pct=1.0).frequencies("cpu") for name in ("rope", "ntk"))
    ratio = plain / slowed
    assert ratio[0].item() == 1
    assert ratio[-1].item() == pytest.approx(4, rel=1e-5)
    assert (ratio.diff() > 0).all()


def test_ntk_leaves_a_single_pair_alone():
    q, k = pair(10, head_dim=8)
    actual, expected = (turned(build(name, 8, rotary_pct=0.25), q, k) for name in ("ntk", "rope"))
    assert torch.equal(actual[0], expected[0])


def test_ropes_own_angles_are_as_ever():
    """The refactoring that these encodings rest on: the very operations, written out, give the very bits."""
    R, base, positions = 16, 10_000.0, torch.arange(3_000)[None]
    exponent = torch.arange(0, R, 2, dtype=torch.float32) / R
    angle = (positions[:, None, :, None].float() * (1.0 / base**exponent)).repeat(1, 1, 1, 2)
    cos, sin = build("rope").waves(positions)
    assert torch.equal(cos, angle.cos())
    assert torch.equal(sin, angle.sin())


# --- length extension of a trained model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_model_trained_with_rope_can_be_extended(tiny, name):
    """Only the configuration changes: the same weights load strictly, and longer texts are read with the new angles."""
    shared = {"rotary_pct": 0.5, "base": 1_000.0}
    rope = tiny("rope", shared, max_position_embeddings=16)
    config = rope.config.__class__(**{**rope.config.to_dict(), "encoding": name, "encoding_options": {**shared, "factor": 4}})
    extended = LabForCausalLM(config).eval()
    extended.load_state_dict(rope.state_dict(), strict=True)

    ids = torch.randint(97, (2, 64), generator=torch.Generator().manual_seed(0))
    logits = extended(ids).logits
    assert (logits - rope(ids).logits).abs().max() > 0.05
    first = extended(ids[:, :16])
    rest = extended(ids[:, 16:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat((first.logits, rest), 1), logits, atol=1e-5, rtol=1e-5)
    if name == "interpolated":  # position 4 p is where position p was
        stretched = extended(ids[:, :16], position_ids=4 * torch.arange(16)[None]).logits
        torch.testing.assert_close(stretched, rope(ids[:, :16]).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_model_trained_with_rope_can_be_extended_on_disk(tiny, ids, name, tmp_path):
    rope = tiny("rope", {"rotary_pct": 1.0})
    rope.save_pretrained(tmp_path)
    options = {"rotary_pct": 1.0, "factor": 1.0}
    extended = LabForCausalLM.from_pretrained(tmp_path, encoding=name, encoding_options=options)
    assert extended.config.encoding == name
    assert torch.equal(extended(ids).logits, rope(ids).logits)


def test_yarn_takes_the_length_trained_at():
    assert build("yarn", seq_len=64).ramp() == build("yarn", seq_len=512, original_length=64).ramp()
    assert build("yarn", seq_len=64, rotary_pct=1.0).ramp() != build("yarn", seq_len=2_048, rotary_pct=1.0).ramp()


# --- limits and labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *[(name, {"factor": 0.5}, "factor=0.5: .*greater than or equal to 1") for name in EXTENSIONS],
        *[(name, {"factor": math.inf}, "factor=inf: .*") for name in EXTENSIONS],
        *[(name, {"rotary_pct": 0.3}, r"rotary_pct=0\.3 of 64 dimensions is 19\.2; an even .*") for name in EXTENSIONS],
        *[(name, {"base": 1}, "base=1: .*greater than 1") for name in (*EXTENSIONS, "xpos", "p_rope")],
        ("yarn", {"beta_fast": 1}, "beta_fast=1: must be greater than beta_slow=1"),
        ("yarn", {"beta_slow": 0}, "beta_slow=0: .*greater than 0"),
        ("yarn", {"original_length": 0}, "original_length=0: .*"),
        ("xpos", {"scale_base": 0}, "scale_base=0: .*greater than 0"),
        ("xpos", {"rotary_pct": 0.3}, r"rotary_pct=0\.3 .*"),
        ("p_rope", {"p": 1.1}, r"p=1\.1: .*less than or equal to 1"),
        ("p_rope", {"p": True}, "p=True: .*"),
        ("p_rope", {"p": 0.03}, r"p=0\.03 of 64 dimensions is 1\.92; an even number is needed: p=0 or 0\.03125, say"),
        ("p_rope", {"p": 0.7}, r"p=0\.7 of 64 dimensions is 44\.8; .*: p=0\.6875 or 0\.71875, say"),
        ("clipped_rope", {"clipped": 0.3}, r"clipped=0\.3 of 64 dimensions is 19\.2; .*"),
        ("clipped_rope", {"clipped": 0.07}, r"clipped=0\.07 of 64 dimensions is 4\.48; .*: clipped=0\.0625 or 0\.09375, say"),
        ("clipped_rope", {"clipped": 0.03125}, r"clipped=0\.03125 of 64 dimensions is 2; .*: clipped=0 or 0\.0625, say"),
        (
            "tapa",
            {"amplitude": 0.31},
            r"amplitude=0\.31 of 64 dimensions is 19\.84; a whole number .*: amplitude=0\.296875 or .*",
        ),
        ("tapa", {"amplitude": 0.999999}, r"amplitude=0\.999999 leaves no dimension of 64 to the phase"),
        ("p_rope", {"rotary_pct": 1.0}, "unknown setting 'rotary_pct'.*"),
    ],
)
def test_limits(name, options, message):
    with pytest.raises(ConfigError, match=f"^encoding '{name}': {message}$"):
        build(name, **options)


@pytest.mark.parametrize(("option", "dims"), [("rotary_pct", 33), ("rotary_pct", 96), ("clipped", 32)])
def test_a_share_that_is_suggested_is_taken(option, dims):
    for share in (0.01, 0.07, 0.3, 0.55, 0.999):
        try:
            build("clipped_rope", dims, **{option: share})
        except ConfigError as error:
            for value in re.findall(rf"{option}=([\d.]+) or ([\d.]+), say", str(error))[0]:
                build("clipped_rope", dims, **{option: float(value)})


def test_p_rope_needs_pairs():
    with pytest.raises(ConfigError, match=r"^encoding 'p_rope': head dimension 15: an even number is needed$"):
        build("p_rope", 15)


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("xpos", {}, "xPos 100 %"),
        ("xpos", {"scale_base": 64, "rotary_pct": 0.25}, "xPos 25 %, scale base 64"),
        ("p_rope", {}, "p-RoPE, p = 0.75"),
        ("p_rope", {"p": 0.5, "base": 500_000}, "p-RoPE, p = 0.5, base 500000"),
        ("interpolated", {}, "Interpolated 25 %, factor 4"),
        ("ntk", {"factor": 2, "rotary_pct": 1}, "NTK-aware 100 %, factor 2"),
        ("yarn", {"factor": 16, "base": 500}, "YaRN 25 %, base 500, factor 16"),
    ],
)
def test_labels(name, options, label):
    assert encodings.label(name, options) == label
