"""Intervals and tests. Documents are the unit that is resampled: tokens of one document are not independent of each other.
Seeds are the other source of luck: initial weights and the order of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # Student's distribution and its quantiles; scipy.stats takes long to import

Floats = NDArray[np.float64]

RESAMPLES = 5_000
_SEED = 0  # the same resamples for every run, so that an interval is as reproducible as the number it belongs to


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[Floats], Floats], *columns: NDArray[np.floating] | NDArray[np.integer]) -> Estimate:
    """Percentile bootstrap (Efron 1979) of a statistic of sums over documents.

    Args:
        columns: per-document totals, each (documents,).
        statistic: takes the columns' sums, shape (columns, …), and returns an array of the trailing shape.

    Returns:
        the statistic of all documents, and the 2.5 % and 97.5 % quantiles over resamples of whole documents. With
        fewer than two documents the interval is not known and both ends are NaN.
    """
    value, drawn = _resample(statistic, *columns)
    if len(columns[0]) < 2:
        return Estimate(value, float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _resample(
    statistic: Callable[[Floats], Floats], *columns: NDArray[np.floating] | NDArray[np.integer]
) -> tuple[float, Floats]:
    """The statistic of all documents, and of every resample (RESAMPLES,)."""
    totals = np.stack([np.asarray(column, np.float64) for column in columns])
    drawn = _times_drawn(totals.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have nothing to divide by
        return float(statistic(totals.sum(axis=1))), statistic(totals @ drawn.T)


@lru_cache(maxsize=2)  # of one corpus every interval draws alike, and drawing takes ten times as long as all the rest
def _times_drawn(D: int) -> NDArray[np.uint16]:
    """How often each of D documents is in each resample: (RESAMPLES, D), the same at every call."""
    return np.random.default_rng(_SEED).multinomial(D, np.full(D, 1 / D), size=RESAMPLES).astype(np.uint16)


def over_seeds(values: list[float] | Floats) -> Estimate:
    """Mean of one value per seed, with Student's 95 % interval: mean ± t(n - 1) · s / sqrt(n). One seed has no interval."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, mean - half, mean + half)


class Paired(NamedTuple):
    """A paired difference: the mean with its 95 % interval, the p-value of "no difference", the mean's standard error and that
    error's degrees of freedom; and, of those that were `corrected`, what is `detectable`."""

    estimate: Estimate
    p: float
    error: float = float("nan")
    freedom: float = float("nan")
    detectable: float = float("nan")


def paired(differences_SD: Floats, tokens_D: NDArray[np.integer]) -> Paired:
    """Difference per token between two models that were trained with the same S seeds and measured on the same D documents.

    Args:
        differences_SD: summed loss of one model minus the other's, by seed and document.

    Returns:
        the mean over seeds of Σ differences / Σ tokens. Its variance is s² / S, from the spread over seeds, plus the
        bootstrap's variance over documents; the interval and the two-sided p-value are Student's, with degrees of freedom
        after Satterthwaite (1946). With one seed only the documents' part is known, and the interval is too narrow by
        the part that is not.
    """
    S, D = differences_SD.shape
    by_seed = differences_SD.sum(axis=1) / tokens_D.sum()
    mean = float(by_seed.mean())
    parts = []
    if S > 1:
        parts.append((float(by_seed.var(ddof=1)) / S, S - 1))
    if D > 1:
        _, drawn = _resample(lambda sums: sums[0] / sums[1], differences_SD.mean(axis=0), tokens_D)
        parts.append((float(drawn.var(ddof=1)), D - 1))
    variance = sum(v for v, _ in parts)
    if not parts or not variance > 0:
        return Paired(Estimate(mean, float("nan"), float("nan")), float("nan"))
    freedom, error = variance**2 / sum(v**2 / df for v, df in parts), variance**0.5
    half, p = float(stdtrit(freedom, 0.975) * error), float(2 * stdtr(freedom, -abs(mean) / error))
    return Paired(Estimate(mean, mean - half, mean + half), p, error, freedom)


def holm(p_values: list[float] | Floats) -> Floats:
    """Holm's (1979) adjusted p-values, which hold for all comparisons together; in the order given.

    The k-th smallest of m is multiplied by m - k + 1, and none is smaller than the one before it. NaN stays NaN and is
    not counted.
    """
    p = np.asarray(p_values, np.float64)
    order, adjusted = np.argsort(p), np.empty(len(p))  # NaN comes last
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (np.sum(~np.isnan(p)) - np.arange(len(p)))), 1)
    return adjusted


def tested_among(p_values: list[float] | Floats) -> Floats:
    """Among how many comparisons Holm's procedure tests each at 5 %: m - k + 1 for the k-th smallest p-value, and for all after
    the first that is not significant, as many as for that one. Intervals for so many exclude zero where a difference is."""
    p = np.asarray(p_values, np.float64)
    return np.asarray(np.sum(~np.isnan(p)) - np.minimum(np.argsort(np.argsort(p)), np.sum(holm(p) < 0.05)), np.float64)


def corrected(found: Sequence[Paired], others: Sequence[float] = ()) -> list[Paired]:
    """The same differences with p-values after Holm, and intervals for as many comparisons as each is tested among
    (`tested_among`); `others` are p-values of tests that are corrected for beside these."""
    p_values = [*(one.p for one in found), *others]
    known = int(np.sum(~np.isnan(p_values)))
    errors, freedom = np.array([(one.error, one.freedom) for one in found]).reshape(-1, 2).T
    half, smallest = quantile(freedom, tested_among(p_values)[: len(found)]) * errors, detectable(errors, freedom, known)
    told = zip(found, half.tolist(), smallest.tolist(), holm(p_values).tolist(), strict=False)
    return [Paired(Estimate(m := one.estimate.value, m - h, m + h), p, one.error, one.freedom, d) for one, h, d, p in told]


class Contrasts(NamedTuple):
    """Every pair of M models that were trained with the same S seeds and measured on the same D documents.

    Attributes:
        differences: (M, M) loss per token of the row's model minus the column's, the mean over seeds.
        errors: (M, M) standard errors.
        freedom: (M, M) degrees of freedom of each error, after Satterthwaite (1946).
        p: (M, M) two-sided p-values of "no difference", uncorrected; NaN on the diagonal and where no error is known.
    """

    differences: Floats
    errors: Floats
    freedom: Floats
    p: Floats


def contrasts(losses_MSD: Floats, tokens_D: NDArray[np.integer]) -> Contrasts:
    """Paired differences between models with one seed variance for all of them.

    The loss of model m under seed s is taken as μ_m + b_s + ε_ms: a seed's order of batches and initial values move all models
    alike by b_s, and what is left has one variance σ² for all models (two-way layout without interaction, one entry a cell).
    Three seeds tell little of one model's variance, two degrees of freedom; pooled over M models there are (M - 1)(S - 1):

        σ² = Σ (x_ms - x_m. - x_.s + x_..)² / ((M - 1)(S - 1)),    variance of a difference over seeds = 2 σ² / S.

    To it the bootstrap's variance over documents is added, which each pair has for itself. With one seed only that is known.

    Args:
        losses_MSD: summed losses by model, seed and document; tokens_D: tokens of each document.
    """
    M, S, D = losses_MSD.shape
    means_M = losses_MSD.sum(axis=2).mean(axis=1) / tokens_D.sum()
    variances, freedoms = [np.zeros((M, M))], [np.inf]
    if S > 1 and M > 1:
        variances.append(np.full((M, M), 2 * seed_error(losses_MSD, tokens_D) ** 2))
        freedoms.append((M - 1) * (S - 1))
    if D > 1:
        covariance = np.cov(resampled_means(losses_MSD.mean(axis=1), tokens_D), ddof=1)
        own = np.diag(covariance)
        variances.append(own[:, None] + own[None, :] - 2 * covariance)
        freedoms.append(D - 1)
    variance = np.maximum(sum(variances), 0)
    differences = means_M[:, None] - means_M[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom_MM = variance**2 / sum(v**2 / df for v, df in zip(variances, freedoms, strict=True))
        p = 2 * stdtr(freedom_MM, -np.abs(differences) / np.sqrt(variance))
    p[(variance <= 0) | np.eye(M, dtype=bool)] = np.nan
    return Contrasts(differences, np.sqrt(variance), freedom_MM, p)


def seed_error(losses_MSD: Floats, tokens_D: NDArray[np.integer]) -> float:
    """Standard error of one model's mean over S seeds, σ / sqrt(S), from the σ pooled over models (see `contrasts`)."""
    M, S, _ = losses_MSD.shape
    if S < 2 or M < 2:
        return 0.0
    x_MS = losses_MSD.sum(axis=2) / tokens_D.sum()
    left_MS = x_MS - x_MS.mean(axis=1, keepdims=True) - x_MS.mean(axis=0) + x_MS.mean()
    return float(np.sqrt((left_MS**2).sum() / ((M - 1) * (S - 1)) / S))


def resampled_means(losses_MD: Floats, tokens_D: NDArray[np.integer]) -> Floats:
    """Each model's loss per token in every resample of documents, the same ones for all models: (M, RESAMPLES)."""
    drawn = _times_drawn(len(tokens_D))
    return np.asarray(losses_MD @ drawn.T / (drawn @ tokens_D), np.float64)


def quantile(freedom: Floats, comparisons: Floats | int) -> Floats:
    """Student's quantile of a two-sided 95 % interval that holds for so many comparisons together (Bonferroni)."""
    return np.asarray(stdtrit(freedom, 1 - 0.025 / np.maximum(comparisons, 1)), np.float64)


def detectable(errors: Floats, freedom: Floats, comparisons: int) -> Floats:
    """The smallest difference that four of five such comparisons would find, each being one of so many (Bonferroni)."""
    # 0.84: the normal quantile of 80 % power
    return np.asarray((quantile(freedom, comparisons) + quantile(freedom, 1) / 1.96 * 0.84) * errors, np.float64)


def spearman(a: Floats, b: Floats) -> Floats:
    """Spearman's rank correlation along the first axis. There are no ties among losses."""
    n = a.shape[0]
    ranks_a, ranks_b = (np.argsort(np.argsort(x, axis=0), axis=0) for x in (a, b))
    return np.asarray(1 - 6 * ((ranks_a - ranks_b) ** 2).sum(axis=0) / (n * (n**2 - 1)), np.float64)
