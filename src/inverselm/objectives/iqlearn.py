"""IQLearn: inverse soft-Q-learning as temporal-difference-regularised maximum likelihood."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..token_mdp.batch import first_actions, last_actions
from ..token_mdp.credit import returns_to_go
from ..token_mdp.rewards import bellman_residual
from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised


def iqlearn(
    stats: TokenStats, *, td_coef: float, gamma: float = 1.0, num_actions: float | Tensor | None = None
) -> Loss:
    """mean over expert actions of [ -log pi(a_t|s_t) + lambda delta_t^2 ] (arXiv 2409.01369, eq. 14).

    delta_t = Q(s_t,a_t) - gamma V(s_{t+1}) is both the TD error and the recovered reward. Gradients flow through Q and
    through V(s_{t+1}); there is no target network. The chi^2 conjugate would give lambda / 4 for the regulariser;
    eq. 14 prints lambda, and so does this. lambda = 0 is exactly :func:`mle`.

    Args:
        stats: (B, T) statistics of the demonstrations.
        td_coef: lambda >= 0; 0.1, 0.5 and 1.0 in the paper.
        gamma: discount per action.
        num_actions: global number of actions (see `base.normalised`); None for this batch's own.

    Returns:
        The loss; metrics `nll`, `td_squared`, `td_error` (mean |delta|), `reward` (mean delta), `value_first` (mean V
        of the first state of each episode) and `value_gap` (mean of V(s_t) - NLL still to come: 0 when V is
        calibrated).

    Example:
        >>> loss, metrics = iqlearn(token_stats(model, batch), td_coef=0.1)
        >>> loss.backward()
    """
    nll = -stats.log_prob
    delta = bellman_residual(stats, gamma)
    per_action = nll if td_coef == 0.0 else nll + td_coef * delta.square()
    mask = stats.action_mask
    with torch.no_grad():
        metrics = {
            "nll": masked_mean(nll, mask),
            "td_squared": masked_mean(delta.square(), mask),
            "td_error": masked_mean(delta.abs(), mask),
            "reward": masked_mean(delta, mask),
            "value_first": masked_mean(stats.value, first_actions(mask, stats.document_ids)),
            "value_gap": masked_mean(stats.value - remaining_nll(stats, gamma), mask),
        }
    return Loss(normalised(per_action, mask, num_actions), metrics)


def td_coef_at(step: int, *, td_coef: float, mle_warmup_steps: int = 0, td_anneal_steps: int = 0) -> float:
    """lambda at an optimiser step (0-based): 0 during a pure-MLE warm-up, then linear up to `td_coef`.

    A pretrained model's V is off by an arbitrary offset of each state, tens of nats for long answers, so that first
    deltas are large. The lengths are options: arXiv 2409.01369 mentions a warm-up and annealing without numbers.
    """
    past = step - mle_warmup_steps
    if past < 0:
        return 0.0
    return td_coef if past >= td_anneal_steps else td_coef * (past + 1) / (td_anneal_steps + 1)


def remaining_nll(stats: TokenStats, gamma: float = 1.0) -> Float[Tensor, "B T"]:
    """sum_{k >= t} gamma^(k-t) (-log pi(a_k|s_k)) to the end of the episode, plus the bootstrapped end value.

    For delta = 0 everywhere this is exactly V(s_t): what a calibrated value has to say.
    """
    nll = -stats.log_prob.detach()
    end_value = gamma * torch.where(last_actions(stats.action_mask, stats.document_ids), stats.next_value.detach(), 0.0)
    return returns_to_go(nll + end_value, stats.action_mask, gamma, stats.document_ids)
