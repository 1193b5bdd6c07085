"""Token rewards recovered from language models. Pure functions of (B, T) tensors, in nats.

Off the actions a reward is 0, so that plain sums over T are sums over actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .stats import TokenStats


def bellman_residual(stats: TokenStats, gamma: float = 1.0) -> Float[Tensor, "B T"]:
    """r_t = Q(s_t,a_t) - gamma V(s_{t+1}), the inverse soft Bellman operator (arXiv 2409.01369, eq. 8-9).

    The reward for which the model's own policy is soft-optimal. With gamma = 1 it telescopes over an episode:
    sum_t r_t = V(s_1) + log pi(y|x) (arXiv 2510.02493, sec. 3).

    Example:
        >>> r = bellman_residual(token_stats(model, batch))         # (B, T)
    """
    return stats.action_logit - gamma * stats.next_value


def log_ratio(
    sft_log_prob: Float[Tensor, "B T"], baseline_log_prob: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """r_t = log pi_SFT(a_t|s_t) - log pi_base(a_t|s_t): the baseline-relative reward (arXiv 2510.02493, eq. 5)."""
    return torch.where(action_mask, sft_log_prob - baseline_log_prob, 0.0)


def mix_baselines(log_probs: Sequence[Float[Tensor, "B T"]], how: str = "log") -> Float[Tensor, "B T"]:
    """One baseline from several: their mean in "log" space (geometric) or in "probability" space (a mixture).

    The geometric mean is not renormalised over the vocabulary: it is the mean of the rewards against each baseline.

    Raises:
        ValueError: no baseline, or an unknown `how`.
    """
    if not log_probs:
        raise ValueError("mix_baselines needs at least one baseline.")
    stacked = torch.stack(list(log_probs))
    if how == "log":
        return stacked.mean(dim=0)
    if how == "probability":
        return stacked.logsumexp(dim=0) - log(len(log_probs))
    raise ValueError(f"how must be 'log' or 'probability', not {how!r}.")


def clip(rewards: Float[Tensor, "B T"], low: float | None = None, high: float | None = None) -> Float[Tensor, "B T"]:
    """Clamp rewards to [low, high]; a log-ratio is unbounded below.

    Raises:
        ValueError: `low` > 0 or `high` < 0 (the zeros off the actions would move), or low > high.
    """
    if (low is not None and low > 0) or (high is not None and high < 0):
        raise ValueError(f"The range [{low}, {high}] must contain 0.")
    return rewards.clamp(min=low, max=high) if (low is not None or high is not None) else rewards


def floor_log_ratio(rewards: Float[Tensor, "B T"], alpha: float) -> Float[Tensor, "B T"]:
    """log(alpha * rho + 1 - alpha) with rho = exp(r): bounded below by log(1 - alpha), ~ r + log(alpha) when large.

    It is the reward of the mixture (alpha pi_SFT + (1 - alpha) pi_base) against pi_base; alpha = 1 changes nothing.

    Raises:
        ValueError: `alpha` outside (0, 1].
    """
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha must be in (0, 1], not {alpha}.")
    if alpha == 1.0:
        return rewards
    # two forms, so that neither overflows and r = 0 (off the actions) stays exactly 0
    above = rewards.clamp(min=0.0)
    above = above + torch.log1p((1.0 - alpha) * torch.expm1(-above))
    below = torch.log1p(alpha * torch.expm1(rewards.clamp(max=0.0)))
    return torch.where(rewards > 0, above, below)


def centre(rewards: Float[Tensor, "B T"], expected: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Subtract the reward's expectation under the SFT policy, KL(pi_SFT || pi_base)(s_t) (see `head.state_kl`)."""
    return rewards - expected


def standardise_per_position(
    rewards: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], eps: float = 1e-6
) -> Float[Tensor, "B T"]:
    """Zero mean and unit standard deviation over the batch at each action index (the k-th action of every row).

    An index that only one row reaches becomes 0.
    """
    index = _action_index(action_mask)
    counts, means = _mean_by_index(rewards, action_mask, index)
    centred = torch.where(action_mask, rewards - means[index], 0.0)
    _, variances = _mean_by_index(centred.square(), action_mask, index)
    scaled = centred / (variances.sqrt()[index] + eps)
    return torch.where(action_mask & (counts[index] > 1), scaled, 0.0)


def shape(
    rewards: Float[Tensor, "B T"],
    potential: Float[Tensor, "B T"],
    next_potential: Float[Tensor, "B T"],
    gamma: float = 1.0,
) -> Float[Tensor, "B T"]:
    """Potential-based shaping r + gamma Phi(s') - Phi(s): leaves the optimal policies unchanged (Ng et al., 1999).

    With Phi = V it turns the Bellman residual into log pi: `shape(r, stats.value, stats.next_value, gamma)`.
    """
    return rewards + gamma * next_potential - potential


def add_to_last_action(
    rewards: Float[Tensor, "B T"], outside: Float[Tensor, " B"], action_mask: Bool[Tensor, "B T"], weight: float = 1.0
) -> Float[Tensor, "B T"]:
    """Mix in a reward of the whole answer (a unit test, a calculator, a format check): it is paid at the last action.

    Rows without an action stay as they are.
    """
    columns = torch.arange(action_mask.size(1), device=action_mask.device)
    last = torch.where(action_mask, columns, -1).max(dim=1).values
    pays = (columns == last.unsqueeze(1)) & action_mask
    return rewards + weight * torch.where(pays, outside.unsqueeze(1).to(rewards.dtype), 0.0)


def sequence_sum(rewards: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Accumulated reward of every row."""
    return torch.where(action_mask, rewards, 0.0).sum(dim=1)


def _action_index(action_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """0 for a row's first action, 1 for its second, ... (0 before the first)."""
    return (action_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _mean_by_index(
    values: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], index: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """How many rows have a k-th action, and the mean of `values` over them, for every k."""
    width = values.size(1)
    flat = index[action_mask]
    counts = values.new_zeros(width).index_add_(0, flat, torch.ones_like(values[action_mask]))
    sums = values.new_zeros(width).index_add_(0, flat, values[action_mask])
    return counts, sums / counts.clamp(min=1)
