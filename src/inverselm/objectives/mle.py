"""Maximum likelihood (SFT) and its entropy-regularised form."""

from __future__ import annotations

from torch import Tensor

from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised


def mle(stats: TokenStats, *, num_actions: float | Tensor | None = None) -> Loss:
    """-log pi(a_t|s_t), mean over actions (arXiv 2409.01369, eq. 2). Plain SFT.

    Args:
        stats: (B, T) statistics of the demonstrations.
        num_actions: global number of actions (see `base.normalised`); None for this batch's own.

    Example:
        >>> loss, metrics = mle(token_stats(model, batch))
    """
    nll = -stats.log_prob
    return Loss(normalised(nll, stats.action_mask, num_actions), {"nll": masked_mean(nll, stats.action_mask).detach()})


def entropy_regularised_mle(
    stats: TokenStats, *, entropy_coef: float, num_actions: float | Tensor | None = None
) -> Loss:
    """-log pi(a_t|s_t) - c H(pi(.|s_t)), mean over actions (arXiv 2409.01369, eq. 18); c in {0, .01, .05, .1} there.

    Raises:
        ValueError: `stats` hold no entropy.
    """
    if stats.entropy is None:
        raise ValueError("entropy_regularised_mle needs token_stats(..., entropy=True).")
    nll = -stats.log_prob
    loss = normalised(nll - entropy_coef * stats.entropy, stats.action_mask, num_actions)
    metrics = {
        "nll": masked_mean(nll, stats.action_mask).detach(),
        "entropy": masked_mean(stats.entropy, stats.action_mask).detach(),
    }
    return Loss(loss, metrics)
