"""Small trees, random tables, and the expected loss of Dense-Path REINFORCE over *all* sequences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inverselm.objectives import kl_in_reward, policy_gradient
from inverselm.tabular import TokenTree
from inverselm.token_mdp import TokenBatch, TokenStats, advantages, log_ratio, sequence_sum, stats_from_logits


@pytest.fixture
def tree() -> TokenTree:
    """40 states, 40 sequences of 1 to 4 actions; EOS is neither the first nor the last id."""
    return TokenTree(vocab_size=4, max_length=4, eos=2)


@pytest.fixture
def small() -> TokenTree:
    """15 states, 15 sequences."""
    return TokenTree(vocab_size=3, max_length=4)


@pytest.fixture
def table() -> Callable[..., Tensor]:
    """table(tree, seed, scale): a random float64 (S, A)."""

    def make(tree: TokenTree, seed: int, scale: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(tree.num_states, tree.vocab_size, generator=generator, dtype=torch.float64)

    return make


@pytest.fixture
def read() -> Callable[..., tuple[TokenBatch, TokenStats]]:
    """read(tree, q): all sequences of the tree, and what the package reads off the logits `q` of them."""

    def make(tree: TokenTree, q: Tensor, sequences=None, **kwargs) -> tuple[TokenBatch, TokenStats]:
        batch = tree.batch(sequences, **kwargs)
        return batch, stats_from_logits(tree.logits_for(batch, q), batch)

    return make


@pytest.fixture
def surrogate(read) -> Callable[..., Tensor]:
    """surrogate(tree, q, sft, base, beta): a loss whose gradient is minus the *expected* policy gradient.

    Only functions of the package, in the order in which a trainer calls them.
    Every sequence y is a row, weighted by pi(y) (constant). Advantages are constants, so a weighted advantage is a
    weighted loss; `num_actions=1` keeps the sum: a denominator that depends on the sample would bend the gradient.
    """

    def loss(
        tree: TokenTree, q: Tensor, sft: Tensor, base: Tensor, kl_coef: float, *, estimator: str = "k1", **credit
    ) -> Tensor:
        batch, stats = read(tree, q)
        mask = batch.action_mask
        sft_log_prob, base_log_prob = read(tree, sft)[1].log_prob, read(tree, base)[1].log_prob
        rewards = log_ratio(sft_log_prob, base_log_prob, mask)
        rewards = kl_in_reward(rewards, stats.log_prob, sft_log_prob, kl_coef, estimator)
        weights = sequence_sum(stats.log_prob, mask).exp().detach()
        weighted = weights.unsqueeze(1) * advantages(rewards, mask, **credit)
        return policy_gradient(stats, weighted, num_actions=1).value

    return loss


@pytest.fixture
def gradient() -> Callable[..., Tensor]:
    """gradient(f, q): df/dq of a scalar function of a table."""

    def of(function: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
        leaf = q.detach().clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)[0]

    return of
