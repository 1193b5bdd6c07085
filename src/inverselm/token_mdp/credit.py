"""From token rewards to advantages: A_t is what multiplies grad log pi(a_t|s_t).

Time is counted in actions: tokens the policy did not choose (another turn, padding) carry returns across unchanged and
are not discounted. Options that arXiv 2510.02493 leaves open are our choices; each says so.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .rewards import _action_index, _mean_by_index
from .stats import masked_mean

CREDITS = ("return_to_go", "myopic")
VARIANCE_REDUCTIONS = ("none", "batch", "position", "leave_one_out")
SCALES = ("none", "std")


def returns_to_go(
    rewards: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    gamma: float = 1.0,
    document_ids: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """G_t = sum_{k >= t} gamma^(k-t) r_k over the actions of the same document (arXiv 2510.02493: gamma = 1).

    gamma = 0 is myopic credit, G_t = r_t.

    Raises:
        ValueError: gamma outside [0, 1].

    Example:
        >>> returns_to_go(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)).tolist()
        [[7.0, 6.0, 4.0]]
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], not {gamma}.")
    paid = torch.where(action_mask, rewards, 0.0)
    # G_t = paid_t + keep_t G_{t+1}, solved by doubling: after k rounds `returns` sees 2^k columns and `keep` is what
    # is left of anything beyond them
    keep = torch.where(action_mask, gamma, torch.ones_like(paid))
    if document_ids is not None:
        keep[:, :-1] = torch.where(document_ids[:, :-1] == document_ids[:, 1:], keep[:, :-1], 0.0)
    returns, step = paid, 1
    while step < paid.size(1):
        returns = returns + keep * _from_right(returns, step)
        keep = keep * _from_right(keep, step)
        step *= 2
    return torch.where(action_mask, returns, 0.0)


def _from_right(values: Float[Tensor, "B T"], step: int) -> Float[Tensor, "B T"]:
    """Each column as it is `step` columns further right; 0 beyond the end."""
    return torch.nn.functional.pad(values[:, step:], (0, step))


def subtract_baseline(
    returns: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], kind: str = "none", group_size: int = 1
) -> Float[Tensor, "B T"]:
    """Variance reduction: subtract what the return would have been anyway.

    Args:
        returns: (B, T) return of every action.
        action_mask: (B, T).
        kind: "none"; "batch", the mean over all actions; "position", the mean over the rows at the same action index;
            "leave_one_out", the mean over the *other* answers to the same prompt at the same action index (0 where no
            other answer is that long). Only the last is exactly unbiased; the others contain the row itself, 1/n of it.
        group_size: answers per prompt; rows of one prompt are neighbours.

    Raises:
        ValueError: unknown kind, or a group size that does not divide B (or is 1 for "leave_one_out").
    """
    if kind == "none":
        return torch.where(action_mask, returns, 0.0)
    if kind == "batch":
        return torch.where(action_mask, returns - masked_mean(returns, action_mask), 0.0)
    index = _action_index(action_mask)
    if kind == "position":
        _, means = _mean_by_index(returns, action_mask, index)
        return torch.where(action_mask, returns - means[index], 0.0)
    if kind == "leave_one_out":
        if group_size < 2 or returns.size(0) % group_size:
            raise ValueError(
                f"leave_one_out needs groups of at least 2 answers per prompt that divide the batch: got group_size="
                f"{group_size} and {returns.size(0)} rows. Raise num_generations or use another variance_reduction."
            )
        return torch.where(action_mask, returns - _others_mean(returns, action_mask, index, group_size), 0.0)
    raise ValueError(f"variance reduction must be one of {VARIANCE_REDUCTIONS}, not {kind!r}.")


def _others_mean(
    returns: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], index: Int[Tensor, "B T"], group_size: int
) -> Float[Tensor, "B T"]:
    """Mean return of the other rows of the group at the same action index; 0 where there is none."""
    rows, width = returns.shape
    group = (torch.arange(rows, device=returns.device) // group_size).unsqueeze(1) * width
    slot = (group + index)[action_mask]
    chosen = returns[action_mask]
    size = (rows // group_size) * width
    sums = returns.new_zeros(size).index_add_(0, slot, chosen)
    counts = returns.new_zeros(size).index_add_(0, slot, torch.ones_like(chosen))
    others = (sums[slot] - chosen) / (counts[slot] - 1).clamp(min=1)
    return torch.zeros_like(returns).masked_scatter(action_mask, torch.where(counts[slot] > 1, others, 0.0))


def scale_advantages(
    advantages: Float[Tensor, "B T"], action_mask: Bool[Tensor, "B T"], kind: str = "none", eps: float = 1e-6
) -> Float[Tensor, "B T"]:
    """Kind "none", or "std": divide by the standard deviation over all actions of the batch (if there is any).

    Raises:
        ValueError: unknown kind.
    """
    if kind == "none":
        return advantages
    if kind == "std":
        mean = masked_mean(advantages, action_mask)
        std = masked_mean((advantages - mean).square(), action_mask).sqrt()
        return torch.where(std > eps, advantages / (std + eps), advantages)
    raise ValueError(f"advantage scale must be one of {SCALES}, not {kind!r}.")


def advantages(
    rewards: Float[Tensor, "B T"],
    action_mask: Bool[Tensor, "B T"],
    *,
    credit: str = "return_to_go",
    gamma: float = 1.0,
    variance_reduction: str = "none",
    scale: str = "none",
    group_size: int = 1,
    document_ids: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """Rewards -> returns -> minus a baseline -> scaled: the (B, T) advantages of Dense-Path REINFORCE.

    Args:
        rewards: (B, T) token rewards, nats.
        action_mask: (B, T).
        credit: "return_to_go" (arXiv 2510.02493), or "myopic": A_t from r_t alone.
        gamma: discount per action of the return-to-go.
        variance_reduction: see :func:`subtract_baseline`.
        scale: see :func:`scale_advantages`.
        group_size: answers per prompt, neighbours in the batch.
        document_ids: only for packed rows.

    Raises:
        ValueError: an unknown option (the message names the known ones).
    """
    if credit not in CREDITS:
        raise ValueError(f"credit must be one of {CREDITS}, not {credit!r}.")
    returns = returns_to_go(rewards, action_mask, gamma if credit == "return_to_go" else 0.0, document_ids)
    reduced = subtract_baseline(returns, action_mask, variance_reduction, group_size)
    return scale_advantages(reduced, action_mask, scale)
