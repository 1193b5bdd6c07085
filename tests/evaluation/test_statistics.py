"""Rank statistics under weights against scipy on the resampled data; tests, corrections against scipy, by hand."""

import doctest
import itertools

import numpy as np
import pytest
from scipy import stats

from inverselm.errors import UserError
from inverselm.evaluation import statistics
from inverselm.evaluation.statistics import (
    Auroc,
    Ranks,
    bootstrap,
    bootstrap_weights,
    cluster_index,
    holm,
    paired_permutation,
    percentile,
    sign_flips,
    spearman,
    weighted_correlation,
)


def draw(seed, size=30, values=6):
    """Numbers with many ties, and how often each is drawn."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, values, size).astype(float), rng.integers(0, 4, (5, size)).astype(float)


def test_examples_in_docstrings():
    assert doctest.testmod(statistics).failed == 0


@pytest.mark.parametrize("seed", range(4))
def test_weighted_ranks_are_ranks_of_the_resampled_data(seed):
    values, weights = draw(seed)
    found = Ranks(values)(weights)
    for row, ranks in zip(weights.astype(int), found, strict=True):
        drawn = np.repeat(np.arange(values.size), row)
        expected = stats.rankdata(values[drawn])
        np.testing.assert_allclose(ranks[drawn], expected)


@pytest.mark.parametrize("seed", range(4))
def test_weighted_correlation_of_ranks_is_spearman_of_the_resampled_data(seed):
    x, weights = draw(seed)
    y, _ = draw(seed + 100)
    found = weighted_correlation(Ranks(x)(weights), Ranks(y)(weights), weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        expected = stats.spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic
        assert value == pytest.approx(expected, abs=1e-12)


def test_spearman_is_scipys_and_undefined_for_constants():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 5, 12), rng.normal(size=12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman([0.1] * 7, [1, 2, 3, 4, 5, 6, 7]))
    assert np.isnan(spearman([1], [1]))


@pytest.mark.parametrize("seed", range(4))
def test_weighted_auroc_is_mann_whitney_of_the_resampled_data(seed):
    scores, weights = draw(seed)
    positives = np.random.default_rng(seed + 50).random(scores.size) < 0.3
    found = Auroc(scores, positives)(weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        drawn, labels = np.repeat(scores, row), np.repeat(positives, row)
        above, below = drawn[labels], drawn[~labels]
        u = stats.mannwhitneyu(above, below).statistic
        assert value == pytest.approx(u / (above.size * below.size), abs=1e-12)
    assert np.isnan(Auroc(scores, positives)(weights * positives)).all()
    assert np.isnan(Auroc(scores, positives)(weights * ~positives)).all()
    assert np.isnan(Auroc(scores, positives | True)(weights)).all()
    owner = np.random.default_rng(seed).integers(0, 7, scores.size)  # several scores of one item
    by_item = weights[:, :7]
    np.testing.assert_allclose(Auroc(scores, positives, owner)(by_item), Auroc(scores, positives)(by_item[:, owner]))


def test_bootstrap_draws_whole_clusters_and_repeats_with_its_seed(monkeypatch):
    index = cluster_index(["b", "a", "b", "c", "c", "c"])
    assert index.tolist() == [0, 1, 0, 2, 2, 2]
    weights = np.concatenate(list(bootstrap_weights(index, 500, seed=3)))
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all(), "three clusters are drawn"
    assert weights.mean(axis=0) == pytest.approx(1.0, abs=0.15)
    monkeypatch.setattr(statistics, "_CHUNK", 60)
    again = np.concatenate(list(bootstrap_weights(index, 500, seed=3)))
    assert (again == weights).all(), "memory limits change nothing"
    other = np.concatenate(list(bootstrap_weights(index, 500, seed=4)))
    assert (other != weights).any()


def test_bootstrap_interval_is_scipys():
    data = np.random.default_rng(1).exponential(size=40)
    mean = lambda weights: (weights @ data / weights.sum(axis=1))[:, None]
    value, drawn = bootstrap(mean, np.arange(40), 8000, seed=0)
    found = percentile(value[0], drawn[:, 0])
    scipys = stats.bootstrap((data,), np.mean, method="percentile", n_resamples=8000, rng=np.random.default_rng(5))
    assert found.value == pytest.approx(data.mean())
    width = scipys.confidence_interval.high - scipys.confidence_interval.low
    assert found.low == pytest.approx(scipys.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(scipys.confidence_interval.high, abs=0.03 * width)
    with pytest.raises(UserError, match="at least one resample"):
        bootstrap(mean, np.arange(40), 0)


def test_undefined_resamples_are_left_out_of_an_interval():
    found = percentile(0.5, np.array([0.4, np.nan, 0.6]), level=0.5)
    assert found == pytest.approx((0.5, 0.45, 0.55))
    assert np.isnan(percentile(0.5, np.array([np.nan])).low)
    assert np.isnan(percentile(np.nan, np.array([0.4])).low)


@pytest.mark.parametrize("seed", range(5))
def test_exact_permutation_test_is_scipys(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 10).astype(float), rng.integers(0, 3, 10).astype(float)
    expected = stats.permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert paired_permutation(a, b) == pytest.approx(expected, abs=1e-12)


def test_random_permutation_test_is_close_to_the_exact_one():
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.1, 1, 14), rng.normal(0, 1, 14)
    exact = paired_permutation(a, b, n=2**14)
    assert 0.01 < exact < 0.9
    assert paired_permutation(a, b, n=2**14 - 1) == pytest.approx(exact, abs=0.015)


def test_permutation_by_hand():
    assert paired_permutation([1, 1, 1, 1, 1], [0, 0, 0, 0, 0]) == pytest.approx(2 / 32)
    assert paired_permutation([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1.0
    # 0.1 + 0.2 - 0.3 is not 0 in floating point, and yet no less extreme than 0.3 - 0.2 - 0.1
    assert paired_permutation([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]) == 1.0
    assert paired_permutation([5.0] * 40, [0.0] * 40, n=999) == pytest.approx(1 / 1000)
    with pytest.raises(UserError, match="same prompts"):
        paired_permutation([1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="same prompts"):
        paired_permutation([], [])


def test_all_sign_flips_are_tried_when_there_are_few():
    flips, exact = sign_flips(3, 8)
    assert exact
    assert {tuple(row) for row in next(flips)} == set(itertools.product([0.0, 1.0], repeat=3))
    flips, exact = sign_flips(200, 50)
    assert not exact
    rows = np.concatenate(list(flips))
    assert rows.shape == (50, 200)
    assert rows.mean() == pytest.approx(0.5, abs=0.03)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]), "capped at 1, and never below an earlier one"
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
