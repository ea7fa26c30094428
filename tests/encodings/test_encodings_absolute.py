"""Encodings added to the token embeddings: sinusoidal and randomised. What holds for every encoding: test_encodings.py."""

import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

from pe_core import LabForCausalLM, encodings
from pe_core.errors import ConfigError
from pe_core.schema import Shape

D = 64


def build(name, hidden=D, seq_len=64, **options):
    return encodings.build(name, options, Shape(hidden, 4, hidden // 4, 2, seq_len))


def added(hooks, positions):
    """What an encoding adds at these positions."""
    positions = torch.as_tensor(positions).view(1, -1)
    return hooks.embed(torch.zeros(1, positions.shape[1], hooks.shape.hidden), positions)[0]


# --- sinusoidal ------------------------------------------------------------------------------------------------------


def test_sinusoidal_equals_transformers():
    reference = nn.Embedding(200, D)
    create_sinusoidal_embeddings(200, D, reference.weight)
    torch.testing.assert_close(added(build("sinusoidal", scale=1), range(200)), reference.weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_sinusoidal_equals_x_transformers(base):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from x_transformers.x_transformers import ScaledSinusoidalEmbedding

        reference = ScaledSinusoidalEmbedding(D, theta=base)(torch.zeros(1, 100, D))
    actual = added(build("sinusoidal", scale=D**-0.5, base=base), range(100))
    actual = torch.cat((actual[:, ::2], actual[:, 1::2]), -1)  # theirs: all sines, then all cosines
    torch.testing.assert_close(actual, reference, atol=1e-6, rtol=0)


def test_sinusoidal_by_hand():
    """Also at positions that bf16 cannot tell apart, and with rows of different positions."""
    positions = torch.tensor([[0, 1, 2], [4_001, 4_002, 4_003]])
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    actual = build("sinusoidal", 6, scale=0.5, base=100).embed(x, positions)
    for b, row in enumerate(positions.tolist()):
        for t, p in enumerate(row):
            for m in range(3):
                angle = p * 100 ** (-2 * m / 6)
                sine, cosine = (actual[b, t, 2 * m : 2 * m + 2] - x[b, t, 2 * m : 2 * m + 2]).tolist()
                assert sine == pytest.approx(0.5 * math.sin(angle), abs=5e-4)
                assert cosine == pytest.approx(0.5 * math.cos(angle), abs=5e-4)


def test_sinusoidal_keeps_the_papers_ratio_to_the_tokens(tiny):
    """Tokens have RMS 1 beside sines of RMS 1/√2 there: N(0, 1/D) times √D. Here tokens start from N(0, 0.02)."""
    model = LabForCausalLM(tiny("sinusoidal", hidden_size=256).config).initialise(0)
    tokens, sines = model.embed_in.weight.square().mean().sqrt(), added(model.encoding, range(64)).square().mean().sqrt()
    assert (sines / tokens).item() == pytest.approx(math.sqrt(0.5), rel=0.02)


def test_no_scale_is_nope_to_the_bit(tiny, ids):
    assert torch.equal(tiny("sinusoidal", {"scale": 0})(ids).logits, tiny("none")(ids).logits)


def test_sinusoidal_in_bf16_knows_every_position():
    hooks, positions = build("sinusoidal", scale=1), 1_000 + torch.arange(10)[None]
    x = torch.zeros(1, 10, D)
    assert torch.equal(hooks.embed(x.bfloat16(), positions), hooks.embed(x, positions).bfloat16())


def test_sinusoidal_limits_and_labels():
    with pytest.raises(ConfigError, match=r"^encoding 'sinusoidal': hidden dimension 5: an even number is needed$"):
        build("sinusoidal", 5)
    for option, value in [("scale", -1), ("scale", math.inf), ("base", 1), ("base", math.nan)]:
        with pytest.raises(ConfigError, match=f"^encoding 'sinusoidal': {option}={value}: .+$"):
            build("sinusoidal", **{option: value})
    labels = [encodings.label("sinusoidal", options) for options in ({}, {"scale": 1}, {"scale": 0.02, "base": 500})]
    assert labels == ["Sinusoidal", "Sinusoidal, scale 1", "Sinusoidal, base 500"]


# --- randomised: training --------------------------------------------------------------------------------------------


def mixed(number):
    """The scramble, in Python's own integers, which never overflow."""
    for constant in (0x2C1B3C6D, 0x297A2D39):
        number = ((number ^ (number >> 15)) * constant) % 2**31
    return number ^ (number >> 16)


@pytest.mark.parametrize("step", [0, 1, 1_000_003, 2**31 + 5, 2**62 + 1])
def test_draws_are_those_of_exact_integers(step):
    hooks = build("randomised", seq_len=8, max_length=100)
    hooks.steps.fill_(step)
    seed = mixed(step % 2**31)
    ranked = sorted(range(100), key=lambda p: mixed((mixed(p ^ seed) + seed) % 2**31))
    assert hooks.draw(8).tolist() == sorted(ranked[:8])


def test_draws_are_uniform_random_subsets():
    L, T, steps = 64, 8, 3_000
    hooks, draws = build("randomised", seq_len=T, max_length=L), []
    for _ in range(steps):
        draws.append(hooks.draw(T))
        hooks.steps.add_(1)
    draws = torch.stack(draws)
    assert (draws.diff() > 0).all()  # ascending, none twice
    assert 0 <= draws.min() < draws.max() < L
    assert len({tuple(row) for row in draws.tolist()}) == steps
    counts = torch.bincount(draws.flatten(), minlength=L)
    error = math.sqrt(steps * (T / L) * (1 - T / L))
    assert ((counts - steps * T / L).abs() < 4.5 * error).all()
    both = torch.zeros(steps, L).scatter_(1, draws, 1)
    together = (both.T @ both).triu(1)[torch.ones(L, L).triu(1).bool()]
    expected = steps * T * (T - 1) / (L * (L - 1))
    assert (together.var() / expected).item() == pytest.approx(1, abs=0.15)  # pairs too are chance, no more, no less
    means = torch.tensor([(p + 1) * (L + 1) / (T + 1) - 1 for p in range(T)])  # order statistics without replacement
    torch.testing.assert_close(draws.float().mean(0), means, atol=0.8, rtol=0)
    # One step says nothing about the next.
    rank = draws.float() - draws.float().mean(0)
    assert ((rank[1:] * rank[:-1]).mean(0) / rank.var(0)).abs().max() < 0.1


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_training_adds_the_drawn_positions_once_per_batch(kind):
    hooks = build("randomised", seq_len=6, kind=kind, max_length=50).train()
    if kind == "learned":
        nn.init.normal_(hooks.table.table)
    x = torch.randn(3, 6, D, generator=torch.Generator().manual_seed(0))
    for step in range(3):
        assert hooks.steps.item() == step
        drawn = hooks.draw(6)
        expected = hooks.table.table[drawn] if kind == "learned" else added(build("sinusoidal"), drawn)
        assert torch.equal(hooks.embed(x, torch.arange(6)[None]), x + expected)
    hooks.eval()
    hooks.embed(x, torch.arange(6)[None])
    assert hooks.steps.item() == 3  # evaluation does not count


def test_a_step_trains_the_drawn_rows():
    hooks = build("randomised", seq_len=6, kind="learned", max_length=50)
    drawn = hooks.draw(6)
    hooks.embed(torch.zeros(1, 6, D), torch.arange(6)[None]).sum().backward()
    assert hooks.table.table.grad.any(1).nonzero().flatten().tolist() == drawn.tolist()


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_training_resumes_to_the_bit(tiny, ids, kind):
    options = {"kind": kind}
    model = tiny("randomised", options).train()
    inputs, targets = ids[:, :-1], ids[:, 1:]
    first = [model.losses(inputs, targets) for _ in range(2)]
    resumed = tiny("randomised", options).train()
    resumed.load_state_dict(model.state_dict())
    model.eval()
    model.losses(inputs, targets)  # an evaluation in between
    model.train()
    for _ in range(3):
        losses = model.losses(inputs, targets)
        assert torch.equal(losses, resumed.losses(inputs, targets))
        assert not any(torch.equal(losses, earlier) for earlier in first)


def test_the_count_of_steps_is_saved(tiny, ids, tmp_path):
    model = tiny("randomised").train()
    model.losses(ids[:, :-1], ids[:, 1:])
    model.save_pretrained(tmp_path)
    assert LabForCausalLM.from_pretrained(tmp_path).encoding.steps.item() == 1


@pytest.mark.slow
def test_training_compiles_and_draws_the_same(tiny, ids):
    model, other = (tiny("randomised", num_hidden_layers=1).train() for _ in range(2))
    compiled = torch.compile(other.losses, fullgraph=True, dynamic=False)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    for step in range(3):
        assert other.encoding.steps.item() == step
        expected, actual = model.losses(inputs, targets), compiled(inputs, targets)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        actual.mean().backward()


# --- randomised: evaluation ------------------------------------------------------------------------------------------


def test_evaluation_takes_the_expected_positions():
    """Of the p-th smallest of M out of L: by enumeration for small numbers, spread evenly at the mean gap."""
    L, M = 9, 4
    subsets = list(itertools.combinations(range(L), M))
    means = [sum(subset[p] for subset in subsets) / len(subsets) for p in range(M)]
    hooks = build("randomised", seq_len=M, max_length=L, kind="learned").eval()
    with torch.no_grad():
        hooks.table.table.copy_(torch.arange(L)[:, None].expand(L, D))
    assert added(hooks, range(M))[:, 0].tolist() == means == [1, 3, 5, 7]

    hooks = build("randomised", seq_len=128, kind="learned").eval()
    with torch.no_grad():
        hooks.table.table.copy_(torch.arange(2_048)[:, None].expand(2_048, D))
    taken = added(hooks, range(128))[:, 0].tolist()
    assert taken == [round((p + 1) * 2_049 / 129) - 1 for p in range(128)]
    assert {b - a for a, b in itertools.pairwise(taken)} == {15, 16}


@pytest.mark.parametrize("train", [False, True])
def test_a_range_no_longer_than_the_text_is_the_plain_encoding_to_the_bit(tiny, ids, train):
    length = {"max_position_embeddings": 12}
    plain, full = tiny("sinusoidal", **length), tiny("randomised", {"max_length": 12}, **length)
    assert torch.equal(full.train(train)(ids).logits, plain(ids).logits)
    learned = tiny("learned", **length)
    full = tiny("randomised", {"max_length": 12, "kind": "learned"}, **length).train(train)
    weights = {name.replace("encoding.", "encoding.table."): value for name, value in learned.state_dict().items()}
    full.load_state_dict({**weights, "encoding.steps": torch.tensor(7)})
    assert torch.equal(full(ids).logits, learned(ids).logits)


def test_a_trained_model_reads_longer_texts_when_told_to(tiny):
    options = {"kind": "learned", "max_length": 64}
    model = tiny("randomised", options, max_position_embeddings=16)
    longer = tiny("randomised", {**options, "eval_length": 64}, max_position_embeddings=16)
    longer.load_state_dict(model.state_dict())
    ids = torch.randint(97, (1, 64), generator=torch.Generator().manual_seed(3))
    logits = longer(ids).logits
    assert logits.isfinite().all()
    first = longer(ids[:, :20])
    rest = longer(ids[:, 20:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat((first.logits, rest), 1), logits, atol=1e-5, rtol=1e-5)
    assert model(ids[:, :16]).logits.isfinite().all()
    with pytest.raises(ConfigError, match=r"^encoding 'randomised': position 16 is beyond eval_length=16 .*max_length=64.*$"):
        model(ids[:, :17])
    with pytest.raises(ConfigError, match=r"^encoding 'randomised': position 64 is beyond max_length=64$"):
        model.train()(torch.cat((ids, ids[:, :1]), 1))


def test_randomised_limits_and_labels():
    for options, message in [
        ({"max_length": 63}, r"eval_length=64: must be .*\(64\) and at most max_length=63"),
        ({"eval_length": 63}, r"eval_length=63: must be at least the context length \(64\)"),
        ({"eval_length": 1_025}, "eval_length=1025: .*at most max_length=1024"),
        ({"max_length": 0}, "max_length=0"),
        ({"kind": "rope"}, "kind='rope': .*'sinusoidal' or 'learned'"),
    ]:
        with pytest.raises(ConfigError, match=f"^encoding 'randomised': {message}.*$"):
            build("randomised", **options)
    labels = [encodings.label("randomised", options) for options in ({}, {"kind": "learned", "max_length": 512})]
    assert labels == ["Randomised sinusoidal", "Randomised learned, to 512"]


def test_parameters_start_as_the_learned_tables_do(tiny):
    model = LabForCausalLM(tiny("randomised", {"kind": "learned"}).config).initialise(0)
    assert 0.019 < model.encoding.table.table.std() < 0.021
    assert not list(build("randomised").parameters())
