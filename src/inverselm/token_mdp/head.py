"""The dense reference head: full logits -> TokenStats. The ground truth the soft-Q head is tested against."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .batch import TERMINAL, TokenBatch
from .stats import TokenStats


def stats_from_logits(
    logits: Float[Tensor, "B S V"],
    batch: TokenBatch,
    *,
    first_column: int = 0,
    entropy: bool = False,
    entropy_grad: bool = True,
    greedy: bool = False,
    temperature: float = 1.0,
) -> TokenStats:
    """Read Q, V and V(next) of every action off a model's logits, in float32 (float64 stays float64).

    Args:
        logits: (B, S, V) output for the columns `first_column` .. T - 1 of the batch, S = T - first_column.
        batch: the (B, T) batch the logits belong to.
        first_column: first column the logits cover. Every state that is needed must lie there.
        entropy: also H(pi(.|s_t)).
        entropy_grad: whether the entropy keeps its gradient (a penalty) or is only to be logged.
        greedy: also whether the action is the argmax.
        temperature: logits are divided by it: the stats of the policy softmax(Q / temperature).

    Raises:
        ValueError: `first_column` cuts off a state that is needed, or the shapes do not fit.
    """
    width = batch.input_ids.size(1)
    if logits.size(1) != width - first_column:
        raise ValueError(f"{logits.size(1)} columns of logits for columns {first_column}..{width - 1} of the batch.")
    if first_column > first_needed_column(batch):
        raise ValueError(f"first_column={first_column} cuts off column {first_needed_column(batch)}, which is needed.")
    q = _at_least_float32(logits)
    if temperature != 1.0:
        q = q / temperature
    value_at = q.logsumexp(dim=-1)
    mask = batch.action_mask
    chosen = q[:, :-1].gather(-1, batch.input_ids[:, first_column + 1 :].unsqueeze(-1)).squeeze(-1)
    next_value = value_at.gather(1, (batch.next_state - first_column).clamp(min=0))
    zero = q.new_zeros(())
    stats: dict[str, Any] = {
        "action_logit": torch.where(mask, nn.functional.pad(chosen, (first_column + 1, 0)), zero),
        "value": torch.where(mask, _to_actions(value_at, first_column), zero),
        "next_value": torch.where(mask & (batch.next_state != TERMINAL), next_value, zero),
        "action_mask": mask,
        "document_ids": batch.document_ids,
    }
    if entropy:
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            stats["entropy"] = torch.where(mask, _to_actions(logits_entropy(q, value_at), first_column), zero)
    if greedy:
        best = _to_actions(q.argmax(dim=-1), first_column)
        stats["greedy"] = mask & (best == batch.input_ids)
    return TokenStats(**stats)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _to_actions(at_state: Tensor, first_column: int) -> Tensor:
    """(B, S) numbers of states -> (B, T), aligned to the actions taken there: token t is chosen in column t - 1."""
    return nn.functional.pad(at_state[:, :-1], (first_column + 1, 0))


def logits_entropy(logits: Float[Tensor, "B S V"], value: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """H(pi) = V - sum_a pi(a) Q(a) of softmax policies, in nats."""
    probabilities = (logits - value.unsqueeze(-1)).exp()
    # a token ruled out by -inf has p Q = 0, and must not put 0 * inf into the gradient either
    return value - (probabilities * torch.where(probabilities > 0, logits, 0.0)).sum(dim=-1)


def state_kl(
    logits: Float[Tensor, "B S V"], other: Float[Tensor, "B S V"], batch: TokenBatch, *, first_column: int = 0
) -> Float[Tensor, "B T"]:
    """KL(softmax(logits) || softmax(other)) at the state of every action, in nats; 0 off the actions.

    It is the expectation of the baseline-relative reward under the SFT policy, >= 0, which is why raw sums of that
    reward grow with length.
    """
    log_p = _at_least_float32(logits).log_softmax(dim=-1)
    log_q = _at_least_float32(other).log_softmax(dim=-1)
    probabilities = log_p.exp()
    kl = (probabilities * torch.where(probabilities > 0, log_p - log_q, 0.0)).sum(dim=-1)
    return torch.where(batch.action_mask, _to_actions(kl, first_column), 0.0)


def first_needed_column(batch: TokenBatch) -> int:
    """First output column that some action's state lies in; T - 1 if the batch holds no action."""
    width = batch.input_ids.size(1)
    columns = torch.arange(width, device=batch.input_ids.device)
    return int(torch.where(batch.action_mask, columns - 1, width - 1).min())


def token_logits(
    model: nn.Module,
    batch: TokenBatch,
    *,
    float32_head: bool = True,
    all_columns: bool = False,
    **forward_kwargs: Any,
) -> tuple[Any, int]:
    """Run a causal LM on a batch; returns its output and the first column that `output.logits` cover.

    Prompt columns are not projected where the model takes `logits_to_keep`, unless `all_columns` are asked for. With
    `float32_head` the language-model head runs in float32 also under autocast: V is tens of nats, and bfloat16 would
    round it to 1/8 of a nat.
    """
    first = first_needed_column(batch)
    kwargs = {**batch.model_inputs(), "use_cache": False, **forward_kwargs}
    if first > 0 and not all_columns and _accepts(model, "logits_to_keep"):
        kwargs["logits_to_keep"] = batch.input_ids.size(1) - first
    with _float32_head(model) if float32_head else _as_it_is():
        outputs = model(**kwargs)
    first = first if "logits_to_keep" in kwargs else 0
    # prompt learning (PEFT) puts virtual tokens in front
    outputs.logits = outputs.logits[:, first - batch.input_ids.size(1) :]
    return outputs, first


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside DDP, torch.compile and PEFT wrappers."""
    while True:
        inner = getattr(model, "module", getattr(model, "_orig_mod", None))
        if isinstance(inner, nn.Module):
            model = inner
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = cast(Any, model).get_base_model()
        else:
            return model


def _accepts(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(unwrap(model).forward).parameters


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _float32_head(model: nn.Module) -> Iterator[None]:
    """Let a plain linear head compute in float32; others, and heads whose forward is already replaced, run as they are.

    Nothing is decided here by dtype or autocast: accelerate enters autocast only inside the model's forward.
    """
    head = cast(Any, unwrap(model)).get_output_embeddings() if hasattr(unwrap(model), "get_output_embeddings") else None
    if type(head) is not nn.Linear or "forward" in vars(head):
        yield
        return
    vars(head)["forward"] = MethodType(_linear_in_float32, head)
    try:
        yield
    finally:
        del vars(head)["forward"]


def _linear_in_float32(head: nn.Linear, hidden: Tensor) -> Tensor:
    if head.weight.dtype == torch.float64:
        return nn.functional.linear(hidden, head.weight, head.bias)
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.float(), head.weight.float(), bias)
