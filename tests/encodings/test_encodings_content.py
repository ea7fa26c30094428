"""Encodings by content: cope, fox, cable, pope, stick_breaking, path, selective_rope. For all: test_encodings.py."""

import math
import warnings

import pytest
import torch
from hooks import D, H, K, build, by_loops, close, dot, fp64, inputs, randn, sigmoid, softplus, weights
from torch.nn import functional as F

from pe_core import LabForCausalLM, encodings
from pe_core.errors import ConfigError

# Every encoding here, in every form whose computation differs.
FORMS = [
    ("cope", {}),
    ("cope", {"npos_max": 3}),
    ("fox", {}),
    ("cable", {}),
    ("pope", {}),
    ("pope", {"phase": "uniform"}),
    ("stick_breaking", {}),
    ("stick_breaking", {"rest": "nothing"}),
    ("path", {}),
    ("selective_rope", {}),
    ("selective_rope", {"bias": True}),
]
forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
KEEPERS = [form for form in FORMS if form[0] in ("fox", "cable", "path", "selective_rope")]


@pytest.fixture(scope="module")
def x_transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from x_transformers import x_transformers
    return x_transformers


# --- all of them -----------------------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("T", [1, 3, 40])
def test_a_cached_token_sees_what_it_saw_in_the_whole_window(name, options, T):
    """Across the chunks that PaTH works in, too."""
    hooks, given = build(name, **options), inputs(2, 75)
    close(weights(hooks, *given, T=T)[0], weights(hooks, *given)[0][:, :, -T:], 1e-6)


@forms
def test_weights_are_weights(name, options):
    found, _ = weights(build(name, **options), *inputs(2, 30))
    assert (found >= 0).all()
    assert not found.triu(1).any()
    if options.get("rest") == "nothing":
        assert not found[:, :, 0].any()
        assert (found.sum(-1) < 1 + 1e-6).all()
        assert found[:, :, 1].sum(-1).max() < 0.99
    else:
        close(found.sum(-1), torch.ones(2, H, 30))


@forms
def test_later_tokens_change_no_bit(name, options):
    hooks, (q, k, x), (q2, k2, x2) = build(name, **options), inputs(1, 40), inputs(1, 40, seed=7)
    expected, _ = weights(hooks, q, k, x)
    for old, new in ((q, q2), (k, k2), (x, x2)):
        old[:, ..., 33:, :] = new[:, ..., 33:, :]
    changed, _ = weights(hooks, q, k, x)
    assert torch.equal(changed[:, :, :33], expected[:, :, :33])
    assert not torch.equal(changed[:, :, 33:], expected[:, :, 33:])


@forms
def test_autocast_leaves_what_is_summed_exact(name, options):
    """Gates, angles and directions in bf16 would add up their errors over hundreds of tokens."""
    hooks, (q, k, x) = build(name, **options), inputs(1, 100)
    expected = hooks.token_state(x, torch.arange(100)[None])
    with torch.autocast("cpu", torch.bfloat16):
        token_state = hooks.token_state(x, torch.arange(100)[None])
        mixed, _ = weights(hooks, q.bfloat16(), k.bfloat16(), x)
    assert (token_state is None) == (expected is None)
    assert token_state is None or (token_state.dtype == torch.float32 and torch.equal(token_state, expected))
    exact, _ = weights(hooks, q, k, x)
    assert (mixed.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


@forms
def test_gradients_are_finite_and_reach_one_layer(name, options):
    hooks, (q, k, x) = build(name, **options), inputs(1, 30)
    (weights(hooks, q.requires_grad_(), k, x)[0] * randn(30, 30)).sum().backward()
    assert q.grad.isfinite().all()
    for own, parameter in hooks.named_parameters():
        assert parameter.grad.isfinite().all(), own
        assert parameter.grad[1].any(), own
        assert not parameter.grad[0].any(), own  # the other layer's


@pytest.mark.slow
@forms
def test_compiled_gradients(name, options):
    if not options:
        pytest.skip("in a whole model: core/test_first_steps.py")
    if not list(build(name, **options).parameters()):
        pytest.skip("nothing is learned")
    hooks, given, mixed = build(name, **options), inputs(2, 40), randn(40, 40)

    def loss():
        return (weights(hooks, *given)[0] * mixed).sum()

    parameters = list(hooks.parameters())
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True, dynamic=False)(), parameters)
    for a, e in zip(actual, torch.autograd.grad(loss(), parameters), strict=True):
        torch.testing.assert_close(a, e, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), KEEPERS, ids=str)
def test_padding_keeps_zeros(tiny, ids, name, options):
    """And zeros mean that nothing is there: rows are what they are alone."""
    model, mask = tiny(name, options), torch.ones_like(ids)
    mask[1, :4] = 0
    together = model(ids, attention_mask=mask)
    for layer in together.past_key_values.layers[2:]:
        assert layer.keys.dtype == torch.float32
        assert not layer.keys[1, :, :4].any()
        assert layer.keys[1, :, 4:].any()
        assert layer.keys[0, :, :4].any()
    torch.testing.assert_close(together.logits[1, 4:], model(ids[1:2, 4:]).logits[0], atol=1e-5, rtol=1e-5)
    more = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), 1)
    after = model(ids[:, :1], attention_mask=more, past_key_values=together.past_key_values).logits
    alone = model(torch.cat((ids[1:2, 4:], ids[1:2, :1]), 1)).logits[:, -1:]
    torch.testing.assert_close(after[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("cope", {}, "CoPE"),
        ("cope", {"npos_max": 16}, "CoPE 16"),
        ("fox", {}, "FoX"),
        ("fox", {"start": 5}, "FoX from 5"),
        ("cable", {}, "CABLE"),
        ("cable", {"start": -3.5}, "CABLE from -3.5"),
        ("pope", {}, "PoPE"),
        ("pope", {"phase": "uniform", "base": 500}, "PoPE, base 500, uniform phases"),
        ("stick_breaking", {}, "Stick-breaking"),
        ("stick_breaking", {"rest": "nothing"}, "Stick-breaking, no rest"),
        ("path", {}, "PaTH"),
        ("path", {"rank": 8}, "PaTH rank 8"),
        ("selective_rope", {}, "Selective RoPE"),
        ("selective_rope", {"base": 10_000, "rank": 8, "bias": True}, "Selective RoPE, base 10000, rank 8, bias"),
    ],
)
def test_labels(name, options, label):
    assert encodings.label(name, options) == label


@pytest.mark.parametrize(
    ("name", "option", "bad"),
    [
        ("cope", "npos_max", (1, 65_537, 2.5, True)),
        ("fox", "start", (math.nan, math.inf, 21, True)),
        ("cable", "start", (None, -21)),
        ("pope", "base", (1, math.inf)),
        ("pope", "phase", ("one", 0, None)),
        ("stick_breaking", "rest", ("all", None, 1)),
        ("path", "rank", (0, 4_097, None)),
        ("selective_rope", "base", (1, None)),
        ("selective_rope", "rank", (0, 1.5)),
        ("selective_rope", "bias", (None, 2, "both")),
    ],
)
def test_limits(name, option, bad):
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^encoding '{name}': {option}={value!r}: [^\n]+$"):
            encodings.options(name, {option: value})


# --- CoPE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("npos_max", [2, 5, 64])
def test_cope_equals_x_transformers(x_transformers, npos_max):
    """Its scores are scaled and its table is not: the two products here share one scale."""
    hooks, (q, k, x) = build("cope", npos_max=npos_max), inputs(2, 40)
    reference = x_transformers.CoPE(K, H, npos_max)
    reference.pos_emb.data.copy_(hooks.tables[1] / math.sqrt(K))
    later = torch.ones(40, 40).triu(1).bool()
    expected = (q @ k.mT / math.sqrt(K)).masked_fill(later, -torch.finfo(torch.float32).max)
    expected = (expected + reference(q, expected)).softmax(-1)
    close(weights(hooks, q, k, x)[0], expected)


@pytest.mark.parametrize("npos_max", [2, 5, 64])
def test_cope_by_hand(npos_max):
    hooks, (q, k, x) = build("cope", npos_max=npos_max), inputs(1, 20)
    (queries,), (keys,), (_, table) = fp64(q, k, hooks.tables)

    def score(h, i, j):
        query, root = queries[h][i], math.sqrt(K)
        count = sum(sigmoid(dot(query, keys[h][s]) / root) for s in range(j, i + 1))
        count = min(count, npos_max - 1)
        low, high = math.floor(count), math.ceil(count)
        vector = [(1 - (count - low)) * a + (count - low) * b for a, b in zip(table[low], table[high], strict=True)]
        return dot(query, [a + b for a, b in zip(keys[h][j], vector, strict=True)]) / root

    close(weights(hooks, q, k, x)[1], by_loops(score, 20))


def test_cope_starts_as_no_encoding(tiny, ids):
    model = tiny("cope")
    assert model.encoding.tables.shape == (2, 64, 16)
    model.encoding.tables.data.zero_()
    torch.testing.assert_close(model(ids).logits, tiny("none")(ids).logits, atol=1e-5, rtol=1e-5)
    assert not LabForCausalLM(model.config).initialise(3).encoding.tables.any()


# --- FoX and CABLE ---------------------------------------------------------------------------------------------------


def test_fox_equals_x_transformers(x_transformers):
    hooks, (q, k, x) = build("fox"), inputs(2, 50)
    reference = x_transformers.DataDependentAlibi(D, H)
    linear = reference.to_forget_gates[0]
    linear.weight.data.copy_(hooks.w[1])
    linear.bias.data.copy_(hooks.b[1])
    key = torch.arange(50)[None]
    actual = hooks.bias(q, k, key, key, hooks.token_state(x, key))
    close(actual.tril(), reference(x).tril())


@pytest.mark.parametrize("name", ["fox", "cable"])
def test_gates_by_hand(name):
    hooks, (q, k, x) = build(name), inputs(1, 20)
    (queries,), (keys,), (tokens,), (_, w), (_, b) = fp64(q, k, x, hooks.w, hooks.b)

    def score(h, i, j):
        inner = [dot(w[h], tokens[t]) + b[h] for t in range(j + 1, i + 1)]
        charge = [math.log(sigmoid(y)) if name == "fox" else -softplus(y) for y in inner]
        return dot(queries[h][i], keys[h][j]) / math.sqrt(K) + sum(charge)

    close(weights(hooks, q, k, x)[1], by_loops(score, 20))


@torch.no_grad()
def test_cable_is_fox_with_its_parameters_negated():
    fox, cable, given = build("fox"), build("cable"), inputs(2, 30)
    cable.w.copy_(-fox.w)
    cable.b.copy_(-fox.b)
    close(weights(cable, *given)[0], weights(fox, *given)[0], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["fox", "cable"])
def test_a_constant_gate_is_alibi(name):
    hooks, given = build(name), inputs(1, 30)
    hooks.w.zero_()
    slopes = torch.tensor(build("alibi").slopes())
    # log sigmoid(b) = -slope
    hooks.b.copy_(-slopes.expm1().log() if name == "fox" else slopes.expm1().log())
    close(weights(hooks, *given)[0], weights(build("alibi"), *given)[0])


def test_gates_start_as_their_authors_do():
    for name, start in (("fox", 0.0), ("fox", 5.0), ("cable", 0.0)):
        hooks = build(name, noise=0, start=start)
        assert (hooks.b == start).all()
        assert 0.015 < hooks.w.std() < 0.025
    token_state = build("fox", noise=0).token_state(randn(1, 200, D), torch.arange(200)[None])
    assert abs(token_state.exp().mean() - 0.5) < 0.01


# --- PoPE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "phase"), [(10_000.0, "zero"), (300.0, "uniform")])
@pytest.mark.parametrize("start", [0, 2_000])
def test_pope_equals_x_transformers(x_transformers, base, phase, start):
    hooks, (q, k, x) = build("pope", base=base, phase=phase), inputs(2, 30)
    reference = x_transformers.PolarEmbedding(K, H, base=base)
    reference.learned_bias.data.copy_(hooks.phases[1][:, None])
    positions = start + torch.arange(30)
    frequencies, bias = reference(positions)
    expected = x_transformers.apply_polar_pos_emb(q, frequencies)
    expected = expected @ x_transformers.apply_polar_pos_emb(k, frequencies + bias).mT
    turned_q, turned_k = hooks.transform_qk(q, k, positions[None], x)
    assert turned_q.shape == turned_k.shape == (2, H, 30, 2 * K)
    # Position 2,030 and a phase have one rounding of 1e-4 between them, and 16 terms of about 1.
    close(turned_q @ turned_k.mT, expected, 1e-5 if start == 0 else 2e-3)


@pytest.mark.parametrize("phase", ["zero", "uniform"])
def test_pope_by_hand(phase):
    hooks, (q, k, x) = build("pope", base=100.0, phase=phase), inputs(1, 15)
    (queries,), (keys,), (_, phases) = fp64(q, k, hooks.phases)

    def score(h, i, j):
        terms = []
        for m in range(K):
            shift = min(0, max(-2 * math.pi, phases[h][m]))
            angle = (i - j) * 100 ** (-m / K) - shift
            terms.append(softplus(queries[h][i][m]) * softplus(keys[h][j][m]) * math.cos(angle))
        return math.fsum(terms) / math.sqrt(K)

    close(weights(hooks, q, k, x)[1], by_loops(score, 15))


def test_pope_phases_start_where_they_are_told():
    assert not build("pope", noise=0).phases.any()
    phases = build("pope", noise=0, phase="uniform").phases / (2 * math.pi)
    assert -1 <= phases.min() < -0.9
    assert -0.1 < phases.max() <= 0
    q, k, x = inputs()
    (_, turned), (_, plain) = (build("pope", noise=noise).transform_qk(q, k, torch.arange(20)[None], x) for noise in (0.2, 0))
    assert torch.equal(turned, plain), "heads share keys, so phases turn queries alone"


def test_pope_phases_beyond_their_limits_do_not_learn():
    hooks, (q, k, x) = build("pope"), inputs()
    hooks.phases.data[1] = torch.linspace(-8, 1, K)
    turned_q, turned_k = hooks.transform_qk(q, k, torch.arange(20)[None], x)
    (turned_q @ turned_k.mT * randn(20, 20)).sum().backward()
    within = (hooks.phases[1] >= -2 * math.pi) & (hooks.phases[1] <= 0)
    assert torch.equal(hooks.phases.grad[1] != 0, within)


@pytest.mark.parametrize("heads", [[0, 2], None], ids=["other heads", "the same heads"])
def test_pope_twice_in_a_mix(heads):
    """The second turns the K numbers of its heads and leaves alone what the first has appended."""
    parts = [{"encoding": "pope", "heads": heads}, {"encoding": "pope", "options": {"base": 100}, "heads": [2, 4]}]
    hooks, (q, k, x), positions = build("mix", parts=parts), inputs(), torch.arange(20)[None]
    first, second = hooks.members
    if heads is None:
        (q_there, q_here), (k_there, k_here) = (y.split(2, dim=1) for y in first.transform_qk(q, k, positions, x))
    else:
        (q_there, k_there), q_here, k_here = first.transform_qk(q[:, :2], k[:, :2], positions, x), q[:, 2:], k[:, 2:]
    again_q, again_k = second.transform_qk(q_here[..., :K], k_here[..., :K], positions, x)
    expected = torch.cat((q_there @ k_there.mT, again_q @ again_k.mT + q_here[..., K:] @ k_here[..., K:].mT), dim=1)
    together_q, together_k = hooks.transform_qk(q, k, positions, x)
    close(together_q @ together_k.mT, expected)


# --- stick-breaking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", ["own", "nothing"])
def test_stick_breaking_by_hand(rest):
    hooks, (q, k, x) = build("stick_breaking", rest=rest), inputs(1, 20)
    (queries,), (keys,) = fp64(q, k)
    expected = torch.zeros(1, H, 20, 20, dtype=torch.float64)
    for h in range(H):
        for i in range(20):
            stick = 1.0
            for j in reversed(range(i)):
                share = sigmoid(dot(queries[h][i], keys[h][j]) / math.sqrt(K))
                expected[0, h, i, j] = stick * share
                stick *= 1 - share
            expected[0, h, i, i] = stick if rest == "own" else 0
    close(weights(hooks, q, k, x)[0], expected, 1e-6)


def test_stick_breaking_halves_where_all_keys_are_alike():
    found = build("stick_breaking").attention_weights(
        torch.zeros(1, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
    )
    assert found[0, 0, 4].tolist() == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 16])
    assert found[0, 0, 0].tolist() == [1, 0, 0, 0, 0]


def test_stick_breaking_survives_extreme_scores():
    scores = torch.tensor([300.0, -300.0, 80.0, -80.0, 0.0, 0.0]).expand(1, 1, 1, 6).clone().requires_grad_()
    found = build("stick_breaking").attention_weights(scores)
    found[..., 0].sum().backward()
    assert found.flatten().tolist() == pytest.approx([0, 0, 0.5, 0, 0.5, 0], abs=1e-6)
    assert scores.grad.isfinite().all()


# --- PaTH ------------------------------------------------------------------------------------------------------------


def path_by_hand(hooks, q, k, x):
    """The docstring's formula with every H a matrix, in fp64."""
    down, up, conv, a, c = (p[1].detach().double() for p in (hooks.down, hooks.up, hooks.conv, hooks.a, hooks.c))
    T, x = x.shape[1], x[0].double()
    low = (x @ down.T @ up.T).view(T, H, K)
    beta = 2 * (x @ a.T + c).sigmoid()
    expected = torch.full((1, H, T, T), -math.inf, dtype=torch.float64)
    for h in range(H):
        transforms = []
        for t in range(T):
            v = sum(conv[2 - lag, h] * low[t - lag, h] for lag in range(3) if t >= lag)
            w = F.silu(v) / F.silu(v).norm()
            transforms.append(torch.eye(K, dtype=torch.float64) - beta[t, h] * torch.outer(w, w))
        for i in range(T):
            moved = q[0, h, i].double()
            for j in reversed(range(i + 1)):
                expected[0, h, i, j] = moved @ k[0, h, j].double() / math.sqrt(K)
                moved = moved @ transforms[j]
    return expected


@pytest.mark.parametrize("T", [1, 20, 64, 65, 70])
@pytest.mark.parametrize("rank", [4, 32])
def test_path_by_hand(T, rank):
    hooks, given = build("path", rank=rank), inputs(1, T)
    close(weights(hooks, *given)[1], path_by_hand(hooks, *given))


@torch.no_grad()
def test_path_without_transforms_is_no_encoding(tiny, ids):
    model = tiny("path")
    model.encoding.a.zero_()
    model.encoding.c.fill_(-200)
    torch.testing.assert_close(model(ids).logits, tiny("none")(ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_path_of_reflections_keeps_lengths():
    """At β = 2 every transform is orthogonal: a set of K orthonormal keys catches all of a query, however far away."""
    hooks, (q, _, x) = build("path"), inputs(1, 50)
    hooks.a.zero_()
    hooks.c.fill_(200)
    k = torch.zeros(1, H, 50, K)
    k[:, :, :K] = torch.eye(K)
    token_state = hooks.token_state(x, torch.arange(50)[None])
    token_state[:, :, :K, -1] = 0  # the keys themselves are passed unchanged
    scores = hooks.scores(q, k, torch.arange(50)[None], torch.arange(50)[None], token_state) * math.sqrt(K)
    close(scores[:, :, K:, :K].norm(dim=-1), q[:, :, K:].norm(dim=-1))


def test_path_starts_by_erasing_one_direction_a_token():
    hooks = build("path", noise=0)
    token_state = hooks.token_state(randn(1, 300, D), torch.arange(300)[None])
    assert token_state.shape == (1, H, 300, K + 1)
    assert abs(token_state[..., -1].mean() - 1) < 0.02
    assert 0.8 < token_state[..., :-1].std() < 1.2
    assert torch.equal(hooks.conv[1, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]))


# --- Selective RoPE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"base": 50.0, "rank": 4}], ids=str)
def test_selective_rope_by_hand(options):
    """Pairs as complex numbers, angles added up token by token, in fp64."""
    hooks, (q, k, x) = build("selective_rope", **options), inputs(1, 20)
    down, up, conv = (p[1].detach().double() for p in (hooks.down, hooks.up, hooks.conv))
    M, base = K // 2, options.get("base", 500_000.0)
    parts = x[0].double().view(20, H, K)
    low = (parts / parts.norm(dim=-1, keepdim=True)).flatten(1) @ down.T @ up.T
    low = low.view(20, H, M)
    expected = torch.full((1, H, 20, 20), -math.inf, dtype=torch.float64)
    for h in range(H):
        angle, turned = torch.zeros(M, dtype=torch.float64), []
        for t in range(20):
            phi = sum(conv[3 - lag, h] * low[t - lag, h] for lag in range(4) if t >= lag)
            if options.get("bias"):
                phi = phi + hooks.c[1, h, 0].detach().double().exp()
            angle = angle + phi * torch.tensor([base ** (-2 * m / K) for m in range(M)], dtype=torch.float64)
            pairs = [torch.complex(*y[0, h, t].double().chunk(2)) for y in (q, k)]
            turned.append([y * torch.polar(torch.ones_like(angle), angle) for y in pairs])
        for i in range(20):
            for j in range(i + 1):
                expected[0, h, i, j] = (turned[i][0] * turned[j][1].conj()).real.sum() / math.sqrt(K)
    close(weights(hooks, q, k, x)[1], expected)


@torch.no_grad()
def test_selective_rope_generalises_rope():
    """Tokens that all turn by one."""
    hooks, given = build("selective_rope", base=10_000.0, bias=True), inputs(1, 50)
    hooks.up.zero_()
    hooks.c.zero_()
    close(weights(hooks, *given)[0], weights(build("rope", rotary_pct=1.0), *given)[0])


@torch.no_grad()
def test_selective_rope_that_turns_nothing_is_no_encoding(tiny, ids):
    model = tiny("selective_rope")
    model.encoding.up.zero_()
    torch.testing.assert_close(model(ids).logits, tiny("none")(ids).logits, atol=1e-5, rtol=1e-5)


def test_selective_rope_starts_with_small_turns():
    """sqrt(H / D) = 0.25 radians a token in the fastest pair."""
    token_state = build("selective_rope", noise=0, rank=64).token_state(randn(4, 200, D), torch.arange(200)[None])
    assert token_state.shape == (4, H, 200, K // 2)
    assert 0.2 < token_state.std() < 0.3
    with pytest.raises(ConfigError, match=r"^encoding 'selective_rope': head dimension 15: an even number is needed$"):
        build("selective_rope", head_dim=15)
