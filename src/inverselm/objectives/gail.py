"""GAIL for language: discriminator, reward, advantages, and the losses of policy and value (arXiv 2409.01369, A.1.3).

Index convention. Column t of a network's output is the state *after* token t. The action in column t was taken in the
state of column t - 1, and led to the state of column t. Then

    D of the action    column t        D(s_{t+1}): it reads the action; the end of an answer is a state as any other
    V(s_t)             column t - 1
    V(s_{t+1})         `next_state`    0 after EOS; of a truncated answer the last column: bootstrapped

The transition is deterministic, so D(s_{t+1}) is a function of state and action, and r_t = softplus(D(s_{t+1})).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..token_mdp.batch import TERMINAL, TokenBatch
from ..token_mdp.credit import returns_to_go, scale_advantages, subtract_baseline
from ..token_mdp.stats import TokenStats, masked_mean
from .base import Loss, normalised
from .policy_gradient import policy_gradient

RESCALINGS = ("none", "std", "whiten")


def discriminator_loss(
    logits: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    own: Bool[Tensor, "B T"],
    *,
    num_actions: float | Tensor | None = None,
) -> Loss:
    """Cross-entropy of a token classifier, expert against policy: softplus(-D) on expert actions, softplus(D) on own.

    With as many answers of either kind its optimum is D = log rho_E / rho_pi, the log-ratio of occupancies: the sum is
    divided by one number of actions, not each part by its own, so that a longer answer counts for all of its tokens.

    Args:
        logits: (B, T) D of the state after each action, with gradient.
        action_mask: (B, T) True on the actions of both.
        own: (B, T) True on actions that the policy sampled; the others are the expert's.
        num_actions: global number of actions of both; None for this batch's own.

    Returns:
        The loss; `accuracy_expert` and `accuracy_own`, shares of actions on the right side of 0; `reward_expert` and
        `reward_own`, means of softplus(D). Each is a mean over its part.

    Example:
        >>> loss, metrics = discriminator_loss(logits, batch.action_mask, own)
    """
    expert, sampled = action_mask & ~own, action_mask & own
    logits = torch.where(action_mask, logits, 0.0)
    per_action = nn.functional.softplus(torch.where(own, logits, -logits))
    with torch.no_grad():
        reward = gail_reward(logits, action_mask)
        metrics = {
            "accuracy_expert": masked_mean((logits > 0).to(logits.dtype), expert),
            "accuracy_own": masked_mean((logits < 0).to(logits.dtype), sampled),
            "reward_expert": masked_mean(reward, expert),
            "reward_own": masked_mean(reward, sampled),
        }
    return Loss(normalised(per_action, action_mask, num_actions), metrics)


def gail_reward(
    logits: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], shift: float = 0.0
) -> Float[Tensor, "B T"]:
    """r_t = softplus(D(s_{t+1})) - shift, without gradient; 0 off the actions (arXiv 2409.01369, A.1.3: shift 0).

    softplus(D) = -log(1 - sigmoid(D)) > 0: ending an answer is an action, and an agent paid by negative rewards would
    end at once. Where D cannot tell (D = 0) it still pays log 2 for every token, so that longer answers earn more;
    with `shift` = log 2 the expert's occupancy is a fixed point also where lengths vary (our derivation).
    """
    return torch.where(action_mask, nn.functional.softplus(logits.detach()) - shift, 0.0)


def state_values(
    at_state: Float[Tensor, "B T"], batch: TokenBatch
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """V(s_t) and V(s_{t+1}) of every action from numbers per state; both (B, T), 0 off the actions.

    Args:
        at_state: (B, T) V of the state after each token.
        batch: whose next states are read: V is 0 after EOS, and bootstrapped after truncation.
    """
    value = nn.functional.pad(at_state[:, :-1], (1, 0))
    following = at_state.gather(1, batch.next_state.clamp(min=0))
    goes_on = batch.action_mask & (batch.next_state != TERMINAL)
    return torch.where(batch.action_mask, value, 0.0), torch.where(goes_on, following, 0.0)


def gae(
    rewards: Float[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    next_value: Float[Tensor, "B T"],
    batch: TokenBatch,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Float[Tensor, "B T"]:
    """A_t = sum_{k >= t} (gamma lambda)^(k-t) delta_k, delta_k = r_k + gamma V(s_{k+1}) - V(s_k) (arXiv 1506.02438).

    Time is counted in actions. lambda = 1 is the (bootstrapped) return minus V, lambda = 0 the temporal difference.
    A_t + V(s_t) is what V is to be fitted to. Without gradient.

    Raises:
        ValueError: gamma or lambda outside [0, 1].
    """
    for name, number in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], not {number}.")
    delta = (rewards + gamma * next_value - value).detach()
    return returns_to_go(delta, batch.action_mask, gamma * gae_lambda, batch.document_ids)


def rescale_advantages(
    advantages: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], kind: str = "whiten"
) -> Float[Tensor, "B T"]:
    """ "std" divides by the standard deviation over the batch's actions, "whiten" subtracts their mean before.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in RESCALINGS:
        raise ValueError(f"the rescaling of advantages must be one of {RESCALINGS}, not {kind!r}.")
    centred = subtract_baseline(advantages, action_mask, "batch" if kind == "whiten" else "none")
    return torch.where(action_mask, scale_advantages(centred, action_mask, "none" if kind == "none" else "std"), 0.0)


def gail_policy(
    stats: TokenStats,
    *,
    own: Bool[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    ref_log_prob: Float[Tensor, "B T"],
    old_log_prob: Float[Tensor, "B T"] | None = None,
    clip_range: float | None = 0.2,
    kl_coef: float = 0.0,
    kl_estimator: str = "k2",
    mle_coef: float = 1.0,
    entropy_coef: float = 0.0,
    num_actions: float | Tensor | None = None,
    num_own: float | Tensor | None = None,
) -> Loss:
    """The policy's loss on demonstrations and own samples in one batch (arXiv 2409.01369, A.1.3).

        mean over own actions of [ -min(rho_t A_t, clip(rho_t) A_t) + beta KL_t - c H(pi(.|s_t)) ]
        + w mean over expert actions of -log pi(a_t|s_t)

    rho_t = pi / pi_old, and KL_t is estimated against the initial policy (see :func:`policy_gradient`).

    Args:
        stats: (B, T) statistics of both, with gradient; with `entropy` if `entropy_coef` is not 0.
        own: (B, T) True on actions that the policy sampled; the others are the expert's.
        advantages: (B, T), constant, read on own actions.
        ref_log_prob: (B, T) log-probabilities of the initial policy, read on own actions.
        old_log_prob: (B, T) at sampling time, read on own actions; None for on-policy.
        clip_range: epsilon of PPO's clipping; None for none.
        kl_coef: beta >= 0.
        kl_estimator: "k2" or "k3".
        mle_coef: w, the weight of the demonstrations' likelihood.
        entropy_coef: c, the weight of the entropy bonus.
        num_actions: global number of *expert* actions; None for this batch's own.
        num_own: global number of own actions; None for this batch's.

    Returns:
        The loss; `nll` over expert actions; over own ones `advantage`, `advantage_abs`, `ratio`, `kl`, `own_entropy`.

    Raises:
        ValueError: an `entropy_coef` without entropies, or an estimator that has no gradient as a loss.

    Example:
        >>> loss, metrics = gail_policy(stats, own=own, advantages=advantages, ref_log_prob=ref, kl_coef=1e-3)
    """
    if entropy_coef and stats.entropy is None:
        raise ValueError("entropy_coef needs token_stats(..., entropy=True).")
    sampled, expert = stats.action_mask & own, stats.action_mask & ~own
    loss, metrics = policy_gradient(
        replace(stats, action_mask=sampled),
        advantages,
        old_log_prob=old_log_prob,
        clip_range=clip_range,
        ref_log_prob=ref_log_prob,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        num_actions=num_own,
    )
    nll = -stats.log_prob
    loss = loss + mle_coef * normalised(nll, expert, num_actions)
    metrics["nll"] = masked_mean(nll, expert).detach()
    if stats.entropy is not None:
        metrics["own_entropy"] = masked_mean(stats.entropy, sampled).detach()
        if entropy_coef:
            loss = loss - entropy_coef * normalised(stats.entropy, sampled, num_own)
    return Loss(loss, metrics)


def value_loss(
    value: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    *,
    num_actions: float | Tensor | None = None,
) -> Loss:
    """(V(s_t) - G_t)^2 / 2, mean over actions; G_t = A_t + V(s_t) of the rollout, constant.

    Returns:
        The loss; `value` (mean V), `return` (mean G) and `value_squared_error`.
    """
    squared = torch.where(action_mask, value - returns.detach(), 0.0).square()
    metrics = {
        "value": masked_mean(value, action_mask).detach(),
        "return": masked_mean(returns, action_mask).detach(),
        "value_squared_error": masked_mean(squared, action_mask).detach(),
    }
    return Loss(normalised(squared / 2, action_mask, num_actions), metrics)


def kl_coef_at(step: int, *, kl_coef_start: float, kl_coef: float, kl_anneal_steps: int) -> float:
    """beta at an optimiser step (0-based): linear from `kl_coef_start` to `kl_coef`, which holds from there on.

    arXiv 2409.01369 anneals over 10,000 steps to 1e-3; where it starts is not printed.
    """
    if step >= kl_anneal_steps:
        return kl_coef
    return kl_coef_start + (kl_coef - kl_coef_start) * step / kl_anneal_steps
