"""KL between two models' policies, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .batch import TokenBatch
from .chunks import States
from .soft_head import checked
from .tiles import HeadSpec, Rows, Tile, left_out, make_tiles, prepare_rows, product_weight


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
    """KL(pi || other) at the state of every action, nats, 0 off the actions; no gradient (see `head.state_kl`).

    Raises:
        ValueError: the shapes do not fit, or the vocabularies differ in size.
    """
    spec = checked(hidden, weight, batch, spec, bias)
    other_spec = checked(other_hidden, other_weight, batch, other_spec, other_bias)
    if weight.size(0) != other_weight.size(0):
        raise ValueError(f"The vocabularies have {weight.size(0)} and {other_weight.size(0)} tokens.")
    other_spec, states = replace(other_spec, tile=spec.tile), States.of(batch)
    out = torch.zeros(len(states), dtype=spec.sums, device=weight.device)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        ours = _Operand(hidden.flatten(0, 1)[states.index], weight, bias, spec)
        theirs = _Operand(other_hidden.flatten(0, 1)[states.index], other_weight, other_bias, other_spec)
        for start in range(0, len(states), 512):
            part = slice(start, start + 512)
            out[part] = _kl(ours.side(part, states.action), theirs.side(part, states.action))
    return states.to_tokens(out)


class _Side(NamedTuple):
    """A chunk of states as one of the heads sees it."""

    rows: Rows
    lacking: Tensor | None
    tiles: Iterator[tuple[Tile, Tensor, Tensor]]

    def within(self, tile: Tile, q: Tensor) -> Tensor:
        """log P of a tile, in the place of `q`."""
        return q.sub_((tile.lse if self.lacking is None else tile.lse - self.lacking)[:, None])


class _Operand:
    """One head of a pair, ready to yield tiles."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec) -> None:
        self.rows, self.weight, self.bias, self.spec = rows, weight, bias, spec
        self.product = product_weight(weight, spec)

    def side(self, part: slice, action: Tensor) -> _Side:
        rows = prepare_rows(self.rows[part], self.weight, self.bias, action[part], self.spec)
        tiles = make_tiles(rows, self.product, self.bias, self.spec, self.product.new_empty(0), reuse=True)
        return _Side(rows, left_out(rows, self.spec), tiles)


def _kl(ours: _Side, theirs: _Side) -> Tensor:
    """sum_a p(a) (q(a) - q'(a)) - V + V', tile by tile, the inner part being sum_a P(a) (log P(a) - log P'(a))."""
    own, other_own = ours.rows.action_logit, theirs.rows.action_logit
    gaps, lse, other_lse = [own - other_own], [own], [other_own]
    for (tile, q, _), (other, other_q, _) in zip(ours.tiles, theirs.tiles, strict=True):
        gap = ours.within(tile, q).sub_(theirs.within(other, other_q)).mul_(tile.probs).sum(dim=1)
        gaps.append(gap + (tile.lse - other.lse))
        lse.append(tile.lse)
        other_lse.append(other.lse)
    values = torch.stack(lse)
    value = values.logsumexp(dim=0)
    mean = ((values - value).exp() * torch.stack(gaps)).sum(dim=0)
    return mean - value + torch.stack(other_lse).logsumexp(dim=0)
