"""The solvers against brute force over sequences, and against each other."""

import pytest
import torch

from inverselm.tabular import (
    TokenTree,
    dense_path_optimum,
    expected_return,
    log_policy,
    myopic_optimum,
    occupancy,
    policy_value,
    sequence_entropy,
    sequence_kl,
    sequence_log_probs,
    sequence_returns,
    soft_optimal,
)


@pytest.fixture(params=[(3, 4, 0, 1), (4, 3, 1, 2)])
def any_tree(request) -> TokenTree:
    return TokenTree(*request.param)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_soft_optimum_is_the_gibbs_distribution_over_sequences(any_tree, table, temperature):
    """gamma = 1: pi(y) ~ exp(return(y) / temperature), and V(root) is temperature * log of the normaliser."""
    rewards = table(any_tree, 0, 2.0)
    solution = soft_optimal(any_tree, rewards, temperature=temperature)
    scores = sequence_returns(any_tree, rewards) / temperature
    log_probs = sequence_log_probs(any_tree, solution.log_policy)
    torch.testing.assert_close(log_probs, scores.log_softmax(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.value[0], temperature * scores.logsumexp(0), rtol=0, atol=1e-12)
    assert solution.value[-1] == 0


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_no_policy_beats_the_soft_optimum(any_tree, table, gamma):
    rewards = table(any_tree, 1)
    best = soft_optimal(any_tree, rewards, temperature=0.8, gamma=gamma)
    value = policy_value(any_tree, best.log_policy, rewards, gamma=gamma, temperature=0.8)
    torch.testing.assert_close(value, best.value, rtol=0, atol=1e-12)
    for seed in range(20):
        near = log_policy(any_tree, best.log_policy + table(any_tree, 2 + seed, 0.05))
        other = policy_value(any_tree, near, rewards, gamma=gamma, temperature=0.8)
        assert (other <= best.value + 1e-12).all()
        assert other[0] < best.value[0]


def test_returns_entropy_and_kl_are_sums_over_states(any_tree, table):
    """Over sequences by enumeration = over states weighted by occupancy."""
    policy, other = log_policy(any_tree, table(any_tree, 30)), log_policy(any_tree, table(any_tree, 31))
    rewards, visits = table(any_tree, 32), occupancy(any_tree, policy)
    probs, chosen = policy.exp(), sequence_log_probs(any_tree, policy).exp()
    by_state = (visits[:, None] * probs * rewards).sum()
    for total in (expected_return(any_tree, policy, rewards), chosen @ sequence_returns(any_tree, rewards)):
        torch.testing.assert_close(total, by_state, rtol=0, atol=1e-12)
    entropy = (visits[:, None] * -probs * policy).sum()
    torch.testing.assert_close(sequence_entropy(any_tree, policy), entropy, rtol=0, atol=1e-12)
    kl = (visits[:, None] * probs * (policy - other)).sum()
    torch.testing.assert_close(sequence_kl(any_tree, policy, other), kl, rtol=0, atol=1e-12)
    lengths = torch.tensor([float(len(y)) for y in any_tree.sequences], dtype=torch.float64)
    torch.testing.assert_close(visits.sum(), chosen @ lengths, rtol=0, atol=1e-12)


def test_discounted_return_by_hand():
    """Two actions per episode at most: V(root) = sum_a pi(a) (r(a) + gamma r(EOS after a))."""
    tree = TokenTree(vocab_size=3, max_length=2)
    rewards = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0, 0], [20.0, 0, 0]], dtype=torch.float64)
    policy = log_policy(tree, torch.zeros(3, 3, dtype=torch.float64))
    wanted = (1.0 + (2.0 + 0.5 * 10.0) + (3.0 + 0.5 * 20.0)) / 3
    assert abs(float(expected_return(tree, policy, rewards, gamma=0.5)) - wanted) < 1e-12
    third = 1 / 3
    torch.testing.assert_close(occupancy(tree, policy, gamma=0.5).tolist(), [1.0, third / 2, third / 2])


@pytest.mark.parametrize("kl_coef", [0.3, 1.0, 4.0])
def test_dense_path_optimum_two_ways(any_tree, table, kl_coef):
    """Normalised over sequences = backward recursion = myopic optimum times the look-ahead Z(s') >= 1."""
    sft, base = log_policy(any_tree, table(any_tree, 40)), log_policy(any_tree, table(any_tree, 41))
    optimum = dense_path_optimum(any_tree, sft, base, kl_coef)
    by_token = sequence_log_probs(any_tree, optimum.log_policy)
    torch.testing.assert_close(by_token, optimum.log_probs, rtol=0, atol=1e-11)
    w, log_sft, log_base = 1 / kl_coef, sequence_log_probs(any_tree, sft), sequence_log_probs(any_tree, base)
    wanted = ((1 + w) * log_sft - w * log_base).log_softmax(0)
    torch.testing.assert_close(optimum.log_probs, wanted, rtol=0, atol=1e-11)
    look_ahead = soft_optimal(any_tree, sft + w * (sft - base)).value
    assert (look_ahead >= -1e-12).all()
    renyi = ((1 + w) * log_sft - w * log_base).logsumexp(0) / w  # of order 1 + w, between pi_SFT and pi_base
    torch.testing.assert_close(look_ahead[0], w * renyi, rtol=0, atol=1e-11)
    myopic = myopic_optimum(any_tree, sft, base, kl_coef)
    combined = log_policy(any_tree, myopic + look_ahead[any_tree.next_state])
    torch.testing.assert_close(combined.exp(), optimum.log_policy.exp(), rtol=0, atol=1e-11)


def test_optima_beat_their_neighbours(any_tree, table):
    """E[sum r] - beta KL over sequences is highest at the sequence-level optimum."""
    sft, base = log_policy(any_tree, table(any_tree, 50)), log_policy(any_tree, table(any_tree, 51))

    def objective(policy: torch.Tensor) -> float:
        reward = expected_return(any_tree, policy, torch.where(any_tree.allowed, sft - base, 0.0))
        return float(reward - 0.5 * sequence_kl(any_tree, policy, sft))

    best = dense_path_optimum(any_tree, sft, base, 0.5).log_policy
    top = objective(best)
    assert top > objective(myopic_optimum(any_tree, sft, base, 0.5)) > objective(sft)
    assert all(top > objective(log_policy(any_tree, best + table(any_tree, 52 + i, 0.05))) for i in range(20))


def test_arguments_are_checked(any_tree, table):
    q = table(any_tree, 60)
    with pytest.raises(ValueError, match="temperature"):
        soft_optimal(any_tree, q, temperature=0.0)
    for optimum in (dense_path_optimum, myopic_optimum):
        with pytest.raises(ValueError, match="kl_coef"):
            optimum(any_tree, q, q, 0.0)
