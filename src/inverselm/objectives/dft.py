"""Dynamic fine-tuning: maximum likelihood, each action weighted by its own probability."""

from __future__ import annotations

from torch import Tensor

from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised


def dft(stats: TokenStats, *, num_actions: float | Tensor | None = None) -> Loss:
    """-sg(pi(a_t|s_t)) log pi(a_t|s_t), mean over actions (DFT, arXiv 2508.05629): a peer of SFT on the same data.

    sg stops the gradient: it is that of -pi(a_t|s_t), without the 1 / pi by which SFT weighs unlikely actions up. The
    value is no likelihood: it is near 0 both for certain and for hopeless actions, so choose checkpoints by `nll`.

    Args:
        stats: (B, T) statistics of the demonstrations.
        num_actions: global number of actions (see `base.normalised`); None for this batch's own.

    Returns:
        The loss; metrics `nll` and `probability` (mean pi of the demonstrated actions).

    Example:
        >>> loss, metrics = dft(token_stats(model, batch))
    """
    nll, mask = -stats.log_prob, stats.action_mask
    probability = stats.log_prob.detach().exp()
    metrics = {"nll": masked_mean(nll, mask).detach(), "probability": masked_mean(probability, mask)}
    return Loss(normalised(probability * nll, mask, num_actions), metrics)
