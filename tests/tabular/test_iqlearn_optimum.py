"""Where IQLearn ends: between maximum likelihood (small lambda) and all demonstrated answers alike (large lambda)."""

import math

import pytest
import torch

from inverselm.objectives import iqlearn, mle
from inverselm.tabular import log_policy, sequence_log_probs
from inverselm.token_mdp import stats_from_logits


def minimise(tree, start, objective, rows, steps=30):
    """Full-batch L-BFGS on a table from `start`; returns the table and its metrics."""
    q, batch = start.clone().requires_grad_(), tree.batch(rows)
    optimizer = torch.optim.LBFGS([q], max_iter=20, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective(stats_from_logits(tree.logits_for(batch, q), batch)).value
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return q.detach(), metrics_of(tree, q.detach(), rows)


def metrics_of(tree, q, rows):
    batch = tree.batch(rows)
    metrics = iqlearn(stats_from_logits(tree.logits_for(batch, q), batch), td_coef=0.0).metrics
    return {name: float(value) for name, value in metrics.items()}


def uneven(sequences):
    """Every sequence, some up to five times."""
    return [y for y in sequences for _ in range(1 + (7 * sum(y) + len(y)) % 5)]


@pytest.fixture
def start(small, table):
    """Logits of a model whose offsets are off by 5 nats and more."""
    return table(small, 0) + 5.0 + 2.0 * table(small, 1)[:, :1]


def test_small_lambda_reaches_maximum_likelihood_with_calibrated_values(small, start):
    """The likelihood leaves V as far off as it started; a little of the TD term calibrates it at no cost in NLL."""
    rows = uneven(small.sequences)
    counts = small.visits[[small.sequences.index(y) for y in rows]].sum(0)
    frequencies = (counts / counts.sum(1, keepdim=True)).clamp(min=1e-300)
    best = float(-(counts * frequencies.log()).sum() / counts.sum())
    _, by_mle = minimise(small, start, mle, rows)
    _, by_iqlearn = minimise(small, start, lambda stats: iqlearn(stats, td_coef=1e-3), rows)
    assert by_mle["nll"] == pytest.approx(best, abs=1e-6)
    assert best - 1e-9 <= by_iqlearn["nll"] < best + 1e-3
    assert metrics_of(small, start, rows)["value_gap"] > 3
    assert by_mle["value_gap"] > 3
    assert abs(by_iqlearn["value_gap"]) < 0.1
    assert by_iqlearn["td_error"] < 0.2 < 2 < by_mle["td_error"]


def test_a_deterministic_expert_is_imitated_whatever_lambda_is(small, start):
    """One answer: log pi = 0, Q = V = 0 along it has no TD error, so the two terms agree."""
    rows = [(1, 2, 1, 0)]
    for td_coef in (0.1, 10.0):
        _, metrics = minimise(small, start, lambda stats, c=td_coef: iqlearn(stats, td_coef=c), rows)
        assert metrics["nll"] < 1e-3
        assert metrics["td_error"] < 1e-3
        assert abs(metrics["value_first"]) < 1e-3


@pytest.mark.parametrize("keep", [15, 6])
def test_large_lambda_makes_all_demonstrated_answers_alike(small, start, keep):
    """delta = 0 on the data means log pi(y) = -V(s_1) by telescoping: one probability for all demonstrated answers.

    So the optimum is uniform over the *distinct* answers, however often each was shown, and V(s_1) is the log of their
    number (gamma = 1; our derivation).
    """
    kept = small.sequences[:keep]
    rows = uneven(kept)
    q, metrics = minimise(small, start, lambda stats: iqlearn(stats, td_coef=1e4), rows)
    probabilities = sequence_log_probs(small, log_policy(small, q)).exp()
    wanted = torch.tensor([1 / keep if y in kept else 0.0 for y in small.sequences], dtype=torch.float64)
    torch.testing.assert_close(probabilities, wanted, rtol=0, atol=2e-3)
    assert metrics["value_first"] == pytest.approx(math.log(keep), abs=1e-3)
    shown = torch.tensor([rows.count(y) / len(rows) for y in small.sequences], dtype=torch.float64)
    assert (wanted - shown).abs().max() > 0.02
