"""The fused mode of the soft-Q head: an objective's loss, with the head's gradients computed in the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .batch import TokenBatch
from .chunks import Chunk, States
from .stats import TokenStats
from .tile_gradients import Gradients, Upstream, add_gradients, zero_gradients
from .tiles import HeadSpec, Reading, make_tiles, prepare_rows, product_weight, read_rows, refuse_second_derivative

if TYPE_CHECKING:
    from ..objectives import Loss

ENTROPIES = ("none", "log", "grad")
_STASH_BYTES = {"cpu": 2**28, "cuda": 2**30}


@dataclass(frozen=True)
class Task:
    """An objective with what it is called with.

    Raises:
        ValueError: an unknown `entropy`.
    """

    objective: Callable[..., Loss]
    num_actions: float | Tensor
    per_token: Mapping[str, Tensor]
    entropy: str

    def __post_init__(self) -> None:
        if self.entropy not in ENTROPIES:
            raise ValueError(f"entropy must be one of {ENTROPIES}, not {self.entropy!r}.")

    def result(self, numbers: tuple[Tensor, ...], states: States, batch: TokenBatch) -> tuple[Loss, TokenStats]:
        """The loss of the whole batch, with its gradient, and the detached stats."""
        value, q, v, h, greedy = numbers
        stats = states.stats(q, v, None if self.entropy == "none" else h, greedy, batch)
        with torch.no_grad():
            loss = self.objective(stats, num_actions=self.num_actions, **self.per_token)
        return loss._replace(value=value), stats


def loss_numbers(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: States,
    spec: HeadSpec,
    task: Task,
    *,
    chunk_size: int | None = None,
) -> tuple[Tensor, ...]:
    """The loss, with its gradient, and the detached (n,) tensors Q, V, H and greedy of a batch's states."""
    rows = hidden.flatten(0, 1)[states.index]
    wanted = tuple(torch.is_grad_enabled() and x is not None and x.requires_grad for x in (rows, weight, bias))
    job = _Job(states, task, spec, chunk_size or _chunk_size(weight, spec), wanted)
    return cast(tuple[Tensor, ...], _Fused.apply(rows, weight, bias, job))  # type: ignore[no-untyped-call]


def _chunk_size(weight: Tensor, spec: HeadSpec) -> int:
    """States whose softmaxes fit the stash."""
    budget = _STASH_BYTES.get(weight.device.type, _STASH_BYTES["cuda"])
    most = 1024 if weight.device.type == "cpu" else 2**14
    return min(max(64, budget // (weight.size(0) * spec.dtype.itemsize)), most)


@dataclass(frozen=True)
class _Job:
    """What the fused function needs beside tensors with gradients."""

    states: States
    task: Task
    spec: HeadSpec
    chunk_size: int
    wanted: tuple[bool, ...]

    def upstream(self, chunk: Chunk, logit: Tensor, reading: Reading) -> tuple[Upstream, Tensor]:
        """The objective's gradients with respect to the numbers of a chunk's states, and its value there."""
        # an objective that has the entropy in its loss must ask for it, not lose its gradient
        entropy = reading.entropy if self.task.entropy == "grad" else None
        leaves = [x.detach().requires_grad_() for x in (logit, reading.value, entropy) if x is not None]
        with torch.enable_grad():
            q, v, *h = leaves
            loss = self.value(chunk, q, reading._replace(value=v, entropy=h[0] if h else None))
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g.to(x.dtype) for x, g in zip(leaves, grads, strict=True)]
        return Upstream(*filled), loss.detach()

    def value(self, chunk: Chunk, logit: Tensor, reading: Reading) -> Tensor:
        """The objective's value on a chunk."""
        part = {
            name: self.states.at_actions(tensor)[None, chunk.start : chunk.stop]
            for name, tensor in self.task.per_token.items()
        }
        stats = self.states.flat_stats(chunk, logit, reading.value, reading.entropy, reading.greedy)
        return self.task.objective(stats, num_actions=self.task.num_actions, **part).value


class _Fused(torch.autograd.Function):
    """Loss with the gradients of hidden rows, weight and bias computed on the way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        with torch.autocast(rows.device.type, enabled=False):
            loss, numbers, gradients = _run(rows, weight, bias, job)
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in (rows, weight, bias)]
        ctx.mark_non_differentiable(*numbers)
        return (loss, *numbers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        refuse_second_derivative()
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("The soft head's gradients were freed by a first backward pass; it can run only once.")
        plain = grad.device.type == "cpu" and float(grad) == 1.0  # elsewhere looking would wait for the device
        scaled = [g if g is None or plain else g.mul_(grad.to(g.dtype)) for g in gradients]
        return (*(None if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True)), None)


def _run(rows: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, list[Tensor], Gradients]:
    spec, n, vocab = job.spec, rows.size(0), weight.size(0)
    numbers = [rows.new_zeros(n, dtype=spec.sums) for _ in range(3)]
    greedy = torch.zeros(n, dtype=torch.bool, device=rows.device)
    loss = rows.new_zeros((), dtype=spec.sums)
    into = zero_gradients((rows, weight, bias), job.wanted, spec)
    learning = any(job.wanted)
    # beside gradients E[q] costs nothing, but not under a cap, and it is only as exact as the products
    free = learning and not spec.softcap and not spec.low_precision
    explicit = job.task.entropy == "grad" or (job.task.entropy == "log" and not free)
    product = product_weight(weight, spec)
    size = min(n, job.chunk_size + 1)
    stash = product.new_empty(size * vocab if learning else 0)
    for chunk in job.states.chunks(job.chunk_size):
        part = slice(chunk.start, chunk.stop)
        chosen = prepare_rows(rows[part], weight, bias, job.states.action[part], spec)
        tiles = make_tiles(chosen, product, bias, spec, stash, reuse=not learning)
        reading, kept = read_rows(chosen, tiles, spec, expectation=explicit)
        entropy = reading.entropy
        if learning:
            upstream, value = job.upstream(chunk, chosen.action_logit, reading)
            local = into._replace(hidden=None if into.hidden is None else into.hidden[part])
            mean = add_gradients(
                chosen, kept, reading, upstream, product, bias, spec, local,
                expectation=job.task.entropy == "log" and not explicit,
            )  # fmt: skip
            entropy = entropy if mean is None else reading.value - mean
        else:
            value = job.value(chunk, chosen.action_logit, reading)
        loss += value
        for out, x in zip(numbers, (chosen.action_logit, reading.value, entropy), strict=True):
            if x is not None:
                out[part] = x
        greedy[part] = reading.greedy
    return loss, [*numbers, greedy], into
