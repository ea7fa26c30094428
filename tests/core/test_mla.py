"""Multi-head latent attention: two exact forms, one small cache; and mixes of encodings."""

import pytest
import torch
from helpers import tiny_config, tiny_model

from pe_core import ENCODINGS, Experiment, LabForCausalLM, encodings
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
    torch.testing.assert_close(decode(model, ids)[0], mla(encoding, form="expanded")(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("encoding", "cached"), [("none", C), ("alibi", C), ("rope", C + R)])
def test_the_cache_holds_latents_alone(ids, encoding, cached):
    _, cache = decode(mla(encoding), ids)
    numbers = sum(tensor.numel() for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert numbers == 3 * 12 * 2 * cached  # rows · tokens · layers


def test_left_padding_changes_nothing(encoding, ids):
    model = mla(encoding)
    padded = torch.cat((torch.zeros(3, 4, dtype=torch.long), ids), 1)
    mask = torch.cat((torch.zeros(3, 4, dtype=torch.long), torch.ones_like(ids)), 1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], model(ids).logits, atol=1e-5, rtol=1e-5)


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
        ({"attention": "mla", "rope_dim": 6, "options": {"rotary_pct": 0.5}}, r"is 3 dimensions; an even number"),
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


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi", "learned"])
def test_a_mix_of_one_is_that_one_to_the_bit(ids, encoding):
    alone = tiny_model(encoding)
    mixed = mix({"encoding": encoding})
    weights = {name.replace("encoding.", "encoding.members.0."): value for name, value in alone.state_dict().items()}
    mixed.load_state_dict(weights)
    assert torch.equal(mixed(ids).logits, alone(ids).logits)


def test_a_part_in_no_layer_or_every_layer(ids):
    everywhere = mix({"encoding": "rope", "layers": [0, 1]})(ids).logits
    assert torch.equal(everywhere, tiny_model("rope")(ids).logits)
    assert torch.equal(mix({"encoding": "rope", "layers": []})(ids).logits, tiny_model("none")(ids).logits)
    first, second = (mix({"encoding": "rope", "layers": [layer]})(ids).logits for layer in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, everywhere, atol=1e-3)


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
    ],
)
def test_mix_limits(parts, message):
    with pytest.raises(ConfigError, match=message):
        encodings.build("mix", {"parts": parts}, tiny_config().shape)


def test_mix_labels():
    three_of_four = {"parts": [{"encoding": "rope", "layers": [0, 1, 2]}]}
    assert encodings.label("mix", three_of_four) == "RoPE 25 % (layers 0, 1, 2)"
    assert encodings.label("mix", {**three_of_four, "name": "NoPE last"}) == "NoPE last"
    assert encodings.label("mix", {"parts": [{"encoding": "alibi", "heads": [0, 2]}]}) == "ALiBi per head (heads 0–1)"
    assert "mix" in ENCODINGS
