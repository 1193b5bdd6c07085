"""Which variance reductions keep the expected gradient, by enumerating all groups of samples."""

from itertools import product

import pytest
import torch

from inverselm.objectives import kl_in_reward, policy_gradient
from inverselm.tabular import TokenTree, log_policy, sequence_log_probs
from inverselm.token_mdp import advantages, log_ratio, stats_from_logits


def group_surrogate(tree, q, sft, base, kl_coef, size, variance_reduction):
    """E over groups of `size` independent samples of the loss per sample; every group is a batch of its own."""
    weights = sequence_log_probs(tree, log_policy(tree, q)).exp().detach()
    index = torch.tensor(list(product(range(len(tree.sequences)), repeat=size)))
    total = torch.zeros((), dtype=torch.float64)
    tables = {"q": q, "sft": sft, "base": base}
    for group in index:
        batch = tree.batch([tree.sequences[i] for i in group.tolist()])
        stats = {name: stats_from_logits(tree.logits_for(batch, t), batch) for name, t in tables.items()}
        rewards = log_ratio(stats["sft"].log_prob, stats["base"].log_prob, batch.action_mask)
        rewards = kl_in_reward(rewards, stats["q"].log_prob, stats["sft"].log_prob, kl_coef)
        held = advantages(rewards, batch.action_mask, variance_reduction=variance_reduction, group_size=size)
        loss = policy_gradient(stats["q"], held, num_actions=size).value
        total = total + weights[group].prod() * loss
    return total


@pytest.mark.parametrize(("vocab_size", "max_length", "size"), [(3, 3, 2), (2, 4, 3)])
def test_leave_one_out_is_exactly_unbiased(vocab_size, max_length, size, table, surrogate, gradient):
    """Answers differ in length: where no other answer is that long the baseline is 0, which keeps it unbiased."""
    tree = TokenTree(vocab_size, max_length)
    q, sft, base = (table(tree, i, 1.5) for i in range(3))
    exact = gradient(lambda q: surrogate(tree, q, sft, base, 0.5), q)
    ours = gradient(lambda q: group_surrogate(tree, q, sft, base, 0.5, size, "leave_one_out"), q)
    assert (ours - exact).abs().max() < 1e-12
    assert exact.abs().max() > 0.01


@pytest.mark.parametrize("kind", ["batch", "position"])
def test_baselines_that_contain_the_row_itself_are_biased(kind, table, surrogate, gradient):
    """As `subtract_baseline` says: 1/n of the row is in its own baseline, and n = 2 shows it."""
    tree = TokenTree(3, 3)
    q, sft, base = (table(tree, i, 1.5) for i in range(3))
    exact = gradient(lambda q: surrogate(tree, q, sft, base, 0.5), q)
    ours = gradient(lambda q: group_surrogate(tree, q, sft, base, 0.5, 2, kind), q)
    assert (ours - exact).abs().max() > 1e-3
