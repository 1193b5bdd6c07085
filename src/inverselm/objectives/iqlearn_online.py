"""Online IQLearn: the temporal difference also over the policy's own samples."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..token_mdp.batch import first_actions
from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised
from .iqlearn import remaining_nll


def mixed_residual(stats: TokenStats, *, mix_in: float, gamma: float = 1.0) -> Float[Tensor, "B T"]:
    """r_t = V(s_t) + log pi(a_t|s_t) / (1 - alpha) - gamma V(s_{t+1}) (arXiv 2409.01369, eq. 15-17).

    alpha = `mix_in` is the share of own samples; alpha = 0 is the plain residual Q - gamma V'. 0 off the actions.
    """
    residual = stats.value + stats.log_prob / (1.0 - mix_in) - gamma * stats.next_value
    return torch.where(stats.action_mask, residual, 0.0)


def iqlearn_online(
    stats: TokenStats,
    *,
    own: Bool[Tensor, "B T"],
    td_coef: float,
    mix_in: float,
    gamma: float = 1.0,
    num_actions: float | Tensor | None = None,
    num_own: float | Tensor | None = None,
) -> Loss:
    """Demonstrations and own samples in one batch (arXiv 2409.01369, eq. 15-17).

        mean over expert actions of -log pi(a_t|s_t)
        + lambda [ (1 - alpha) mean over expert actions of r_t^2 + alpha mean over own actions of r_t^2 ]

    with r_t of :func:`mixed_residual`. Likelihood is of demonstrations alone: own samples say nothing of what is right,
    they say which states the policy gets into, and there the residual propagates V. alpha = 0 is :func:`iqlearn`.

    Args:
        stats: (B, T) statistics of both.
        own: (B, T) True on actions that the policy sampled itself; the others are the expert's.
        td_coef: lambda >= 0.
        mix_in: alpha in [0, 1); 0.1 in the paper's comparison of rewards.
        gamma: discount per action.
        num_actions: global number of *expert* actions; None for this batch's own.
        num_own: global number of own actions; None for this batch's.

    Returns:
        The loss; the metrics of :func:`iqlearn` over expert actions, with r_t in place of delta_t, and `own_td_squared`
        and `own_reward` (mean r_t) over own ones.

    Raises:
        ValueError: alpha outside [0, 1).

    Example:
        >>> loss, metrics = iqlearn_online(stats, own=own, td_coef=0.1, mix_in=0.1)
    """
    if not 0.0 <= mix_in < 1.0:
        raise ValueError(f"mix_in must be in [0, 1), not {mix_in}.")
    sampled = stats.action_mask & own
    expert = stats.action_mask & ~own
    nll = -stats.log_prob
    residual = mixed_residual(stats, mix_in=mix_in, gamma=gamma)
    squared = residual.square()
    value = normalised(nll + (1.0 - mix_in) * td_coef * squared, expert, num_actions)
    value = value + normalised(mix_in * td_coef * squared, sampled, num_own)
    with torch.no_grad():
        firsts = first_actions(expert, stats.document_ids)
        metrics = {
            "nll": masked_mean(nll, expert),
            "td_squared": masked_mean(squared, expert),
            "td_error": masked_mean(residual.abs(), expert),
            "reward": masked_mean(residual, expert),
            "value_first": masked_mean(stats.value, firsts),
            "value_gap": masked_mean(stats.value - remaining_nll(stats, gamma), expert),
            "own_td_squared": masked_mean(squared, sampled),
            "own_reward": masked_mean(residual, sampled),
        }
    return Loss(value, metrics)
