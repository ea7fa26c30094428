"""What holds for every encoding, on inputs that hypothesis looks for: any tokens, lengths, cuts, shifts and padding."""

from functools import cache

import pytest
import torch
from helpers import ROUNDING, tiny_model, tolerance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pe_core import ENCODINGS

MOST = 24  # tokens
LONG = 4_096
SHORTER = {"dape": 1_024}  # 32 hidden channels for each pair of tokens are 10 GB at 4,096

# Each example is one or two forward passes of a tiny model; which encoding it is comes from the fixture.
examples = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
attentions = st.sampled_from(["sdpa", "eager"])
kinds = st.sampled_from(["mha", "mla"])


@cache
def model(encoding, attention="sdpa", kind="mha", dtype=torch.float32):
    return tiny_model(encoding, None, attention, attention_kind=kind).to(dtype)


@st.composite
def rows(draw, least=1, most=MOST):
    """Token ids (B, T)."""
    B, T = draw(st.integers(1, 3)), draw(st.integers(least, most))
    return torch.randint(97, (B, T), generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))


def close(encoding, actual, expected):
    torch.testing.assert_close(actual, expected, atol=tolerance(encoding), rtol=1e-4)


@examples
@given(ids=rows(least=2), data=st.data(), attention=attentions, kind=kinds)
def test_no_token_sees_a_later_one(encoding, ids, data, attention, kind):
    """To the bit, however many tokens change."""
    t = data.draw(st.integers(1, ids.shape[1] - 1))
    changed = ids.clone()
    changed[:, t:] = (ids[:, t:] + data.draw(st.integers(1, 96))) % 97
    hooks = model(encoding, attention, kind)
    assert torch.equal(hooks(changed).logits[:, :t], hooks(ids).logits[:, :t])


@examples
@given(ids=rows(), shift=st.integers(1, 40), attention=attentions)
def test_shifts_change_nothing_where_that_is_claimed(encoding, ids, shift, attention):
    if not ENCODINGS[encoding].shift_invariant:
        pytest.skip("it claims the contrary")
    positions = torch.arange(ids.shape[1])[None]
    hooks = model(encoding, attention)
    close(encoding, hooks(ids, position_ids=positions + shift).logits, hooks(ids).logits)


@examples
@given(ids=rows(), data=st.data(), attention=attentions, kind=kinds)
def test_a_cache_changes_nothing(encoding, ids, data, attention, kind):
    """Wherever the text is cut."""
    cuts = sorted(data.draw(st.sets(st.integers(1, MOST), max_size=4)) & set(range(1, ids.shape[1])))
    hooks, past, parts = model(encoding, attention, kind), None, []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        output = hooks(ids[:, start:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        parts.append(output.logits)
    close(encoding, torch.cat(parts, 1), hooks(ids).logits)


@examples
@given(ids=rows(least=2), data=st.data(), attention=attentions, kind=kinds)
def test_padding_changes_nothing(encoding, ids, data, attention, kind):
    """On the left, on the right and on both sides; a row of nothing else is finite."""
    T, hooks = ids.shape[1], model(encoding, attention, kind)
    mask = torch.zeros_like(ids)
    for row in mask:
        first = data.draw(st.integers(0, T))
        row[first : data.draw(st.integers(first, T))] = 1
    logits = hooks(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for row, own in enumerate(mask.bool()):
        if own.any():
            close(encoding, logits[row, own], hooks(ids[row : row + 1, own]).logits[0])


@examples
@given(ids=rows(), attention=attentions)
def test_bf16_is_fp32_to_three_digits(encoding, ids, attention):
    exact = model(encoding, attention)(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(encoding, attention)(ids).logits
    assert (mixed - exact).std() < ROUNDING.get(encoding, 0.05) * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_long_text_is_finite(encoding, padded):
    """Forward and backward, also where half of the tokens are padding."""
    T = SHORTER.get(encoding, LONG)
    small = dict(hidden_size=16, num_attention_heads=ENCODINGS[encoding].tied_heads, num_hidden_layers=1)
    hooks = tiny_model(encoding, None, **small, max_position_embeddings=T)
    ids = torch.randint(97, (1, T), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[:, : T // 2 if padded else 0] = 0
    output = hooks(ids, attention_mask=mask, labels=ids, use_cache=False)
    assert output.logits.isfinite().all()
    output.loss.backward()
    for name, parameter in hooks.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name
