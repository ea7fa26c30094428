import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import tolerance
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from pe_core import PRESETS, Experiment, LabConfig, LabForCausalLM
from pe_core.convert import from_neox
from pe_core.errors import ConfigError


def padded_batch(ids):
    """Rows of 12, 9 and 5 tokens, padded on the left with tokens of no account: ids, mask, and the lengths."""
    lengths = (12, 9, 5)
    mask = torch.stack([torch.arange(12) >= 12 - length for length in lengths]).long()
    return ids, mask, lengths


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


# --- the architecture ------------------------------------------------------------------------------------------------


def test_pythia_70m_has_its_published_size():
    with torch.device("meta"):
        model = LabForCausalLM(LabConfig())
        of = LabForCausalLM(LabConfig.of(Experiment(encoding="none", preset="pythia-70m", options={})))
    assert sum(p.numel() for p in model.parameters()) == 70_426_624
    assert sum(p.numel() for p in of.parameters()) == 70_426_624


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_the_size_of_the_neox_model_of_its_shape(preset):
    shape = PRESETS[preset]
    with torch.device("meta"):
        ours = LabForCausalLM(LabConfig.of(Experiment(encoding="none", preset=preset, options={})))
        neox = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                intermediate_size=4 * shape.hidden,
            )
        )
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in neox.parameters())


def neox_model(noise, rotary_pct=0.25, base=10_000.0, **dimensions):
    dimensions = {
        "vocab_size": 97,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    } | dimensions
    rope = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": rotary_pct}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(rope_parameters=rope, **dimensions)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("rotary_pct", "base"), [(0.25, 10_000.0), (1.0, 10_000.0), (0.5, 500.0)])
def test_from_neox_has_the_same_logits_and_loss(ids, rotary_pct, base):
    neox = neox_model(0.2, rotary_pct, base)
    ours = from_neox(neox)
    assert not ours.training
    assert ours.config.encoding_options == {"rotary_pct": rotary_pct, "base": base}
    expected, actual = (model(ids, labels=ids) for model in (neox, ours))
    assert expected.logits.std() > 1
    close(actual.logits, expected.logits)
    close(actual.loss, expected.loss)
    ids, mask, _ = padded_batch(ids)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = neox(ids, attention_mask=mask, position_ids=positions).logits
    close(ours(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()])


def test_from_neox_at_the_real_shape_of_pythia_70m():
    shape = PRESETS["pythia-70m"]
    neox = neox_model(
        0.03,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=2_048,
    )
    ours, ids = from_neox(neox), torch.arange(0, 50_000, 500)[None]
    difference = (ours(ids).logits - neox(ids).logits).abs().max()
    assert difference < 1e-5
    assert (ours(ids, position_ids=3 * torch.arange(100)[None]).logits - neox(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_parallel_residual", False),
        ("hidden_act", "relu"),
        ("attention_bias", False),
        ("rope_type", "linear"),
    ],
)
def test_from_neox_refuses_what_it_cannot_hold(setting, value):
    neox = neox_model(0.0)
    if setting == "rope_type":
        neox.config.rope_parameters |= {setting: value, "factor": 2.0}
    else:
        setattr(neox.config, setting, value)
    with pytest.raises(ConfigError, match=f"^.*{setting}={value!r}.*$"):
        from_neox(neox)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_losses_are_the_cross_entropies_of_the_logits(encoding, tiny, ids):
    model = tiny(encoding)
    losses = model.losses(ids[:, :-1], ids[:, 1:])
    p = model(ids).logits.double().softmax(-1).tolist()
    by_hand = torch.tensor([[-math.log(p[b][t][ids[b, t + 1]]) for t in range(11)] for b in range(3)])
    assert losses.dtype == torch.float32
    close(losses, by_hand)
    output = model(ids, labels=ids)
    close(output.loss, by_hand.mean())
    close(output.loss, F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def test_ignored_labels_do_not_count(tiny, ids):
    model, labels = tiny(), ids.clone()
    labels[:, :5] = -100
    losses = model.losses(ids[:, :-1], ids[:, 1:])
    close(model(ids, labels=labels).loss, losses[:, 4:].mean())


def test_losses_are_fp32_under_bf16(tiny, ids):
    model, windows = tiny(), (ids[:, :-1], ids[:, 1:])
    exact = model.losses(*windows)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.losses(*windows)
    for losses in (mixed, model.to(torch.bfloat16).losses(*windows)):
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, exact, atol=0.3, rtol=0)


# --- initial weights -------------------------------------------------------------------------------------------------


def initialised(tiny, encoding, seed):
    return dict(tiny(encoding).initialise(seed).named_parameters())


def test_initial_weights_depend_on_the_seed_alone(encoding, tiny):
    one, again, other = (initialised(tiny, encoding, seed) for seed in (1, 1, 2))
    for name, value in one.items():
        assert torch.equal(value, again[name]), name
        fixed = value.ndim == 1 or len(value.unique()) <= 2  # zeros, say: some encodings start as none at all
        assert fixed or not torch.equal(value, other[name]), name


def test_initial_weights_are_shared_between_encodings(encoding, tiny):
    nope, ours = initialised(tiny, "none", 5), initialised(tiny, encoding, 5)
    assert nope.keys() <= ours.keys()
    assert all(torch.equal(value, ours[name]) for name, value in nope.items() if value.shape == ours[name].shape)
    assert all(name.startswith("encoding.") for name in ours.keys() - nope.keys())


def test_initial_weights_have_their_distributions(tiny):
    parameters = initialised(tiny, "learned", 3)
    matrices = {name: value for name, value in parameters.items() if value.ndim > 1}
    assert {"embed_in.weight", "embed_out.weight", "encoding.table"} < matrices.keys()
    for name, value in matrices.items():
        assert value.std().item() == pytest.approx(0.02, rel=0.05), name
        assert abs(value.mean().item()) < 4 * 0.02 / value.numel() ** 0.5, name
    for name, value in parameters.items():
        if value.ndim == 1:
            assert (value == (1 if "norm" in name and name.endswith("weight") else 0)).all(), name
    flat = torch.stack([value.flatten()[:4_096] for value in matrices.values()]).corrcoef()
    assert (flat - torch.eye(len(matrices))).abs().max() < 0.08  # every parameter has a stream of its own


def test_the_initial_loss_is_that_of_a_uniform_guess(encoding, tiny, ids):
    model = tiny(encoding).initialise(0)
    assert model(ids, labels=ids).loss.item() == pytest.approx(4.575, abs=0.05)  # ln 97


@pytest.mark.parametrize("beside", [None, "rope"], ids=["alone", "in a mix"])
def test_a_model_from_a_config_alone_has_no_uninitialised_weight(encoding, tiny, beside):
    parts = {"parts": [{"encoding": encoding}, {"encoding": beside}]}
    try:
        config = tiny("mix", parts).config if beside and encoding != "mix" else tiny(encoding).config
    except ConfigError:
        pytest.skip("no part of a mix")
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [name for name, value in model.named_parameters() if not value.isfinite().all()] == []


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_saves_and_loads_through_the_auto_classes(encoding, tiny, ids, tmp_path):
    model = tiny(encoding)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "config.json"}
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, LabConfig)
    assert config.encoding == encoding
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LabForCausalLM)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("encoding", "options"),
    [("rope", {"rotary_pct": 0.5, "base": 50.0}), ("alibi", {"slope": 0.5}), ("learned", {"length": 80})],
)
def test_options_travel_with_the_model(encoding, options, tiny, ids, tmp_path):
    tiny(encoding, options).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.encoding_options == options
    assert torch.equal(loaded(ids).logits, tiny(encoding, options)(ids).logits)


# --- cache and padding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cuts", [range(13), (0, 5, 12), (0, 4, 5, 9, 12)], ids=["one by one", "two parts", "mixed"])
def test_cached_logits_equal_the_full_forward(encoding, tiny, ids, attention, cuts):
    model, cache, parts = tiny(encoding, attention=attention), None, []
    for start, end in pairwise(cuts):
        output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
        parts.append(output.logits)
        cache = output.past_key_values
    assert cache.get_seq_length() == 12
    close(torch.cat(parts, 1), model(ids).logits, atol=tolerance(encoding))


def test_no_cache_on_request(tiny, ids):
    model = tiny()
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids).past_key_values.get_seq_length() == 12


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_equals_without(encoding, tiny, ids, beams):
    options = {"max_new_tokens": 10, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    model = tiny(encoding)
    cached, plain = (model.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False))
    assert torch.equal(cached, plain)
    assert cached.shape == (3, 22)
    assert len(cached[:, 12:].unique()) > 5
    if beams == 1:
        tokens = ids
        for _ in range(10):
            tokens = torch.cat((tokens, model(tokens).logits[:, -1:].argmax(-1)), 1)
        assert torch.equal(cached, tokens)


# --- documents packed into one row -------------------------------------------------------------------------------------

PACKED = (5, 4, 3)  # tokens of each document in a row of twelve


@pytest.mark.parametrize("kind", ["mha", "mla"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_packed_documents_see_nothing_of_each_other(encoding, tiny, ids, attention, kind, use_cache):
    options = {"rotary_pct": 1.0} if (encoding, kind) == ("rope", "mla") else None
    model = tiny(encoding, options, attention, attention_kind=kind)
    positions = torch.cat([torch.arange(length) for length in PACKED])[None].expand(3, -1)
    packed = model(ids, position_ids=positions, use_cache=use_cache).logits
    for start, end in pairwise((0, *np.cumsum(PACKED))):
        close(packed[:, start:end], model(ids[:, start:end], use_cache=False).logits, atol=tolerance(encoding))


def test_a_cache_of_packed_documents_goes_on_with_the_last(encoding, tiny, ids):
    model = tiny(encoding)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    cache = model(ids[:, :7], position_ids=positions[:, :7].expand(3, -1)).past_key_values
    logits = model(ids[:, 7:], position_ids=positions[:, 7:].expand(3, -1), past_key_values=cache).logits
    close(logits, model(ids[:, 3:]).logits[:, 4:], atol=tolerance(encoding))


def test_packed_documents_with_padding_between(tiny, ids):
    model = tiny("alibi")
    mask = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0]]).expand(3, -1)
    positions = torch.tensor([[0, 0, 1, 2, 0, 0, 0, 1, 2, 3, 4, 0]]).expand(3, -1)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    close(logits[:, 1:4], model(ids[:, 1:4]).logits, atol=1e-4)
    close(logits[:, 6:11], model(ids[:, 6:11]).logits, atol=1e-4)


def test_packed_documents_as_neox_reads_them(ids):
    """transformers' own GPT-NeoX, which finds the documents by the positions as well."""
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=97)
    theirs = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).eval()
    positions = torch.cat([torch.arange(length) for length in PACKED])[None].expand(3, -1)
    expected = theirs(ids, position_ids=positions, use_cache=False).logits
    close(from_neox(theirs)(ids, position_ids=positions).logits, expected, atol=1e-4)


def test_a_document_mask_reads_each_document_of_a_window_alone(encoding, tiny, ids):
    model = tiny(encoding, eos_token_id=0, document_mask=True)
    ids = ids.clamp(min=1)
    ids[:, 4] = ids[:, 8] = 0
    targets = ids.roll(-1, 1)
    losses, alone = model.losses(ids, targets), tiny(encoding)
    for start, end in ((0, 5), (5, 9), (9, 12)):
        close(losses[:, start:end], alone.losses(ids[:, start:end], targets[:, start:end]), atol=1e-4)
    assert not torch.allclose(losses, alone.losses(ids, targets), atol=1e-2)


def test_a_cache_of_fixed_size_is_refused_in_one_line(tiny, ids):
    with pytest.raises(ConfigError, match=r"a StaticCache holds a fixed number of tokens; .*cache_implementation='dynamic'"):
        tiny().generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, cache_implementation="static")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padding_changes_nothing(encoding, tiny, ids, attention):
    model = tiny(encoding, attention=attention)
    ids, mask, lengths = padded_batch(ids)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for row, length in enumerate(lengths):
        close(logits[row, -length:], model(ids[row : row + 1, -length:]).logits[0], atol=tolerance(encoding) / 10)
    other = torch.where(mask.bool(), ids, (ids + 1) % 97)
    close(model(other, attention_mask=mask).logits[mask.bool()], logits[mask.bool()], atol=0)


def test_right_padding_changes_nothing(encoding, tiny, ids):
    model = tiny(encoding)
    mask = padded_batch(ids)[1].flip(1)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    close(logits[mask.bool()], model(ids).logits[mask.bool()], atol=tolerance(encoding) / 10)


def test_left_padded_generation_equals_row_by_row(encoding, tiny, ids):
    model = tiny(encoding)
    ids, mask, lengths = padded_batch(ids)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    together = model.generate(ids, attention_mask=mask, **options)
    for row, length in enumerate(lengths):
        alone = model.generate(ids[row : row + 1, -length:], **options)
        assert torch.equal(together[row, 12:], alone[0, length:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_of_nothing_but_padding_is_finite(encoding, tiny, ids, attention):
    model = tiny(encoding, attention=attention)
    mask = torch.ones_like(ids)
    mask[1] = 0
    output = model(ids, attention_mask=mask, labels=ids)
    assert output.logits.isfinite().all()
    close(output.logits[[0, 2]], model(ids[[0, 2]]).logits)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_given_positions_are_those_of_queries_and_keys(encoding, tiny, ids, attention):
    """Padded or not, and whatever they are: here every third position."""
    model = tiny(encoding, attention=attention)
    ids, mask, lengths = padded_batch(ids)
    logits = model(ids, attention_mask=mask, position_ids=3 * (mask.cumsum(-1) - 1).clamp(min=0)).logits
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, -length:], position_ids=3 * torch.arange(length)[None]).logits
        close(logits[row, -length:], alone[0], atol=tolerance(encoding) / 10)


@pytest.mark.parametrize("padded", [False, True])
def test_given_positions_with_a_cache(encoding, tiny, ids, padded):
    model = tiny(encoding)
    mask = padded_batch(ids)[1] if padded else torch.ones_like(ids)
    positions = 20 + (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=positions).logits
    first = model(ids[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8])
    rest = model(ids[:, 8:], attention_mask=mask, position_ids=positions[:, 8:], past_key_values=first.past_key_values).logits
    close(rest[mask[:, 8:].bool()], expected[:, 8:][mask[:, 8:].bool()], atol=tolerance(encoding) / 10)


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_attention_weights_need_explicit_scores(encoding, tiny, ids):
    with pytest.raises(ConfigError, match="eager"):
        tiny(encoding)(ids, output_attentions=True)
    attentions = tiny(encoding, attention="eager")(ids, output_attentions=True).attentions
    assert len(attentions) == 2
    for weights in attentions:
        assert weights.shape == (3, 4, 12, 12)
        # A sink takes what is missing.
        close(weights.sum(-1), torch.ones(3, 4, 12), atol=1.0 if encoding == "sink" else 1e-5)
        assert (weights >= 0).all()
        assert not weights.triu(1).any()


def test_hidden_states_and_kept_logits(tiny, ids):
    model = tiny()
    output = model(ids, output_hidden_states=True)
    assert [state.shape for state in output.hidden_states] == [(3, 12, 64)] * 3
    assert torch.equal(output.hidden_states[0], model.embed_in(ids))
    close(model.embed_out(output.hidden_states[-1]), output.logits)
    close(model(ids, logits_to_keep=2).logits, output.logits[:, -2:])
    assert model(ids).hidden_states is None


@pytest.mark.parametrize("chunk", [1, 7, 12, 33])
def test_loss_in_chunks_is_the_loss(tiny, ids, monkeypatch, chunk):
    """Values and gradients, in pieces that do and do not divide the tokens."""
    inputs, targets = ids[:, :-1], ids[:, 1:]
    whole, pieces = tiny("rope"), tiny("rope")
    expected = whole.losses(inputs, targets)
    (3 * expected.mean()).backward()
    monkeypatch.setattr("pe_core.model._LOGITS_AT_ONCE", chunk * 97)
    assert pieces.in_chunks(targets) == (chunk < 33)
    torch.testing.assert_close(pieces.losses(inputs, targets), expected, atol=1e-6, rtol=1e-6)
    loss = pieces.chunked_loss(inputs, targets)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected.mean(), atol=1e-6, rtol=1e-6)
    for (name, a), b in zip(pieces.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_logits_of_a_long_window_never_exist_whole(tiny, monkeypatch):
    """The largest tensor of vocabulary width that a training step makes holds one chunk."""
    model = tiny("rope", max_position_embeddings=64)
    ids = torch.randint(97, (1, 49), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("pe_core.model._LOGITS_AT_ONCE", 16 * 97)
    rows = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.ndim >= 2 and tensor.shape[-1] == 97:
                    rows.append(tensor.numel() // 97)
            return result

    with Watch():
        model.chunked_loss(ids[:, :-1], ids[:, 1:]).backward()
    assert max(r for r in rows if r != 64) == 16  # 64 rows: the weights themselves, and their gradient
