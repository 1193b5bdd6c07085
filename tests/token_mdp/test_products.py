"""Sums of products: rounded where torch cannot do otherwise, exact where it can, and never wrong when it refuses."""

from __future__ import annotations

import logging

import pytest
import torch

from inverselm.token_mdp import products


def factors(dtype):
    torch.manual_seed(0)
    left, right = torch.randn(5, 40).to(dtype), torch.randn(40, 3).to(dtype)
    return torch.randn(5, 3), left, right, left.double() @ right.double()


@pytest.fixture
def wide(monkeypatch):
    """As on CUDA: torch may be asked for float32 sums. Returns how to say what it answers, and the calls it got."""
    calls = []

    def answer(function):
        def addmm(target, left, right, *, out_dtype, out):
            calls.append(out_dtype)
            assert out is target
            return function(target, left, right)

        monkeypatch.setattr(torch, "addmm", addmm)
        monkeypatch.setattr(products, "_sums_wide", lambda target: True)
        monkeypatch.setattr(products, "_failures", [])
        return calls

    return answer


def test_same_dtype_is_added_in_the_product():
    target, left, right, exact = factors(torch.float32)
    expected = target.double() + exact
    products.add_product(target, left, right, products.Scratch(target))
    torch.testing.assert_close(target.double(), expected, rtol=1e-6, atol=1e-5)


def test_a_cpu_rounds_each_product():
    target, left, right, _ = factors(torch.bfloat16)
    expected = target + left @ right
    products.add_product(target, left, right, products.Scratch(target))
    assert torch.equal(target, expected)


def test_only_cuda_is_asked_for_float32_sums():
    """And only for those: float64 sums are of float64 products."""
    assert not products._sums_wide(torch.zeros(2, 2))
    assert not products._sums_wide(torch.zeros(2, 2, device="meta"))


def test_float32_sums_are_not_rounded(wide):
    calls = wide(lambda target, left, right: target.addmm_(left.float(), right.float()))
    target, left, right, exact = factors(torch.bfloat16)
    expected = target.double() + exact
    products.add_product(target, left, right, products.Scratch(target))
    torch.testing.assert_close(target.double(), expected, rtol=1e-6, atol=1e-5)
    assert calls == [torch.float32]


def test_a_refusal_is_said_once_and_costs_nothing_else(wide, caplog):
    def refuse(*_):
        raise RuntimeError("self and mat2 must have the same dtype")

    calls = wide(refuse)
    target, left, right, _ = factors(torch.bfloat16)
    expected = target + left @ right + left @ right
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            products.add_product(target, left, right, products.Scratch(target))
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-6)
    assert calls == [torch.float32]
    assert len(caplog.messages) == 1
    assert "must have the same dtype" in caplog.text


def test_want_of_memory_is_no_refusal(wide):
    def exhaust(*_):
        raise torch.cuda.OutOfMemoryError("no memory")

    wide(exhaust)
    target, left, right, _ = factors(torch.bfloat16)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        products.add_product(target, left, right, products.Scratch(target))
    assert products._failures == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_cuda(dtype):
    """Exact sums, or rounded products if this torch refuses."""
    target, left, right, exact = (x.cuda() for x in factors(dtype))
    expected = target.double() + exact
    products.add_product(target, left, right, products.Scratch(target))
    rounding = 2.0**-8 if products._failures and dtype != torch.float32 else 1e-5
    torch.testing.assert_close(target.double(), expected, rtol=rounding, atol=20 * rounding)


def test_width_by_device():
    assert products.tile_width(torch.device("cpu")) == 2048
    assert products.tile_width(torch.device("cuda", 1)) >= 8192
