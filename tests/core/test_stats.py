import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_core import stats
from pe_core.stats import RESAMPLES, Estimate, _resample, bootstrap, holm, over_seeds, paired


def totals(documents=60, seed=0):
    """Two runs' summed losses of each document, and its tokens: long documents, and hard ones, are both runs'."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 400, documents)
    level = rng.normal(4, 0.5, documents)
    ours, theirs = (tokens * (level + rng.normal(shift, 0.1, documents)) for shift in (0.1, 0.0))
    return ours, theirs, tokens


def perplexity(s):
    return np.exp(s[0] / s[2])


def difference(s):
    return np.exp(s[0] / s[2]) - np.exp(s[1] / s[2])


def percent(s):
    return 100 * np.expm1((s[0] - s[1]) / s[2])


@pytest.mark.parametrize("documents", [5, 60, 400])
@pytest.mark.parametrize("statistic", [perplexity, difference, percent])
def test_interval_equals_scipys(statistic, documents):
    columns = totals(documents)
    estimate = bootstrap(statistic, *columns)
    reference = scipy.stats.bootstrap(
        columns,
        lambda *drawn, axis: statistic([column.sum(axis=axis) for column in drawn]),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = reference.high - reference.low
    assert estimate.value == pytest.approx(statistic([column.sum() for column in columns]), rel=1e-12)
    # A 2.5 % quantile of 5,000 draws has a standard error of about 1 % of the interval's width.
    assert estimate.low == pytest.approx(reference.low, abs=0.04 * width)
    assert estimate.high == pytest.approx(reference.high, abs=0.04 * width)


def test_interval_of_a_mean_is_the_normal_one():
    """Many documents of one token each: mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(3, 2, 4_000)
    estimate = bootstrap(lambda s: s[0] / s[1], values, np.ones(4_000))
    error = values.std() / math.sqrt(4_000)
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """95 % of 200 samples from a known distribution, give or take; a percentile interval is a little too narrow."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(200):
        tokens = rng.integers(50, 150, 40)
        estimate = bootstrap(lambda s: s[0] / s[1], tokens * rng.normal(4, 0.5, 40), tokens)
        hits += estimate.low <= 4 <= estimate.high
    assert 0.90 <= hits / 200 <= 0.98


def test_intervals_repeat_to_the_bit():
    assert RESAMPLES >= 1_000
    assert bootstrap(perplexity, *totals()) == bootstrap(perplexity, *totals())


@pytest.mark.filterwarnings("error")
def test_one_document_has_no_interval():
    estimate = bootstrap(lambda s: s[0] / s[1], np.array([6.0]), np.array([3]))
    assert estimate.value == 2
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_documents_that_agree_have_no_spread():
    tokens = np.array([3, 5, 8])
    assert bootstrap(lambda s: s[0] / s[1], 2.0 * tokens, tokens) == Estimate(2, 2, 2)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 500)), min_size=2, max_size=30))
def test_a_ratio_lies_within_its_documents(documents):
    means, tokens = map(np.array, zip(*documents, strict=True))
    estimate = bootstrap(lambda s: s[0] / s[1], means * tokens, tokens)
    slack = 1e-9 * (1 + means.max())
    assert means.min() - slack <= estimate.low <= estimate.high <= means.max() + slack
    assert means.min() - slack <= estimate.value <= means.max() + slack


# --- several seeds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[3.0, 5.0], [44.1, 43.2, 45.9], [1.0] * 4, [2.0, 2.5, 1.0, 3.0, 2.2]])
def test_interval_over_seeds_is_students(values):
    estimate = over_seeds(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values) or 1e-300)
    assert estimate == pytest.approx((np.mean(values), low, high))
    assert math.isnan(over_seeds([3.0]).low)


def test_paired_by_seed_alone_is_the_paired_t_test():
    """With one document there is nothing to resample, and what is left is Student's paired test over seeds."""
    ours, theirs = np.array([[50.0], [52.0], [49.0], [51.5]]), np.array([[48.0], [51.0], [48.5], [49.0]])
    result = paired(ours - theirs, np.array([10]))
    reference = scipy.stats.ttest_rel(ours[:, 0] / 10, theirs[:, 0] / 10)
    interval = reference.confidence_interval(0.95)
    assert result.p == pytest.approx(reference.pvalue)
    assert result.estimate == pytest.approx((np.mean(ours - theirs) / 10, interval.low, interval.high))


def test_paired_over_documents_alone_is_close_to_the_paired_t_test():
    """With one seed and documents of equal length the bootstrap's error is that of the mean, up to (D - 1) / D."""
    differences = np.random.default_rng(0).normal(0.3, 1, (1, 400))
    result = paired(differences * 50, np.full(400, 50))
    reference = scipy.stats.ttest_1samp(differences[0], 0).confidence_interval(0.95)
    assert result.estimate.low == pytest.approx(reference.low, abs=0.01)
    assert result.estimate.high == pytest.approx(reference.high, abs=0.01)


def test_paired_by_hand():
    """Both variances, added: s²/S over seeds, the bootstrap's over documents, degrees of freedom after Satterthwaite."""
    differences = np.array([[1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 5.0, 7.0], [0.0, 1.0, 3.0, 4.0]])
    tokens = np.array([4, 4, 8, 8])
    by_seed = differences.sum(1) / 24
    _, drawn = _resample(lambda s: s[0] / s[1], differences.mean(0), tokens)
    a, b = by_seed.var(ddof=1) / 3, drawn.var(ddof=1)
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    low, high = scipy.stats.t.interval(0.95, freedom, by_seed.mean(), math.sqrt(a + b))
    result = paired(differences, tokens)
    assert result.estimate == pytest.approx((by_seed.mean(), low, high))
    assert result.p == pytest.approx(2 * scipy.stats.t.sf(by_seed.mean() / math.sqrt(a + b), freedom))


def test_paired_covers_the_truth():
    """Of many made-up experiments with luck of seeds and of documents, about 95 % have an interval that holds the truth."""
    rng, held, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        documents, seeds = rng.normal(0.1, 0.3, 40), rng.normal(0, 0.05, (4, 1))
        estimate = paired((documents + seeds) * 100, np.full(40, 100)).estimate
        held += estimate.low <= 0.1 <= estimate.high
    assert 0.9 < held / trials < 0.99


def test_one_seed_and_one_document_give_no_interval():
    result = paired(np.array([[3.0]]), np.array([10]))
    assert result.estimate.value == pytest.approx(0.3)
    assert math.isnan(result.estimate.low)
    assert math.isnan(result.p)


def test_holm_by_hand():
    """Holm 1979: the smallest of four p-values counts four times, the next three times …, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.02, math.nan, 0.5])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.5])
    assert math.isnan(adjusted[1])
    assert len(holm([])) == 0


def test_intervals_for_as_many_as_holm_tests_among():
    """Of m the smallest p-value is tested among m, the next among m - 1 …, and all after the first not found as that one."""
    assert stats.tested_among([0.04, 0.001, math.nan, 0.3, 0.002, 0.03]).tolist()[:5] == [3, 5, 3, 3, 4]
    assert stats.tested_among([0.5, 0.6, 0.7]).tolist() == [3, 3, 3]
    assert stats.tested_among([0.001, 0.01, 0.02]).tolist() == [3, 2, 1]
    for p in np.random.default_rng(0).random((200, 6)) ** 4:  # many small ones
        assert ((p * stats.tested_among(p) < 0.05) == (holm(p) < 0.05)).all()


# --- many models at once ---------------------------------------------------------------------------------------------


def simulated(rng, effects, seeds=3, documents=60, noise=0.01):
    """Summed losses (M, S, D) of models with known mean losses: a seed moves all alike, documents differ, noise is by cell."""
    tokens = rng.integers(500, 4_096, documents)
    by_document, by_seed = rng.normal(0, 1, documents), rng.normal(0, 0.1, seeds)
    cell = rng.normal(0, noise, (len(effects), seeds))
    loss = 4 + np.asarray(effects)[:, None, None] + by_seed[:, None] + cell[..., None] + by_document
    return loss * tokens, tokens


def test_contrasts_of_two_models_with_many_documents_are_students_paired_test():
    """Where documents say nothing (all alike), pooling two models' seeds is scipy's paired t-test."""
    rng = np.random.default_rng(1)
    losses = rng.normal(4, 0.1, (2, 5, 1)) * np.full(1, 100)
    found = stats.contrasts(losses, np.array([100]))
    expected = scipy.stats.ttest_rel(losses[0, :, 0], losses[1, :, 0])
    assert found.p[0, 1] == pytest.approx(expected.pvalue)
    assert found.differences[0, 1] == pytest.approx((losses[0] - losses[1]).mean() / 100)


def test_pooled_seed_variance_is_that_of_a_two_way_layout():
    rng = np.random.default_rng(2)
    losses, tokens = simulated(rng, [0, 0.1, 0.2, 0.3], seeds=4)
    x = losses.sum(axis=2) / tokens.sum()
    total, rows, columns = (((part - x.mean()) ** 2).sum() for part in (x, x.mean(1), x.mean(0)))
    mean_square = (total - 4 * rows - 4 * columns) / 9  # sums of squares add up in a balanced layout
    assert stats.seed_error(losses, tokens) == pytest.approx((mean_square / 4) ** 0.5)


def test_contrasts_hold_their_level_where_nothing_differs_and_find_what_does():
    rng = np.random.default_rng(3)
    above = np.triu_indices(8, 1)
    null = [stats.contrasts(*simulated(rng, [0] * 8)).p[above] for _ in range(60)]
    assert 0.02 < (np.concatenate(null) < 0.05).mean() < 0.08
    assert np.mean([(stats.holm(p) < 0.05).any() for p in null]) < 0.1
    found = stats.contrasts(*simulated(rng, [0, 0, 0, 0, 0, 0, 0, 0.05]))
    assert (stats.holm(found.p[above])[above[1] == 7] < 0.05).all()
    assert np.allclose(found.differences, -found.differences.T)
    assert np.isnan(np.diag(found.p)).all()


def test_one_seed_leaves_documents_alone():
    losses, tokens = simulated(np.random.default_rng(4), [0, 0.1], seeds=1)
    losses += np.random.default_rng(5).normal(0, 50, losses.shape)
    found = stats.contrasts(losses, tokens)
    paired = stats.paired(losses[0] - losses[1], tokens)
    assert found.errors[0, 1] == pytest.approx((paired.estimate.high - paired.estimate.low) / 2 / 2.0010, rel=1e-3)


def test_corrected_intervals_and_p_values_agree():
    """However many are compared, and beside whatever other tests: an interval leaves zero out where the corrected p says so."""
    rng, tokens = np.random.default_rng(7), np.full(6, 50)
    found = [
        stats.paired(rng.normal(shift, 5, (3, 6)) + rng.normal(0, 5, (3, 1)), tokens) for shift in np.linspace(-12, 12, 13)
    ]
    corrected = stats.corrected(found, others=[0.001, 0.2, math.nan])
    assert [one.p for one in corrected] == stats.holm([*(one.p for one in found), 0.001, 0.2])[:13].tolist()
    apart = [not one.estimate.low <= 0 <= one.estimate.high for one in corrected]
    assert apart == [one.p < 0.05 for one in corrected]
    assert 0 < sum(apart) < sum(not one.estimate.low <= 0 <= one.estimate.high for one in found)
    for before, after in zip(found, corrected, strict=True):
        assert after.estimate.value == before.estimate.value
        assert after.estimate.low <= before.estimate.low
    assert stats.corrected(found[:1])[0].estimate == pytest.approx(found[0].estimate)  # one alone needs no correction
    assert stats.corrected([]) == []


def test_a_corrected_quantile_is_bonferronis():
    assert stats.quantile(np.array(20.0), 1) == pytest.approx(scipy.stats.t.ppf(0.975, 20))
    assert stats.quantile(np.array(20.0), 66) == pytest.approx(scipy.stats.t.ppf(1 - 0.025 / 66, 20))


def test_spearman_is_scipys():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(2, 9))
    assert stats.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert stats.spearman(a, -a) == -1
