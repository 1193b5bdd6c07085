"""The soft head's arithmetic on flat rows: tiles of logits, their soft values and gradients, never (rows, vocab).

A state's logits are z = h W^T + bias and its soft Q-values q = cap(scale z) / temperature. A chunk of states meets the
vocabulary in tiles of columns; of a tile only its softmax P and its logsumexp are kept, so that

    V = logsumexp_k lse_k,     p = exp(lse_k - V) P     (factors of rows: they act on (rows, H) tensors, not on P).

The action's own logit is left out of the tiles and computed apart in float32. Then the "p - 1" of its gradient is minus
the others' sum, with no cancellation, and V knows the chosen logit exactly also where the matrix products are bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import triton_tiles
from .products import tile_width

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
        tile: columns of a tile; 0 leaves them to the device (see `products.tile_width`).
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    tile: int = 0

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
    offset: Float[Tensor, " n"] | None  # what is to be added to a row's products
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
    entropy: Float[Tensor, " n"] | None = None


def refuse_second_derivative() -> None:
    """For backward passes: gradients are enabled there when a graph of them is asked for, which would be cut off.

    Raises:
        RuntimeError: they are.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("The soft head has no second derivative: call backward without create_graph.")


def product_weight(weight: Float[Tensor, "V H"], spec: HeadSpec) -> Float[Tensor, "V K"]:
    """The weight as products take it. In low precision, ones in extra columns let a row bring its offset along.

    bfloat16 has 8 bits, so a product of 30 is rounded to 1/8. Subtracting the action's logit *inside* the product makes
    the rounding relative to the distance from it: small where the probability is.
    """
    if not spec.low_precision:
        return weight.to(spec.dtype)
    extended = weight.new_empty(weight.size(0), weight.size(1) + _OFFSET_COLUMNS, dtype=spec.dtype)
    extended[:, : weight.size(1)] = weight
    extended[:, weight.size(1) :] = 0
    extended[:, weight.size(1) : weight.size(1) + 3] = 1
    return extended


def prepare_rows(
    hidden: Float[Tensor, "n H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    action: Int[Tensor, " n"],
    spec: HeadSpec,
) -> Rows:
    """Scale the rows, and compute the logit of each row's action on its own.

    Rounded operands move all logits of a row together as far as the weights have a direction in common, as pretrained
    ones do. Among products no policy would feel that, but the action's logit is exact. So the others are moved back, by
    the mean over the chunk's actions.
    """
    rounds = spec.factor != 1.0 or not (hidden.dtype == weight.dtype == spec.dtype)
    hidden = hidden.to(spec.sums)
    action_weight = weight[action].to(spec.sums)
    raw = (hidden * action_weight).sum(dim=1)
    if bias is not None:
        raw = raw + finite(bias[action].to(spec.sums))
    logit, slope = _cap(raw * spec.scale, spec)
    exact = hidden if spec.factor == 1.0 else hidden * spec.factor
    operand = exact.to(spec.dtype)
    offset: Tensor | None = None
    if spec.low_precision:
        offset = subtracted = raw * spec.factor
        if rounds:
            products = operand.to(spec.sums) @ action_weight.to(spec.dtype).to(spec.sums).mean(dim=0)
            subtracted = offset + (products - exact @ action_weight.mean(dim=0))
        operand = torch.cat([operand, _offset_columns(subtracted, spec.dtype)], dim=1)
    return Rows(operand, hidden, offset, action, logit, slope * spec.scale, action_weight)


def finite(bias: Tensor) -> Tensor:
    """-inf rules a token out; here by a finite number."""
    return bias.clamp(min=_RULED_OUT)


def _cap(z: Tensor, spec: HeadSpec) -> tuple[Tensor, Tensor]:
    """q and dq/dz of scaled logits."""
    if not spec.softcap:
        return z / spec.temperature, torch.full_like(z, 1 / spec.temperature)
    t = (z / spec.softcap).tanh()
    return t * (spec.softcap / spec.temperature), (1 - t * t) / spec.temperature


def _offset_columns(offset: Float[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n 16"]:
    """-offset as a sum of three low-precision numbers; the other columns are alignment."""
    columns = offset.new_zeros(offset.size(0), _OFFSET_COLUMNS, dtype=dtype)
    rest = -offset
    for k in range(3):
        columns[:, k] = rest
        rest = rest - columns[:, k].to(rest.dtype)
    return columns


def left_out(rows: Rows, spec: HeadSpec) -> Float[Tensor, " n"] | None:
    """What the `q` of :func:`make_tiles` lacks. A cap needs it inside; else it is cheaper to add to sums."""
    return None if spec.softcap else rows.offset


def make_tiles(
    rows: Rows,
    weight: Float[Tensor, "V K"],
    bias: Float[Tensor, " V"] | None,
    spec: HeadSpec,
    stash: Float[Tensor, " size"],
    *,
    reuse: bool,
) -> Tiles:
    """Yield (tile, q, top) one tile after the other; `q` (n, C) and `top` (n,), its largest entry, live until the next.

    `q` lacks the rows' offset (see :func:`left_out`), `top` and the tile's lse do not. A consumer may overwrite `q`.
    The softmaxes lie in `stash`, side by side, or with `reuse` all in the same place, of its own if `stash` is smaller.
    Whoever needs no `q` takes :meth:`Tiles.softmaxes` instead of iterating: on a GPU they cost less.
    """
    return Tiles(rows, weight, bias, spec, stash, reuse)


class Tiles(Iterator[tuple[Tile, Tensor, Tensor]]):
    """What :func:`make_tiles` returns. To be run over once, in one way or the other."""

    def __init__(self, rows: Rows, weight: Tensor, bias: Tensor | None, spec: HeadSpec, stash: Tensor, reuse: bool):
        self._rows, self._weight, self._bias, self._spec, self._reuse = rows, weight, bias, spec, reuse
        self._width = min(spec.tile or tile_width(weight.device), weight.size(0))
        size = rows.action.size(0) * self._width
        self._stash = stash.new_empty(size) if reuse and stash.numel() < size else stash
        self._with_logits: Iterator[tuple[Tile, Tensor, Tensor, Tensor]] | None = None

    def __next__(self) -> tuple[Tile, Tensor, Tensor]:
        self._with_logits = self._with_logits or self._in_torch()
        tile, q, top, _ = next(self._with_logits)
        return tile, q, top

    def softmaxes(self, *, expectation: bool = False) -> Iterator[tuple[Tile, Tensor, Tensor | None]]:
        """Yield (tile, top, expected); `expected` is sum_a P(a) q(a) if asked for. In Triton where it is at hand."""
        rows, spec, done = self._rows, self._spec, 0
        if triton_tiles.available(self._weight.device, spec.dtype):
            for start, end, out in self._places():
                torch.mm(rows.operand, self._weight[start:end].t(), out=out)
                numbers = triton_tiles.softmax_tile(
                    out, out, bias=None if self._bias is None else self._bias[start:end], factor=spec.factor,
                    offset=rows.offset, softcap=spec.softcap, temperature=spec.temperature,
                    action=rows.action, start=start, expectation=expectation,
                )  # fmt: skip
                if numbers is None:
                    break
                done = end
                yield Tile(start, end, out, numbers.lse), numbers.top, numbers.expected
        for tile, q, top, exact in self._in_torch(done):
            yield tile, top, _mean_q(exact, q, top, left_out(rows, spec)) if expectation else None

    def _places(self, first: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """(start, end, softmax's place in the stash) of the tiles from column `first` on."""
        n, vocab = self._rows.action.size(0), self._weight.size(0)
        for start in range(first, vocab, self._width):
            end = min(start + self._width, vocab)
            place = 0 if self._reuse else n * start
            yield start, end, self._stash[place : place + n * (end - start)].view(n, end - start)

    def _in_torch(self, first: int = 0) -> Iterator[tuple[Tile, Tensor, Tensor, Tensor]]:
        return _make_in_torch(self._rows, self._weight, self._bias, self._spec, self._width, self._places(first))


def _make_in_torch(
    rows: Rows,
    weight: Tensor,
    bias: Tensor | None,
    spec: HeadSpec,
    width: int,
    places: Iterator[tuple[int, int, Tensor]],
) -> Iterator[tuple[Tile, Tensor, Tensor, Tensor]]:
    """(tile, q, top, P before it is rounded)."""
    lacking, n = left_out(rows, spec), rows.action.size(0)
    product = rows.operand.new_empty(n * width)
    q_space = product if spec.dtype == spec.sums else product.new_empty(n * width, dtype=spec.sums)
    p_space = None if spec.dtype == spec.sums else torch.empty_like(q_space)
    for start, end, out in places:
        z = product[: n * (end - start)].view(n, end - start)
        torch.mm(rows.operand, weight[start:end].t(), out=z)
        q = q_space[: z.numel()].view_as(z)
        if q is not z:
            q.copy_(z)
        if bias is not None:
            q.add_(finite(bias[start:end].to(q.dtype)), alpha=spec.factor)
        if spec.softcap:
            if rows.offset is not None:
                q.add_(rows.offset[:, None])
            q.div_(spec.softcap).tanh_().mul_(spec.softcap / spec.temperature)
        mine = ((rows.action >= start) & (rows.action < end)).nonzero().squeeze(1)
        q[mine, rows.action[mine] - start] = _RULED_OUT
        top = q.amax(dim=1)
        probs = torch.softmax(q, dim=1, out=out if p_space is None else p_space[: q.numel()].view_as(q))
        lse = top - probs.amax(dim=1).log()
        if lacking is not None:
            lse, top = lse + lacking, top + lacking
        if probs is not out:
            out.copy_(probs)
        yield Tile(start, end, out, lse), q, top, probs


def read_rows(rows: Rows, tiles: Tiles, spec: HeadSpec, *, expectation: bool) -> tuple[Reading, list[Tile]]:
    """Run over the tiles: V, whether the action is greedy, and the expectation of q if asked for."""
    kept, tops, expected = [], [], []
    for tile, top, part in tiles.softmaxes(expectation=expectation):
        kept.append(tile)
        tops.append(top)
        if part is not None:
            expected.append(part)
    own, lse = rows.action_logit, torch.stack([tile.lse for tile in kept])
    value = torch.cat([lse, own[None]]).logsumexp(dim=0)
    reading = Reading(value, own >= torch.stack(tops).amax(dim=0), None)
    if expectation:
        share = (lse - value).exp()
        own_part = (own - value).exp() * log_own(rows, value, share.sum(dim=0))
        entropy = (share * (value - torch.stack(expected))).sum(dim=0) - own_part  # nothing cancels here
        reading = reading._replace(expectation=value - entropy, entropy=entropy)
    return reading, kept


def log_own(rows: Rows, value: Float[Tensor, " n"], others: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """log p of the action. Q - V is a small difference where p is near 1; there it comes from the others' sum."""
    return torch.where(others < 0.5, torch.log1p(-others.clamp(max=0.5)), rows.action_logit - value)


def _mean_q(probs: Tensor, q: Tensor, top: Tensor, lacking: Tensor | None) -> Float[Tensor, " n"]:
    """sum_a P(a) q(a) of a tile, taken from its top, so that what is rounded is small. Overwrites `q`."""
    return top + q.sub_((top if lacking is None else top - lacking)[:, None]).mul_(probs).sum(dim=1)
