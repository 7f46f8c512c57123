"""The two numbers every metric needs: a ratio with its standard error, and a paired difference.

Each item carries a score, a weight and the cluster it belongs to (its document). A metric is
sum(score) / sum(weight): bits over bytes, hits over trials. Items of one document are not independent, so
errors come from the sums of clusters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
# Of fewer clusters a bootstrap knows too little: no interval is given, and nothing is said to differ.
LEAST = 10


@dataclass(frozen=True)
class Estimate:
    """A ratio; `stderr` is None where fewer than two clusters leave it unknown."""

    value: float
    stderr: float | None
    n: int
    clusters: int


@dataclass(frozen=True)
class Difference:
    """A minus B over the same items; `low` and `high` bound the bootstrap interval, None below `LEAST` clusters."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int


def ratio(scores: ArrayLike, weights: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Estimate sum(scores) / sum(weights) with the linearised standard error of a ratio over clusters.

    Args:
        scores: one per item.
        weights: one per item, positive.
        clusters: one label per item; items of one label are resampled together.
    """
    s_G, w_G, n = _cluster_sums(scores, weights, clusters)
    value = float(s_G.sum() / w_G.sum())
    return Estimate(value, _stderr(s_G, w_G), n, len(s_G))


def paired(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike,
    clusters: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Estimate the ratio of A minus the ratio of B over the same items, with a percentile bootstrap.

    Args:
        a: scores of A, one per item.
        b: scores of B on the same items.
        weights: common to both.
        clusters: as in `ratio`.
        level: coverage of the interval.
        resamples: bootstrap draws of clusters.
        seed: of the draws.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    d_G, w_G, n = _cluster_sums(difference, weights, clusters)
    size, value = len(d_G), float(d_G.sum() / w_G.sum())
    if size < LEAST:
        return Difference(value, _stderr(d_G, w_G), None, None, n, size)
    rng = np.random.default_rng(seed)
    draws: list[Floats] = []
    for start in range(0, resamples, 1000):
        counts_RG = rng.multinomial(size, np.full(size, 1 / size), min(1000, resamples - start))
        draws.append((counts_RG @ d_G) / (counts_RG @ w_G))
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return Difference(value, _stderr(d_G, w_G), float(low), float(high), n, size)


def _cluster_sums(scores: ArrayLike, weights: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Floats, int]:
    s_N, w_N = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    _, index_N = np.unique(np.asarray(clusters), return_inverse=True)
    s_G, w_G = (np.asarray(np.bincount(index_N, column), np.float64) for column in (s_N, w_N))
    return s_G, w_G, len(s_N)


def _stderr(s_G: Floats, w_G: Floats) -> float | None:
    size = len(s_G)
    if size < 2:
        return None
    residual_G = s_G - s_G.sum() / w_G.sum() * w_G
    return float(np.sqrt(size / (size - 1) * np.square(residual_G).sum()) / w_G.sum())
