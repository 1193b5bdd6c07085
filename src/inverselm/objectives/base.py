"""What every objective returns, and the one place where a loss is normalised."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..token_mdp.stats import masked_sum


class Loss(NamedTuple):
    """A scalar to minimise, with gradient, and detached numbers to log (each a mean over the batch's actions)."""

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor]


def normalised(
    per_action: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], num_actions: float | Tensor | None = None
) -> Float[Tensor, ""]:
    """Sum over actions / number of actions.

    `num_actions` is the *global* count: over all micro-batches of an optimiser step and all processes. Then padding,
    packing, gradient accumulation and the number of processes never change the loss. None counts this batch's own.
    """
    count = mask.sum() if num_actions is None else torch.as_tensor(num_actions, device=per_action.device)
    return masked_sum(per_action, mask) / count.clamp(min=1)
