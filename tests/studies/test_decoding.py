"""The cache's size by hand, and what commutes with absorbing the key projection."""

import pytest
from helpers import tiny_model

from pe_core.studies.decoding import measure


@pytest.mark.parametrize(
    ("encoding", "settings", "numbers"),
    [
        ("none", {}, 2 * 2 * 64),  # layers · (k and v) · hidden
        ("rope", {}, 2 * 2 * 64),
        ("alibi", {"attention_kind": "mla", "kv_dim": 24}, 2 * 24),
        ("rope", {"attention_kind": "mla", "kv_dim": 24, "rope_dim": 8}, 2 * (24 + 8)),
    ],
)
def test_cache_numbers_by_hand(encoding, settings, numbers):
    assert measure.cache_numbers(tiny_model(encoding, **settings)) == numbers


def test_speed_is_measured_with_the_cache():
    model = tiny_model("alibi", attention_kind="mla")
    seen, forward = [], model.forward
    model.forward = lambda ids, **rest: seen.append(ids.shape[1]) or forward(ids, **rest)
    assert measure.tokens_per_second(model, 20) > 0
    assert seen == [20] + [1] * 32


@pytest.mark.parametrize(("encoding", "commutes"), [("none", True), ("alibi", True), ("rope", False)])
def test_absorption_commutes_with_a_bias_and_not_with_a_rotation(encoding, commutes):
    gap = measure.absorption_gap(encoding, {"rotary_pct": 1.0} if encoding == "rope" else None)
    assert gap < 1e-5 if commutes else gap > 0.1
