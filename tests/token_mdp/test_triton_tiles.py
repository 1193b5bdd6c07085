"""The Triton path of the soft head: in the interpreter, compiled, without Triton, and on CUDA where there is one.

A CPU runs the kernels in Triton's interpreter, which has to be chosen before Triton is imported: in another process.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.processes import environment
from inverselm.objectives import entropy_regularised_mle, iqlearn
from inverselm.token_mdp import HeadSpec, TokenBatch, head_loss, head_stats, stats_from_logits, triton_tiles
from inverselm.token_mdp.tiles import make_tiles, prepare_rows, product_weight

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ("cpu", pytest.param("cuda", marks=needs_cuda))


def python(*arguments, **variables):
    """Output of another Python, without this pytest's own variables."""
    mine = {k: v for k, v in environment().items() if not k.startswith(("PYTEST_", "TRITON_INTERPRET"))}
    done = subprocess.run([sys.executable, *arguments], env={**mine, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_kernels_in_the_interpreter():
    cases = Path(__file__).with_name("triton_cases.py")
    output = python("-m", "pytest", str(cases), "-x", "-p", "no:cacheprovider", "-p", "no:xdist", TRITON_INTERPRET="1")
    assert "skipped" not in output


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_a_gpu(tmp_path):
    """To machine code for sm_90, which takes no GPU. The interpreter lets more pass."""
    script = Path(__file__).with_name("triton_compiles.py")
    assert python(str(script), TRITON_CACHE_DIR=str(tmp_path)) == "12\n"


def test_triton_is_not_imported_before_it_is_used():
    """Nor where it is never used: heads run on a CPU."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "triton" and any("inverselm" in f for f in frames()):
            raise AssertionError("triton was imported")
def frames():
    frame = sys._getframe()
    while frame:
        yield frame.f_code.co_filename
        frame = frame.f_back
sys.meta_path.insert(0, Refuse())
import torch
from inverselm.token_mdp import TokenBatch, head_stats
batch = TokenBatch.from_ids([[5]], [[3, 2]], pad_token_id=0, eos_token_ids=[2])
assert head_stats(torch.randn(1, 3, 4), torch.randn(7, 4), batch).value.isfinite().all()
assert "inverselm.token_mdp.triton_tiles" in sys.modules
assert "inverselm.token_mdp.triton_kernels" not in sys.modules
print("ran")
"""
    assert python("-c", code) == "ran\n"


def test_cuda_without_triton_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)  # its import raises
    monkeypatch.delitem(sys.modules, "inverselm.token_mdp.triton_kernels", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_tiles, "_failures", [])
    triton_tiles._kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not triton_tiles.available(torch.device("cpu"))
            assert not triton_tiles.available(torch.device("cuda"), torch.float64)
            assert caplog.messages == []
            assert not triton_tiles.available(torch.device("cuda"))
            assert not triton_tiles.available(torch.device("cuda", 1), torch.bfloat16)
        assert len(caplog.messages) == 1
        assert "Triton cannot be imported" in caplog.text
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert not triton_tiles.available(torch.device("cpu"))
    finally:
        triton_tiles._kernels.cache_clear()


def a_head(device, dtype):
    """Ten answers over a vocabulary of more than one tile."""
    vocab, width = 20000 if device == "cuda" else 5000, 64
    generator = torch.Generator().manual_seed(0)
    draw = lambda low, high, n: torch.randint(low, high, (n,), generator=generator).tolist()
    batch = TokenBatch.from_ids(
        [draw(3, vocab, 2 + k) for k in range(10)],
        [[*draw(3, vocab, 3 + 2 * k), 2] for k in range(10)],
        pad_token_id=0,
        eos_token_ids=[2],
    )
    hidden = torch.randn(*batch.input_ids.shape, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator) / 4).to(device, dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator).to(device, dtype).requires_grad_()
    return batch.to(device), hidden, weight, bias


@pytest.mark.parametrize("softcap", [None, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_head_against_the_dense_reference(device, dtype, softcap):
    """Loss, stats and gradients in tiles of the device's own width, against float64."""
    batch, hidden, weight, bias = a_head(device, dtype)
    spec = HeadSpec(softcap=softcap, temperature=0.5, dtype=dtype)
    inputs = (hidden, weight, bias)
    z = hidden.double() @ weight.double().t() + bias.double()
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    dense = stats_from_logits(z, batch, entropy=True, temperature=0.5)
    tolerance = 2e-5 if dtype == torch.float32 else 0.02
    for objective, entropy in (
        (partial(iqlearn, td_coef=0.3, gamma=0.9), "log"),
        (partial(entropy_regularised_mle, entropy_coef=0.2), "grad"),
    ):
        loss, stats = head_loss(hidden, weight, batch, objective, bias=bias, spec=spec, entropy=entropy, chunk_size=64)
        reference = objective(dense).value
        torch.testing.assert_close(loss.value.double(), reference, rtol=tolerance, atol=tolerance)
        for name in ("action_logit", "value", "next_value", "entropy"):
            ours, theirs = getattr(stats, name).double(), getattr(dense, name).detach()
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}")
        ours = torch.autograd.grad(loss.value, inputs)
        theirs = torch.autograd.grad(reference, inputs, retain_graph=True)
        for one, other in zip(ours, theirs, strict=True):
            assert (one.double() - other.double()).norm() < tolerance * other.double().norm()
    plain = head_stats(hidden, weight, batch, bias=bias, spec=spec, entropy=True)
    ours = torch.autograd.grad((plain.log_prob + plain.entropy).sum(), inputs)
    theirs = torch.autograd.grad((dense.log_prob + dense.entropy).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.double() - other.double()).norm() < tolerance * other.double().norm()


@needs_cuda
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_goes_through_the_kernels(dtype, caplog):
    """They compile and start there, and give what torch gives on the same device."""
    batch, hidden, weight, bias = a_head("cuda", dtype)
    objective = partial(entropy_regularised_mle, entropy_coef=0.2)

    def run():
        loss, stats = head_loss(hidden, weight, batch, objective, bias=bias, entropy="grad")
        return (loss.value.detach(), stats.value, *torch.autograd.grad(loss.value, (hidden, weight, bias)))

    with caplog.at_level(logging.WARNING):
        ours = run()
    assert triton_tiles.available(torch.device("cuda"), dtype), caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_tiles, "available", lambda *_: False)
        theirs = run()
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.003}
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_tiles_are_as_wide_as_the_device_wants():
    """2048 columns on a CPU; a stash that is too small for tiles in one place is replaced."""
    weight, action = torch.randn(5000, 4), torch.tensor([0, 1])
    for tile, widths in ((0, [2048, 2048, 904]), (3000, [3000, 2000])):
        spec = HeadSpec(tile=tile)
        rows, product = prepare_rows(torch.randn(2, 4), weight, None, action, spec), product_weight(weight, spec)
        for size in (0, 10000):
            tiles = make_tiles(rows, product, None, spec, product.new_empty(size), reuse=True)
            assert [tile.end - tile.start for tile, _, _ in tiles] == widths
