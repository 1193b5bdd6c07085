"""The plain mode of the soft-Q head: numbers of states with gradients for any consumer, by computing logits again."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .chunks import States
from .tile_gradients import Upstream, add_gradients, zero_gradients
from .tiles import HeadSpec, Reading, make_tiles, prepare_rows, product_weight, read_rows, refuse_second_derivative

_CHUNK = 1024


def stats_numbers(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    states: States,
    spec: HeadSpec,
    *,
    entropy: bool,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n,) tensors (Q, V, H, greedy) of a batch's states; H is 0 unless asked for."""
    rows = hidden.flatten(0, 1)[states.index]
    size = chunk_size or _CHUNK
    numbers = _Stats.apply(rows, weight, bias, states.action, spec, entropy, size)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], numbers)


class _Stats(torch.autograd.Function):
    """Numbers of each state; the backward pass computes the tiles again."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        action: Tensor,
        spec: HeadSpec,
        entropy: bool,
        size: int,
    ) -> tuple[Tensor, ...]:
        parts: list[tuple[Tensor, ...]] = []
        with torch.autocast(rows.device.type, enabled=False):
            product = product_weight(weight, spec)
            stash = product.new_empty(0)
            for start in range(0, rows.size(0), size):
                part = slice(start, start + size)
                chosen = prepare_rows(rows[part], weight, bias, action[part], spec)
                tiles = make_tiles(chosen, product, bias, spec, stash, reuse=True)
                reading, _ = read_rows(chosen, tiles, spec, expectation=entropy)
                h = torch.zeros_like(reading.value) if reading.entropy is None else reading.entropy
                parts.append((chosen.action_logit, reading.value, h, reading.greedy))
        if not parts:
            empty = rows.new_zeros(0, dtype=spec.sums)
            parts.append((empty, empty, empty, empty.bool()))
        q, value, h, greedy = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(rows, weight, bias, action, value, h)
        ctx.spec, ctx.size = spec, size
        ctx.mark_non_differentiable(greedy)
        ctx.set_materialize_grads(False)  # an entropy that is only logged must cost no gradient
        return q, value, h, greedy

    @staticmethod
    def backward(
        ctx: Any, grad_q: Tensor | None, grad_v: Tensor | None, grad_h: Tensor | None, _: Any
    ) -> tuple[Any, ...]:
        refuse_second_derivative()
        rows, weight, bias, action, value, h = ctx.saved_tensors
        spec, needs = ctx.spec, ctx.needs_input_grad[:3]
        grad_q = torch.zeros_like(value) if grad_q is None else grad_q
        grad_v = torch.zeros_like(value) if grad_v is None else grad_v
        into = zero_gradients((rows, weight, bias), needs, spec)
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
            product = product_weight(weight, spec)
            stash = product.new_empty(0)
            for start in range(0, rows.size(0), ctx.size):
                part = slice(start, start + ctx.size)
                chosen = prepare_rows(rows[part], weight, bias, action[part], spec)
                reading = Reading(value[part], chosen.action, (value - h)[part], h[part])
                upstream = Upstream(grad_q[part], grad_v[part], None if grad_h is None else grad_h[part])
                made = make_tiles(chosen, product, bias, spec, stash, reuse=True)
                tiles = (tile for tile, _, _ in made.softmaxes())
                local = into._replace(hidden=None if into.hidden is None else into.hidden[part])
                add_gradients(chosen, tiles, reading, upstream, product, bias, spec, local)
        return (
            *(None if g is None else g.to(x.dtype) for g, x in zip(into, (rows, weight, bias), strict=True)),
            None, None, None, None,
        )  # fmt: skip
