"""The data report against numpy and scipy."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from inverselm import UserError
from inverselm.evaluation.data_report import BINS, QUANTILES, data_report


def test_counts_distributions_and_correlations():
    rng = np.random.default_rng(0)
    answers = [list(rng.normal(-0.5, 1, size=n)) for n in rng.integers(1, 30, size=300)]
    keys = [(f"p{i}", f"c{i}") for i in range(300)] + [("p0", "c0"), ("p0", "c0"), ("p1", "other")]
    report = data_report(answers, keys, unscored={"too long": 3})
    assert (report.rows, report.duplicates, report.contradictions) == (303, 2, 1)
    assert report.unscored == {"too long": 3}
    sums, lengths = np.array([sum(a) for a in answers]), np.array([len(a) for a in answers])
    values = {"reward": sums, "reward per token": sums / lengths, "tokens": lengths}
    for name, x in values.items():
        assert report.quantiles[name] == pytest.approx(np.quantile(x, QUANTILES))
        edges, counts = report.histograms[name]
        assert len(edges) == BINS + 1
        assert sum(counts) == 300
        inside = (x >= edges[3]) & (x < edges[4])
        assert counts[3] == inside.sum()
    for name in ("reward", "reward per token"):
        rank, linear = report.length_correlation[name]
        assert rank == pytest.approx(stats.spearmanr(values[name], lengths)[0])
        assert linear == pytest.approx(stats.pearsonr(values[name], lengths)[0])


def test_equal_lengths_have_no_correlation():
    report = data_report([[1.0], [2.0]], [("a", "b"), ("c", "d")])
    assert all(math.isnan(x) for pair in report.length_correlation.values() for x in pair)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["length_correlation"]["reward"] == [None, None]
    assert sum(report.histograms["tokens"][1]) == 2


def test_no_rewards_no_report():
    with pytest.raises(UserError):
        data_report([], [("a", "b")])
