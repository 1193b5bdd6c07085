"""The soft-Q head: hidden states -> TokenStats, or the loss and its gradients, without the (tokens, vocab) logits.

The dense reference is `head.stats_from_logits`. Two modes:

- :func:`head_loss`, fused: chunk by chunk the logits exist once; the objective is evaluated on the chunk's stats, and
  its gradient with respect to them turns the softmaxes into the gradients of hidden and weight, already in the forward
  pass. 6 N H V operations, as for plain cross-entropy; nothing is computed twice.
- :func:`head_stats`, plain: stats with gradients for any outside consumer; the backward pass computes logits again
  (8 N H V operations).

Only the states that some action needs are projected: prompts and padding cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from .batch import TokenBatch
from .chunks import States
from .fused import Task, loss_numbers
from .recompute import stats_numbers
from .stats import TokenStats
from .tiles import HeadSpec

if TYPE_CHECKING:
    from ..objectives import Loss


def head_stats(
    hidden: Float[Tensor, "B T H"],
    weight: Float[Tensor, "V H"],
    batch: TokenBatch,
    *,
    bias: Float[Tensor, " V"] | None = None,
    spec: HeadSpec | None = None,
    entropy: bool = False,
    chunk_size: int | None = None,
) -> TokenStats:
    """Q, V, V(next), greedy (and H) of every action, with gradients to hidden, weight and bias.

    Args:
        hidden: (B, T, H) last hidden states, one per column of the batch.
        weight: (V, H) of the output layer.
        batch: the (B, T) batch.
        bias: (V,) of the output layer.
        spec: scale, cap, temperature and dtype of the products; None: those of a plain layer in the weight's dtype.
        entropy: also H(pi(.|s_t)), differentiable.
        chunk_size: states taken at a time; None chooses by memory.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> stats = head_stats(model.model(ids).last_hidden_state, model.lm_head.weight, batch)
    """
    spec, states = checked(hidden, weight, batch, spec, bias), States.of(batch)
    q, value, h, greedy = stats_numbers(hidden, weight, bias, states, spec, entropy=entropy, chunk_size=chunk_size)
    return states.stats(q, value, h if entropy else None, greedy, batch)


def head_loss(
    hidden: Float[Tensor, "B T H"],
    weight: Float[Tensor, "V H"],
    batch: TokenBatch,
    objective: Callable[..., Loss],
    *,
    num_actions: float | Tensor | None = None,
    per_token: Mapping[str, Tensor] | None = None,
    bias: Float[Tensor, " V"] | None = None,
    spec: HeadSpec | None = None,
    entropy: str = "log",
    chunk_size: int | None = None,
) -> tuple[Loss, TokenStats]:
    """An objective's loss with its gradients, and the detached stats it was computed from.

    Args:
        hidden: (B, T, H) last hidden states, one per column of the batch.
        weight: (V, H) of the output layer.
        batch: the (B, T) batch.
        objective: called as `objective(stats, num_actions=..., **per_token)`. It must be a sum over actions of a
            function of each action's own numbers, divided by `num_actions`, as all losses of `inverselm.objectives`
            are: it is differentiated on chunks. Its metrics come from the whole batch.
        num_actions: global number of actions; None for this batch's own.
        per_token: further (B, T) arguments of the objective, e.g. advantages.
        bias: (V,) of the output layer.
        spec: as in :func:`head_stats`.
        entropy: "none", "log" (a metric, for almost nothing) or "grad" (the objective has it in its loss).
        chunk_size: states taken at a time; None chooses by memory.

    Raises:
        ValueError: the shapes do not fit, or an unknown `entropy`.

    Example:
        >>> (loss, metrics), stats = head_loss(hidden, lm_head.weight, batch, partial(iqlearn, td_coef=0.1))
        >>> loss.backward()
    """
    spec, states = checked(hidden, weight, batch, spec, bias), States.of(batch)
    count = batch.num_actions if num_actions is None else num_actions
    task = Task(objective, count, dict(per_token or {}), entropy)
    numbers = loss_numbers(hidden, weight, bias, states, spec, task, chunk_size=chunk_size)
    return task.result(numbers, states, batch)


def checked(
    hidden: Tensor, weight: Tensor, batch: TokenBatch, spec: HeadSpec | None, bias: Tensor | None = None
) -> HeadSpec:
    """The spec, or that of a plain layer.

    Raises:
        ValueError: the shapes do not fit.
    """
    if hidden.dim() != 3 or hidden.shape[:2] != batch.input_ids.shape:
        raise ValueError(f"hidden is {tuple(hidden.shape)}, the batch {tuple(batch.input_ids.shape)}.")
    if hidden.size(2) != weight.size(1):
        raise ValueError(f"hidden has {hidden.size(2)} features, the weight {weight.size(1)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {tuple(bias.shape)}, the weight {tuple(weight.shape)}.")
    return HeadSpec(dtype=weight.dtype) if spec is None else spec
