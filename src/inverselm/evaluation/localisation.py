"""Does a token reward point at the place where an answer is wrong?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def auroc(scores: Sequence[float], positives: Sequence[bool]) -> float:
    """Probability that a positive scores higher than a negative, ties counted half (the Mann-Whitney statistic).

    Raises:
        ValueError: there is no positive or no negative.

    Example:
        >>> auroc([0.9, 0.1, 0.4], [True, False, False])
        1.0
    """
    values, labels = np.asarray(scores, dtype=float), np.asarray(positives, dtype=bool)
    count = int(labels.sum())
    if count == 0 or count == labels.size:
        raise ValueError("auroc needs at least one positive and one negative.")
    _, place, size = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (size.cumsum() - (size - 1) / 2)[place]
    return float((ranks[labels].sum() - count * (count + 1) / 2) / (count * (labels.size - count)))


def overlapping(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[bool]:
    """Which token spans share a character with [start, end).

    Example:
        >>> overlapping([(0, 2), (2, 4)], 3, 4)
        [False, True]
    """
    return [a < end and b > start for a, b in spans]
