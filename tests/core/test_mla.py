"""Multi-head latent attention: two exact forms, one small cache; and mixes of encodings."""

from itertools import pairwise

import pytest
import torch
from helpers import tiny_config, tiny_model, tolerance

from pe_core import ENCODINGS, Experiment, LabForCausalLM, encodings, recipes
from pe_core.errors import ConfigError

C, R = 24, 8


def mla(encoding, options=None, form="auto", **changes):
    """The model whose rotary dimension, where the encoding has one, is 8 of 16."""
    options = {"rotary_pct": 1.0, **(options or {})} if encoding == "rope" else options
    return tiny_model(encoding, options, attention_kind="mla", kv_dim=C, latent_form=form, **changes)


def decode(model, ids, first=5):
    """Logits through the cache: some tokens at once, the others one by one."""
    out = model(ids[:, :first])
    logits, cache = [out.logits], out.past_key_values
    for t in range(first, ids.shape[1]):
        logits.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
    return torch.cat(logits, 1), cache


def test_absorbed_equals_expanded(encoding, ids):
    expanded = mla(encoding, form="expanded")(ids).logits
    torch.testing.assert_close(mla(encoding, form="absorbed")(ids).logits, expanded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
def test_decoding_equals_the_whole_window(encoding, ids, form):
    model = mla(encoding, form=form)
    expected = mla(encoding, form="expanded")(ids).logits
    torch.testing.assert_close(decode(model, ids)[0], expected, atol=tolerance(encoding) / 10, rtol=1e-5)


@pytest.mark.parametrize(("encoding", "cached"), [("none", C), ("alibi", C), ("rope", C + R)])
def test_the_cache_holds_latents_alone(ids, encoding, cached):
    _, cache = decode(mla(encoding), ids)
    numbers = sum(tensor.numel() for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert numbers == 3 * 12 * 2 * cached  # rows · tokens · layers


def test_left_padding_changes_nothing(encoding, ids):
    model = mla(encoding)
    padded = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), 1)
    mask = torch.cat((torch.zeros(3, 4, dtype=torch.long), torch.ones_like(ids)), 1)
    actual = model(padded, attention_mask=mask).logits[:, 4:]
    torch.testing.assert_close(actual, model(ids).logits, atol=tolerance(encoding) / 10, rtol=1e-5)


@pytest.mark.parametrize(("encoding", "rotary"), [("none", 0), ("alibi", 0), ("rope", R)])
def test_parameters_are_as_documented(encoding, rotary):
    D, H, K = 64, 4, 16
    attention = mla(encoding).layers[0].attention
    expected = D * H * (K + rotary) + D * (C + rotary) + C + 2 * C * H * K + D * D + D
    assert sum(parameter.numel() for parameter in attention.parameters()) == expected


def test_a_layer_is_the_papers_formulae():
    """Equations 9 to 19 in plain loops over heads and tokens, fp64, with RoPE decoupled."""
    model = mla("rope").double()
    attention, x = model.layers[0].attention, torch.randn(1, 6, 64, dtype=torch.float64)
    from pe_core.attention import Positions

    positions = torch.arange(6)[None]
    out, _ = attention(x, Positions(positions, positions))
    H, K = 4, 16
    down = x[0] @ attention.down.weight.T
    latent, k_r = down[:, :C], down[:, C:]
    latent = latent / (latent.square().mean(-1, keepdim=True) + 1e-5).sqrt() * attention.latent_norm.weight
    k_r = turn(k_r)
    q = (x[0] @ attention.query.weight.T).view(6, H, K + R)
    up = attention.up.weight.view(H, 2 * K, C)
    heads = []
    for h in range(H):
        k, v = latent @ up[h, :K].T, latent @ up[h, K:].T
        q_c, q_r = q[:, h, :K], turn(q[:, h, K:])
        rows = []
        for i in range(6):
            scores = torch.stack([(q_c[i] @ k[j] + q_r[i] @ k_r[j]) / (K + R) ** 0.5 for j in range(i + 1)])
            rows.append(scores.softmax(0) @ v[: i + 1])
        heads.append(torch.stack(rows))
    expected = torch.cat(heads, -1) @ attention.dense.weight.T + attention.dense.bias
    torch.testing.assert_close(out[0], expected, atol=1e-6, rtol=1e-6)


def turn(x_TR):
    """RoPE on all R dimensions as a product of complex numbers."""
    pairs = torch.complex(x_TR[:, : R // 2], x_TR[:, R // 2 :])
    angles = torch.tensor([[p * 10_000 ** (-2 * m / R) for m in range(R // 2)] for p in range(len(x_TR))], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


def test_saves_and_loads(encoding, ids, tmp_path):
    model = mla(encoding)
    model.save_pretrained(tmp_path)
    assert torch.equal(LabForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_dim": 32}, r"^kv_dim=32: only attention='mla' has it$"),
        ({"attention": "mla", "encoding": "none", "rope_dim": 8}, r"^rope_dim=8: encoding 'none' rotates nothing$"),
        ({"attention": "mha2"}, r"^attention='mha2': .*'mha' or 'mla'"),
        ({"attention": "mla", "kv_dim": 0}, r"^kv_dim=0: .*"),
        ({"attention": "mla", "rope_dim": 6, "options": {"rotary_pct": 0.5}}, r"of 6 dimensions is 3; an even number"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        Experiment(**{"preset": "nano", **settings}).resolved()


def test_resolved_settings_and_labels():
    note = Experiment(encoding="alibi", options={"slope": 0.0625}, attention="mla", preset="pythia-70m").resolved()
    assert (note.kv_dim, note.rope_dim, note.label) == (128, None, "MLA 128 + ALiBi slope 0.0625")
    rope = Experiment(encoding="rope", attention="mla", preset="nano").resolved()
    assert (rope.kv_dim, rope.rope_dim, rope.shape.head_dim) == (32, 16, 16)
    assert Experiment(encoding="rope", preset="nano").resolved().digest("x") == Experiment(preset="nano").resolved().digest("x")


# --- mixes -----------------------------------------------------------------------------------------------------------


def mix(*parts, **changes):
    return tiny_model("mix", {"parts": list(parts)}, **changes)


@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_a_mix_of_one_is_that_one_to_the_bit(ids, encoding, kind):
    if kind == "mla" and not encodings.transforms_qk(encoding):
        pytest.skip("latent attention sets dimensions apart for a mix, which may hold a rotation")
    alone = tiny_model(encoding, attention_kind=kind)
    mixed = mix({"encoding": encoding, "options": alone.config.encoding_options or {}}, attention_kind=kind)
    weights = {name.replace("encoding.", "encoding.members.0."): value for name, value in alone.state_dict().items()}
    mixed.load_state_dict(weights)
    assert torch.equal(mixed(ids).logits, alone(ids).logits)


# Members that keep numbers of tokens, make the scores, replace the softmax, mask or sharpen; in some layers or heads.
TOGETHER = {
    "PaTH and FoX": [{"encoding": "path"}, {"encoding": "fox"}],
    "RoPE and PaTH": [{"encoding": "rope"}, {"encoding": "path", "layers": [1]}],
    "two gates": [{"encoding": "fox", "heads": [0, 2]}, {"encoding": "cable", "heads": [1, 4]}, {"encoding": "rope"}],
    "two softmaxes": [{"encoding": "stick_breaking", "heads": [0, 1]}, {"encoding": "sink", "heads": [2, 4]}],
    "window, then all": [
        {"encoding": "window", "options": {"size": 4}, "layers": [0]},
        {"encoding": "rope", "layers": [0]},
        {"encoding": "temperature", "layers": [1]},
    ],
    "chunks": [{"encoding": "window", "options": {"size": 4, "kind": "chunks"}}, {"encoding": "rope"}, {"encoding": "sink"}],
    "gate and scores": [
        {"encoding": "selective_rope", "layers": [0]},
        {"encoding": "path", "layers": [1]},
        {"encoding": "fox"},
    ],
    "everything": [{"encoding": "key_shift"}, {"encoding": "grape_ap"}, {"encoding": "temperature"}, {"encoding": "carope"}],
}


@pytest.mark.parametrize("kind", ["mha", "mla"])
@pytest.mark.parametrize("parts", TOGETHER.values(), ids=TOGETHER)
def test_members_together_are_causal_and_read_from_a_cache(ids, parts, kind):
    """Also in a batch padded on the left; and each member changes something."""
    model = mix(*parts, attention_kind=kind)
    whole, past, pieces = model(ids).logits, None, []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        output = model(ids[:, start:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:1, 5:], model(ids[:1, 5:]).logits, atol=1e-4, rtol=1e-4)
    changed = ids.clone()
    changed[:, 7:] = (ids[:, 7:] + 1) % 97
    assert torch.equal(model(changed).logits[:, :7], whole[:, :7])
    for one in range(len(parts)):
        rest = mix(*(part for i, part in enumerate(parts) if i != one), attention_kind=kind)
        assert (rest(ids).logits - whole).abs().max() > 1e-3


def test_path_and_fox_add_up():
    """PaTH-FoX (arXiv 2505.16381): PaTH's products plus FoX's bias, each as alone."""
    shape = tiny_config().shape
    hooks = encodings.build("mix", {"parts": [{"encoding": "path"}, {"encoding": "fox"}]}, shape)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hooks.named_parameters():
            hooks.init_parameter(name, parameter, generator)
    hooks, positions = hooks.for_layer(1), torch.arange(9)[None]
    (q, k), x = torch.randn(2, 1, 4, 9, 16, generator=generator), torch.randn(1, 9, 64, generator=generator)
    state = hooks.token_state(x, positions)
    path, fox = hooks.members
    assert hooks.state_size == state.shape[-1] == 18
    given = q, k, positions, positions
    assert torch.equal(hooks.scores(*given, state), path.scores(*given, path.token_state(x, positions)))
    assert torch.equal(hooks.bias(*given, state), fox.bias(*given, fox.token_state(x, positions)))


def test_a_windowed_layer_never_sees_beyond_its_window(ids):
    """At any state of the cache: a token four back changes the one layer's output for its window's queries and for no other."""
    model = mix({"encoding": "window", "options": {"size": 4}}, num_hidden_layers=1)
    changed = ids.clone()
    changed[:, 3] = (ids[:, 3] + 1) % 97
    for cuts in ([0, 12], [0, 4, 12], [0, 3, 4, 7, 8, 12], list(range(13))):
        logits = []
        for tokens in (ids, changed):
            past, parts = None, []
            for start, end in pairwise(cuts):
                output = model(tokens[:, start:end], past_key_values=past, use_cache=True)
                past = output.past_key_values
                parts.append(output.logits)
            logits.append(torch.cat(parts, 1))
        differs = (logits[0] - logits[1]).abs().amax((0, 2)) > 0
        assert differs.tolist() == [3 <= t < 7 for t in range(12)]


def test_a_part_in_no_layer_or_every_layer(ids):
    everywhere = mix({"encoding": "rope", "layers": [0, 1]})(ids).logits
    assert torch.equal(everywhere, tiny_model("rope")(ids).logits)
    assert torch.equal(mix({"encoding": "rope", "layers": []})(ids).logits, tiny_model("none")(ids).logits)
    first, second = (mix({"encoding": "rope", "layers": [layer]})(ids).logits for layer in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, everywhere, atol=1e-3)


def test_heads_that_turn_apart_keep_a_key_each(ids):
    """One positional key serves all heads only where all turn it alike: what each head makes of it is that head's own."""

    def before_dense(model):
        found = []
        model.layers[0].attention.dense.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        model(ids)
        return found[0].unflatten(-1, (4, 16))

    ropes = [{"encoding": "rope", "options": {"rotary_pct": 1.0, "base": base}} for base in (20.0, 10_000.0)]
    apart = mla("mix", {"parts": [{**rope, "heads": heads} for rope, heads in zip(ropes, ([0, 1], [1, 4]), strict=True)]})
    alone = [before_dense(mla("mix", {"parts": [rope]})) for rope in ropes]
    expected = torch.cat((alone[0][..., :1, :], alone[1][..., 1:, :]), dim=-2)
    torch.testing.assert_close(before_dense(apart), expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    torch.testing.assert_close(decode(apart, ids)[0], apart(ids).logits, atol=1e-5, rtol=1e-5)


def test_who_turns_by_head_says_so(encoding):
    model = tiny_model(encoding)
    hooks, (_, H, T, K) = model.layers[0].attention.encoding, (1, 4, 6, 16)
    k = torch.randn(1, 1, T, K, generator=torch.Generator().manual_seed(0)).expand(1, H, T, K)
    x = torch.randn(1, T, 64, generator=torch.Generator().manual_seed(1))
    turned = hooks.transform_qk(k, k, torch.arange(T)[None], x)[1]
    assert hooks.turns_by_head == (not torch.allclose(turned, turned[:, :1].expand_as(turned), atol=1e-6))


def test_heads_are_kept_apart():
    """RoPE turns heads 0 and 1, ALiBi biases heads 2 and 3, and each is what it would be alone."""
    shape = tiny_config().shape
    parts = [{"encoding": "rope", "heads": [0, 2]}, {"encoding": "alibi", "options": {"slope": 0.5}, "heads": [2, 4]}]
    hooks = encodings.build("mix", {"parts": parts}, shape).for_layer(0)
    positions, x = torch.arange(7)[None], torch.randn(1, 7, 64)
    q, k = torch.randn(2, 1, 4, 7, 16)
    turned, _ = hooks.transform_qk(q, k, positions, x)
    alone, _ = encodings.build("rope", {}, shape).transform_qk(q, k, positions, x)
    assert torch.equal(turned[:, :2], alone[:, :2])
    assert torch.equal(turned[:, 2:], q[:, 2:])
    bias = hooks.bias(q, k, positions, positions, None)
    assert not bias[:, :2].any()
    expected = encodings.build("alibi", {"slope": 0.5}, shape).bias(q, k, positions, positions, None)
    assert torch.equal(bias[:, 2:], expected[:, 2:])


def test_mixed_parameters_start_as_their_own_encoding_says():
    model = LabForCausalLM(tiny_config("mix", {"parts": [{"encoding": "none"}, {"encoding": "learned"}]})).initialise(0)
    assert 0.015 < model.encoding.members[1].table.std() < 0.025


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"encoding": "ropee"}], "unknown encoding 'ropee'"),
        ([{"encoding": "rope", "options": {"bas": 1}}], "unknown setting 'bas'"),
        ([{"encoding": "rope", "layer": [0]}], "unknown setting 'layer'"),
        ([{"encoding": "rope", "layers": [2]}], "layers: 2 is not one of 0 to 1"),
        ([{"encoding": "rope", "heads": [2, 5]}], r"heads=\[2, 5\]: .*within 0 to 4"),
        ([{"encoding": "rope", "heads": [2, 2]}], r"heads=\[2, 2\]"),
        ("rope", "parts='rope': "),
        ([{"encoding": "learned", "layers": [0]}], "'learned' is added to the embeddings, for all layers and heads alike"),
        ([{"encoding": "rope", "layers": "third"}], "layers='third': .*slices as in '3::4'"),
        ([{"encoding": "path", "heads": [0, 2]}], "'path' makes the scores itself and has to act in all heads"),
        ([{"encoding": "path"}, {"encoding": "tapa"}], "'path' and 'tapa': one alone can replace the scores of a head"),
        (
            [{"encoding": "sink"}, {"encoding": "stick_breaking", "heads": [3, 4]}],
            "one alone can replace the softmax of a head",
        ),
    ],
)
def test_mix_limits(parts, message):
    with pytest.raises(ConfigError, match=message):
        encodings.build("mix", {"parts": parts}, tiny_config().shape)


def test_a_part_that_makes_the_scores_refuses_longer_queries(ids):
    with pytest.raises(ConfigError, match=r"^encoding 'mix': .* cannot read the longer queries of another$"):
        mix({"encoding": "pope"}, {"encoding": "path"})(ids)
    mix({"encoding": "pope", "layers": [0]}, {"encoding": "path", "layers": [1]})(ids)


@pytest.mark.parametrize(
    ("layers", "six"),
    [(None, range(6)), ([], []), ([4], [4]), ("3::4", [3]), ("0::4,1::4", [0, 1, 4, 5]), ("2:", [2, 3, 4, 5]), (":", range(6))],
)
def test_layers_of_a_part(layers, six):
    part = encodings.options("mix", {"parts": [{"encoding": "rope", "layers": layers}]}).parts[0]
    assert part.acting(6) == set(six)


@pytest.mark.parametrize("name", ["path-fox", "swan", "irope", "rope-ssmax", "rope-sink", "rope-shift"])
def test_mixes_of_papers(name):
    """Each has a name of its own and is a model of any depth."""
    settings = recipes.model(name)
    assert len(encodings.label(settings["encoding"], settings["options"])) <= 20
    for layers in (1, 4, 6):
        ids = torch.randint(97, (1, 9))
        assert tiny_model("mix", settings["options"], num_hidden_layers=layers)(ids).logits.isfinite().all()


def test_mix_labels():
    three_of_four = {"parts": [{"encoding": "rope", "layers": [0, 1, 2]}]}
    assert encodings.label("mix", three_of_four) == "RoPE 25 % (layers 0, 1, 2)"
    assert encodings.label("mix", {**three_of_four, "name": "NoPE last"}) == "NoPE last"
    assert encodings.label("mix", {"parts": [{"encoding": "alibi", "heads": [0, 2]}]}) == "ALiBi per head (heads 0–1)"
    assert "mix" in ENCODINGS
