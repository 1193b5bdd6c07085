"""How often a run would be preferred if its answers were as long as the other run's: logistic regression on length.

For pair i let y_i be the score (1 won, 1/2 tied, 0 lost) and z_i the run's length minus the other's, in units of the
standard deviation of these differences. The model is

    P(preferred) = 1 / (1 + exp(-(a + b z_i))),        rate at equal length = 1 / (1 + exp(-a)),

with a and b of the largest likelihood prod_i p_i^(w_i y_i) (1 - p_i)^(w_i (1 - y_i)), in which the pairs of a prompt
and seed together weigh 1. One tied pair is added, half of it at z = 1 and half at z = -1: the estimate is then finite
when length alone predicts every verdict, and the effect is that of one pair. [Our choice.] The idea is that of
length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475), whose model has further terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .comparison import two_way_error
from .results import Estimate
from .statistics import scipy_stats

MOST_RESAMPLES = 2000
ADDED = ((1.0, 0.5, 0.5), (-1.0, 0.5, 0.5))
"""z, score and weight of what is added: a tied pair."""
UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))
_CHUNK = 1_000_000
_ITERATIONS = 200


def logistic(x: Any, y: Any, weights: Any, start: Any = None) -> Any:
    """Logistic regression of shares on one variable, for many weightings at once: Newton's method, steps held back.

    Args:
        x: (N,) numbers.
        y: (N,) shares from 0 to 1.
        weights: (r, N), how often each item counts; the likelihood must have a maximum.
        start: (2,) coefficients to begin at.

    Returns:
        (r, 2) coefficients, intercept and slope; NaN where there is no maximum.

    Example:
        >>> logistic([-1, 1, 1, 1], [0.5, 1, 0, 0.5], [[1.0, 1, 1, 1]]).tolist()
        [[0.0, 0.0]]
    """
    x, y, w = (np.asarray(values, dtype=float) for values in (x, y, weights))
    found = np.zeros((len(w), 2)) + (0.0 if start is None else np.asarray(start))
    best, step, part = np.full(len(w), -np.inf), np.zeros((len(w), 2)), np.ones(len(w))
    active = np.arange(len(w))
    with np.errstate(all="ignore"):
        for _ in range(_ITERATIONS):
            tried = found[active] + part[active, None] * step[active]
            value, newton = _newton(tried, x, y, w[active])
            better = value >= best[active] - 1e-12 * np.abs(value)
            rows = active[better]
            found[rows], best[rows], step[rows] = tried[better], value[better], newton[better]
            size, most = np.abs(newton).max(axis=1), 1 + np.abs(tried).max(axis=1)
            part[rows] = np.minimum(1.0, most / size)[better]
            part[active[~better]] /= 2
            active = active[~(better & (size <= 1e-9 * most))]
            if not active.size:
                break
    found[active] = np.nan
    return found


def _newton(found: Any, x: Any, y: Any, w: Any) -> tuple[Any, Any]:
    """(r, 2) coefficients -> (r,) log-likelihoods and (r, 2) Newton steps."""
    eta = found[:, :1] + found[:, 1:] * x
    p = 1 / (1 + np.exp(-eta))
    v, rest = w * p * (1 - p), w * (y - p)
    h0, h1, h2 = v.sum(axis=1), v @ x, v @ (x * x)
    g0, g1 = rest.sum(axis=1), rest @ x
    value = (w * (y * eta - np.logaddexp(0, eta))).sum(axis=1)
    return value, np.stack([h2 * g0 - h1 * g1, h0 * g1 - h1 * g0], axis=1) / (h0 * h2 - h1 * h1)[:, None]


def equal_length_rate(
    scores: Sequence[float],
    differences: Sequence[float],
    prompts: Sequence[int],
    seeds: Sequence[int],
    *,
    n: int = MOST_RESAMPLES,
    alpha: float = 0.05,
    seed: int = 0,
) -> Estimate:
    """The rate at which the run is preferred where both answers are equally long, with its interval.

    The interval is a percentile bootstrap over prompts, and over seeds too where there are several; it then has the
    width of a t interval from the crossed design, as in `compare_runs`. Where hardly any pair has the one answer longer
    or hardly any the other, it is an extrapolation.

    Args:
        scores: of each pair, 0 to 1.
        differences: of each pair, the run's length minus the other's.
        prompts: of each pair, its prompt's number from 0.
        seeds: of each pair, its seed's number from 0.
        n: resamples, at most `MOST_RESAMPLES`.
        alpha: the interval is a 1 - alpha one.
        seed: of the resamples.

    Returns:
        NaN where the differences in length do not vary, or all have one sign: there the effect of length cannot be told
        from a preference.

    Example:
        >>> found = equal_length_rate([1, 1, 0, 0], [5, 1, -1, -5], range(4), [0] * 4)  # the longer answer wins
        >>> round(found.value, 3)
        0.5
    """
    y, d = np.asarray(scores, dtype=float), np.asarray(differences, dtype=float)
    rows, columns = np.asarray(seeds, dtype=np.intp), np.asarray(prompts, dtype=np.intp)
    if y.size < 2 or d.std() == 0 or (d > 0).all() or (d < 0).all():
        return UNDEFINED
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    counts = np.zeros(shape)
    np.add.at(counts, (rows, columns), 1.0)
    weights = 1 / counts[rows, columns]
    added = np.array(ADDED)
    x, shares = np.append(d / d.std(), added[:, 0]), np.append(y, added[:, 1])
    with_added = lambda w: np.hstack([w, np.tile(added[:, 2], (len(w), 1))])
    whole = logistic(x, shares, with_added(weights[None]))[0]
    rng = np.random.default_rng(seed)
    n, step, drawn = min(n, MOST_RESAMPLES), max(1, _CHUNK // y.size), []
    for begin in range(0, n, step):
        size = min(step, n - begin)
        of_seeds, of_prompts = (rng.multinomial(k, np.full(k, 1 / k), size=size) for k in shape)
        resampled = weights * of_seeds[:, rows] * of_prompts[:, columns]
        drawn.append(logistic(x, shares, with_added(resampled), whole)[:, 0])
    value, rates = float(_sigmoid(whole[0])), _sigmoid(np.concatenate(drawn))
    low, high = np.quantile(rates, [alpha / 2, 1 - alpha / 2])
    if shape[0] > 1 and rates.std() > 0:
        error, freedom = two_way_error(_influence(x[: y.size], y, weights, whole, rows, columns, shape))
        stats = scipy_stats()
        scale = stats.t.ppf(1 - alpha / 2, freedom) * error / (stats.norm.ppf(1 - alpha / 2) * rates.std())
        low, high = (min(1.0, max(0.0, value + scale * (bound - value))) for bound in (low, high))
    return Estimate(value, float(low), float(high))


def _influence(x: Any, y: Any, weights: Any, whole: Any, rows: Any, columns: Any, shape: tuple[int, int]) -> Any:
    """(seeds, prompts): how far each cell moves the rate at equal length, times the number of cells."""
    p, at_zero = _sigmoid(whole[0] + whole[1] * x), _sigmoid(whole[0])
    v = weights * p * (1 - p)
    h0, h1, h2 = v.sum(), (v * x).sum(), (v * x * x).sum()
    moved = at_zero * (1 - at_zero) * (h2 - h1 * x) * weights * (y - p) / (h0 * h2 - h1 * h1)
    table = np.zeros(shape)
    np.add.at(table, (rows, columns), moved)
    return table * table.size


def _sigmoid(value: Any) -> Any:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-value))
