"""The soft-Q head against full logits in float64. Rounded products are in test_soft_head_precision."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from helpers.head import (
    CASES,
    OBJECTIVES,
    SIZES,
    assert_same_gradients,
    assert_same_stats,
    dense_logits,
    dense_stats,
    fused,
    gradients,
    make_case,
    mixed_batch,
    per_token,
    plain,
    problem,
)
from helpers.mdp import LAYOUTS
from inverselm.objectives import iqlearn, mle, policy_gradient
from inverselm.token_mdp import HeadSpec, TokenBatch, head_kl, state_kl


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_stats_and_their_gradients(case, layout):
    p, spec = make_case(case, layout)
    weights = torch.randn(4, *p.batch.input_ids.shape, dtype=torch.float64)
    total = lambda s: (torch.stack([s.action_logit, s.value, s.next_value, s.entropy]) * weights).sum()
    reference = dense_stats(p, spec)
    expected = gradients(total(reference), p)
    for size in SIZES:
        got = plain(p, spec, chunk_size=size)
        assert_same_stats(got, reference)
        assert_same_gradients(gradients(total(got), p), expected)
    bare = plain(p, spec, entropy=False)
    assert bare.entropy is None
    assert_same_stats(replace(bare, entropy=reference.entropy), reference)
    # whatever is not used costs no gradient, and does no harm
    for one in ("action_logit", "value", "next_value", "log_prob"):
        number = lambda s, one=one: (getattr(s, one) * weights[0]).sum()
        got, expected = number(plain(p, spec, chunk_size=3)), number(dense_stats(p, spec))
        assert_same_gradients(gradients(got, p), gradients(expected, p))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_their_gradients(case, layout, name):
    """Loss, gradients, metrics and stats; with this batch's number of actions and with a global one."""
    p, spec = make_case(case, layout, seed=1)
    objective, entropy = OBJECTIVES[name]
    extra = per_token(p) if name == "policy gradient" else {}
    reference = dense_stats(p, spec)
    for size, count in zip(SIZES, (None, None, torch.tensor(51), 51.0), strict=True):
        expected = objective(reference, num_actions=count, **extra)
        loss, stats = fused(p, spec, objective, chunk_size=size, num_actions=count, per_token=extra, entropy=entropy)
        torch.testing.assert_close(loss.value, expected.value, rtol=1e-9, atol=1e-9)
        assert loss.metrics.keys() == expected.metrics.keys()
        for key, value in expected.metrics.items():
            torch.testing.assert_close(loss.metrics[key], value, rtol=1e-9, atol=1e-9, msg=key)
        assert (stats.entropy is None) == (entropy == "none")
        assert_same_stats(stats if stats.entropy is not None else replace(stats, entropy=reference.entropy), reference)
        assert not any(x.requires_grad for x in vars(stats).values() if x is not None)
        retained = torch.autograd.grad(expected.value, p.leaves, retain_graph=True)
        assert_same_gradients(gradients(loss.value, p), list(retained))


def test_finite_differences_of_stats():
    for case in ("tile does not divide", "capped"):
        p, spec = make_case(case)

        def numbers(*leaves, p=p, spec=spec):
            hidden, weight, *bias = leaves
            stats = plain(replace(p, hidden=hidden, weight=weight, bias=bias[0] if bias else None), spec, chunk_size=3)
            return stats.action_logit, stats.value, stats.next_value, stats.entropy

        assert torch.autograd.gradcheck(numbers, p.leaves, fast_mode=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_finite_differences_of_losses(name):
    """Along random directions: the loss is computed afresh at both ends, its gradient once in the middle."""
    p, spec = make_case("capped", seed=1)
    objective, entropy = OBJECTIVES[name]
    extra = per_token(p) if name == "policy gradient" else {}
    if extra:  # without a clipping range the surrogate has no kinks, and old log-probs do not depend on the policy
        objective = partial(policy_gradient, kl_coef=0.1)

    def loss(leaves):
        moved = replace(p, hidden=leaves[0], weight=leaves[1], bias=leaves[2])
        return fused(moved, spec, objective, chunk_size=3, per_token=extra, entropy=entropy)[0].value

    found = gradients(loss(p.leaves), p)
    step = 1e-5
    for k, gradient in enumerate(found):
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                ends.append(loss([x + sign * step * direction if i == k else x for i, x in enumerate(p.leaves)]))
        difference = float(ends[0] - ends[1]) / (2 * step)
        assert math.isclose(difference, float((gradient * direction).sum()), rel_tol=1e-6, abs_tol=1e-9), k


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_tokens_ruled_out_by_the_bias(softcap):
    """A bias of -inf on a padded vocabulary, over whole tiles too: no NaN, and what the dense reference says."""
    p = problem(mixed_batch(), 11, bias=True)
    spec = HeadSpec(dtype=torch.float64, tile=2, softcap=softcap)
    with torch.no_grad():
        p.bias[7:] = -torch.inf
    objective = OBJECTIVES["entropy"][0]
    reference = dense_stats(p, spec)
    assert_same_stats(plain(p, spec), reference)
    if softcap is None:  # under a cap the dense reference's own gradient is 0 * inf
        (loss, _), _ = fused(p, spec, objective, entropy="grad", chunk_size=3)
        assert_same_gradients(gradients(loss, p), gradients(objective(reference).value, p))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = p.to(torch.float32)
        got, stats = fused(rounded, replace(spec, dtype=dtype), objective, entropy="grad")
        assert math.isclose(float(got.value.detach()), float(objective(reference).value.detach()), rel_tol=0.02)
        assert all(g.isfinite().all() for g in gradients(got.value, rounded))
        logged = fused(rounded, replace(spec, dtype=dtype), mle, entropy="log")[1]
        torch.testing.assert_close(logged.entropy, stats.entropy, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("name", ["iqlearn", "entropy"])
def test_tiles_that_hold_nothing_but_the_action(name, softcap, dtype):
    """What stands in for its logit there is too large to be squared in float32."""
    objective, entropy = OBJECTIVES[name]
    p = problem(mixed_batch(), 11, bias=True)
    for tile in (1, 2):
        spec = HeadSpec(dtype=dtype, tile=tile, softcap=softcap)
        rounded, tolerance = p.to(torch.float32), 1e-5 if dtype == torch.float32 else 0.03
        got = fused(rounded, spec, objective, entropy=entropy, chunk_size=3)[0].value
        expected = objective(dense_stats(p, spec)).value
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
        assert_same_gradients(gradients(got, rounded), gradients(expected, p), tolerance)


def test_a_batch_without_actions():
    batch = TokenBatch.build(torch.tensor([[5, 6, 3], [5, 6, 4]]), torch.zeros(2, 3), eos_token_ids=[2])
    p = problem(batch, 11, bias=True)
    for dtype in (torch.float64, torch.bfloat16):
        spec = HeadSpec(dtype=dtype, tile=4)
        assert_same_stats(plain(p, spec), dense_stats(p.to(spec.sums), spec))
        for name, (objective, entropy) in OBJECTIVES.items():
            extra = per_token(p) if name == "policy gradient" else {}
            loss, _ = fused(p, spec, objective, per_token=extra, entropy=entropy)
            assert loss.value == 0.0
            assert all(not value.any() for key, value in loss.metrics.items() if key != "advantage"), name
            assert not any(g.any() for g in gradients(loss.value, p))
        assert not any(g.any() for g in gradients(plain(p, spec).value.sum(), p))


@pytest.mark.parametrize("sharpness", [0.5, 6.0])
def test_logged_entropy_in_float32(sharpness):
    """Entropies that are only logged are true to 1e-4, whatever way they are computed; logits are up to 90 here."""
    p = problem(mixed_batch(), 300, features=16)
    p.hidden.data.mul_(sharpness)
    reference = dense_stats(p).entropy
    for softcap in (None, 15.0):
        spec = HeadSpec(tile=64, softcap=softcap)
        expected = reference if softcap is None else dense_stats(p, spec).entropy
        logged = fused(p.to(torch.float32), spec, partial(iqlearn, td_coef=0.1), entropy="log")[1].entropy
        torch.testing.assert_close(logged.double(), expected, rtol=0, atol=1e-4)
        with torch.no_grad():
            logged = fused(p.to(torch.float32), spec, partial(iqlearn, td_coef=0.1), entropy="log")[1].entropy
        torch.testing.assert_close(logged.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_divergence(case, layout):
    """Of heads with different hidden sizes, caps and tiles, against the dense reference."""
    p, spec = make_case(case, layout)
    other = problem(p.batch, p.weight.size(0), features=3, bias=not CASES[case][1], seed=5)
    for other_spec in (
        HeadSpec(dtype=torch.float64, tile=3),
        HeadSpec(dtype=torch.float64, softcap=1.5, scale=0.5, temperature=2.0),
    ):
        logits = dense_logits(p, spec) / spec.temperature
        expected = state_kl(logits, dense_logits(other, other_spec) / other_spec.temperature, p.batch)
        kl = head_kl(
            p.hidden, p.weight, other.hidden, other.weight, p.batch,
            bias=p.bias, spec=spec, other_bias=other.bias, other_spec=other_spec,
        )  # fmt: skip
        assert not kl.requires_grad
        torch.testing.assert_close(kl, expected, rtol=1e-9, atol=1e-9)
        assert (kl[p.batch.action_mask] > 0).all()


def test_divergence_of_many_states():
    """More of them than are taken at a time."""
    ids = torch.randint(3, 9, (3, 300), generator=torch.Generator().manual_seed(0))
    p = problem(TokenBatch.build(ids, torch.ones_like(ids), eos_token_ids=[2]), 9)
    other = problem(p.batch, 9, seed=1)
    kl = head_kl(p.hidden, p.weight, other.hidden, other.weight, p.batch)
    torch.testing.assert_close(kl, state_kl(dense_logits(p), dense_logits(other), p.batch), rtol=1e-9, atol=1e-9)
    same = head_kl(p.hidden, p.weight, p.hidden, p.weight, p.batch)
    assert torch.equal(same, torch.zeros_like(same))
