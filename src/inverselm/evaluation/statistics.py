"""Resampling: bootstraps over clusters, rank statistics under weights, sign-flip tests, Holm's correction.

A bootstrap resample is written as weights, how often each item was drawn. Rank statistics are then functions of
presorted values and weights, many resamples at once, and equal the plain statistic of the resampled data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .results import Estimate

Array = Any
_CHUNK = 2_000_000  # weights held in memory at once


def cluster_index(names: Sequence[Hashable]) -> Array:
    """Numbers 0, 1, ... for equal names, in order of appearance.

    >>> cluster_index(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def bootstrap_weights(index: Array, n: int, seed: int = 0, *, size: int = 0) -> Iterator[Array]:
    """Bootstrap of whole clusters: (r, N) arrays of how often each item is in a resample; `n` rows in all.

    Args:
        index: (N,) cluster number of each item, 0 to C - 1; C clusters are drawn with replacement.
        n: number of resamples.
        seed: the same seed and number of clusters draw the same clusters, so that two statistics can be paired.
        size: numbers that a resample is spread out to, if that is more than N: it bounds the rows of an array.
    """
    rng = np.random.default_rng(seed)
    clusters = int(index.max()) + 1
    step = max(1, _CHUNK // max(index.size, clusters, size))
    for start in range(0, n, step):
        rows = min(step, n - start)
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=rows).astype(float)[:, index]


def bootstrap(
    statistic: Callable[[Array], Array], index: Array, n: int, seed: int = 0, *, size: int = 0
) -> tuple[Array, Array]:
    """A statistic of weights, at weight 1 and on `n` resamples of clusters.

    Args:
        statistic: (r, N) weights -> (r, K) numbers.
        index: (N,) cluster of each item.
        n: number of resamples.
        seed: of the resamples.
        size: see `bootstrap_weights`.

    Returns:
        (K,) values and (n, K) replicates.

    Raises:
        UserError: n < 1.
    """
    if n < 1:
        raise UserError(f"the bootstrap needs at least one resample, not {n}")
    values = statistic(np.ones((1, index.size)))[0]
    return values, np.concatenate([statistic(w) for w in bootstrap_weights(index, n, seed, size=size)])


def percentile(value: float, replicates: Array, level: float = 0.95) -> Estimate:
    """Percentile interval; resamples in which the statistic is not defined (NaN) are left out.

    >>> percentile(20.0, np.arange(0.0, 101.0), level=0.5)
    Estimate(value=20.0, low=25.0, high=75.0)
    """
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or defined.size == 0:
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


class Ranks:
    """Mean ranks of fixed values under changing weights: the ranks of the data in which item i occurs w_i times.

    >>> Ranks([30.0, 10.0, 20.0])(np.array([[1, 2, 1.0]]))  # of 30, 10, 10, 20
    array([[4. , 1.5, 3. ]])
    """

    def __init__(self, values: Sequence[float]) -> None:
        array = np.asarray(values, dtype=float)
        self.order = np.argsort(array, kind="stable")
        ordered = array[self.order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.starts = np.flatnonzero(new)
        self.group = np.empty(array.size, dtype=np.intp)
        self.group[self.order] = np.cumsum(new) - 1

    def __call__(self, weights: Array) -> Array:
        """(r, N) weights -> (r, N) ranks from 1."""
        groups = np.add.reduceat(weights[:, self.order], self.starts, axis=1)  # sums over equal values, ascending
        return (groups.cumsum(axis=1) - (groups - 1) / 2)[:, self.group]


def weighted_correlation(x: Array, y: Array, weights: Array) -> Array:
    """Pearson correlation of (r, N) values under (r, N) weights -> (r,); NaN where one of them is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    covariance = (weights * x * y).sum(axis=1)
    spread = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, covariance / np.sqrt(spread), np.nan)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN if one side is constant, or for fewer than two numbers.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    if len(x) < 2:
        return float("nan")
    once = np.ones((1, len(x)))
    return float(weighted_correlation(Ranks(x)(once), Ranks(y)(once), once)[0])


class Auroc:
    """AUROC of fixed scores under changing weights: how often a positive is above a negative, ties half.

    Args:
        scores: (N,) numbers.
        positives: (N,) which of them are positive.
        owner: (N,) the item whose weight counts for each score; None: each has its own.

    >>> Auroc([0.9, 0.1, 0.4], np.array([True, False, False]))(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))
    array([1., 1.])
    """

    def __init__(self, scores: Sequence[float], positives: Array, owner: Array | None = None) -> None:
        values = np.asarray(scores, dtype=float)
        owner = np.arange(values.size) if owner is None else owner
        below = np.flatnonzero(~positives)
        below = below[np.argsort(values[below], kind="stable")]
        self.above, self.below = owner[positives], owner[below]
        places = [np.searchsorted(values[below], values[positives], side) for side in ("left", "right")]
        cuts = np.unique(np.concatenate([[0], *places]))
        self.cuts = cuts[cuts < below.size]  # sums between cuts are all that is needed of the negatives
        self.places = [np.searchsorted(self.cuts, place) for place in places]

    def __call__(self, weights: Array) -> Array:
        """(r, items) weights -> (r,); NaN where there is no positive or no negative."""
        if not self.cuts.size:
            return np.full(len(weights), np.nan)
        sums = np.add.reduceat(weights[:, self.below], self.cuts, axis=1).cumsum(axis=1)
        sums = np.concatenate([np.zeros((len(weights), 1)), sums], axis=1)  # of the negatives before each cut
        above = weights[:, self.above]
        wins = (above * (sums[:, self.places[0]] + sums[:, self.places[1]]) / 2).sum(axis=1)
        pairs = above.sum(axis=1) * sums[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, wins / pairs, np.nan)


def sign_flips(count: int, n: int, seed: int = 0) -> tuple[Iterator[Array], bool]:
    """Which of `count` pairs to swap: (r, count) arrays of 0 and 1, and whether they are all 2^count ways there are.

    All of them when there are at most `n`; otherwise `n` random ones.
    """
    if count < 60 and 2**count <= n:
        numbers = np.arange(2**count)[:, None]
        return iter([((numbers >> np.arange(count)) & 1).astype(float)]), True
    return _random_flips(count, n, seed), False


def _random_flips(count: int, n: int, seed: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    for start in range(0, n, step):
        yield rng.integers(0, 2, (min(step, n - start), count)).astype(float)


def permutation_p(observed: float, permuted: Array, exact: bool) -> float:
    """Two-sided p: the share of permutations at least as far from 0; the observed one counts in a random sample.

    >>> permutation_p(2.0, np.array([-2.0, -1.0, 1.0, 2.0]), exact=True)
    0.5
    """
    size = np.abs(permuted)
    tolerance = 1e-10 * max(abs(observed), float(size.max()))  # equal but for rounding
    extreme = int((size >= abs(observed) - tolerance).sum())
    return extreme / permuted.size if exact else (extreme + 1) / (permuted.size + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): compare each with alpha; controls the chance of any false positive.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def paired_permutation(a: Sequence[float], b: Sequence[float], *, n: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of a sign-flip test of the mean of a - b; `a[i]` and `b[i]` belong to the same prompt.

    Under the null the two values of a prompt could be swapped. All 2^N ways are tried when there are at most `n`, else
    `n` random ones, and the observed one with them.

    Raises:
        UserError: different numbers of values, or none.

    >>> paired_permutation([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    0.25
    """
    left, right = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if left.shape != right.shape or left.ndim != 1 or not left.size:
        raise UserError(f"a paired test needs values of the same prompts: got {left.size} and {right.size}")
    difference = left - right
    flips, exact = sign_flips(difference.size, n, seed)
    permuted = np.concatenate([(1 - 2 * swap) @ difference for swap in flips])
    return permutation_p(float(difference.sum()), permuted, exact)


def scipy_stats() -> Any:
    """`scipy.stats`, which comparing several seeds needs.

    Raises:
        UserError: scipy is not there.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError("comparing several seeds needs scipy: pip install 'inverselm[eval]'") from error
    return stats
