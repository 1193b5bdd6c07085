"""What the soft-Q head promises beside its numbers: one backward pass, frozen inputs, autocast, memory, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.head import (
    OBJECTIVES,
    assert_same_gradients,
    assert_same_stats,
    dense_stats,
    fused,
    gradients,
    make_case,
    per_token,
    plain,
    problem,
    with_nan_padding,
)
from inverselm.objectives import mle
from inverselm.token_mdp import HeadSpec, TokenBatch, head_kl, head_loss, head_stats, recompute, tile_gradients
from inverselm.token_mdp import fused as fused_mode


def test_hidden_states_of_padding_are_not_read():
    for layout in ("left", "right"):
        clean, spec = make_case("capped", layout, seed=1)
        dirty = with_nan_padding(clean)
        assert dirty.hidden.isnan().any()
        assert_same_stats(plain(dirty, spec), plain(clean, spec))
        numbers = []
        for p in (dirty, clean):
            (loss, _), _ = fused(p, spec, mle, chunk_size=3)
            numbers.append([loss.detach(), *gradients(loss, p)])
        for left, right in zip(*numbers, strict=True):
            assert torch.equal(left, right)


def test_an_objective_must_ask_for_the_gradient_of_its_entropy():
    for case in ("plain", "capped"):
        p, spec = make_case(case)
        for entropy in ("none", "log"):
            with pytest.raises(ValueError, match="needs token_stats"):
                fused(p, spec, OBJECTIVES["entropy"][0], entropy=entropy)


def test_shapes_and_options_are_checked():
    p, spec = make_case("tile divides")
    with pytest.raises(ValueError, match=r"entropy must be one of .*, not 'some'"):
        fused(p, spec, mle, entropy="some")
    wrong = {
        "hidden is": replace(p, hidden=p.hidden[:, 1:]),
        "hidden is .*, the batch": replace(p, hidden=p.hidden[..., 0]),
        "4 features, the weight 5": replace(p, hidden=p.hidden[..., 1:]),
        r"bias is \(11,\), the weight \(12, 5\)": replace(p, bias=p.bias[1:]),
    }
    for message, q in wrong.items():
        with pytest.raises(ValueError, match=message):
            plain(q, spec)
        with pytest.raises(ValueError, match=message):
            fused(q, spec, mle)
        with pytest.raises(ValueError, match=message):
            head_kl(q.hidden, q.weight, p.hidden, p.weight, p.batch, bias=q.bias)
        with pytest.raises(ValueError, match=message):
            head_kl(p.hidden, p.weight, q.hidden, q.weight, p.batch, other_bias=q.bias)
    with pytest.raises(ValueError, match="vocabularies have 12 and 11 tokens"):
        head_kl(p.hidden, p.weight, p.hidden, p.weight[1:], p.batch)


def test_spec_of_a_plain_layer():
    """Without a spec: no scale, cap or temperature, and products in the weight's dtype."""
    p, _ = make_case("tile divides")
    assert_same_stats(head_stats(p.hidden, p.weight, p.batch, bias=p.bias, entropy=True), dense_stats(p))
    loss = head_loss(p.hidden, p.weight, p.batch, mle, bias=p.bias)[0].value
    torch.testing.assert_close(loss, mle(dense_stats(p)).value)
    for dtype in (torch.float32, torch.bfloat16):
        q = p.to(dtype)
        default = head_stats(q.hidden, q.weight, q.batch).value
        assert default.dtype == torch.float32
        assert torch.equal(default, head_stats(q.hidden, q.weight, q.batch, spec=HeadSpec(dtype=dtype)).value)


def test_the_backward_pass():
    p, spec = make_case("tile divides")
    objective = OBJECTIVES["iqlearn"][0]
    loss = lambda: fused(p, spec, objective, chunk_size=3)[0].value
    expected = gradients(loss(), p)
    assert_same_gradients([g / 3 for g in gradients(loss() * 3, p)], expected)
    for x in p.leaves:
        x.grad = torch.ones_like(x)
    kept = [x.grad for x in p.leaves]
    for _ in range(2):
        loss().backward()
    (loss() / 2 + p.hidden.sum()).backward()
    assert all(x.grad is g for x, g in zip(p.leaves, kept, strict=True))
    got = [(x.grad - 1) / 2.5 for x in p.leaves]
    assert_same_gradients([got[0] - 1 / 2.5, *got[1:]], expected)
    for x in p.leaves:  # the first gradient becomes .grad itself, and later ones must leave it as it is
        x.grad = None
    for _ in range(2):
        loss().backward()
    assert_same_gradients([x.grad / 2 for x in p.leaves], expected)


def test_there_is_one_backward_pass_and_no_second_derivative():
    p, spec = make_case("plain")
    loss = fused(p, spec, mle)[0].value
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="it can run only once"):
        loss.backward()
    for number in (fused(p, spec, mle)[0].value, plain(p, spec).value.sum()):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(number, p.hidden, create_graph=True)


def test_an_entropy_that_is_only_logged_costs_no_gradient(monkeypatch):
    """The element-wise gradient is for caps and for entropies in the loss; products alone do the rest."""
    p, spec = make_case("tile divides")
    calls, gradient = [], tile_gradients._logit_gradient
    monkeypatch.setattr(tile_gradients, "_logit_gradient", lambda *a: calls.append(1) or gradient(*a))
    plain(p, spec).value.sum().backward()
    fused(p, spec, OBJECTIVES["iqlearn"][0], entropy="log")[0].value.backward()
    assert not calls
    plain(p, spec).entropy.sum().backward()
    assert calls


@pytest.mark.parametrize("mode", ["plain", "fused"])
@pytest.mark.parametrize("name", ["iqlearn", "entropy"])
@pytest.mark.parametrize("case", ["tile divides", "capped"])
def test_frozen_inputs_get_no_gradient(case, name, mode, monkeypatch):
    """None is computed for them either: of a frozen weight it would be as large as the weight."""
    made, where = [], recompute if mode == "plain" else fused_mode
    monkeypatch.setattr(where, "zero_gradients", lambda *a: made.append(tile_gradients.zero_gradients(*a)) or made[-1])
    p, spec = make_case(case)
    objective, entropy = OBJECTIVES[name]
    expected = gradients(objective(dense_stats(p, spec)).value, p)
    for trained in range(1, 8):
        q = p.to(torch.float64)
        for k, x in enumerate(q.leaves):
            x.requires_grad_(bool(trained & 2**k))
        if mode == "plain":
            loss = objective(plain(q, spec, chunk_size=3)).value
        else:
            loss = fused(q, spec, objective, chunk_size=3, entropy=entropy)[0].value
        loss.backward()
        assert [g is not None for g in made[-1]] == [x.requires_grad for x in q.leaves]
        for x, gradient in zip(q.leaves, expected, strict=True):
            assert (x.grad is not None) == x.requires_grad
            if x.requires_grad:
                torch.testing.assert_close(x.grad, gradient, rtol=1e-9, atol=1e-9)
    frozen = replace(p, hidden=p.hidden.detach(), weight=p.weight.detach(), bias=p.bias.detach())
    assert not fused(frozen, spec, objective, entropy=entropy)[0].value.requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_gradients_the_numbers_are_the_same(name):
    p, spec = make_case("scale and temperature")
    objective, entropy = OBJECTIVES[name]
    extra = per_token(p) if name == "policy gradient" else {}
    call = lambda: fused(p, spec, objective, entropy=entropy, chunk_size=3, per_token=extra)
    (loss, metrics), stats = call()
    learning = plain(p, spec).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            (bare, bare_metrics), bare_stats = call()
            bare_plain = plain(p, spec)
        assert not bare.requires_grad
        assert not bare_plain.value.requires_grad
        assert_same_stats(bare_plain, learning, 1e-12)
        torch.testing.assert_close(bare, loss.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bare_metrics, metrics, rtol=1e-12, atol=1e-12)
        if entropy != "none":
            assert_same_stats(bare_stats, stats, 1e-12)


@pytest.mark.parametrize("name", ["iqlearn", "entropy"])
def test_autocast_does_not_reach_into_the_head(name):
    p, spec = make_case("capped")
    p, spec = p.to(torch.float32), replace(spec, dtype=torch.float32)
    objective, entropy = OBJECTIVES[name]

    def numbers():
        loss = fused(p, spec, objective, entropy=entropy, chunk_size=3)[0].value
        also = objective(plain(p, spec, chunk_size=3)).value
        kl = head_kl(p.hidden, p.weight, p.hidden.flip(1), p.weight, p.batch, bias=p.bias, spec=spec)
        return [loss, *gradients(loss, p), also, *gradients(also, p), kl]

    outside = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        inside = numbers()
    for left, right in zip(inside, outside, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


class Largest(TorchDispatchMode):
    """The size of the largest floating-point tensor that any operation put out."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.is_floating_point():
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_memory(softcap, dtype):
    """Plain: no more than a tile of a chunk. Fused: the softmaxes of one chunk, and its shared state."""
    ids = torch.randint(3, 300, (4, 100), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch.build(ids, torch.ones_like(ids), eos_token_ids=[2])
    p = problem(batch, 300, features=2, bias=True).to(torch.float32)
    spec = HeadSpec(dtype=dtype, tile=64, softcap=softcap)
    objective, entropy = OBJECTIVES["entropy"]
    n, vocab, size = 400, 300, 20
    weights = vocab * (2 if dtype == torch.float32 else 2 + 16)
    assert max(weights, size * spec.tile) < size * vocab < n * vocab
    with Largest() as dense:
        objective(dense_stats(p, spec)).value.backward()
    assert dense.numel == n * vocab
    with Largest() as recomputed:
        objective(plain(p, spec, chunk_size=size)).value.backward()
    assert recomputed.numel <= max(weights, size * spec.tile)
    with Largest() as learning:
        fused(p, spec, objective, chunk_size=size, entropy=entropy)[0].value.backward()
    assert learning.numel <= max(weights, (size + 1) * vocab)
    with Largest() as evaluating, torch.no_grad():
        fused(p, spec, objective, chunk_size=size, entropy=entropy)
    assert evaluating.numel <= max(weights, (size + 1) * spec.tile)
    assert all(x.grad is not None for x in p.leaves)
