"""GEM, the linear form: maximum likelihood at a temperature below 1, so that the policy at 1 stays broad."""

from __future__ import annotations

import math

from torch import Tensor

from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised


def gem(stats: TokenStats, *, temperature: float = 0.7, num_actions: float | Tensor | None = None) -> Loss:
    """beta times -log q(a_t|s_t), mean over actions, where q = softmax(Q / beta): the gradient of GEM's linear form.

    GEM (arXiv 2408.16673) minimises -log pi(a_t|s_t) + sum_v q(v) log pi(v) with the gradient through q stopped. The
    gradient of that with respect to the logits is q - onehot(a_t), which is also that of beta (-log q(a_t|s_t)) (our
    derivation): GEM is cross-entropy at temperature beta, and needs no numbers of other tokens. Where the logits are
    free the optimum is q = the data's conditional distribution p, so that pi is p^beta, normalised.

    The value is the cross-entropy's, whose gradient is the update. GEM's own value, sum_v q(v) Q(v) - Q(a_t), equals
    beta (-log q(a_t|s_t) - H(q)) (our derivation): negative for an action that is less surprising than the average one.
    It is the metric `gem`. Neither is the NLL of pi, the policy at temperature 1: choose checkpoints by that.

    GEM's other form weighs each token v by sigmoid(.01 (Q(v) - Q(a_t))). It needs (B, T, V) tensors and is left out.

    Args:
        stats: (B, T) statistics of the demonstrations, taken at this temperature: `token_stats(..., temperature=0.7)`.
        temperature: beta; 0.7 in the paper's code, 1 is :func:`mle`.
        num_actions: global number of actions (see `base.normalised`); None for this batch's own.

    Returns:
        The loss; the metric `gem`, if `stats` hold the entropy.

    Raises:
        ValueError: a temperature that is not a number above 0.

    Example:
        >>> loss, stats, _ = token_loss(model, batch, partial(gem, temperature=0.7), temperature=0.7)
    """
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"GEM's temperature must be above 0, not {temperature}.")
    nll, mask = -stats.log_prob, stats.action_mask
    metrics = {}
    if stats.entropy is not None:
        metrics["gem"] = temperature * masked_mean((nll - stats.entropy).detach(), mask)
    return Loss(normalised(temperature * nll, mask, num_actions), metrics)
