"""Triton kernels of the soft head's tiles. Imported only where Triton is used: see `triton_tiles`.

They ran in Triton's interpreter and compile for NVIDIA's sm_80 and sm_90; they have not been run on a GPU.
"""

# mypy: ignore-errors
# Triton reads these functions itself: of annotations it knows constexpr alone.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_of_logits(
    z,
    bias,
    offset,
    column,
    columns,
    action,
    factor,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """q of a block of a row's columns, and which of them count; the others are -1e30."""
    inside = column < columns
    q = tl.load(z + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        q += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32) * factor  # -inf rules a token out
    if CAPPED:
        q += offset
        e = tl.exp(-2.0 * tl.abs(q / softcap))
        t = (1.0 - e) / (1.0 + e)
        q = tl.where(q < 0.0, -t, t) * (softcap / temperature)
    counts = inside & (column != action)
    return tl.where(counts, q, -1e30), counts


@triton.jit(do_not_specialize=["offset", "action", "lse", "top", "expected", "start"])  # chunks may lie anywhere
def softmax_row(
    z,
    out,
    bias,
    offset,
    action,
    lse,
    top,
    expected,
    columns,
    z_stride,
    out_stride,
    start,
    factor,
    softcap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    CAPPED: tl.constexpr,
    EXPECTATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: maximum and sums online, then the softmax. A block is read before it is written: `out` may be `z`."""
    row = tl.program_id(0).to(tl.int64)  # row * stride outgrows 32 bits
    z += row * z_stride
    out += row * out_stride
    mine = tl.load(action + row) - start
    shift = 0.0
    if HAS_OFFSET:
        shift = tl.load(offset + row)
    highest = -1e30
    total = 0.0
    weighted = 0.0  # sum of e (q - highest): what is rounded is small
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        q, counts = block_of_logits(
            z, bias, shift, column, columns, mine, factor, softcap, temperature, HAS_BIAS, CAPPED
        )
        higher = tl.maximum(highest, tl.max(q, axis=0))
        e = tl.where(counts, tl.exp(q - higher), 0.0)
        kept = tl.exp(highest - higher)
        before = total
        total = total * kept + tl.sum(e, axis=0)
        if EXPECTATION:
            away = tl.sum(tl.where(e > 0.0, e * (q - higher), 0.0), axis=0)
            weighted = (weighted + before * (highest - higher)) * kept + away
        highest = higher
    empty = total == 0.0  # no column but the action's
    divisor = tl.where(empty, 1.0, total)
    inverse = 1.0 / divisor
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        q, counts = block_of_logits(
            z, bias, shift, column, columns, mine, factor, softcap, temperature, HAS_BIAS, CAPPED
        )
        p = tl.where(counts, tl.exp(q - highest) * inverse, 0.0)
        tl.store(out + column, p.to(out.dtype.element_ty), mask=column < columns)
    added = 0.0
    if not CAPPED:
        added = shift
    tl.store(lse + row, highest + tl.log(divisor) + added)
    tl.store(top + row, highest + added)
    if EXPECTATION:
        tl.store(expected + row, highest + weighted * inverse + added)


@triton.jit(do_not_specialize=["lse", "share", "value", "entropy", "expectation"])
def logit_gradient(
    probs,
    lse,
    share,
    value,
    entropy,
    expectation,
    columns,
    stride,
    softcap,
    temperature,
    HAS_ENTROPY: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row: its softmax is replaced by the gradient."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    place = probs + row * stride + column
    p = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    q = tl.log(p) + tl.load(lse + row)  # -inf where p is 0
    mass = tl.load(share + row) / temperature
    gradient = p * (tl.load(value + row) * mass)
    if HAS_ENTROPY:
        away = tl.maximum(q - tl.load(expectation + row), -1000.0)  # there p is 0
        gradient -= p * away * (tl.load(entropy + row) * mass)
    if CAPPED:
        t = q * (temperature / softcap)
        gradient *= tl.maximum(1.0 - t * t, 0.0)
    tl.store(place, gradient.to(probs.dtype.element_ty), mask=inside)
