"""The soft head's gradients on flat rows: from tiles of softmaxes to hidden rows, weight and bias."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from . import triton_tiles
from .products import Scratch, add_product
from .tiles import HeadSpec, Reading, Rows, Tile, finite, log_own

_NO_MASS = -1000.0  # exp of it is 0


class Upstream(NamedTuple):
    """Gradients of the loss with respect to each row's numbers."""

    logit: Float[Tensor, " n"]
    value: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"] | None = None


class Gradients(NamedTuple):
    """Where gradients are accumulated, in the dtype of sums; None where none is wanted."""

    hidden: Float[Tensor, "n H"] | None
    weight: Float[Tensor, "V H"] | None
    bias: Float[Tensor, " V"] | None


def zero_gradients(inputs: Sequence[Tensor | None], wanted: Sequence[bool], spec: HeadSpec) -> Gradients:
    """Zeros for those of (hidden, weight, bias) whose gradient is wanted."""
    zeros = [
        None if x is None or not want else x.new_zeros(x.shape, dtype=spec.sums)
        for x, want in zip(inputs, wanted, strict=True)
    ]
    return Gradients(*zeros)


def add_gradients(
    rows: Rows,
    tiles: Iterable[Tile],
    reading: Reading,
    upstream: Upstream,
    weight: Float[Tensor, "V K"],
    bias: Float[Tensor, " V"] | None,
    spec: HeadSpec,
    into: Gradients,
    *,
    expectation: bool = False,
) -> Float[Tensor, " n"] | None:
    """Add the gradients of a chunk; with `expectation` returns sum_a p(a) q(a), nearly for free (plain heads only).

    dL/dz(a) = dL/dV p(a) + [a is the action] dL/dQ - dL/dH p(a) (log p(a) + H), times dq/dz. As dV/dh = sum_a p(a) w(a)
    is computed anyway, sum_a p(a) q(a) is its product with h.
    """
    width = rows.hidden.size(1)
    own = (rows.action_logit - reading.value).exp()  # p of the action
    others = torch.zeros_like(own)
    elementwise = bool(spec.softcap) or upstream.entropy is not None
    magnitude, unit_upstream = _split(upstream, spec.temperature)
    one, scratch = torch.ones_like(own), Scratch(weight)
    pulled = torch.zeros_like(rows.hidden) if into.hidden is not None or expectation else None
    bias_mean = torch.zeros_like(own) if expectation and bias is not None else None
    for tile in tiles:
        columns, share = slice(tile.start, tile.end), (tile.lse - reading.value).exp()
        others += share
        if elementwise:  # `probs` become the whole gradient, element by element
            probs, share = _logit_gradient(tile, one, reading, unit_upstream, spec), share * magnitude
            push = share * spec.scale
        else:
            probs, push = tile.probs, share * upstream.value * spec.factor
        if pulled is not None:
            mean = scratch.cast("mean", scratch.product("pulled", probs, weight[columns, :width]), pulled.dtype)
            pulled.addcmul_(mean, share[:, None])
        if into.weight is not None:
            pushed = torch.mul(rows.hidden, push[:, None], out=scratch.get("pushed", push.size(0), width, push.dtype))
            _add_outer(into.weight[columns], probs, pushed, scratch)
        if into.bias is not None:
            into.bias[columns] += torch.mv(probs.t().to(own.dtype), push)
        if bias_mean is not None and bias is not None:
            bias_mean += share * torch.mv(tile.probs.to(own.dtype), finite(bias[columns].to(own.dtype)))
    result = None
    if expectation:
        assert pulled is not None
        found = (pulled * rows.hidden).sum(dim=1)
        found = (found if bias_mean is None else found + bias_mean) * spec.factor
        # shares sum to 1 only up to rounding, which V would multiply
        result = reading.value + (found - others * reading.value) + own * log_own(rows, reading.value, others)
    at_action = torch.where(  # p - 1 is minus the others' sum
        others < 0.5, (upstream.logit + upstream.value) - upstream.value * others, upstream.logit + upstream.value * own
    )
    if upstream.entropy is not None:
        assert reading.entropy is not None
        at_action = at_action - upstream.entropy * own * (log_own(rows, reading.value, others) + reading.entropy)
    at_action = at_action * rows.action_slope
    if into.hidden is not None:
        assert pulled is not None
        slope = spec.scale if elementwise else (upstream.value * spec.factor)[:, None]
        into.hidden.add_(pulled * slope + at_action[:, None] * rows.action_weight)
    if into.weight is not None:
        into.weight.index_add_(0, rows.action, at_action[:, None] * rows.hidden)
    if into.bias is not None:
        into.bias.index_add_(0, rows.action, at_action)
    return result


def _split(upstream: Upstream, temperature: float) -> tuple[Float[Tensor, " n"], Upstream]:
    """Each row's magnitude and a rest near 1: 1 / num_actions in the products would be below float16's range."""
    value, entropy = upstream.value, upstream.entropy
    size = value.abs() if entropy is None else value.abs() + entropy.abs()
    unit = torch.where(size > torch.finfo(size.dtype).tiny, temperature / size, torch.ones_like(size))
    return size / temperature, Upstream(upstream.logit, value * unit, None if entropy is None else entropy * unit)


def _add_outer(
    target: Float[Tensor, "C H"], probs: Float[Tensor, "n C"], pushed: Float[Tensor, "n H"], scratch: Scratch
) -> None:
    """target += probs^T pushed; `pushed` may be overwritten."""
    if probs.dtype == target.dtype:
        target.addmm_(probs.t(), pushed)
    elif probs.dtype == torch.float16:  # its range is small: sums of the rows' largest entries become 2^11
        unit = (pushed.abs().amax(dim=1).sum() / 2**11).clamp(min=torch.finfo(pushed.dtype).tiny)
        small = scratch.cast("small", pushed.div_(unit), probs.dtype)
        target.add_(scratch.cast("sum", scratch.product("product", probs.t(), small), target.dtype).mul_(unit))
    else:
        add_product(target, probs.t(), scratch.cast("small", pushed, probs.dtype), scratch)


def _logit_gradient(tile: Tile, share: Tensor, reading: Reading, upstream: Upstream, spec: HeadSpec) -> Tensor:
    """dL/d(scale z) of a tile, element by element: for caps and for entropy gradients, maybe in the place of P."""
    if triton_tiles.available(tile.probs.device, tile.probs.dtype) and triton_tiles.logit_gradient(
        tile.probs, lse=tile.lse, share=share, value=upstream.value, entropy=upstream.entropy,
        expectation=reading.expectation, softcap=spec.softcap, temperature=spec.temperature,
    ):  # fmt: skip
        return tile.probs
    probs, share = tile.probs.to(share.dtype), share / spec.temperature
    q = probs.clamp(min=torch.finfo(probs.dtype).tiny).log() + tile.lse[:, None]
    gradient = probs * (upstream.value * share)[:, None]
    if upstream.entropy is not None:
        assert reading.expectation is not None
        # log p + H = q - V + V - E[q]
        away = (q - reading.expectation[:, None]).clamp(min=_NO_MASS)
        gradient = gradient - probs * away * (upstream.entropy * share)[:, None]
    if spec.softcap:
        t = q * (spec.temperature / spec.softcap)
        gradient = gradient * (1 - t * t).clamp(min=0.0)
    return gradient.to(tile.probs.dtype)
