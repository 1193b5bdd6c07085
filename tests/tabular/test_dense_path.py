"""Dense-Path REINFORCE: the package's policy gradient is the gradient of its objective, and reaches its optimum."""

import pytest
import torch

from inverselm.objectives import kl_in_reward, policy_gradient
from inverselm.tabular import (
    dense_path_optimum,
    log_policy,
    myopic_optimum,
    sequence_kl,
    sequence_log_probs,
    soft_optimal,
)
from inverselm.token_mdp import advantages, log_ratio, stats_from_logits


def exact_objective(tree, q, sft, base, kl_coef):
    """J = sum_y pi(y) [ log pi_SFT(y) - log pi_base(y) - beta (log pi(y) - log pi_SFT(y)) ], by enumeration."""
    log_probs, log_sft, log_base = (sequence_log_probs(tree, log_policy(tree, table)) for table in (q, sft, base))
    return (log_probs.exp() * (log_sft - log_base - kl_coef * (log_probs - log_sft))).sum()


@pytest.mark.parametrize("kl_coef", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_policy_gradient_is_the_gradient_of_the_objective(tree, table, surrogate, gradient, seed, kl_coef):
    """At random pi, pi_SFT and pi_base: return-to-go credit, gamma = 1, k1 in the reward."""
    q, sft, base = (table(tree, 10 * seed + i, 1.5) for i in range(3))
    exact = gradient(lambda q: exact_objective(tree, q, sft, base, kl_coef), q)
    ours = -gradient(lambda q: surrogate(tree, q, sft, base, kl_coef), q)
    assert (ours - exact).abs().max() < 1e-9
    assert exact.abs().max() > 0.01


@pytest.mark.parametrize(
    "other",
    [{"credit": "myopic"}, {"gamma": 0.9}, {"scale": "std"}, {"estimator": "k3"}],
)
def test_every_other_choice_is_another_gradient(tree, table, surrogate, gradient, other):
    """The test above has teeth: each of these options is not the gradient of E[sum r] - beta KL."""
    q, sft, base = (table(tree, 40 + i, 1.5) for i in range(3))
    exact = gradient(lambda q: exact_objective(tree, q, sft, base, 1.0), q)
    ours = -gradient(lambda q: surrogate(tree, q, sft, base, 1.0, **other), q)
    assert (ours - exact).abs().max() > 1e-3


def test_weighted_advantages_are_weighted_losses(small, table, read, surrogate, gradient):
    """Sequence by sequence, each with its own loss times pi(y): the same expected gradient."""
    q, sft, base = (table(small, 50 + i) for i in range(3))

    def one_by_one(q):
        total = torch.zeros((), dtype=torch.float64)
        for y in small.sequences:
            batch, stats = read(small, q, [y])
            sft_log_prob, base_log_prob = (read(small, table, [y])[1].log_prob for table in (sft, base))
            rewards = log_ratio(sft_log_prob, base_log_prob, batch.action_mask)
            rewards = kl_in_reward(rewards, stats.log_prob, sft_log_prob, 0.7)
            loss = policy_gradient(stats, advantages(rewards, batch.action_mask), num_actions=1).value
            total = total + stats.log_prob.sum().exp().detach() * loss
        return total

    difference = gradient(one_by_one, q) - gradient(lambda q: surrogate(small, q, sft, base, 0.7), q)
    assert difference.abs().max() < 1e-12


def test_surrogate_value_on_policy(small, table, read):
    """On policy the ratio is 1: the loss is minus the mean advantage."""
    batch, stats = read(small, table(small, 55))
    held = small.at_actions(table(small, 56), batch)
    loss, metrics = policy_gradient(stats, held)
    torch.testing.assert_close(loss, -held.sum() / batch.num_actions, rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics["advantage"], -loss.detach(), rtol=0, atol=1e-12)


def test_gradient_vanishes_at_the_optimum_only(tree, table, surrogate, gradient):
    """At pi_SFT (pi_SFT / pi_base)^(1/beta) it is 0; at pi_SFT, where training starts, it is not."""
    sft, base = table(tree, 60), table(tree, 61)
    optimum = dense_path_optimum(tree, log_policy(tree, sft), log_policy(tree, base), 0.5)
    assert gradient(lambda q: surrogate(tree, q, sft, base, 0.5), optimum.log_policy).abs().max() < 1e-12
    assert gradient(lambda q: surrogate(tree, q, sft, base, 0.5), sft).abs().max() > 0.01


@pytest.mark.parametrize("kl_coef", [0.8, 1.0, 4.0])
def test_training_from_sft_reaches_the_optimum(small, table, surrogate, kl_coef):
    """Adam on the expected gradient, from pi_SFT, until KL(pi || pi*) over sequences is below 1e-6."""
    sft, base = log_policy(small, table(small, 70)), log_policy(small, table(small, 70) + table(small, 71, 0.4))
    optimum = dense_path_optimum(small, sft, base, kl_coef)
    q = torch.where(small.allowed, sft, 0.0).requires_grad_()
    optimizer = torch.optim.Adam([q], lr=0.05)
    for step in range(600):
        if step % 20 == 0 and sequence_kl(small, log_policy(small, q.detach()), optimum.log_policy) < 1e-6:
            break
        optimizer.zero_grad()
        surrogate(small, q, sft, base, kl_coef).backward()
        optimizer.step()
    reached = log_policy(small, q.detach())
    log_probs = sequence_log_probs(small, reached)
    assert (log_probs.exp() * (log_probs - optimum.log_probs)).sum() < 1e-6
    assert sequence_kl(small, sft, optimum.log_policy) > 1e-3


def test_small_beta_extrapolates_further(tree, table):
    """KL(pi* || pi_SFT) grows with w = 1 / beta, from 0 at beta = infinity."""
    sft, base = log_policy(tree, table(tree, 80)), log_policy(tree, table(tree, 81))
    moved = [
        float(sequence_kl(tree, dense_path_optimum(tree, sft, base, kl_coef).log_policy, sft))
        for kl_coef in (1e6, 4.0, 1.0, 0.25, 0.1)
    ]
    assert moved == sorted(moved)
    assert moved[0] < 1e-9
    assert moved[-1] > 10 * moved[1]


def test_sequence_level_credit_prefers_longer_answers(tree, table):
    """EOS is never likelier at the sequence-level optimum than at the myopic one: Z(s') >= 1, and = 1 after EOS.

    This is the length bias of the dense reward (our derivation).
    """
    for seed in range(90, 96, 2):
        sft, base = log_policy(tree, table(tree, seed)), log_policy(tree, table(tree, seed + 1))
        optimum = dense_path_optimum(tree, sft, base, 0.5).log_policy[:, tree.eos].exp()
        myopic = myopic_optimum(tree, sft, base, 0.5)[:, tree.eos].exp()
        assert (optimum <= myopic + 1e-12).all()
        assert optimum[0] < myopic[0] - 1e-3


def test_the_optimum_is_soft_optimal_for_the_reward_plus_sft(tree, table, read):
    """pi* = soft optimum, at temperature beta, of r + beta log pi_SFT with r from `log_ratio`."""
    sft, base = table(tree, 100), table(tree, 101)
    batch, sft_stats = read(tree, sft)
    rewards = log_ratio(sft_stats.log_prob, read(tree, base)[1].log_prob, batch.action_mask)
    rewards = tree.to_table(rewards + 0.4 * sft_stats.log_prob, batch)
    solution = soft_optimal(tree, rewards, temperature=0.4)
    wanted = dense_path_optimum(tree, log_policy(tree, sft), log_policy(tree, base), 0.4).log_policy
    torch.testing.assert_close(solution.log_policy.exp(), wanted.exp(), rtol=0, atol=1e-11)


def test_stats_temperature_is_the_sampling_policy(tree, table):
    """On-policy log-probs at temperature tau are those of softmax(Q / tau), not of the logits."""
    q, batch = table(tree, 110, 2.0), tree.batch()
    stats = stats_from_logits(tree.logits_for(batch, q), batch, temperature=0.7)
    total = stats.log_prob.sum(dim=1)
    torch.testing.assert_close(total, sequence_log_probs(tree, log_policy(tree, q, 0.7)), rtol=0, atol=1e-12)
