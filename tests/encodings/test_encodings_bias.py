"""Encodings that add a bias to the scores: t5, kerple, sandwich, fire, shaw, alibi_learned. For all: test_encodings.py."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import _apply_relative_key_position_encoding

from pe_core import LabForCausalLM, encodings
from pe_core.encodings import fire
from pe_core.errors import ConfigError
from pe_core.schema import Shape

H, K, L = 4, 16, 64  # heads, head dimension, length trained at

# Every encoding here, in every form whose computation differs.
FORMS = [
    ("alibi_learned", {}),
    ("t5", {}),
    ("kerple", {"kind": "log"}),
    ("kerple", {"kind": "power"}),
    ("sandwich", {}),
    ("fire", {}),
    ("fire", {"shared": True}),
    ("shaw", {}),
]
forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=str)


@torch.no_grad()
def build(name, heads=H, head_dim=K, seq_len=L, **options):
    """The encoding with its parameters as initialised, and some noise on them so that nothing is small or equal."""
    hooks = encodings.build(name, options, Shape(heads * head_dim, heads, head_dim, 2, seq_len))
    generator = torch.Generator().manual_seed(0)
    for own, parameter in hooks.named_parameters():
        hooks.init_parameter(own, parameter, generator)
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return hooks


def queries(B, T, heads=H, seed=0):
    return torch.randn(B, heads, T, K, generator=torch.Generator().manual_seed(seed))


def full(hooks, query, key, q=None):
    """The bias as (B, H, T, S), 0 where the key comes after the query."""
    heads = hooks.shape.heads
    q = queries(len(query), query.shape[1], heads) if q is None else q
    bias = hooks.bias(q, None, query, key, None)
    assert bias.dtype == torch.float32
    visible = (key[:, None, None, :] <= query[:, None, :, None]).expand(len(q), heads, -1, -1)
    return bias.expand_as(visible).where(visible, 0)


def by_loops(score, heads, positions):
    """What `full` returns for one row of positions, from a formula of head, query's and key's place in the row, in fp64."""
    T = len(positions)
    rows = [[[score(h, t, s) if s <= t else 0.0 for s in range(T)] for t in range(T)] for h in range(heads)]
    return torch.tensor([rows], dtype=torch.float64)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=1e-5)


# --- all of them -----------------------------------------------------------------------------------------------------


@forms
def test_a_cached_token_sees_what_it_saw_in_the_whole_window(name, options):
    hooks, key, q = build(name, **options), torch.arange(40)[None], queries(1, 40)
    whole = full(hooks, key, key, q)
    for T in (1, 3):
        close(full(hooks, key[:, -T:], key, q[:, :, -T:]), whole[:, :, -T:], 1e-6 if name != "sandwich" else 1e-5)


@forms
def test_rows_have_positions_of_their_own(name, options):
    """Left padding: the second row begins three tokens later."""
    hooks, q = build(name, **options), queries(2, 20)
    key = torch.stack((torch.arange(20), (torch.arange(20) - 3).clamp(min=0)))
    both = full(hooks, key, key, q)
    for row in range(2):
        close(both[row : row + 1], full(hooks, key[row : row + 1], key[row : row + 1], q[row : row + 1]), 1e-6)
    close(both[1, :, 3:, 3:], full(hooks, key[:1, :17], key[:1, :17], q[1:, :, 3:])[0])


@forms
def test_batches_share_what_does_not_depend_on_them(name, options):
    hooks, key = build(name, **options), torch.arange(9)[None]
    assert len(hooks.bias(queries(3, 9), None, key, key, None)) == (3 if name == "shaw" else 1)


@forms
def test_autocast_leaves_the_bias_exact(name, options):
    if name == "shaw":
        pytest.skip("its bias is a product with queries, and as precise as the scores are")
    hooks, key = build(name, **options), torch.arange(400)[None]
    expected = hooks.bias(None, None, key[:, -5:], key, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hooks.bias(None, None, key[:, -5:], key, None), expected)


@forms
def test_gradients_are_finite_though_some_keys_come_later(name, options):
    hooks, key = build(name, **options), torch.arange(30)[None]
    bias = hooks.bias(queries(1, 30), None, key, key, None)
    if name == "sandwich":
        assert not list(hooks.parameters())
        return
    bias.masked_fill(key[0] > key[0][:, None], -math.inf).softmax(-1).square().sum().backward()
    layers = 1 if options.get("shared") or name in ("t5", "kerple", "alibi_learned") else 2
    for own, parameter in hooks.named_parameters():
        grad = parameter.grad if layers == 1 else parameter.grad[0]
        assert grad.isfinite().all(), own
        assert grad.any(), own
        assert layers == 1 or not parameter.grad[1].any(), own  # the other layer's


@pytest.mark.slow
@forms
def test_compiled_gradients(name, options):
    if name == "sandwich" or not options:
        pytest.skip("nothing is learned" if name == "sandwich" else "in a whole model: core/test_first_steps.py")
    hooks, key, q = build(name, **options), torch.arange(30)[None], queries(2, 30)
    visible, weights = key[0] <= key[0][:, None], torch.randn(30, 30, generator=torch.Generator().manual_seed(1))

    def loss():
        return (hooks.bias(q, None, key, key, None).where(visible, -math.inf).softmax(-1) * weights).sum()

    expected = torch.autograd.grad(loss(), list(hooks.parameters()))
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, dynamic=False)(), list(hooks.parameters()))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("t5", {}, "T5 bias"),
        ("t5", {"buckets": 16}, "T5 bias 16 of 128"),
        ("kerple", {}, "KERPLE log"),
        ("kerple", {"kind": "power"}, "KERPLE power"),
        ("sandwich", {}, "Sandwich"),
        ("sandwich", {"dim": 64}, "Sandwich 64"),
        ("fire", {}, "FIRE"),
        ("fire", {"shared": True, "width": 8, "threshold": 512}, "FIRE, width 8, shared, L 512"),
        ("shaw", {}, "Shaw"),
        ("shaw", {"max_distance": 8}, "Shaw 8"),
        ("alibi_learned", {}, "ALiBi learned"),
        ("alibi_learned", {"start": 0.0625}, "ALiBi learned from 0.0625"),
    ],
)
def test_labels(name, options, label):
    assert encodings.label(name, options) == label


@pytest.mark.parametrize(
    ("name", "option", "bad"),
    [
        ("t5", "buckets", (1, 4_097, 2.5, True)),
        ("t5", "max_distance", (1, 2**21, None)),
        ("kerple", "kind", ("linear", None, 1)),
        ("sandwich", "dim", (0, 3, 4_098, None)),
        ("fire", "width", (0, 4_097, None)),
        ("fire", "threshold", (0, -1, math.inf, math.nan, True)),
        ("fire", "shared", (None, 2, "both")),
        ("shaw", "max_distance", (0, 65_537, None, 1.5)),
    ],
)
def test_limits(name, option, bad):
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^encoding '{name}': {option}={value!r}: [^\n]+$"):
            encodings.options(name, {option: value})


# --- T5 --------------------------------------------------------------------------------------------------------------

# Where buckets begin at powers of two rounding decides, with 20 of 32 some are empty, and 33 have no exact half.
BUCKETS = [(32, 128), (8, 64), (32, 20), (33, 50), (2, 5), (64, 2_048)]


@pytest.mark.parametrize(("buckets", "max_distance"), BUCKETS)
@pytest.mark.parametrize(("T", "past"), [(300, 0), (3, 297)])
def test_t5_equals_transformers(buckets, max_distance, T, past):
    hooks = build("t5", buckets=buckets, max_distance=max_distance)
    config = T5Config(
        d_model=H * K,
        num_heads=H,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=True,
    )
    reference = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    reference.relative_attention_bias.weight = hooks.table
    expected = reference.compute_bias(T, T + past, past_seen_tokens=past)
    key = torch.arange(T + past)[None]
    visible = key[:, None, :] <= key[:, past:, None]
    assert torch.equal(full(hooks, key[:, past:], key), expected.where(visible, 0))


@pytest.mark.parametrize(("buckets", "max_distance"), BUCKETS)
def test_t5_equals_x_transformers(buckets, max_distance):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from x_transformers.x_transformers import RelativePositionBias

    hooks, key = build("t5", buckets=buckets, max_distance=max_distance), torch.arange(200)[None]
    reference = RelativePositionBias(1.0, causal=True, num_buckets=buckets, max_distance=max_distance, heads=H)
    reference.relative_attention_bias.weight = hooks.table
    assert torch.equal(full(hooks, key, key), reference(200, 200).tril()[None])


def test_t5_buckets_by_hand():
    """The docstring's formula; 16 is the first distance that shares a bucket, 128 the first that may not be told apart."""
    hooks = build("t5", heads=1)

    def bucket(d):
        return d if d < 16 else min(31, 16 + int(16 * math.log(d / 16) / math.log(128 / 16)))

    key = torch.tensor([[0, 5, 15, 16, 17, 40, 112, 113, 127, 128, 129, 100_000]])
    expected = by_loops(lambda h, t, s: hooks.table[bucket(int(key[0, t] - key[0, s])), h].item(), 1, key[0])
    assert torch.equal(full(hooks, key, key).double(), expected)
    assert [bucket(d) for d in (15, 16, 17, 18, 127, 128)] == [15, 16, 16, 16, 31, 31]


def test_t5_without_a_table_is_no_encoding(tiny, ids):
    model = tiny("t5", attention="eager")
    assert model.encoding.table.shape == (32, 4)
    model.encoding.table.data.zero_()
    assert torch.equal(model(ids).logits, tiny("none", attention="eager")(ids).logits)


def test_t5_needs_room_for_its_far_buckets():
    message = r"^encoding 't5': max_distance=16: more than buckets // 2 = 16 is needed$"
    with pytest.raises(ConfigError, match=message):
        build("t5", max_distance=16)
    assert build("t5", max_distance=17).table.shape == (32, H)


# --- KERPLE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["log", "power"])
def test_kerple_by_hand(kind):
    hooks, positions = build("kerple", kind=kind), [0, 1, 2, 3, 7, 20, 150]
    s1, s2 = hooks.free_r1.tolist(), hooks.free_r2.tolist()

    def score(h, t, s):
        d, r1 = positions[t] - positions[s], math.log(1 + math.exp(s1[h]))
        if kind == "power":
            return -r1 * d ** (2 / (1 + math.exp(-s2[h])))
        return -r1 * math.log(1 + math.log(1 + math.exp(s2[h])) * d)

    key = torch.tensor([positions])
    close(full(hooks, key, key), by_loops(score, H, positions))


@torch.no_grad()
def test_kerple_power_one_is_alibi():
    hooks, alibi, key = build("kerple", kind="power"), build("alibi"), torch.arange(50)[None]
    hooks.free_r2.zero_()
    hooks.free_r1.copy_(torch.tensor(alibi.slopes()).expm1().log())
    close(full(hooks, key, key), full(alibi, key, key))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tops"), [("log", (2, 1)), ("power", (1, 2))])
def test_kerple_starts_as_the_authors_do(kind, tops):
    hooks = encodings.build("kerple", {"kind": kind}, Shape(4_096, 1_024, 4, 2, L))
    for name, parameter in hooks.named_parameters():
        hooks.init_parameter(name, parameter, torch.Generator().manual_seed(3))
    for r, top in zip(hooks.kernel(), tops, strict=True):
        assert r.min() >= 0.01 - 1e-6
        assert 0.98 * top < r.max() <= top
        assert abs(r.mean() - top / 2) < 0.05 * top


@torch.no_grad()
def test_kerple_stays_positive():
    for kind in ("log", "power"):
        hooks, key = build("kerple", kind=kind), torch.arange(5)[None]
        for free in (-30.0, 30.0):
            hooks.free_r1.fill_(free)
            hooks.free_r2.fill_(free)
            r1, r2 = hooks.kernel()
            assert (r1 > 0).all()
            assert (r2 > 0).all()
            assert kind == "log" or (r2 <= 2).all()
            assert (full(hooks, key, key) <= 0).all()


# --- Sandwich --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 3, 4, 8])
@pytest.mark.parametrize("dim", [2, 64, 128])
def test_sandwich_by_hand(heads, dim):
    """Inner products of sinusoidal vectors, divided by each head's 8h/H, less the constant at distance 0."""
    hooks, positions = build("sandwich", heads=heads, dim=dim), [0, 1, 2, 3, 10, 60, 200]
    angles = [[p / 10_000 ** (2 * m / dim) for m in range(1, dim // 2 + 1)] for p in positions]
    vectors = [[wave(a) for a in row for wave in (math.sin, math.cos)] for row in angles]

    def score(h, t, s):
        return (sum(a * b for a, b in zip(vectors[t], vectors[s], strict=True)) - dim / 2) / (8 * (h + 1) / heads)

    key = torch.tensor([positions])
    # The product sums to dim/2 before it is divided: 64 has steps of 4e-6 in fp32, and one head divides by 1/heads · 8.
    close(full(hooks, key, key), by_loops(score, heads, positions), max(1e-5, 4e-6 * dim * heads / 128))


def test_sandwich_is_as_exact_far_from_the_start():
    hooks, key = build("sandwich"), torch.arange(50)[None]
    far = key + 10_000_000
    assert torch.equal(full(hooks, far, far), full(hooks, key, key))


def test_sandwich_falls_like_a_logarithm():
    """The paper's comparison with KERPLE: wavelengths are spread evenly on a logarithmic scale, so that each doubling of
    the distance costs dim/2 · ln 2 / ln 10,000 on average."""
    hooks, key = build("sandwich", heads=1), torch.arange(1_025)[None]
    bias = full(hooks, key[:, -1:], key)[0, 0, 0].flip(0)
    assert bias[0] == 0
    assert float(bias[8] - bias[1_024]) / 7 == pytest.approx(64 * math.log(2) / math.log(10_000) / 8, rel=0.1)
    assert not list(hooks.parameters())


# --- FIRE ------------------------------------------------------------------------------------------------------------


def fire_by_hand(hooks, layer, positions):
    c, multiple = hooks.c[layer].item(), hooks.multiple[layer].item()
    v, b, W = (p[layer].tolist() for p in (hooks.v, hooks.b, hooks.W))

    def score(h, t, s):
        i, j = positions[t], positions[s]
        most = max(abs(multiple * hooks.threshold), i)
        x = math.log(1 + abs(c) * (i - j)) / (math.log(1 + abs(c) * most) + 1e-6)
        return sum(max(0.0, v[m] * x + b[m]) * W[m][h] for m in range(len(v)))

    return by_loops(score, hooks.shape.heads, positions)


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"width": 5, "threshold": 3.5}], ids=str)
def test_fire_by_hand(options):
    hooks, positions = build("fire", **options), [0, 1, 2, 3, 9, 15, 16, 17, 40, 300]
    key = torch.tensor([positions])
    for layer in range(2):
        own = 0 if options.get("shared") else layer
        close(full(hooks.for_layer(layer), key, key), fire_by_hand(hooks, own, positions))
    assert len(hooks.c) == (1 if options.get("shared") else 2)


@torch.no_grad()
def test_fire_parameters_below_zero_are_their_absolute_values():
    hooks, key = build("fire"), torch.arange(30)[None]
    expected = full(hooks, key, key)
    hooks.c.neg_()
    hooks.multiple.neg_()
    assert torch.equal(full(hooks, key, key), expected)


@torch.no_grad()
def test_fire_starts_as_the_authors_do():
    hooks = encodings.build("fire", {}, Shape(H * K, H, K, 2, 2_048))
    for name, parameter in hooks.named_parameters():
        hooks.init_parameter(name, parameter, torch.Generator().manual_seed(0))
    assert hooks.threshold == 512
    assert torch.equal(hooks.c, torch.full((2,), 0.1))
    assert torch.equal(hooks.multiple, torch.ones(2))
    linear = torch.nn.Linear(32, H)
    for own, of in ((hooks.W, linear.weight), (hooks.v, torch.nn.Linear(1, 32).weight)):
        assert own.abs().max() == pytest.approx(float(of.abs().max()), rel=0.15)


@torch.no_grad()
def test_fire_interpolates_beyond_its_threshold_alone():
    """Below L a bias is the distance's alone; beyond, it is the same for the same share of the text."""
    hooks, key = build("fire", threshold=100), torch.arange(40)[None]
    hooks.multiple.fill_(1)
    close(full(hooks, key + 50, key + 50), full(hooks, key, key), 1e-6)
    assert (full(hooks, key + 100, key + 100) - full(hooks, key, key)).abs().max() > 0.01
    first = [full(hooks, torch.tensor([[i]]), torch.tensor([[0]])) for i in (100, 1_000, 100_000)]
    close(first[1], first[0])
    close(first[2], first[0])


def test_fire_in_pieces(monkeypatch):
    hooks, key = build("fire"), torch.arange(23)[None]
    expected = full(hooks, key, key)
    for at_once in (1, 23 * 32 * 4):
        monkeypatch.setattr(fire, "_AT_ONCE", at_once)
        close(full(hooks, key, key), expected, 1e-6)


# --- Shaw ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_distance", [1, 4, 16, 100])
def test_shaw_by_hand(max_distance):
    hooks, positions = build("shaw", max_distance=max_distance), [0, 1, 2, 4, 5, 20, 21, 90]
    key, q = torch.tensor([positions]), queries(1, len(positions))
    for layer in range(2):
        table = hooks.tables[layer].tolist()

        def score(h, t, s, table=table):
            a = table[min(positions[t] - positions[s], max_distance)]
            return sum(x * y for x, y in zip(q[0, h, t].tolist(), a, strict=True)) / math.sqrt(K)

        close(full(hooks.for_layer(layer), key, key, q), by_loops(score, H, positions))


@pytest.mark.parametrize("max_distance", [3, 16, 64])
def test_shaw_equals_transformers(max_distance):
    """Wav2Vec2-BERT's `relative_key`, whose table counts the other way, without later tokens."""
    hooks, key, q = build("shaw", max_distance=max_distance), torch.arange(50)[None], queries(2, 50)
    embedding = torch.nn.Embedding.from_pretrained(hooks.tables[0].detach().flip(0))
    reference = SimpleNamespace(
        left_max_position_embeddings=max_distance,
        right_max_position_embeddings=0,
        distance_embedding=embedding,
        scaling=K**-0.5,
    )
    _, expected = _apply_relative_key_position_encoding(reference, q, q)
    close(full(hooks, key, key, q), expected.tril())


def test_shaw_layers_have_tables_of_their_own(tiny, ids):
    model = tiny("shaw")
    assert model.encoding.tables.shape == (2, 17, 16)
    expected = model(ids).logits
    model.encoding.tables.data = model.encoding.tables.data.flip(0)
    assert (model(ids).logits - expected).abs().max() > 0.01
    model.encoding.tables.data.zero_()
    close(model(ids).logits, tiny("none")(ids).logits)


def test_shaw_looks_at_its_own_dimensions(tiny, ids):
    """Beside an encoding that appends dimensions to queries, and in latent attention beside one that rotates its own."""
    hooks, key, q = build("shaw"), torch.arange(9)[None], queries(1, 9)
    assert torch.equal(full(hooks, key, key, torch.cat((q, q), -1)), full(hooks, key, key, q))
    mixed = tiny("mix", {"parts": [{"encoding": "rope"}, {"encoding": "shaw"}]}, attention_kind="mla", rope_dim=8)
    assert mixed(ids).logits.isfinite().all()


# --- initial values of whole models ----------------------------------------------------------------------------------


@forms
def test_models_start_from_their_seed(tiny, name, options):
    config = tiny(name, options).config
    first, again, other = (LabForCausalLM(config).initialise(seed).encoding for seed in (0, 0, 1))
    drawn = ["free_r1", "free_r2", "table", "tables", "v", "b", "W"]
    for own, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(own))
        assert torch.equal(parameter, other.get_parameter(own)) == (own not in drawn)
