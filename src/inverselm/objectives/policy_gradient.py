"""Policy gradient with token-level advantages, and the KL to a reference in the loss or in the reward."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_penalty(
    log_prob: Float[Tensor, "B T"], ref_log_prob: Float[Tensor, "B T"], estimator: str = "k3"
) -> Float[Tensor, "B T"]:
    """Per-action estimates of KL(pi || ref) from actions sampled from pi (Schulman, "Approximating KL divergence").

    k1 = log pi - log ref (unbiased); k2 = k1^2 / 2; k3 = exp(-k1) - 1 + k1 (unbiased, >= 0).

    Raises:
        ValueError: unknown estimator.
    """
    gap = log_prob - ref_log_prob
    if estimator == "k1":
        return gap
    if estimator == "k2":
        return gap.square() / 2
    if estimator == "k3":
        return (-gap).exp() - 1 + gap
    raise ValueError(f"KL estimator must be one of {KL_ESTIMATORS}, not {estimator!r}.")


def kl_in_reward(
    rewards: Float[Tensor, "B T"],
    log_prob: Float[Tensor, "B T"],
    ref_log_prob: Float[Tensor, "B T"],
    kl_coef: float,
    estimator: str = "k1",
) -> Float[Tensor, "B T"]:
    """r_t - beta KL_t, without gradient: credit then carries the KL of later actions back to earlier ones.

    With return-to-go credit, gamma = 1 and k1 this is the exact gradient of E[sum r] - beta KL(pi || ref) over
    sequences, whose optimum is pi* ~ ref exp(r / beta).
    """
    return rewards - kl_coef * kl_penalty(log_prob, ref_log_prob, estimator).detach()


def check_kl_in_loss(estimator: str) -> None:
    """Reject estimators whose gradient as a loss is not one of a KL.

    Raises:
        ValueError: k1: its pathwise gradient is grad log pi, zero in expectation whatever the reference is.
    """
    if estimator == "k1":
        raise ValueError(
            "The k1 estimator in the loss has zero expected gradient: it pulls towards no reference. "
            "Put the KL in the reward, or use k2 (the gradient of the reverse KL of each visited state) or k3."
        )


def policy_gradient(
    stats: TokenStats,
    advantages: Float[Tensor, "B T"],
    *,
    old_log_prob: Float[Tensor, "B T"] | None = None,
    clip_range: float | None = None,
    ref_log_prob: Float[Tensor, "B T"] | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    num_actions: float | Tensor | None = None,
) -> Loss:
    """-A_t rho_t [+ beta KL_t], mean over actions: REINFORCE with token-level advantages (arXiv 2510.02493).

    rho_t = pi / pi_old is 1 on policy, where the gradient is -A_t grad log pi(a_t|s_t). With `clip_range` the
    pessimistic clipped surrogate of PPO is taken, for rollouts used more than once.

    Args:
        stats: (B, T) statistics of the policy on its own samples, with gradient.
        advantages: (B, T), constant.
        old_log_prob: (B, T) log-probs at sampling time; None for on-policy.
        clip_range: epsilon of the clipping; None for none.
        ref_log_prob: (B, T) of the reference (the SFT model); needed for kl_coef > 0.
        kl_coef: beta of the KL *in the loss*; for the KL in the reward see :func:`kl_in_reward`.
        kl_estimator: "k2" or "k3".
        num_actions: global number of actions; None for this batch's own.

    Raises:
        ValueError: kl_coef without `ref_log_prob`, or with an estimator that has no gradient as a loss.
    """
    log_prob, mask = stats.log_prob, stats.action_mask
    old = log_prob.detach() if old_log_prob is None else old_log_prob
    ratio = torch.where(mask, log_prob - old, 0.0).exp()
    held = advantages.detach()
    surrogate = ratio * held
    if clip_range is not None:
        surrogate = torch.minimum(surrogate, ratio.clamp(1 - clip_range, 1 + clip_range) * held)
    per_action = -surrogate
    metrics = {
        "advantage": masked_mean(held, mask),
        "advantage_abs": masked_mean(held.abs(), mask),
        "ratio": masked_mean(ratio, mask).detach(),
    }
    if kl_coef:
        check_kl_in_loss(kl_estimator)
        if ref_log_prob is None:
            raise ValueError("kl_coef > 0 needs ref_log_prob, the SFT model's log-probabilities of the same actions.")
        per_action = per_action + kl_coef * kl_penalty(log_prob, ref_log_prob, kl_estimator)
    if ref_log_prob is not None:
        metrics["kl"] = masked_mean(kl_penalty(log_prob, ref_log_prob, "k1"), mask).detach()
    return Loss(normalised(per_action, mask, num_actions), metrics)
