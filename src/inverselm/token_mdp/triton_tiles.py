"""The element-wise part of the soft head's tiles in Triton: a softmax is one kernel, in place, and so is a gradient.

What `tiles` does in torch takes about ten passes over a tile in float32. Here a tile is read twice and written once, in
the dtype of the matrix product, and everything between is float32 in registers; the product's own buffer becomes the
softmax. With tiles of `products.tile_width` columns the second reading is meant to come from the GPU's cache.

Tested in Triton's interpreter against torch, and compiled for NVIDIA's sm_80 and sm_90. It has not been run on a GPU;
the sizes of blocks are chosen by computation, not tuned.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

logger = logging.getLogger(__name__)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 8192  # columns a program holds at a time; 16 numbers a thread
_GRADIENT_BLOCK = 2048
_failures: list[str] = []


class Softmax(NamedTuple):
    """What a tile's softmax leaves besides the probabilities, each a number per row in float32."""

    lse: Float[Tensor, " n"]
    top: Float[Tensor, " n"]
    expected: Float[Tensor, " n"] | None


def available(device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether tiles of a dtype go through Triton: on CUDA where it is installed and works, on a CPU in its interpreter.

    On CUDA without Triton a line is logged, once.
    """
    if _failures or dtype not in _DTYPES or not (device.type == "cuda" or (device.type == "cpu" and _interpreting())):
        return False
    return _kernels() is not None


def softmax_tile(
    z: Float[Tensor, "n C"],
    out: Float[Tensor, "n C"],
    *,
    bias: Float[Tensor, " C"] | None,
    factor: float,
    offset: Float[Tensor, " n"] | None,
    softcap: float | None,
    temperature: float,
    action: Int[Tensor, " n"],
    start: int,
    expectation: bool,
) -> Softmax | None:
    """Softmax of q over a tile without the action's column, as `tiles.make_tiles` has it, in one kernel.

    q = z + factor * bias; with a cap q = (softcap / temperature) tanh((q + offset) / softcap). Without one the offset
    is added to the results alone. A tile that holds nothing but the action has no softmax: zeros, and lse = -1e30.

    Args:
        z: matrix product, contiguous rows.
        out: receives the softmax, 0 at the action; may be `z` itself.
        bias: of the tile's columns, before `factor`.
        factor: on the bias.
        offset: what the product left out of each row.
        softcap: cap(z) = c tanh(z / c).
        temperature: only used with a cap; else `factor` and the product hold it already.
        action: column of the whole vocabulary.
        start: the tile's first column.
        expectation: also sum_a P(a) q(a).

    Returns:
        None if the kernel failed to compile or to start: then nothing was written, a line was logged, and
        :func:`available` is False from then on.
    """
    n, columns = z.shape
    lse, top, expected = torch.empty(3, n, dtype=torch.float32, device=z.device).unbind()
    block = min(_power_of_two(columns), _BLOCK)
    flags = {
        "HAS_BIAS": bias is not None,
        "HAS_OFFSET": offset is not None,
        "CAPPED": bool(softcap),
        "EXPECTATION": expectation,
    }
    given = [lse if x is None else x.contiguous() for x in (bias, offset)]
    arguments = (
        z, out, *given, action.contiguous(), lse, top, expected, columns, z.stride(0), out.stride(0),
        start, factor, softcap or 1.0, temperature,
    )  # fmt: skip
    warps = min(max(block // 512, 1), 16)
    if not _launch("softmax_row", (n,), z, *arguments, **flags, BLOCK=block, num_warps=warps):
        return None
    return Softmax(lse, top, expected if expectation else None)


def logit_gradient(
    probs: Float[Tensor, "n C"],
    *,
    lse: Float[Tensor, " n"],
    share: Float[Tensor, " n"],
    value: Float[Tensor, " n"],
    entropy: Float[Tensor, " n"] | None,
    expectation: Float[Tensor, " n"] | None,
    softcap: float | None,
    temperature: float,
) -> bool:
    """Replace a tile's softmax by dL/d(scale z), as `tiles` computes it for caps and entropies, in one kernel.

    Args:
        probs: the tile's softmax, contiguous rows; becomes the gradient.
        lse: of the tile.
        share: exp(lse - V).
        value: dL/dV.
        entropy: dL/dH, with `expectation`, E[q]; None for none.
        expectation: E[q].
        softcap: cap(z) = c tanh(z / c).
        temperature: divides q.

    Returns:
        False if the kernel failed, as in :func:`softmax_tile`.
    """
    n, columns = probs.shape
    block = min(_power_of_two(columns), _GRADIENT_BLOCK)
    with_entropy = entropy is not None and expectation is not None
    rows = [lse, share, value, entropy if with_entropy else lse, expectation if with_entropy else lse]
    numbers = [x.float().contiguous() for x in rows if x is not None]
    grid = (n, -(-columns // block))
    flags = {"HAS_ENTROPY": with_entropy, "CAPPED": bool(softcap)}
    arguments = (probs, *numbers, columns, probs.stride(0), softcap or 1.0, temperature)
    return _launch("logit_gradient", grid, probs, *arguments, **flags, BLOCK=block)


def _launch(name: str, grid: tuple[int, ...], where: Tensor, *arguments: Any, **options: Any) -> bool:
    """Start a kernel on the device of `where`. False if that fails, which turns Triton off with a line in the log."""
    if where.numel() == 0:
        return True
    try:
        kernel: Any = getattr(_kernels(), name)
        with cast(Any, torch.cuda.device_of)(where):
            kernel[grid](*arguments, **options)
    except Exception as error:
        _failures.append(repr(error))
        logger.warning(f"The Triton kernel {name} failed, so the soft head goes on in torch alone: {error!r}")
        return False
    return True


def _power_of_two(n: int) -> int:
    """The smallest that is not less than n."""
    return 1 << max(n - 1, 0).bit_length()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") == "1"


@cache
def _kernels() -> Any:
    """The module of kernels; None, and a line in the log, without Triton."""
    try:
        return _import()
    except Exception as error:  # a broken installation raises more than ImportError
        logger.warning(f"Triton cannot be imported, so the soft head runs in torch alone, more slowly: {error!r}")
        return None


_import: Callable[[], Any] = lambda: importlib.import_module(f"{__package__}.triton_kernels")
