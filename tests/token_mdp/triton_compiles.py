"""Compile the Triton kernels for sm_90 as `triton_tiles` would start them, on a machine without a GPU; prints how many.

Run by `test_triton_tiles`. Everything but the start itself is real: arguments, specialisations, machine code.
"""

from __future__ import annotations

import torch
import triton
from triton.backends.compiler import GPUTarget

from inverselm.token_mdp import triton_tiles


class Driver:
    """Says that there is an H100."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


class Compiling:
    """A kernel that is compiled, but not started."""

    def __init__(self, kernel, made):
        self.kernel, self.made = kernel, made

    def __getitem__(self, grid):
        def compile_it(*arguments, **options):
            self.made.append(self.kernel.warmup(*arguments, grid=grid, **options).asm["cubin"])

        return compile_it


def main():
    """Each dtype with every option and with none, a whole tile, one of an odd width and one column."""
    triton.runtime.driver.set_active(Driver())
    kernels, made = triton_tiles._kernels(), []
    for name in ("softmax_row", "logit_gradient"):
        setattr(kernels, name, Compiling(getattr(kernels, name), made))
    n, action = 3, torch.arange(4)[1:]  # not aligned, as in a chunk
    for dtype, columns, full in (
        (torch.bfloat16, 16384, True), (torch.bfloat16, 16384, False), (torch.float16, 37, True),
        (torch.float16, 1, False), (torch.float32, 4480, True), (torch.float32, 4480, False),
    ):  # fmt: skip
        z, row = torch.randn(n, columns).to(dtype), torch.randn(n)
        softmax = triton_tiles.softmax_tile(
            z, z, bias=torch.randn(columns).to(dtype) if full else None, factor=0.5, offset=row if full else None,
            softcap=30.0 if full else None, temperature=0.7, action=action, start=16384, expectation=full,
        )  # fmt: skip
        other = row if full else None
        gradient = triton_tiles.logit_gradient(
            z, lse=row, share=row, value=row, entropy=other, expectation=other, softcap=30.0 if full else None,
            temperature=0.7,
        )  # fmt: skip
        assert softmax is not None, triton_tiles._failures
        assert gradient, triton_tiles._failures
    assert all(made)
    print(len(made))


main()
