"""TokenStats, losses and divergences of language models: the soft-Q head where it fits, else the dense reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .batch import TokenBatch
from .chunks import States
from .fused import Task, loss_numbers
from .head import stats_from_logits, token_logits
from .lm_head import Projection, SoftHeadError, run_with_head
from .recompute import stats_numbers
from .stats import TokenStats

if TYPE_CHECKING:
    from ..objectives import Loss

logger = logging.getLogger(__name__)
_logged: set[str] = set()


def token_stats(
    model: nn.Module,
    batch: TokenBatch,
    *,
    entropy: bool = False,
    temperature: float = 1.0,
    float32_head: bool = False,
    **forward_kwargs: Any,
) -> TokenStats:
    """TokenStats of any causal LM (full, PEFT, wrapped by DDP or FSDP) on a batch, with gradients if they are enabled.

    Args:
        model: a causal LM, or an encoder-decoder LM with a :class:`Seq2SeqBatch`.
        batch: the (B, T) batch.
        entropy: also H(pi(.|s_t)).
        temperature: stats of the policy softmax(Q / temperature).
        float32_head: matrix products of the head in float32 also under autocast.
        forward_kwargs: of the model's forward, besides the batch's own.

    Example:
        >>> stats = token_stats(model, TokenBatch.from_ids(prompts, completions, pad_token_id=0, eos_token_ids=[2]))
        >>> reward = stats.action_logit - stats.next_value      # Q(s,a) - V(s'), (B, T), nats
    """
    stats, _ = token_stats_and_output(
        model, batch, entropy=entropy, temperature=temperature, float32_head=float32_head, **forward_kwargs
    )
    return stats


def token_stats_and_output(
    model: nn.Module,
    batch: TokenBatch,
    *,
    entropy: bool = False,
    temperature: float = 1.0,
    float32_head: bool = False,
    **forward_kwargs: Any,
) -> tuple[TokenStats, Any]:
    """:func:`token_stats`, and the model's output without logits (for auxiliary losses)."""
    states = States.of(batch)

    def compute(head: Projection) -> tuple[Tensor, ...]:
        return stats_numbers(_columns(head, batch), head.weight, head.bias, states, head.spec, entropy=entropy)

    inputs = {**batch.model_inputs(), "use_cache": False, **forward_kwargs}
    try:
        outputs, numbers = run_with_head(model, compute, temperature=temperature, float32=float32_head, **inputs)
    except SoftHeadError as reason:
        fall_back(reason)
        outputs, first = token_logits(model, batch, **forward_kwargs)
        stats = stats_from_logits(
            outputs.logits, batch, first_column=first, entropy=entropy, greedy=True, temperature=temperature
        )
        return stats, outputs
    q, v, h, greedy = numbers
    return states.stats(q, v, h if entropy else None, greedy, batch), outputs


def token_loss(
    model: nn.Module,
    batch: TokenBatch,
    objective: Callable[..., Loss],
    *,
    num_actions: float | Tensor | None = None,
    per_token: Mapping[str, Tensor] | None = None,
    entropy: str = "log",
    temperature: float = 1.0,
    stats_temperature: float | None = None,
    float32_head: bool = False,
    **forward_kwargs: Any,
) -> tuple[Loss, TokenStats, Any]:
    """An objective's loss on a batch, the detached stats it came from, and the model's output (without logits).

    Gradients of the head are computed on the way, at the price of plain cross-entropy (see `soft_head.head_loss`, whose
    arguments these are; the model's are those of :func:`token_stats`). With `stats_temperature` the stats that are
    returned are those of another temperature than the loss's, for one more product of the head: numbers to log.

    Example:
        >>> loss, stats, _ = token_loss(model, batch, partial(iqlearn, td_coef=0.1))
        >>> loss.value.backward()
    """
    states = States.of(batch)
    task = Task(objective, batch.num_actions if num_actions is None else num_actions, dict(per_token or {}), entropy)
    other = None if stats_temperature == temperature else stats_temperature

    def compute(head: Projection) -> tuple[Tensor, ...]:
        hidden = _columns(head, batch)
        numbers = loss_numbers(hidden, head.weight, head.bias, states, head.spec, task)
        if other is None:
            return numbers
        spec = replace(head.spec, temperature=other)
        with torch.no_grad():
            return *numbers, *stats_numbers(hidden, head.weight, head.bias, states, spec, entropy=entropy != "none")

    inputs = {**batch.model_inputs(), "use_cache": False, **forward_kwargs}
    try:
        outputs, numbers = run_with_head(model, compute, temperature=temperature, float32=float32_head, **inputs)
    except SoftHeadError as reason:
        fall_back(reason)
        outputs, first = token_logits(model, batch, **forward_kwargs)
        read = partial(stats_from_logits, outputs.logits, batch, first_column=first, entropy=entropy != "none")
        stats = read(entropy_grad=entropy == "grad", greedy=True, temperature=temperature)
        loss = objective(stats, num_actions=task.num_actions, **task.per_token)
        if other is not None:
            with torch.no_grad():
                stats = read(greedy=True, temperature=other)
        return loss, stats.detach(), outputs
    loss, stats = task.result(numbers[:5], states, batch)
    if other is not None:
        q, v, h, greedy = numbers[5:]
        stats = states.stats(q, v, None if entropy == "none" else h, greedy, batch)
    return loss, stats, outputs


def project(model: nn.Module, batch: TokenBatch, **forward_kwargs: Any) -> Projection:
    """The last hidden states (B, T, H) of a batch and the layer that projects them, for `soft_head`'s functions.

    Raises:
        SoftHeadError: the output layer is none that the soft-Q head can stand in for.
    """
    seen: list[Projection] = []

    def compute(head: Projection) -> tuple[Tensor, ...]:
        seen.append(head._replace(hidden=_columns(head, batch)))
        return (head.hidden,)

    run_with_head(model, compute, **{**batch.model_inputs(), "use_cache": False, **forward_kwargs})
    if not seen[0].weight.untyped_storage().size():
        raise SoftHeadError("its output weight is kept in shards after the call")
    return seen[0]


def _columns(head: Projection, batch: TokenBatch) -> Tensor:
    """(B, T, H): prompt learning (PEFT) puts virtual tokens in front.

    Raises:
        SoftHeadError: the model does not project a state for every token.
    """
    rows, width = batch.input_ids.shape
    if head.hidden.dim() != 3 or head.hidden.size(0) != rows or head.hidden.size(1) < width:
        raise SoftHeadError(f"its output layer gets {tuple(head.hidden.shape)} for tokens of {(rows, width)}")
    return head.hidden[:, head.hidden.size(1) - width :]


def fall_back(reason: SoftHeadError) -> None:
    """Say once, for each reason, that the dense reference is used."""
    if str(reason) not in _logged:
        _logged.add(str(reason))
        logger.warning(f"The whole logits are computed, which takes more memory and time: of this model, {reason}.")
