"""KL between two models' policies, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .batch import TokenBatch
from .chunks import States
from .soft_head import checked
from .tiles import HeadSpec, Rows, Tile, make_tiles, prepare_rows, product_weight


def head_kl(
    hidden: Float[Tensor, "B T H"],
    weight: Float[Tensor, "V H"],
    other_hidden: Float[Tensor, "B T G"],
    other_weight: Float[Tensor, "V G"],
    batch: TokenBatch,
    *,
    bias: Float[Tensor, " V"] | None = None,
    spec: HeadSpec | None = None,
    other_bias: Float[Tensor, " V"] | None = None,
    other_spec: HeadSpec | None = None,
) -> Float[Tensor, "B T"]:
    """KL(pi || other) at the state of every action, nats, 0 off the actions; no gradient (see `head.state_kl`)."""
    spec = checked(hidden, weight, batch, spec)
    other_spec, states = checked(other_hidden, other_weight, batch, other_spec), States.of(batch)
    out = torch.zeros(len(states), dtype=spec.sums, device=weight.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        ours = _Operand(hidden.flatten(0, 1)[states.index], weight, bias, spec)
        theirs = _Operand(other_hidden.flatten(0, 1)[states.index], other_weight, other_bias, other_spec)
        for start in range(0, len(states), 512):
            part = slice(start, start + 512)
            out[part] = _kl(ours.tiles(part, states.action), theirs.tiles(part, states.action))
    return states.to_tokens(out)


class _Operand:
    """One head of a pair, ready to yield tiles."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec) -> None:
        self.rows, self.weight, self.bias, self.spec = rows, weight, bias, spec
        self.product = product_weight(weight, spec)

    def tiles(self, part: slice, action: Tensor) -> tuple[Rows, Iterator[tuple[Tile, Tensor, Tensor]]]:
        rows = prepare_rows(self.rows[part], self.weight, self.bias, action[part], self.spec)
        stash = self.product.new_empty(rows.action.size(0) * min(self.spec.tile, self.weight.size(0)))
        return rows, make_tiles(rows, self.product, self.bias, self.spec, stash, reuse=True)


def _kl(ours: Any, theirs: Any) -> Tensor:
    """sum_a p(a) (q(a) - q'(a)) - V + V', tile by tile."""
    (rows, tiles), (other_rows, other_tiles) = ours, theirs
    gaps, lse, other_lse = [rows.action_logit - other_rows.action_logit], [rows.action_logit], [other_rows.action_logit]
    for (tile, q, top), (other, other_q, other_top) in zip(tiles, other_tiles, strict=True):
        gap = (tile.probs.to(q.dtype) * (q - other_q)).sum(dim=1)
        gaps.append(gap + (top - q.amax(dim=1)) - (other_top - other_q.amax(dim=1)))  # offsets the products left out
        lse.append(tile.lse)
        other_lse.append(other.lse)
    values = torch.stack(lse)
    value = values.logsumexp(dim=0)
    mean = ((values - value).exp() * torch.stack(gaps)).sum(dim=0)
    return mean - value + torch.stack(other_lse).logsumexp(dim=0)
