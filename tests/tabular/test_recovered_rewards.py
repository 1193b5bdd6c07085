"""The recovered reward explains the policy it was read from, and shaping changes no optimum."""

import pytest
import torch

from inverselm.tabular import TokenTree, log_policy, soft_optimal
from inverselm.token_mdp import bellman_residual, shape, stats_from_logits

EXACT = {"rtol": 0, "atol": 1e-11}


@pytest.fixture(params=[(4, 4, 2, 1), (3, 4, 0, 3)])
def any_tree(request) -> TokenTree:
    return TokenTree(*request.param)


def values(tree, q):
    """V of every state, and 0 for the terminal one."""
    return torch.cat([tree.mask(q).logsumexp(-1), q.new_zeros(1)])


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.3])
def test_a_model_is_soft_optimal_for_its_recovered_reward(any_tree, table, read, gamma):
    """Soft value iteration on r = Q - gamma V(s') gives back Q, V and pi."""
    q = table(any_tree, 0, 2.0)
    batch, stats = read(any_tree, q)
    rewards = any_tree.to_table(bellman_residual(stats, gamma), batch)
    solution = soft_optimal(any_tree, rewards, gamma=gamma)
    torch.testing.assert_close(solution.q, any_tree.mask(q), **EXACT)
    torch.testing.assert_close(solution.value, values(any_tree, q), **EXACT)
    torch.testing.assert_close(solution.log_policy, log_policy(any_tree, q), **EXACT)


def test_the_reward_belongs_to_its_gamma(any_tree, table, read):
    """A reward recovered at one gamma and solved at another is the reward of another policy."""
    q = table(any_tree, 1, 2.0)
    batch, stats = read(any_tree, q)
    rewards = any_tree.to_table(bellman_residual(stats, 1.0), batch)
    solution = soft_optimal(any_tree, rewards, gamma=0.5)
    assert (solution.log_policy.exp() - log_policy(any_tree, q).exp()).abs().max() > 0.01


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_reward_of_a_tempered_policy(any_tree, table, temperature):
    """Stats at a temperature are those of softmax(Q / temperature), soft-optimal for their own residual."""
    q = table(any_tree, 2, 2.0)
    batch = any_tree.batch()
    stats = stats_from_logits(any_tree.logits_for(batch, q), batch, temperature=temperature)
    rewards = any_tree.to_table(bellman_residual(stats), batch)
    tempered = log_policy(any_tree, q, temperature)
    torch.testing.assert_close(soft_optimal(any_tree, rewards).log_policy, tempered, **EXACT)
    in_nats_of_q = soft_optimal(any_tree, temperature * rewards, temperature=temperature)
    torch.testing.assert_close(in_nats_of_q.q, any_tree.mask(q), **EXACT)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_shaping_leaves_the_soft_optimal_policy(any_tree, table, gamma):
    """r + gamma Phi(s') - Phi(s), Phi(terminal) = 0: Q and V fall by Phi, pi stays."""
    rewards, batch = table(any_tree, 3), any_tree.batch()
    potential = torch.cat([table(any_tree, 4, 3.0)[:, 0], torch.zeros(1, dtype=torch.float64)])
    here = any_tree.at_actions(potential[:-1, None].expand_as(rewards), batch)
    there = any_tree.at_actions(potential[any_tree.next_state], batch)
    shaped = any_tree.to_table(shape(any_tree.at_actions(rewards, batch), here, there, gamma), batch)
    before, after = (soft_optimal(any_tree, r, gamma=gamma) for r in (rewards, shaped))
    torch.testing.assert_close(after.log_policy, before.log_policy, **EXACT)
    torch.testing.assert_close(after.value, before.value - potential, **EXACT)
    wrong = any_tree.to_table(shape(any_tree.at_actions(rewards, batch), here, there, gamma / 2), batch)
    changed = soft_optimal(any_tree, wrong, gamma=gamma).log_policy
    assert (changed.exp() - before.log_policy.exp()).abs().max() > 0.01


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_log_pi_is_the_recovered_reward_shaped_by_the_value(any_tree, table, read, gamma):
    """log pi = r + gamma V(s') - V(s): the same policy is optimal for it, with V = 0 everywhere."""
    q = table(any_tree, 5, 2.0)
    batch, stats = read(any_tree, q)
    shaped = shape(bellman_residual(stats, gamma), stats.value, stats.next_value, gamma)
    torch.testing.assert_close(shaped, stats.log_prob, **EXACT)
    solution = soft_optimal(any_tree, any_tree.to_table(shaped, batch), gamma=gamma)
    torch.testing.assert_close(solution.log_policy, log_policy(any_tree, q), **EXACT)
    torch.testing.assert_close(solution.value, torch.zeros_like(solution.value), **EXACT)


def test_dense_reward_is_a_difference_of_shaped_rewards(any_tree, table, read):
    """log pi_SFT - log pi_base = r_SFT - r_base, shaped by V_SFT - V_base (gamma = 1)."""
    sft, base = (read(any_tree, table(any_tree, seed))[1] for seed in (6, 7))
    difference = bellman_residual(sft) - bellman_residual(base)
    shaped = shape(difference, sft.value - base.value, sft.next_value - base.next_value)
    torch.testing.assert_close(shaped, sft.log_prob - base.log_prob, **EXACT)
