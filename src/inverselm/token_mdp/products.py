"""What of the soft head's matrix products depends on the device: the width of a tile, and sums of products.

On CUDA nothing here has been run yet; the choices follow from a count of the bytes moved. In bfloat16, for N states,
H features and V tokens (N = 16k, H = 4096, V = 128k on an H200, 4.3 TB/s, against 6 N H V operations = 67 ms):

- The offset columns (`tiles.product_weight`) read and write the weight once a call: 4 V H bytes = 2.1 GB, 0.5 ms.
  A float32 product would make them superfluous, and writes and reads 2 more bytes of every logit: 4 N V bytes =
  8.6 GB, 2 ms. The columns are cheaper from N = H on, and below both cost little: they stay.
- A bfloat16 gradient that is added to float32 moves 12 V H bytes a chunk (written, read, the sum read and written),
  and is rounded; summed inside the product it moves 8 V H, and is not: 4.3 GB, 1 ms a chunk.
- A tile of 16384 columns: of the softmax kernel, compiled for sm_90, 2 programs fit on each of 132 multiprocessors, so
  the rows in work are 9 MB (float32: 17 MB), which the cache holds until they are read again; and products are large.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger(__name__)
_WIDTHS = {"cpu": 2048}
_WIDTH = 16384
_failures: list[str] = []


def tile_width(device: torch.device) -> int:
    """Columns of a tile: on a CPU they should stay in the cache, a GPU wants large products."""
    return _WIDTHS.get(device.type, _WIDTH)


class Scratch:
    """Buffers that are used again for tile after tile.

    A temporary of some megabytes for every tile is not only slower: between two of them small tensors that live on are
    put into the place of the first, and the next needs a new one. Half a gigabyte was lost so to a call.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """(rows, columns) of no defined content, the same memory for the same name and dtype."""
        held, size = self._held.get((name, dtype)), rows * columns
        if held is None or held.numel() < size:
            held = self._held[name, dtype] = self._like.new_empty(size, dtype=dtype)
        return held[:size].view(rows, columns)

    def cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A (rows, columns) tensor in another dtype; itself if it has that."""
        if tensor.dtype == dtype:
            return tensor
        return self.get(name, tensor.size(0), tensor.size(1), dtype).copy_(tensor)

    def product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """left @ right, in their dtype."""
        return torch.mm(left, right, out=self.get(name, left.size(0), right.size(1), left.dtype))


def add_product(
    target: Float[Tensor, "m k"], left: Float[Tensor, "m n"], right: Float[Tensor, "n k"], scratch: Scratch
) -> None:
    """target += left @ right. Of a low-precision product on CUDA the sum is not rounded where torch can do so."""
    if left.dtype == target.dtype:
        target.addmm_(left, right)
    elif _failures or not _sums_wide(target) or not _add_wide(target, left, right):
        target.add_(scratch.cast("sum", scratch.product("product", left, right), target.dtype))


def _sums_wide(target: Tensor) -> bool:
    """Whether torch may know a low-precision product that is added to float32: 2.8 brought it, for CUDA only."""
    known = hasattr(torch.ops.aten.addmm, "dtype_out")
    return target.is_cuda and target.dtype == torch.float32 and known


def _add_wide(target: Tensor, left: Tensor, right: Tensor) -> bool:
    """False if torch refuses, as the first versions do: it says so before it computes, and a line is logged once."""
    try:
        cast(Any, torch.addmm)(target, left, right, out_dtype=target.dtype, out=target)
    except (RuntimeError, TypeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        _failures.append(repr(error))
        logger.warning(f"torch cannot add {left.dtype} products to float32, so each is rounded first: {error!r}")
        return False
    return True
