"""Rewards: telescoping, shaping, bounds, mixtures, and their naive loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from helpers.mdp import LAYOUTS, Document, example_documents, lay_out, logsumexp, place, random_documents, steps
from inverselm.token_mdp import (
    TokenStats,
    add_to_last_action,
    bellman_residual,
    centre,
    clip,
    floor_log_ratio,
    log_ratio,
    mix_baselines,
    sequence_sum,
    shape,
    standardise_per_position,
    state_kl,
    stats_from_logits,
)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bellman_residual(layout, gamma):
    documents = random_documents(11, 6)
    batch, logits, places = lay_out(documents, layout)
    naive = [[s.q - gamma * s.next_v for s in steps(d)] for d in documents]
    reward = bellman_residual(stats_from_logits(logits, batch), gamma)
    torch.testing.assert_close(reward, place(naive, documents, batch, places), rtol=1e-12, atol=1e-12)


def test_bellman_residual_telescopes():
    """gamma = 1: sum r = V(s_1) + log pi(y|x), minus the bootstrapped V where the answer was cut off."""
    documents = example_documents()
    batch, logits, _ = lay_out(documents, "left")
    sums = sequence_sum(bellman_residual(stats_from_logits(logits, batch)), batch.action_mask)
    terminated, truncated = documents
    log_pi = [sum(s.log_prob for s in steps(d)) for d in documents]
    assert sums[0].item() == pytest.approx(steps(terminated)[0].v + log_pi[0], abs=1e-12)
    end = logsumexp(truncated.logits[-1])
    assert sums[1].item() == pytest.approx(steps(truncated)[0].v + log_pi[1] - end, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_shaping_by_the_value_turns_the_residual_into_log_pi(gamma):
    batch, logits, _ = lay_out(random_documents(12, 5))
    stats = stats_from_logits(logits, batch)
    shaped = shape(bellman_residual(stats, gamma), stats.value, stats.next_value, gamma)
    torch.testing.assert_close(shaped, stats.log_prob, rtol=1e-12, atol=1e-12)


def test_shaping_signs():
    assert shape(torch.tensor([[1.0]]), torch.tensor([[10.0]]), torch.tensor([[4.0]]), 0.5).item() == -7.0


def test_log_ratio():
    mask = torch.tensor([[False, True, True]])
    sft = torch.tensor([[float("nan"), -1.0, -2.0]])
    base = torch.tensor([[-1.0, -3.0, -1.5]])
    assert log_ratio(sft, base, mask).tolist() == [[0.0, 2.0, -0.5]]


def test_mix_baselines():
    a, b = torch.tensor([[0.5, 0.1]]).log(), torch.tensor([[0.1, 0.2]]).log()
    torch.testing.assert_close(mix_baselines([a, b], "log").exp(), torch.tensor([[0.05**0.5, 0.02**0.5]]))
    torch.testing.assert_close(mix_baselines([a, b], "probability").exp(), torch.tensor([[0.3, 0.15]]))
    for how in ("log", "probability"):
        torch.testing.assert_close(mix_baselines([a], how), a)
    with pytest.raises(ValueError, match="at least one"):
        mix_baselines([])
    with pytest.raises(ValueError, match="'mean'"):
        mix_baselines([a], "mean")


def test_clip():
    rewards = torch.tensor([[-5.0, -1.0, 0.0, 3.0]])
    assert clip(rewards, low=-2.0).tolist() == [[-2.0, -1.0, 0.0, 3.0]]
    assert clip(rewards, high=1.0).tolist() == [[-5.0, -1.0, 0.0, 1.0]]
    assert clip(rewards, -2.0, 1.0).tolist() == [[-2.0, -1.0, 0.0, 1.0]]
    assert clip(rewards, 0.0, 0.0).abs().sum() == 0
    assert torch.equal(clip(rewards), rewards)
    for low, high in ((0.5, 1.0), (None, -1.0), (1.0, None)):
        with pytest.raises(ValueError, match="must contain 0"):
            clip(rewards, low, high)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 0.999])
def test_floor_log_ratio(alpha):
    rewards = torch.linspace(-20, 20, 41, dtype=torch.float64)
    direct = torch.tensor([math.log(alpha * math.exp(r) + 1 - alpha) for r in rewards.tolist()], dtype=torch.float64)
    torch.testing.assert_close(floor_log_ratio(rewards, alpha), direct, rtol=1e-10, atol=1e-12)
    far = floor_log_ratio(torch.tensor([-torch.inf, -1e4, 1e4], dtype=torch.float64), alpha)
    expected = torch.tensor([math.log(1 - alpha), math.log(1 - alpha), 1e4 + math.log(alpha)], dtype=torch.float64)
    torch.testing.assert_close(far, expected)
    assert (floor_log_ratio(rewards, alpha) >= math.log(1 - alpha)).all()
    assert (floor_log_ratio(rewards, alpha).diff() > 0).all()
    assert torch.equal(floor_log_ratio(torch.zeros(3), alpha), torch.zeros(3))  # exactly 0 off the actions
    inside = torch.tensor([-3.0, -0.1, 0.1, 3.0, 50.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: floor_log_ratio(r, alpha), inside)


def test_floor_log_ratio_is_the_reward_of_a_mixture():
    sft, base, alpha = 0.02, 0.4, 0.7
    mixed = math.log((alpha * sft + (1 - alpha) * base) / base)
    assert floor_log_ratio(torch.tensor(math.log(sft / base)), alpha).item() == pytest.approx(mixed, abs=1e-6)
    assert floor_log_ratio(torch.tensor([-3.0]), 1.0).item() == -3.0
    for alpha in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="alpha"):
            floor_log_ratio(torch.zeros(1), alpha)


def test_centred_rewards_have_no_expectation():
    """All answers of two tokens over three: under pi_SFT every centred reward has mean 0; the raw ones do not."""
    generator = torch.Generator().manual_seed(0)
    sft, base = (torch.randn(4, 3, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    answers = list(itertools.product(range(3), repeat=2))  # state 0, then state 1 + first token
    documents = [
        [Document([0, a, b], [False, True, True], [q[0].tolist(), q[1 + a].tolist(), [0.0] * 3]) for a, b in answers]
        for q in (sft, base)
    ]
    (batch, sft_logits, _), (_, base_logits, _) = (lay_out(d) for d in documents)
    sft_stats, base_stats = stats_from_logits(sft_logits, batch), stats_from_logits(base_logits, batch)
    rewards = log_ratio(sft_stats.log_prob, base_stats.log_prob, batch.action_mask)
    centred = centre(rewards, state_kl(sft_logits, base_logits, batch))
    probability = sft_stats.log_prob.sum(1, keepdim=True).exp()
    assert probability.sum().item() == pytest.approx(1.0)
    assert ((probability * rewards).sum(0)[1:] > 0.05).all()
    torch.testing.assert_close((probability * centred).sum(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not centred[:, 0].any()


@pytest.mark.parametrize("layout", ["right", "left"])
def test_standardise_per_position(layout):
    longest = Document([3] * 12, [True] * 12, [[0.0] * 7] * 12)
    batch, _, _ = lay_out([*random_documents(13, 7), longest], layout)
    rewards = torch.randn(batch.input_ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = batch.action_mask.numpy()
    columns = [np.flatnonzero(row) for row in mask]
    expected = np.zeros(mask.shape)
    for k in range(max(map(len, columns))):
        there = [(i, c[k]) for i, c in enumerate(columns) if len(c) > k]
        numbers = np.array([rewards[i, j].item() for i, j in there])
        for (i, j), number in zip(there, numbers, strict=True):
            expected[i, j] = 0.0 if len(there) == 1 else (number - numbers.mean()) / (numbers.std() + 1e-6)
    rewards[~batch.action_mask] = torch.nan
    found = standardise_per_position(rewards, batch.action_mask)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-10)
    assert (expected == 0)[mask].any()  # an index that one row alone reaches
    assert not standardise_per_position(rewards, torch.zeros_like(batch.action_mask)).any()


def test_add_to_last_action():
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    rewards = torch.ones(3, 4)
    outside = torch.tensor([10.0, torch.nan, 5.0])
    expected = [[1, 1, 6, 1], [1, 1, 1, 1], [1, 1, 1, 3.5]]
    assert add_to_last_action(rewards, outside, mask, weight=0.5).tolist() == expected
    assert add_to_last_action(rewards, outside.double(), mask).dtype == rewards.dtype


def test_sequence_sum():
    mask = torch.tensor([[False, True, True], [False, False, False]])
    rewards = torch.tensor([[torch.nan, 1.0, 2.0], [7.0, torch.inf, 7.0]])
    assert sequence_sum(rewards, mask).tolist() == [3.0, 0.0]


def test_detached_statistics_are_equal():
    mask = torch.ones(1, 2, dtype=torch.bool)
    q = torch.randn(1, 2, requires_grad=True)
    stats = TokenStats(q, q * 2, q * 3, mask, mask.long(), entropy=q)
    assert torch.equal(stats.detach().next_value, stats.next_value)
    assert not stats.detach().log_prob.requires_grad
