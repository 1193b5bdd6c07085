"""Myopic credit: a token-level optimum, which guided decoding reaches without training."""

import pytest
import torch

from inverselm.objectives import policy_gradient
from inverselm.tabular import (
    TokenTree,
    dense_path_optimum,
    log_policy,
    myopic_optimum,
    occupancy,
    sequence_kl,
    sequence_log_probs,
)
from inverselm.token_mdp import advantages, log_ratio, sequence_sum, state_kl


@pytest.mark.parametrize("kl_coef", [0.3, 1.0, 3.0])
def test_myopic_credit_is_stationary_at_the_token_level_product(tree, table, surrogate, gradient, kl_coef):
    """pi(a|s) ~ pi_SFT^(1 + 1/beta) / pi_base^(1/beta): gradient 0 there, and at no other of the known policies."""
    sft, base = log_policy(tree, table(tree, 0, 0.5)), log_policy(tree, table(tree, 1, 0.5))
    slope = lambda q: gradient(lambda q: surrogate(tree, q, sft, base, kl_coef, credit="myopic"), q).abs().max()
    assert slope(myopic_optimum(tree, sft, base, kl_coef)) < 1e-12
    assert slope(dense_path_optimum(tree, sft, base, kl_coef).log_policy) > 1e-4
    assert slope(sft) > 1e-3


def test_the_two_optima_differ(tree, table, surrogate, gradient):
    """In general; return-to-go credit moves away from the myopic optimum."""
    sft, base = log_policy(tree, table(tree, 2)), log_policy(tree, table(tree, 3))
    optimum, myopic = dense_path_optimum(tree, sft, base, 0.5).log_policy, myopic_optimum(tree, sft, base, 0.5)
    assert sequence_kl(tree, myopic, optimum) > 0.01
    assert gradient(lambda q: surrogate(tree, q, sft, base, 0.5), myopic).abs().max() > 0.01


def test_a_case_by_hand():
    """SFT and baseline agree on the first token and differ after token 1 only: the sequence level sees it coming.

    Myopic credit leaves the first token at 1/3 each. After token 1, (p_SFT, p_base) = (.8, .5) for EOS and (.1, .25)
    for each other token; with w = 1 the tilted weights are .8^2/.5 = 1.28 and 2 * .1^2/.25 = .08: Z = 1.36. So the
    sequence level weighs EOS : 1 : 2 at the root as 1 : 1.36 : 1.
    """
    tree = TokenTree(vocab_size=3, max_length=3)
    even = torch.full((7, 3), 1 / 3, dtype=torch.float64)
    sft, base = even.clone(), even.clone()
    sft[1] = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    base[1] = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    sft, base = log_policy(tree, sft.log()), log_policy(tree, base.log())
    myopic = myopic_optimum(tree, sft, base, 1.0)[0].exp()
    optimum = dense_path_optimum(tree, sft, base, 1.0).log_policy[0].exp()
    torch.testing.assert_close(myopic, even[0], rtol=0, atol=1e-12)
    wanted = torch.tensor([1.0, 1.36, 1.0], dtype=torch.float64) / 3.36
    torch.testing.assert_close(optimum, wanted, rtol=0, atol=1e-12)


def test_myopic_training_reaches_the_token_level_product(small, table, surrogate):
    """Adam on the expected myopic gradient, from pi_SFT."""
    sft, base = log_policy(small, table(small, 4)), log_policy(small, table(small, 4) + table(small, 5, 0.4))
    target = myopic_optimum(small, sft, base, 1.0)
    q = torch.where(small.allowed, sft, 0.0).requires_grad_()
    optimizer = torch.optim.Adam([q], lr=0.05)
    for step in range(600):
        if step % 20 == 0 and sequence_kl(small, log_policy(small, q.detach()), target) < 1e-6:
            break
        optimizer.zero_grad()
        surrogate(small, q, sft, base, 1.0, credit="myopic").backward()
        optimizer.step()
    assert sequence_kl(small, log_policy(small, q.detach()), target) < 1e-6
    assert sequence_kl(small, sft, target) > 1e-2


@pytest.mark.parametrize("w", [0.25, 1.0, 3.0])
def test_guided_decoding_is_the_myopic_optimum(tree, table, read, w):
    """Logits (1 + w) l_SFT - w l_base, raw ones with their own state offsets, and beta = 1 / w."""
    sft, base = table(tree, 6) + 3.0 * table(tree, 7)[:, :1], table(tree, 8)
    batch, stats = read(tree, (1 + w) * sft - w * base)
    target = myopic_optimum(tree, log_policy(tree, sft), log_policy(tree, base), 1 / w)
    total = sequence_sum(stats.log_prob, batch.action_mask)
    torch.testing.assert_close(total, sequence_log_probs(tree, target), rtol=0, atol=1e-11)
    torch.testing.assert_close(stats.log_prob, tree.at_actions(target, batch), rtol=0, atol=1e-11)


def kl_in_the_loss(tree, read, q, sft, estimator):
    """E_pi of the KL term of `policy_gradient` alone (advantages 0), sequence by sequence."""
    total = torch.zeros((), dtype=torch.float64)
    for y in tree.sequences:
        batch, stats = read(tree, q, [y])
        reference = read(tree, sft, [y])[1].log_prob
        nothing = torch.zeros_like(stats.log_prob)
        loss = policy_gradient(
            stats, nothing, ref_log_prob=reference, kl_coef=1.0, kl_estimator=estimator, num_actions=1
        ).value
        total = total + sequence_sum(stats.log_prob, batch.action_mask)[0].exp().detach() * loss
    return total


@pytest.mark.parametrize(("estimator", "reverse"), [("k2", True), ("k3", False)])
def test_kl_in_the_loss_is_myopic(small, table, read, gradient, estimator, reverse):
    """On policy its gradient is that of the KL of every *visited* state, visits held fixed (our derivation):
    KL(pi || SFT) for k2; KL(SFT || pi), the other direction, for k3. Neither sees that an action leads to later KL."""
    q, sft = table(small, 9), table(small, 10)
    visits = occupancy(small, log_policy(small, q))

    def by_state(q):
        policy, other = log_policy(small, q), log_policy(small, sft)
        first, second = (policy, other) if reverse else (other, policy)
        return (visits * (first.exp() * (first - second)).sum(-1)).sum()

    ours = gradient(lambda q: kl_in_the_loss(small, read, q, sft, estimator), q)
    assert (ours - gradient(by_state, q)).abs().max() < 1e-12
    whole = gradient(lambda q: sequence_kl(small, log_policy(small, q), log_policy(small, sft)), q)
    assert (ours - whole).abs().max() > 1e-3


def test_expected_dense_reward_is_the_states_kl(tree, table, read):
    """E_{pi_SFT}[r_t | s_t] = KL(pi_SFT || pi_base)(s_t) >= 0: raw sums reward length; `state_kl` centres them."""
    sft, base = table(tree, 11), table(tree, 12)
    batch, sft_stats = read(tree, sft)
    rewards = log_ratio(sft_stats.log_prob, read(tree, base)[1].log_prob, batch.action_mask)
    by_pair = tree.to_table(rewards, batch)
    expected = (log_policy(tree, sft).exp() * by_pair).sum(-1)
    kl = state_kl(tree.logits_for(batch, sft), tree.logits_for(batch, base), batch)
    wanted = tree.at_actions(expected[:, None].expand_as(by_pair), batch)
    torch.testing.assert_close(kl, wanted, rtol=0, atol=1e-12)
    assert (expected >= 0).all()
    returns = advantages(rewards, batch.action_mask)[:, 1]
    weights = sequence_sum(sft_stats.log_prob, batch.action_mask).exp()
    total = (occupancy(tree, log_policy(tree, sft)) * expected).sum()
    torch.testing.assert_close((weights * returns).sum(), total, rtol=0, atol=1e-12)
