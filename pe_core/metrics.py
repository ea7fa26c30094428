"""What is measured on held-out text. Everything derives from the loss of every held-out token, in nats.

Shapes: M held-out windows, T context length, D held-out documents.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pe_core import files
from pe_core.errors import RecordError
from pe_core.stats import Estimate, bootstrap

# The results note's position ranges; beyond 128 they go on doubling.
NOTE_BINS = (0, 16, 32, 64, 96, 128)


class HeldOut(NamedTuple):
    """Losses of held-out tokens, added up by document and position: all that the metrics and their intervals need.

    Attributes:
        losses: (D, T) sum of cross-entropies in nats, fp64.
        tokens: (D, T) number of tokens.
        bytes: (D, T) UTF-8 bytes those tokens stand for; end-of-text tokens stand for none.
    """

    losses: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        losses_MT: NDArray[np.floating],
        documents_MT: NDArray[np.integer],
        bytes_MT: NDArray[np.integer],
        scored_MT: NDArray[np.bool_] | None = None,
    ) -> HeldOut:
        """Add up per-token arrays; documents that no window touches are left out.

        Args:
            scored_MT: the tokens that count; `None` is all.
        """
        M, T = losses_MT.shape
        names, document = np.unique(documents_MT, return_inverse=True)
        cell = (document.reshape(M, T) * T + np.arange(T)).ravel()
        chosen = slice(None) if scored_MT is None else scored_MT.ravel()
        cell, size, shape = cell[chosen], len(names) * T, (len(names), T)
        losses = np.bincount(cell, losses_MT.ravel()[chosen].astype(np.float64), minlength=size).reshape(shape)
        sizes = np.bincount(cell, bytes_MT.ravel()[chosen].astype(np.float64), minlength=size).reshape(shape)
        tokens = np.bincount(cell, minlength=size).reshape(shape)
        return cls(losses.astype(np.float64), tokens.astype(np.int64), sizes.round().astype(np.int64))

    def positions(self, start: int, end: int) -> HeldOut:
        """The part at positions [start, end), without documents that have no token there."""
        present = self.tokens[:, start:end].any(axis=1)
        return HeldOut(self.losses[present, start:end], self.tokens[present, start:end], self.bytes[present, start:end])

    @property
    def loss(self) -> float:
        """Token-weighted mean loss."""
        return float(self.losses.sum() / self.tokens.sum())

    def save(self, path: Path) -> None:
        files.write(path, lambda file: np.savez_compressed(file, **self._asdict()))

    @classmethod
    def load(cls, path: Path) -> HeldOut:
        with path.open("rb") as file, np.load(file) as arrays:  # numpy leaves a damaged file open
            return cls(**arrays)


def mean_loss(losses_MT: NDArray[np.floating], scored_MT: NDArray[np.bool_] | None = None) -> float:
    """Mean of per-token losses, of all or of those that count, summed in fp64."""
    return float((losses_MT if scored_MT is None else losses_MT[scored_MT]).mean(dtype=np.float64))


def perplexity(heldout: HeldOut) -> Estimate:
    """exp(mean loss over tokens), with a bootstrap interval over documents."""
    return bootstrap(lambda sums: np.exp(sums[0] / sums[1]), heldout.losses.sum(1), heldout.tokens.sum(1))


def bits_per_byte(heldout: HeldOut) -> Estimate:
    """Σ loss / (ln 2 · Σ UTF-8 bytes of the predicted tokens): comparable between tokenizers. NaN where the tokens stand for
    no text, as those of a task do."""
    if not heldout.bytes.any():
        return Estimate(math.nan, math.nan, math.nan)
    return bootstrap(lambda sums: sums[0] / (math.log(2) * sums[1]), heldout.losses.sum(1), heldout.bytes.sum(1))


def by_position(heldout: HeldOut) -> NDArray[np.float64]:
    """Mean loss at each position of the window, (T,), NaN where no token counts. Weighted by tokens it averages to the overall
    mean loss."""
    with np.errstate(invalid="ignore"):
        return np.asarray(heldout.losses.sum(axis=0) / heldout.tokens.sum(axis=0))


def bins(T: int) -> list[tuple[int, int]]:
    """The note's position ranges [start, end) up to T, doubling beyond 128."""
    edges = [edge for edge in NOTE_BINS if edge < T]
    while edges[-1] >= 128 and edges[-1] * 2 < T:
        edges.append(edges[-1] * 2)
    return list(pairwise([*edges, T]))


def position_table(heldout: HeldOut) -> list[dict[str, Any]]:
    """Perplexity in each position range that has tokens, with its interval and their number.

    The token-weighted average of `loss` is the overall mean loss (the note's own table fails this check).
    """
    return _ranges(heldout, bins(heldout.tokens.shape[1]))


def position_curve(heldout: HeldOut, points: int = 24, against: HeldOut | None = None) -> pd.DataFrame:
    """Perplexity by position with intervals, for a figure: columns start, end, tokens, loss, perplexity, low, high.

    Positions are grouped, evenly in their logarithm, into at most `points` ranges. `against`: the ratio to its perplexity.
    """
    heldout = heldout._replace(losses=heldout.losses - against.losses) if against else heldout
    return pd.DataFrame(_ranges(heldout, list(pairwise(_curve_edges(heldout.tokens.shape[1], points)))))


def _curve_edges(T: int, points: int = 24) -> list[int]:
    edges: list[int] = (np.unique(np.geomspace(1, T + 1, min(points, T) + 1).round().astype(int)) - 1).tolist()
    return edges


def published_edges(T: int) -> NDArray[np.int64]:
    """Ends of the ranges of positions that published losses are added up by: those of `bins` and of `position_curve`."""
    return np.unique([*_curve_edges(T), *(edge for ends in bins(T) for edge in ends)]).astype(np.int64)


def _ranges(heldout: HeldOut, ends: list[tuple[int, int]]) -> list[dict[str, Any]]:
    return [_range(heldout, start, end) for start, end in ends if heldout.tokens[:, start:end].any()]


def _range(heldout: HeldOut, start: int, end: int) -> dict[str, Any]:
    part = heldout.positions(start, end)
    value, low, high = perplexity(part)
    tokens = int(part.tokens.sum())
    return {"start": start, "end": end, "tokens": tokens, "loss": part.loss, "perplexity": value, "low": low, "high": high}


def difference(ours: HeldOut, baseline: HeldOut) -> dict[str, Estimate]:
    """How much worse a run is than a baseline on the same tokens, paired by document.

    Returns:
        `absolute`: difference of perplexities; `percent`: 100 · (ratio of perplexities - 1).

    Raises:
        RecordError: the two were not measured on the same tokens.
    """
    if not np.array_equal(ours.tokens, baseline.tokens):
        raise RecordError("runs measured on different held-out tokens cannot be paired")
    columns = ours.losses.sum(1), baseline.losses.sum(1), ours.tokens.sum(1)
    return {
        "absolute": bootstrap(lambda s: np.exp(s[0] / s[2]) - np.exp(s[1] / s[2]), *columns),
        "percent": bootstrap(lambda s: 100 * np.expm1((s[0] - s[1]) / s[2]), *columns),
    }


def change(heldout: HeldOut, early: tuple[int, int], late: tuple[int, int]) -> Estimate:
    """By how many percent perplexity at the late positions [start, end) is higher than at the early ones."""
    parts = [HeldOut(*(array[:, start:end] for array in heldout)) for start, end in (early, late)]  # type: ignore[arg-type]
    columns = [array.sum(1) for part in parts for array in (part.losses, part.tokens)]
    return bootstrap(lambda s: 100 * np.expm1(s[2] / s[3] - s[0] / s[1]), *columns)


def summarise(heldout: HeldOut) -> dict[str, Any]:
    """Every held-out metric of a run, as plain values for its record."""
    return {
        "loss": heldout.loss,
        "perplexity": perplexity(heldout)._asdict(),
        "bits_per_byte": bits_per_byte(heldout)._asdict(),
        "position_bins": position_table(heldout),
        "position_loss": by_position(heldout).tolist(),
        "tokens": int(heldout.tokens.sum()),
        "documents": len(heldout.tokens),
    }
