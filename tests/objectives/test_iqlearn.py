"""IQLearn against eq. 14 written as loops, a two-token case with its numbers, and calibration of V."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.mdp import LAYOUTS, example_documents, lay_out, logsumexp, naive_returns, place, random_documents, steps
from inverselm.objectives import iqlearn, mle, remaining_nll, td_coef_at
from inverselm.token_mdp import TokenBatch, stats_from_logits


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_against_one_document_at_a_time(layout, gamma, seed):
    documents = random_documents(seed + 40, 6)
    batch, logits, places = lay_out(documents, layout)
    assert batch.terminal.any()
    assert batch.truncated.any()
    episodes = [steps(d) for d in documents if steps(d)]
    actions = [s for episode in episodes for s in episode]
    delta = [s.q - gamma * s.next_v for s in actions]
    nll = [-s.log_prob for s in actions]
    still_to_come = []
    for episode in episodes:
        numbers = [-s.log_prob for s in episode]
        numbers[-1] += gamma * episode[-1].next_v
        still_to_come += naive_returns(numbers, gamma)
    expected = {
        "nll": mean(nll),
        "td_squared": mean(d * d for d in delta),
        "td_error": mean(abs(d) for d in delta),
        "reward": mean(delta),
        "value_first": mean(episode[0].v for episode in episodes),
        "value_gap": mean(s.v - n for s, n in zip(actions, still_to_come, strict=True)),
    }
    stats = stats_from_logits(logits, batch)
    value, metrics = iqlearn(stats, td_coef=0.3, gamma=gamma)
    assert value.item() == pytest.approx(mean(n + 0.3 * d * d for n, d in zip(nll, delta, strict=True)), rel=1e-12)
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    rest = iter(still_to_come)
    naive = place([[next(rest) for _ in steps(d)] for d in documents], documents, batch, places)
    torch.testing.assert_close(remaining_nll(stats, gamma), naive, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("gamma", "td_squared", "td_error", "reward", "loss"),
    [
        (1.0, 0.843700987, 0.895879735, -0.202732554, 0.980249833),
        (0.5, 0.391095127, 0.621226662, 0.071920518, 0.934989247),
    ],
)
def test_by_hand(gamma, td_squared, td_error, reward, loss):
    """Tokens {0, 1 = EOS}; the answer is 0 1; the logits are (0, log 3), then (0, log 2).

    V_1 = log 4, V_2 = log 3, V(end) = 0; -log pi = log 4, log 3/2; delta = -gamma log 3, log 2.
    """
    batch = TokenBatch.from_ids([[0]], [[0, 1]], pad_token_id=0, eos_token_ids=[1])
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, math.log(2.0)], [5.0, 5.0]]], dtype=torch.float64)
    value, metrics = iqlearn(stats_from_logits(logits, batch), td_coef=0.1, gamma=gamma)
    assert value.item() == pytest.approx(loss, abs=1e-8)
    assert metrics["nll"].item() == pytest.approx(0.895879735, abs=1e-8)
    assert metrics["td_squared"].item() == pytest.approx(td_squared, abs=1e-8)
    assert metrics["td_error"].item() == pytest.approx(td_error, abs=1e-8)
    assert metrics["reward"].item() == pytest.approx(reward, abs=1e-8)
    assert metrics["value_first"].item() == pytest.approx(1.386294361, abs=1e-8)


def test_truncated_answer_by_hand():
    """The same answer cut after its first token: delta_1 = 0 - V(after it) = -log 3, and nothing else."""
    batch = TokenBatch.from_ids([[0]], [[0]], pad_token_id=0, eos_token_ids=[1])
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(2.0), 0.0]]], dtype=torch.float64)
    value, _ = iqlearn(stats_from_logits(logits, batch), td_coef=0.5)
    assert value.item() == pytest.approx(1.386294361 + 0.5 * 1.206948961)


def test_without_the_td_term_it_is_exactly_mle():
    batch, logits, _ = lay_out(random_documents(41, 4), dtype=torch.float32)
    gradients = []
    for objective in (lambda s: iqlearn(s, td_coef=0.0), mle):
        leaf = logits.clone().requires_grad_()
        loss = objective(stats_from_logits(leaf, batch)).value
        loss.backward()
        gradients.append((loss.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradient_flows_through_q_and_the_next_value():
    """One action at Q, truncated at V': d delta^2 / d logits is 2 delta in Q's place and -2 delta softmax in V's."""
    batch = TokenBatch.from_ids([[0]], [[0]], pad_token_id=0, eos_token_ids=[1])
    logits = torch.tensor([[[0.3, 1.0], [0.7, -0.2]]], dtype=torch.float64, requires_grad=True)
    stats = stats_from_logits(logits, batch)
    (iqlearn(stats, td_coef=1.0, gamma=0.9).value - mle(stats).value).backward()
    delta = 0.3 - 0.9 * logsumexp([0.7, -0.2])
    probabilities = logits.detach()[0, 1].softmax(-1)
    expected = torch.stack([torch.tensor([2 * delta, 0.0]).double(), -2 * 0.9 * delta * probabilities])
    torch.testing.assert_close(logits.grad[0], expected)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_calibrated_value_is_the_nll_still_to_come(gamma):
    """Shift the logits of each state, from the last backwards, until every delta is 0; the policy does not change."""
    documents = [d for seed in (42, 43) for d in (*example_documents(seed, 7), *random_documents(seed, 3))]
    for document in documents:
        for i in reversed(range(len(steps(document)))):
            step = steps(document)[i]
            shift = gamma * step.next_v - step.q
            state = step.column - 1
            document.logits[state] = [x + shift for x in document.logits[state]]
    batch, logits, _ = lay_out(documents, "left")
    stats = stats_from_logits(logits, batch)
    value, metrics = iqlearn(stats, td_coef=1.0, gamma=gamma)
    torch.testing.assert_close(remaining_nll(stats, gamma), stats.value, rtol=1e-10, atol=1e-10)
    assert value.item() == pytest.approx(metrics["nll"].item())
    for name in ("td_squared", "td_error", "reward", "value_gap"):
        assert metrics[name].item() == pytest.approx(0.0, abs=1e-10)
    assert stats.value.abs().max() > 1


def test_td_coef_schedule():
    at = lambda step: td_coef_at(step, td_coef=0.4, mle_warmup_steps=3, td_anneal_steps=3)
    assert [at(step) for step in range(8)] == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert td_coef_at(0, td_coef=0.4) == 0.4
    assert [td_coef_at(s, td_coef=0.4, mle_warmup_steps=1) for s in range(3)] == [0.0, 0.4, 0.4]
    assert [td_coef_at(s, td_coef=0.4, td_anneal_steps=1) for s in range(3)] == [0.2, 0.4, 0.4]
