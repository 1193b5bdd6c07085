"""Exact solutions on a `TokenTree`: soft value iteration, evaluation, and the known optima of dense-path training.

Policies are tables of log-probabilities (S, A), `FORBIDDEN` where an action is not allowed. Values have S + 1 entries:
the last is the terminal state, 0. Everything is differentiable. No function here uses the package's objectives, rewards
or credit, so that it can stand as their ground truth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .token_tree import TokenTree


class SoftSolution(NamedTuple):
    """Soft-optimal Q (S, A), V (S + 1,) and log pi (S, A)."""

    q: Float[Tensor, "S A"]
    value: Float[Tensor, " S1"]
    log_policy: Float[Tensor, "S A"]


class SequenceOptimum(NamedTuple):
    """One distribution in two forms: log-probabilities of the sequences (N,), and the token policy (S, A)."""

    log_probs: Float[Tensor, " N"]
    log_policy: Float[Tensor, "S A"]


def log_policy(tree: TokenTree, q: Float[Tensor, "S A"], temperature: float = 1.0) -> Float[Tensor, "S A"]:
    """log softmax(Q / temperature) over the allowed actions."""
    return tree.mask((tree.mask(q) / temperature).log_softmax(dim=-1))


def soft_optimal(
    tree: TokenTree, rewards: Float[Tensor, "S A"], *, temperature: float = 1.0, gamma: float = 1.0
) -> SoftSolution:
    """Soft value iteration: the optimum of E[sum_t gamma^t (r_t + temperature H(pi(.|s_t)))] by backward recursion.

        Q(s,a) = r(s,a) + gamma V(s')
        V(s)   = temperature * logsumexp_a Q(s,a) / temperature
        log pi = (Q - V) / temperature

    Args:
        tree: the MDP.
        rewards: (S, A) nats; read at allowed actions only.
        temperature: weight of the entropy, > 0.
        gamma: discount per action.

    Raises:
        ValueError: temperature is not positive.

    Example:
        >>> tree = TokenTree(vocab_size=3, max_length=3)
        >>> q, value, policy = soft_optimal(tree, torch.zeros(7, 3, dtype=torch.float64))
        >>> value[0].exp()  # without rewards: every one of the 7 sequences is as likely
        tensor(7.0000, dtype=torch.float64)
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, not {temperature}.")
    q_rows: list[Tensor] = []
    values = [rewards.new_zeros(())] * (tree.num_states + 1)
    for state in reversed(range(tree.num_states)):  # children have larger indices than their parent
        following = torch.stack([values[child] for child in tree.next_state[state].tolist()])
        row = torch.where(tree.allowed[state], rewards[state] + gamma * following, float("-inf"))
        values[state] = temperature * (row / temperature).logsumexp(dim=-1)
        q_rows.append(row)
    q, value = tree.mask(torch.stack(q_rows[::-1])), torch.stack(values)
    return SoftSolution(q, value, tree.mask((q - value[:-1, None]) / temperature))


def policy_value(
    tree: TokenTree,
    policy: Float[Tensor, "S A"],
    rewards: Float[Tensor, "S A"],
    *,
    gamma: float = 1.0,
    temperature: float = 0.0,
) -> Float[Tensor, " S1"]:
    """Policy evaluation: V(s) = E_pi[sum gamma^t (r_t - temperature log pi_t)] from every state; V(terminal) = 0.

    Args:
        tree: the MDP.
        policy: (S, A) log-probabilities.
        rewards: (S, A).
        gamma: discount per action.
        temperature: weight of the policy's entropy; 0 for the plain return.
    """
    paid = torch.where(tree.allowed, rewards - temperature * policy, 0.0)
    values = [rewards.new_zeros(())] * (tree.num_states + 1)
    for state in reversed(range(tree.num_states)):
        following = torch.stack([values[child] for child in tree.next_state[state].tolist()])
        values[state] = (policy[state].exp() * (paid[state] + gamma * following)).sum()
    return torch.stack(values)


def expected_return(
    tree: TokenTree, policy: Float[Tensor, "S A"], rewards: Float[Tensor, "S A"], *, gamma: float = 1.0
) -> Float[Tensor, ""]:
    """E_pi[sum_t gamma^t r_t] from the root."""
    return policy_value(tree, policy, rewards, gamma=gamma)[0]


def occupancy(tree: TokenTree, policy: Float[Tensor, "S A"], *, gamma: float = 1.0) -> Float[Tensor, " S"]:
    """(Discounted) probability to visit each state, from the root; gamma = 1: its sum is the expected length."""
    visits = [policy.new_ones(())] * tree.num_states
    flow = gamma * policy.exp()
    for state in range(tree.num_states):  # parents come before their children
        for action in tree.allowed[state].nonzero().flatten().tolist():
            child = int(tree.next_state[state, action])
            if child != tree.terminal:
                visits[child] = visits[state] * flow[state, action]
    return torch.stack(visits)


def sequence_returns(tree: TokenTree, rewards: Float[Tensor, "S A"]) -> Float[Tensor, " N"]:
    """sum_t r(s_t, a_t) of every sequence."""
    return torch.einsum("nsa,sa->n", tree.visits, torch.where(tree.allowed, rewards, 0.0))


def sequence_log_probs(tree: TokenTree, policy: Float[Tensor, "S A"]) -> Float[Tensor, " N"]:
    """log pi(y) of every sequence; a distribution: they all end with EOS."""
    return sequence_returns(tree, policy)


def sequence_entropy(tree: TokenTree, policy: Float[Tensor, "S A"]) -> Float[Tensor, ""]:
    """H(pi) over sequences, nats."""
    log_probs = sequence_log_probs(tree, policy)
    return -(log_probs.exp() * log_probs).sum()


def sequence_kl(tree: TokenTree, policy: Float[Tensor, "S A"], other: Float[Tensor, "S A"]) -> Float[Tensor, ""]:
    """KL(policy || other) over sequences, nats."""
    log_p, log_q = sequence_log_probs(tree, policy), sequence_log_probs(tree, other)
    return (log_p.exp() * (log_p - log_q)).sum()


def dense_path_optimum(
    tree: TokenTree, sft: Float[Tensor, "S A"], base: Float[Tensor, "S A"], kl_coef: float
) -> SequenceOptimum:
    """The optimum of Dense-Path REINFORCE: pi* ~ pi_SFT (pi_SFT / pi_base)^(1/beta) over sequences.

    It maximises E_pi[sum_t log pi_SFT - log pi_base] - beta KL(pi || pi_SFT) (arXiv 2510.02493). Over sequences by
    normalising over all of them; as a token policy by backward recursion with Z(terminal) = 1:

        pi*(a|s) = pi_SFT(a|s)^(1+w) pi_base(a|s)^-w Z(s') / Z(s),   w = 1 / beta

    It is the myopic optimum times a look-ahead Z(s') >= 1; log Z(s) is w times the Renyi divergence of order 1 + w
    between what pi_SFT and pi_base would still write from s (our derivation).

    Args:
        tree: the MDP.
        sft: (S, A) log pi_SFT.
        base: (S, A) log pi_base.
        kl_coef: beta > 0.

    Raises:
        ValueError: beta is not positive.

    Example:
        >>> optimum = dense_path_optimum(tree, sft, base, kl_coef=0.5)
        >>> torch.allclose(optimum.log_probs, sequence_log_probs(tree, optimum.log_policy))
        True
    """
    tilted = _tilted(sft, base, kl_coef)
    return SequenceOptimum(sequence_returns(tree, tilted).log_softmax(dim=0), soft_optimal(tree, tilted).log_policy)


def myopic_optimum(
    tree: TokenTree, sft: Float[Tensor, "S A"], base: Float[Tensor, "S A"], kl_coef: float
) -> Float[Tensor, "S A"]:
    """log of pi_SFT^(1 + 1/beta) / pi_base^(1/beta), normalised at every state: what guided decoding samples from."""
    return log_policy(tree, _tilted(sft, base, kl_coef))


def _tilted(sft: Tensor, base: Tensor, kl_coef: float) -> Tensor:
    if kl_coef <= 0:
        raise ValueError(f"kl_coef must be > 0, not {kl_coef}: without a KL the reward has no smooth optimum.")
    return sft + (sft - base) / kl_coef
