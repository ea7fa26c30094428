import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_core import metrics
from pe_core.errors import RecordError
from pe_core.metrics import HeldOut


def tokens(M=40, T=128, documents=12, seed=0, mean=4.0):
    """Per-token losses (M, T) and the documents they belong to, in order and of unequal lengths."""
    rng = np.random.default_rng(seed)
    level = rng.normal(mean, 0.5, documents)  # documents differ, as in real text
    which = np.sort(rng.integers(documents, size=M * T)).reshape(M, T)
    return np.abs(rng.normal(level[which], 1.0)).astype(np.float32), which


def of(losses, documents, sizes=None):
    return HeldOut.of(losses, documents, np.ones_like(documents) if sizes is None else sizes)


# --- adding up -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_held_out_adds_up_by_document_and_position(M, T, documents, seed):
    rng = np.random.default_rng(seed)
    losses, sizes = rng.exponential(4, (M, T)).astype(np.float32), rng.integers(0, 9, (M, T))
    names = 7 * rng.integers(documents, size=(M, T))  # not 0, 1, 2 …, and some may not occur
    heldout = of(losses, names, sizes)
    for d, name in enumerate(sorted(set(names.ravel().tolist()))):
        for t in range(T):
            rows = [m for m in range(M) if names[m, t] == name]
            assert heldout.tokens[d, t] == len(rows)
            assert heldout.bytes[d, t] == sum(sizes[m, t] for m in rows)
            assert heldout.losses[d, t] == pytest.approx(math.fsum(float(losses[m, t]) for m in rows), rel=1e-12)
    assert len(heldout.tokens) == len(np.unique(names))


def test_held_out_is_saved_whole(tmp_path):
    heldout = of(*tokens())
    heldout.save(tmp_path / "heldout.npz")
    for before, after in zip(heldout, HeldOut.load(tmp_path / "heldout.npz"), strict=True):
        np.testing.assert_array_equal(before, after, strict=True)


def test_a_range_leaves_out_documents_it_does_not_touch():
    heldout = of(BY_HAND, np.array([[0, 0, 1], [0, 1, 1]]))
    part = heldout.positions(0, 1)
    assert part.tokens.tolist() == [[2]]
    assert part.losses.tolist() == [[5.0]]


# --- the note's first mistake ----------------------------------------------------------------------------------------


def test_the_notes_position_table_is_not_of_the_weights_it_reports():
    """Its token-weighted average is epoch 4's perplexity, 506.5; the best epoch it reports has 504.6."""
    published, widths = [609.9, 519.8, 488.7, 493.0, 485.3], [16, 16, 32, 32, 32]
    loss = sum(width * math.log(ppl) for width, ppl in zip(widths, published, strict=True)) / 128
    assert round(loss, 4) == 6.2276
    assert round(math.exp(loss), 1) == 506.5 != 504.6
    # Our own table of losses that have the note's perplexities says the same.
    losses = np.repeat(np.log(published), widths).astype(np.float32)[None].repeat(3, 0)
    heldout = of(losses, np.arange(3)[:, None].repeat(128, 1))
    table = metrics.position_table(heldout)
    assert [(row["end"] - row["start"], round(row["perplexity"], 1)) for row in table] == list(
        zip(widths, published, strict=True)
    )
    assert round(metrics.perplexity(heldout).value, 1) == 506.5


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 600), st.integers(0, 2**32 - 1), st.floats(0.01, 30))
def test_position_losses_average_to_the_overall_loss(M, T, seed, mean):
    losses, documents = tokens(M, T, 3, seed, mean)
    summary = metrics.summarise(of(losses, documents))
    overall = math.fsum(map(float, losses.ravel())) / losses.size
    table = summary["position_bins"]
    weighted = math.fsum(row["loss"] * row["tokens"] for row in table) / sum(row["tokens"] for row in table)
    assert sum(row["tokens"] for row in table) == losses.size
    for mean_loss in (
        weighted,
        math.fsum(summary["position_loss"]) / T,
        summary["loss"],
        math.log(summary["perplexity"]["value"]),
        metrics.mean_loss(losses),
    ):
        assert mean_loss == pytest.approx(overall, rel=1e-12, abs=1e-15)


def test_sums_are_fp64():
    """A million losses of 0.1: an fp32 running sum is off in the fourth digit."""
    losses = np.full((1_000, 1_000), 0.1, np.float32)
    exact = pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert metrics.mean_loss(losses) == exact
    assert of(losses, np.zeros((1_000, 1_000), int)).loss == exact


# --- values by hand --------------------------------------------------------------------------------------------------

BY_HAND = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]], np.float32)
DOCUMENTS = np.array([[7, 7, 7], [7, 2, 2]])


def test_perplexity_by_hand():
    """Weighted by tokens: 24 nats over 6 tokens, however they fall into documents."""
    estimate = metrics.perplexity(of(BY_HAND, DOCUMENTS))
    assert estimate.value == pytest.approx(math.exp(4))
    # Two documents with means 2.5 and 7: a resample is twice the one, twice the other, or one of each.
    assert estimate.low == pytest.approx(math.exp(2.5))
    assert estimate.high == pytest.approx(math.exp(7))


def test_bits_per_byte_by_hand():
    """24 nats are 24 / ln 2 bits; the tokens stand for 12 bytes, an end-of-text token among them for none."""
    estimate = metrics.bits_per_byte(of(BY_HAND, DOCUMENTS, np.array([[2, 1, 4], [1, 4, 0]])))
    assert estimate.value == pytest.approx(24 / math.log(2) / 12)
    assert estimate.low == pytest.approx(10 / math.log(2) / 8)
    assert estimate.high == pytest.approx(14 / math.log(2) / 4)


def test_a_document_of_no_bytes_is_no_trouble():
    """Two documents, one of a lone end-of-text token: a resample may have no bytes at all, so the interval is unknown."""
    estimate = metrics.bits_per_byte(of(BY_HAND, DOCUMENTS, np.array([[2, 1, 4], [1, 0, 0]])))
    assert estimate.value == pytest.approx(24 / math.log(2) / 8)
    assert not math.isfinite(estimate.high)


def test_a_uniform_guess_over_bytes_costs_eight_bits_a_byte():
    losses, documents = np.full((5, 8), math.log(256), np.float32), np.arange(5)[:, None].repeat(8, 1)
    assert metrics.bits_per_byte(of(losses, documents)).value == pytest.approx(8)


def test_positions_by_hand():
    heldout = of(BY_HAND, DOCUMENTS)
    assert metrics.by_position(heldout).tolist() == [2.5, 3.5, 6.0]
    (row,) = metrics.position_table(heldout)
    assert row == pytest.approx(
        {"start": 0, "end": 3, "tokens": 6, "loss": 4} | {"perplexity": math.exp(4), "low": math.exp(2.5), "high": math.exp(7)}
    )


@pytest.mark.parametrize(
    ("T", "edges"),
    [
        (8, [0, 8]),
        (64, [0, 16, 32, 64]),
        (128, [0, 16, 32, 64, 96, 128]),
        (200, [0, 16, 32, 64, 96, 128, 200]),
        (256, [0, 16, 32, 64, 96, 128, 256]),
        (512, [0, 16, 32, 64, 96, 128, 256, 512]),
        (1_025, [0, 16, 32, 64, 96, 128, 256, 512, 1_024, 1_025]),
    ],
)
def test_bins(T, edges):
    assert metrics.bins(T) == list(pairwise(edges))


@pytest.mark.parametrize(("T", "points"), [(128, 64), (100, 10), (2_048, 64), (5, 64), (1, 64)])
def test_position_curve_covers_every_position_once(T, points):
    losses, documents = tokens(M=8, T=T, documents=4)
    curve = metrics.position_curve(of(losses, documents), points)
    assert [*curve.start, T] == [0, *curve.end]
    assert (curve.end > curve.start).all()
    assert len(curve) <= points
    widths = (curve.end - curve.start).tolist()
    assert all(later >= earlier - 1 for earlier, later in pairwise(widths))  # even in the logarithm
    for row in curve.itertuples():
        part = losses[:, row.start : row.end].astype(float)
        assert row.tokens == part.size
        assert row.perplexity == pytest.approx(math.exp(part.mean()))
        assert not row.low > row.perplexity
        assert not row.high < row.perplexity


# --- differences -----------------------------------------------------------------------------------------------------


def test_identical_runs_do_not_differ():
    heldout = of(*tokens())
    assert metrics.difference(heldout, of(*tokens())) == {"absolute": (0, 0, 0), "percent": (0, 0, 0)}


def test_difference_by_hand():
    difference = metrics.difference(of(BY_HAND + np.float32(math.log(1.25)), DOCUMENTS), of(BY_HAND, DOCUMENTS))
    assert difference["percent"] == pytest.approx((25, 25, 25), rel=1e-5)  # the same for every document
    by_document = 0.25 * np.exp([4, 2.5, 7])
    assert difference["absolute"] == pytest.approx(by_document.tolist(), rel=1e-5)


def test_difference_changes_sign_with_its_sides():
    losses, documents = tokens()
    ours, baseline = of(losses + tokens(seed=1)[0] / 10, documents), of(losses, documents)
    worse, better = metrics.difference(ours, baseline), metrics.difference(baseline, ours)
    assert worse["absolute"].low > 0
    assert better["absolute"] == pytest.approx([-worse["absolute"][i] for i in (0, 2, 1)])
    assert 1 + better["percent"].value / 100 == pytest.approx(1 / (1 + worse["percent"].value / 100))


def test_pairing_narrows_the_interval():
    """Runs agree on which documents are hard; most of either run's spread is not a difference between them."""
    losses, documents = tokens(M=200)
    noise = np.random.default_rng(9).normal(0.05, 0.2, losses.shape)
    ours, baseline = of(losses + noise, documents), of(losses, documents)
    paired = metrics.difference(ours, baseline)["absolute"]
    alone, other = metrics.perplexity(ours), metrics.perplexity(baseline)
    assert paired.value == pytest.approx(alone.value - other.value)
    unpaired = math.hypot(alone.high - alone.low, other.high - other.low)
    assert 0 < paired.high - paired.low < unpaired / 3
    assert paired.low > 0  # found, although the two intervals overlap:
    assert alone.low < other.high


def test_runs_on_different_tokens_are_not_compared():
    losses, documents = tokens()
    for other in (of(losses[:, :64], documents[:, :64]), of(losses[1:], documents[1:]), of(losses, 11 - documents)):
        with pytest.raises(RecordError, match=r"^runs measured on different held-out tokens .*$"):
            metrics.difference(of(losses, documents), other)


def test_change_between_positions_by_hand():
    """By window: 1 to 3 nats and 4 to 9 nats, together 2.5 to 6."""
    heldout = of(BY_HAND, np.array([[0, 0, 0], [1, 1, 1]]))
    change = metrics.change(heldout, (0, 1), (2, 3))
    assert change == pytest.approx([100 * math.expm1(nats) for nats in (3.5, 2, 5)])


# --- the record ------------------------------------------------------------------------------------------------------


def test_summary_is_plain_and_counts():
    losses, documents = tokens(T=64)
    sizes = np.random.default_rng(3).integers(1, 6, losses.shape)
    summary = metrics.summarise(of(losses, documents, sizes))
    bits = losses.astype(float).sum() / math.log(2)
    assert summary["bits_per_byte"]["value"] == pytest.approx(bits / sizes.sum())
    assert summary["tokens"] == 40 * 64
    assert summary["documents"] == 12
    assert len(summary["position_loss"]) == 64

    def leaves(value):
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return [type(value)] if inside is None else [leaf for item in inside for leaf in leaves(item)]

    assert set(leaves(summary)) == {int, float}  # as JSON knows them, not NumPy's


def test_a_single_document_has_values_without_intervals():
    losses, _ = tokens(T=32)
    summary = metrics.summarise(of(losses, np.zeros(losses.shape, int)))
    for row in (summary["perplexity"], summary["bits_per_byte"], *summary["position_bins"]):
        assert math.isnan(row["low"])
        assert math.isnan(row["high"])
    assert summary["perplexity"]["value"] == pytest.approx(math.exp(losses.astype(float).mean()))
