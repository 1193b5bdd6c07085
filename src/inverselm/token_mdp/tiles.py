"""The soft head's arithmetic on flat rows: tiles of logits, their soft values and gradients, never (rows, vocab).

A state's logits are z = h W^T + bias and its soft Q-values q = cap(scale z) / temperature. A chunk of states meets the
vocabulary in tiles of columns; of a tile only its softmax P and its logsumexp are kept, so that

    V = logsumexp_k lse_k,     p = exp(lse_k - V) P     (factors of rows: they act on (rows, H) tensors, not on P).

The action's own logit is left out of the tiles and computed apart in float32. Then the "p - 1" of its gradient suffers
no cancellation, and V knows the chosen logit exactly also where the matrix products are bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_OFFSET_COLUMNS = 16
_LOW_PRECISION = (torch.bfloat16, torch.float16)
_RULED_OUT = -1e30  # finite: 0 * -inf is nan


@dataclass(frozen=True)
class HeadSpec:
    """What a head does beside the matrix product.

    Attributes:
        scale: factor on the logits, before the cap (a model family's own).
        softcap: cap(z) = c tanh(z / c); None for none.
        temperature: divides q at last.
        dtype: of the matrix products. Everything else is float32 (float64 for float64).
        tile: columns of a tile. On a CPU it should stay in the cache, on a GPU fill it.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    tile: int = 2048

    @property
    def sums(self) -> torch.dtype:
        """The dtype of sums, exponentials and gradients."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def low_precision(self) -> bool:
        """Whether products are rounded to fewer bits than float32."""
        return self.dtype in _LOW_PRECISION

    @property
    def factor(self) -> float:
        """What rows are multiplied by before the product: without a cap all factors, with one the inner scale."""
        return self.scale if self.softcap else self.scale / self.temperature


class Rows(NamedTuple):
    """A chunk of states ready for the tiles."""

    operand: Float[Tensor, "n K"]  # factor * hidden in the product dtype, with offset columns in low precision
    hidden: Float[Tensor, "n H"]  # in the dtype of sums
    offset: Float[Tensor, " n"] | None  # what the product subtracts from each row
    action: Int[Tensor, " n"]
    action_logit: Float[Tensor, " n"]  # q of the action, exact
    action_slope: Float[Tensor, " n"]  # dq/dz there
    action_weight: Float[Tensor, "n H"]


class Tile(NamedTuple):
    """Columns start..end of a chunk after the softmax: rows of `probs` sum to 1, with 0 at the action."""

    start: int
    end: int
    probs: Float[Tensor, "n C"]
    lse: Float[Tensor, " n"]


class Reading(NamedTuple):
    """What the tiles say of each row."""

    value: Float[Tensor, " n"]
    greedy: Tensor  # (n,) bool: no other logit is larger than the action's
    expectation: Float[Tensor, " n"] | None  # sum_a p(a) q(a)


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


def product_weight(weight: Float[Tensor, "V H"], spec: HeadSpec) -> Float[Tensor, "V K"]:
    """The weight as products take it. In low precision, ones in extra columns let a row bring its offset along.

    bfloat16 has 8 bits, so a product of 30 is rounded to 1/8. Subtracting the action's logit *inside* the product makes
    the rounding relative to the distance from it: small where the probability is.
    """
    if not spec.low_precision:
        return weight.to(spec.dtype)
    extended = weight.new_zeros(weight.size(0), weight.size(1) + _OFFSET_COLUMNS, dtype=spec.dtype)
    extended[:, : weight.size(1)] = weight
    extended[:, weight.size(1) : weight.size(1) + 3] = 1
    return extended


def prepare_rows(
    hidden: Float[Tensor, "n H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    action: Int[Tensor, " n"],
    spec: HeadSpec,
) -> Rows:
    """Scale the rows, and compute the logit of each row's action on its own."""
    hidden = hidden.to(spec.sums)
    action_weight = weight[action].to(spec.sums)
    raw = (hidden * action_weight).sum(dim=1)
    if bias is not None:
        raw = raw + bias[action].to(spec.sums)
    logit, slope = _cap(raw * spec.scale, spec)
    operand = hidden if spec.factor == 1.0 else hidden * spec.factor
    offset: Tensor | None = None
    if spec.low_precision:
        offset = raw * spec.factor
        operand = torch.cat([operand, _offset_columns(offset, spec.dtype)], dim=1)
    return Rows(operand.to(spec.dtype), hidden, offset, action, logit, slope * spec.scale, action_weight)


def _cap(z: Tensor, spec: HeadSpec) -> tuple[Tensor, Tensor]:
    """q and dq/dz of scaled logits."""
    if not spec.softcap:
        return z / spec.temperature, torch.full_like(z, 1 / spec.temperature)
    t = (z / spec.softcap).tanh()
    return t * (spec.softcap / spec.temperature), (1 - t * t) / spec.temperature


def _offset_columns(offset: Float[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n 16"]:
    """-offset as a sum of three low-precision numbers; the other columns are alignment."""
    columns = offset.new_zeros(offset.size(0), _OFFSET_COLUMNS)
    rest = -offset
    for k in range(3):
        columns[:, k] = rest.to(dtype)
        rest = rest - columns[:, k]
    return columns


def make_tiles(
    rows: Rows,
    weight: Float[Tensor, "V K"],
    bias: Float[Tensor, " V"] | None,
    spec: HeadSpec,
    stash: Float[Tensor, " size"],
    *,
    reuse: bool,
) -> Iterator[tuple[Tile, Tensor, Tensor]]:
    """Yield (tile, q, top) one tile after the other; `q` (n, C) and `top` (n,), its largest entry, live until the next.

    The softmaxes lie in `stash`, side by side, or with `reuse` all in the same place.
    """
    vocab, n = weight.size(0), rows.action.size(0)
    width = min(spec.tile, vocab)
    product = rows.operand.new_empty(n * width)
    q_space = product if spec.dtype == spec.sums else product.new_empty(n * width, dtype=spec.sums)
    for start in range(0, vocab, width):
        end = min(start + width, vocab)
        z = product[: n * (end - start)].view(n, end - start)
        torch.mm(rows.operand, weight[start:end].t(), out=z)
        q = q_space[: z.numel()].view_as(z)
        if q is not z:
            q.copy_(z)
        if bias is not None:
            q.add_(bias[start:end].to(q.dtype), alpha=spec.factor)
        if spec.softcap:
            if rows.offset is not None:
                q.add_(rows.offset[:, None])
            q.div_(spec.softcap).tanh_().mul_(spec.softcap / spec.temperature)
        mine = ((rows.action >= start) & (rows.action < end)).nonzero().squeeze(1)
        q[mine, rows.action[mine] - start] = _RULED_OUT
        place = 0 if reuse else n * start
        out = stash[place : place + z.numel()].view_as(z)
        top = q.amax(dim=1)
        probs = torch.softmax(q, dim=1) if out.dtype != q.dtype else torch.softmax(q, dim=1, out=out)
        lse = top - probs.amax(dim=1).log()
        if rows.offset is not None and not spec.softcap:
            lse, top = lse + rows.offset, top + rows.offset
        if probs is not out:
            out.copy_(probs)
        yield Tile(start, end, out, lse), q, top


def read_rows(
    rows: Rows, tiles: Iterable[tuple[Tile, Tensor, Tensor]], spec: HeadSpec, *, expectation: bool
) -> tuple[Reading, list[Tile]]:
    """Run over the tiles: V, whether the action is greedy, and the expectation of q if asked for."""
    kept, tops, expected = [], [], []
    for tile, q, top in tiles:
        kept.append(tile)
        tops.append(top)
        if expectation:
            part = (tile.probs * q).sum(dim=1)
            expected.append(part if rows.offset is None or spec.softcap else part + rows.offset)
    lse = torch.stack([*(tile.lse for tile in kept), rows.action_logit])
    value = lse.logsumexp(dim=0)
    mean: Tensor | None = None
    if expectation:
        mean = ((lse - value).exp() * torch.stack([*expected, rows.action_logit])).sum(dim=0)
    return Reading(value, rows.action_logit >= torch.stack(tops).amax(dim=0), mean), kept


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
    elementwise = bool(spec.softcap) or upstream.entropy is not None
    pulled = torch.zeros_like(rows.hidden) if into.hidden is not None or expectation else None
    bias_mean = torch.zeros_like(own) if expectation and bias is not None else None
    for tile in tiles:
        columns, share = slice(tile.start, tile.end), (tile.lse - reading.value).exp()
        if elementwise:  # `probs` become the whole gradient, element by element
            probs, share = _logit_gradient(tile, share, reading, upstream, spec), torch.ones_like(share)
            push = torch.full_like(share, spec.scale)
        else:
            probs, push = tile.probs, share * upstream.value * spec.factor
        if pulled is not None:
            pulled += torch.mm(probs, weight[columns, :width]) * share[:, None]
        if into.weight is not None:
            target, pushed = into.weight[columns], rows.hidden * push[:, None]
            if probs.dtype == target.dtype:
                target.addmm_(probs.t(), pushed)
            else:
                target += torch.mm(probs.t(), pushed.to(probs.dtype))
        if into.bias is not None:
            into.bias[columns] += torch.mv(probs.t().to(own.dtype), push)
        if bias_mean is not None and bias is not None:
            bias_mean += share * torch.mv(tile.probs.to(own.dtype), bias[columns].to(own.dtype))
    result = None
    if expectation:
        assert pulled is not None
        mean = (pulled * rows.hidden).sum(dim=1)
        result = (mean if bias_mean is None else mean + bias_mean) * spec.factor + own * rows.action_logit
    at_action = upstream.logit + upstream.value * own
    if upstream.entropy is not None:
        assert reading.expectation is not None
        at_action = at_action - upstream.entropy * own * (rows.action_logit - reading.expectation)
    at_action = at_action * rows.action_slope
    if into.hidden is not None:
        assert pulled is not None
        outer = pulled * spec.scale if elementwise else pulled * (upstream.value * spec.factor)[:, None]
        into.hidden.add_(outer + at_action[:, None] * rows.action_weight)
    if into.weight is not None:
        into.weight.index_add_(0, rows.action, at_action[:, None] * rows.hidden)
    if into.bias is not None:
        into.bias.index_add_(0, rows.action, at_action)
    return result


def _logit_gradient(tile: Tile, share: Tensor, reading: Reading, upstream: Upstream, spec: HeadSpec) -> Tensor:
    """dL/d(scale z) of a tile, element by element: for caps, and for entropies with a gradient."""
    probs = tile.probs.to(share.dtype)
    log_probs = probs.clamp(min=1e-45 if probs.dtype == torch.float32 else 1e-320).log()
    q = log_probs + tile.lse[:, None]
    probs = probs * share[:, None]
    pull = upstream.value[:, None]
    if upstream.entropy is not None:
        assert reading.expectation is not None
        # log p + H = q - V + V - E[q]
        pull = pull - upstream.entropy[:, None] * (q - reading.expectation[:, None])
    gradient = probs * pull / spec.temperature
    if spec.softcap:
        t = q * (spec.temperature / spec.softcap)
        gradient = gradient * (1 - t * t)
    return gradient.to(tile.probs.dtype)
