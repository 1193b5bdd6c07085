"""The rate at equal length: against scipy's optimiser, and on data whose truth is known."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from inverselm.evaluation.length_control import equal_length_rate, logistic


def scipys(x, y, w):
    """An independent fit of the same likelihood."""
    lost = lambda c: -(w * (y * (c[0] + c[1] * x) - np.logaddexp(0, c[0] + c[1] * x))).sum()
    slope = lambda c: (
        -np.array([(w * (y - expit(c[0] + c[1] * x))).sum(), (w * x * (y - expit(c[0] + c[1] * x))).sum()])
    )
    return minimize(lost, [0.0, 0.0], jac=slope, method="BFGS", options={"gtol": 1e-9}).x


def with_tied_pair(d, y, w):
    return np.append(d / d.std(), [1, -1]), np.append(y, [0.5, 0.5]), np.append(w, [0.5, 0.5])


def draw(rng, size, shift=0.7, slope=1.0, intercept=0.0):
    """Length differences, mostly positive, and the mean of two verdicts of a judge that likes length."""
    d = rng.normal(shift, 1, size)
    return d * 120, (rng.random((2, size)) < expit(intercept + slope * d)).mean(axis=0)


@pytest.mark.parametrize("seed", range(8))
def test_logistic_is_scipys_fit(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(6, 60))
    x = np.append(rng.normal(rng.normal(), 2, size), [1, -1])
    y = np.append(rng.choice([0, 0.5, 1], size), [0.5, 0.5])
    weights = np.append(rng.integers(0, 4, (5, size)), np.ones((5, 2)), axis=1)
    found = logistic(x, y, weights)
    for row, w in zip(found, weights, strict=True):
        assert row == pytest.approx(scipys(x, y, w), abs=1e-5)
    assert logistic(x, y, weights, start=(3.0, -2.0)) == pytest.approx(found, abs=1e-8)


def test_logistic_without_a_maximum_is_no_number():
    assert np.isnan(logistic([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [[1.0, 1.0, 1.0]])).all()
    assert np.isnan(logistic([2.0, 2.0], [1.0, 0.0], [[1.0, 1.0]])).all()


def test_rate_is_that_of_the_documented_model():
    rng = np.random.default_rng(3)
    d, y = draw(rng, 50, intercept=0.5)
    expected = expit(scipys(*with_tied_pair(d, y, np.ones(50)))[0])
    assert equal_length_rate(y, d, range(50), [0] * 50, n=50).value == pytest.approx(expected, abs=1e-6)
    assert equal_length_rate(y, 10 * d, range(50), [0] * 50, n=50).value == pytest.approx(expected, abs=1e-6)


def test_pairs_of_a_prompt_together_weigh_one():
    rng = np.random.default_rng(4)
    d, y = draw(rng, 30)
    prompts = [0] * 10 + list(range(1, 21))
    weights = np.array([0.1] * 10 + [1.0] * 20)
    expected = expit(scipys(*with_tied_pair(d, y, weights))[0])
    assert equal_length_rate(y, d, prompts, [0] * 30, n=50).value == pytest.approx(expected, abs=1e-6)


def test_a_judge_that_likes_length_alone():
    rng = np.random.default_rng(0)
    raw, equal = [], []
    for _ in range(20):
        d, y = draw(rng, 400, slope=4.0)
        raw.append(y.mean())
        equal.append(equal_length_rate(y, d, range(400), [0] * 400, n=10).value)
    assert np.mean(raw) > 0.7
    assert np.mean(equal) == pytest.approx(0.5, abs=0.02)


def test_a_preference_beyond_length_is_found():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(20):
        d, y = draw(rng, 400, intercept=0.8)
        found.append(equal_length_rate(y, d, range(400), [0] * 400, n=10).value)
    assert np.mean(found) == pytest.approx(expit(0.8), abs=0.015)


def test_intervals_hold_what_they_promise():
    """Over simulated experiments: the rate of a judge that likes length is in 95% of its intervals, more or less."""
    rng = np.random.default_rng(2)
    held = []
    for _ in range(200):
        d, y = draw(rng, 100, intercept=0.4)
        found = equal_length_rate(y, d, range(100), [0] * 100, n=200)
        held.append(found.low <= expit(0.4) <= found.high)
    assert 0.89 <= np.mean(held) <= 0.985


def test_lengths_that_predict_every_verdict_have_a_finite_answer():
    d = np.arange(-10.0, 30.0) + 0.5
    found = equal_length_rate((d > 0).astype(float), d, range(40), [0] * 40, n=300)
    assert 0.2 < found.value < 0.8
    assert found.low < 0.5 < found.high


def test_lengths_that_never_vary_or_overlap_say_nothing():
    y = [1.0, 0.0, 1.0, 1.0]
    for d in ([3, 3, 3, 3], [0, 0, 0, 0], [1, 2, 3, 4], [-1, -5, -2, -2]):
        assert np.isnan(equal_length_rate(y, d, range(4), [0] * 4, n=20)).all()
    assert np.isfinite(equal_length_rate(y, [-1, 2, 3, 0], range(4), [0] * 4, n=20)).all()


def test_seeds_that_differ_make_the_interval_wide():
    """Three seeds with an effect each: over prompts alone the interval would be several times too narrow."""
    rng = np.random.default_rng(5)
    held, widths, narrow = [], [], []
    prompts, seeds = np.tile(range(60), 3), np.repeat(range(3), 60)
    for _ in range(60):
        d = rng.normal(0.5, 1, (3, 60))
        y = (rng.random((2, 3, 60)) < expit(d + rng.normal(0, 0.8, (3, 1)))).mean(axis=0)
        found = equal_length_rate(y.ravel(), d.ravel(), prompts, seeds, n=200)
        one = equal_length_rate(y.ravel(), d.ravel(), range(180), [0] * 180, n=200)
        held.append(found.low <= 0.5 <= found.high)
        widths.append(found.high - found.low)
        narrow.append(one.high - one.low)
    assert np.mean(held) > 0.85
    assert np.mean(widths) > 2 * np.mean(narrow)
