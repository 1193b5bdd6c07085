"""Rounding errors of the soft-Q head, measured against those of full logits computed with the same products.

The truth is float64 on the operands that both are given. The naive way multiplies in the product dtype, as a model's
output layer does (under autocast: of float32 operands, rounded), and goes on in float32 as `stats_from_logits` does. A
budget says: the error of the head is at most that of the naive way (root mean square times 1.2, and times 2 for the
largest, which is one draw of noise), or nothing but float32 rounding of sums.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from helpers.head import (
    NUMBERS,
    REGIMES,
    Problem,
    dense_logits,
    dense_stats,
    fused,
    gradients,
    plain,
    realistic,
)
from inverselm.objectives import entropy_regularised_mle, iqlearn, mle
from inverselm.token_mdp import HeadSpec, TokenBatch, head_kl, state_kl

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = {  # of the operands, of the products
    "float32": (F32, F32),
    "bfloat16": (BF16, BF16),
    "autocast to bfloat16": (F32, BF16),
    "float16": (F16, F16),
    "autocast to float16": (F32, F16),
}
OBJECTIVES = {  # objective, entropy, the loss of an action
    "mle": (mle, "log", lambda q, v, after, h: v - q),
    "iqlearn": (partial(iqlearn, td_coef=0.1), "log", lambda q, v, after, h: v - q + 0.1 * (q - after).square()),
    "entropy": (partial(entropy_regularised_mle, entropy_coef=0.1), "grad", lambda q, v, after, h: v - q - 0.1 * h),
}
FLOAT32 = 2.0**-21  # of a number's magnitude: a few roundings
CHUNK = 30


def run(p, stats_of, of_action, factor=1.0):
    """Numbers, losses of actions and gradients; `factor` is a gradient scaler's."""
    loss, stats = stats_of(p)
    found = {name: getattr(stats, name).detach().double()[p.batch.action_mask] for name in NUMBERS}
    found["loss"] = of_action(*found.values())
    torch.testing.assert_close(loss.detach().double(), found["loss"].mean(), rtol=1e-6, atol=1e-6)
    found |= dict(zip(("hidden", "weight"), gradients(loss, p, factor), strict=True))
    return found


def compare(p: Problem, operands, spec, name, modes=("fused",)):
    """The truth, the naive numbers, and the head's of each mode."""
    objective, entropy, of_action = OBJECTIVES[name]
    given, scaler = p.to(operands), 1024.0 if spec.dtype == F16 else 1.0

    def dense(q, product=None):
        stats = dense_stats(q, spec, product)
        return objective(stats).value, stats

    def head(q, mode):
        if mode == "plain":
            stats = plain(q, spec)
            return objective(stats).value, stats
        (loss, _), stats = fused(q, spec, objective, entropy=entropy, chunk_size=CHUNK)
        return loss, stats

    return (
        run(given.to(torch.float64), dense, of_action),
        run(given, partial(dense, product=spec.dtype), of_action, scaler),
        *(run(given, partial(head, mode=mode), of_action, scaler) for mode in modes),
    )


def rms(x):
    return float(x.square().mean().sqrt())


def assert_within_budget(truth, naive, head, rounds=False):
    """`rounds`: the head rounds its rows and estimates the common shift of their logits from a chunk's actions."""
    of_logits = rms(naive["action_logit"] - truth["action_logit"])
    floors = {name: FLOAT32 * rms(exact) for name, exact in truth.items()}
    floors["entropy"] = floors["value"]  # a difference of numbers of that size
    for name in ("value", "next_value"):
        floors[name] += of_logits / CHUNK**0.5 if rounds else 0.0
    floors["loss"] += floors["value"]
    for name, exact in truth.items():
        error, allowed, floor = head[name] - exact, naive[name] - exact, floors[name]
        assert rms(error) <= 1.2 * rms(allowed) + floor, (name, rms(error), rms(allowed), floor)
        largest, most = float(error.abs().max()), float(allowed.abs().max())
        assert largest <= 2 * most + 4 * floor, (name, largest, most, floor)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_budget(regime, dtypes):
    """Q, V, next V, entropy, loss, and the gradients of hidden states and weight."""
    operands, product = DTYPES[dtypes]
    p, spec = realistic(regime), HeadSpec(dtype=product, tile=2048)
    rounds = operands != product
    assert_within_budget(*compare(p, operands, spec, "iqlearn"), rounds)
    truth, naive, *heads = compare(p, operands, spec, "entropy", ("fused", "plain"))
    for head in heads:
        assert_within_budget(truth, naive, head, rounds)


@pytest.mark.parametrize("spec", [HeadSpec(softcap=30.0), HeadSpec(scale=0.3, temperature=0.7)])
@pytest.mark.parametrize("dtypes", ["bfloat16", "autocast to bfloat16", "float16"])
@pytest.mark.parametrize("regime", ["spread", "massive", "peaked"])
def test_budget_with_more_than_a_product(regime, dtypes, spec):
    operands, product = DTYPES[dtypes]
    spec = replace(spec, dtype=product)
    for name in ("iqlearn", "entropy"):
        rounds = operands != product or spec.factor != 1.0
        assert_within_budget(*compare(realistic(regime), operands, spec, name), rounds)


@pytest.mark.parametrize("dtypes", ["bfloat16", "float16"])
@pytest.mark.parametrize("regime", ["spread", "shifted", "massive"])
def test_values_are_far_better_than_their_products(regime, dtypes):
    """At logits of 30 and more V has at most a fifth of the naive error, as the offset is subtracted in the product."""
    operands, product = DTYPES[dtypes]
    p = realistic(regime)
    assert dense_stats(p).value.abs().max() > 20
    truth, naive, head = compare(p, operands, HeadSpec(dtype=product), "mle")
    assert rms(head["value"] - truth["value"]) < rms(naive["value"] - truth["value"]) / 5
    assert rms(head["action_logit"] - truth["action_logit"]) < 1e-5


@pytest.mark.parametrize("dtypes", ["autocast to bfloat16", "autocast to float16"])
@pytest.mark.parametrize("regime", ["shifted", "massive", "constant"])
def test_what_rounding_does_to_all_logits_alike(regime, dtypes):
    """It cancels in naive log-probs. In the head the action's logit is exact, and the others are corrected."""
    operands, product = DTYPES[dtypes]
    truth, naive, head = compare(realistic(regime), operands, HeadSpec(dtype=product), "mle")
    of = lambda x: x["action_logit"] - x["value"]
    assert rms(of(head) - of(truth)) < rms(of(naive) - of(truth)) / 2
    for name in ("hidden", "weight"):
        assert rms(head[name] - truth[name]) < rms(naive[name] - truth[name])


@pytest.mark.parametrize("regime", ["uniform", "small"])
def test_uncertain_actions(regime):
    """Where p is small, p - 1 must not come from the others' sum, which is as inexact as V."""
    truth, naive, head = compare(realistic(regime), F32, HeadSpec(), "mle")
    for name in ("hidden", "weight"):
        assert rms(head[name] - truth[name]) < rms(naive[name] - truth[name])


def test_certain_actions():
    """Where p is within 1e-4 of 1, full logits in float32 lose 1 - p, and with it gradient and entropy."""
    truth, naive, *heads = compare(realistic("peaked"), F32, HeadSpec(), "entropy", ("fused", "plain"))
    for name in ("hidden", "weight", "entropy"):
        for head in heads:
            assert rms(head[name] - truth[name]) < 1e-5 * rms(truth[name])
        assert rms(naive[name] - truth[name]) > 1e-4 * rms(truth[name])


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("dtypes", ["bfloat16", "float16", "autocast to float16"])
@pytest.mark.parametrize("name", ["iqlearn", "entropy"])
def test_small_gradients(name, dtypes, softcap):
    """A global number of actions puts gradients below float16's range; sums and products must not lose them."""
    operands, product = DTYPES[dtypes]
    p, (objective, entropy, _) = realistic("small").to(operands), OBJECTIVES[name]
    spec = HeadSpec(dtype=product, softcap=softcap)
    loss = fused(p, spec, objective, entropy=entropy, num_actions=1e9)[0].value
    reference = p.to(torch.float64)
    exact = gradients(objective(dense_stats(reference, spec), num_actions=1e9).value, reference)
    for got, expected in zip(gradients(loss, p, factor=1e8), exact, strict=True):
        assert rms(got - expected) < 0.01 * rms(expected)

    def faint(stats, **kwargs):  # weights like p of a hopeless action: below float32's normal range
        return objective(stats, **kwargs)._replace(value=objective(stats, **kwargs).value * 1e-6)

    loss = fused(p, spec, faint, entropy=entropy, num_actions=1e36)[0].value
    assert all(g.isfinite().all() for g in gradients(loss, p))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_divergence_budget(regime, dtypes):
    """KL of two models that are near each other, as a policy and its reference are."""
    operands, product = DTYPES[dtypes]
    p, noise = realistic(regime), torch.Generator().manual_seed(1)
    near = p.hidden + 0.02 * p.hidden.std() * torch.randn(p.hidden.shape, generator=noise, dtype=torch.float64)
    p, q = p.to(operands), Problem(near, p.weight, None, p.batch).to(operands)
    with torch.no_grad():
        double = [dense_logits(x.to(torch.float64)) for x in (p, q)]
        exact = state_kl(*double, p.batch)
        naive = state_kl(dense_logits(p, None, product), dense_logits(q, None, product), p.batch)
        spec = HeadSpec(dtype=product)
        got = head_kl(p.hidden, p.weight, q.hidden, q.weight, p.batch, spec=spec, other_spec=spec)
    size = max(float(x.abs().max()) for x in double)
    assert rms(got - exact) <= 1.2 * rms(naive - exact) + FLOAT32 * size, (rms(got - exact), rms(naive - exact))


def chain_batch():
    """Rows that mostly follow a table of next tokens; every second one ends in EOS."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(3, 32, (32,), generator=generator)
    ids, kept = torch.randint(3, 32, (16, 12), generator=generator), torch.rand(16, 12, generator=generator) < 0.8
    for t in range(1, 12):
        ids[:, t] = torch.where(kept[:, t], table[ids[:, t - 1]], ids[:, t])
    ids[::2, 11] = 2
    actions = torch.ones_like(ids)
    actions[:, :2] = 0
    return TokenBatch.build(ids, actions, eos_token_ids=[2])


def train(loss_and_stats, steps=50):
    """Loss and mean entropy at each step of SGD on an embedding, a layer and the output weight."""
    generator, batch = torch.Generator().manual_seed(0), chain_batch()
    shapes = ((32, 16), (16, 16), (32, 16))
    parameters = [
        (torch.randn(*s, generator=generator) * k).requires_grad_() for s, k in zip(shapes, (1, 0.25, 0.3), strict=True)
    ]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    curve = []
    for _ in range(steps):
        embedding, layer, weight = parameters
        hidden = torch.tanh(embedding[batch.input_ids] @ layer)
        loss, stats = loss_and_stats(Problem(hidden, weight, None, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append([float(loss.detach()), float(stats.entropy.detach()[batch.action_mask].mean())])
    return torch.tensor(curve, dtype=torch.float64)


@pytest.mark.parametrize("name", ["iqlearn", "entropy"])
def test_training_does_not_drift(name):
    """50 steps: in float32 those of the dense reference; in bfloat16 products near them, and no worse than naive."""
    objective, entropy, _ = OBJECTIVES[name]

    def dense(p, product):
        stats = dense_stats(p, None, product)
        return objective(stats).value, stats

    def head(p, product):
        (loss, _), stats = fused(p, HeadSpec(dtype=product, tile=16), objective, entropy=entropy, chunk_size=64)
        return loss, stats

    reference = train(partial(dense, product=F32))
    assert reference[-1, 0] < reference[0, 0] / 2
    torch.testing.assert_close(train(partial(head, product=F32)), reference, rtol=3e-6, atol=3e-6)
    naive, rounded = (train(partial(way, product=BF16)) - reference for way in (dense, head))
    assert (rounded[-1].abs() < 2e-3).all()
    assert (rounded.abs().mean(dim=0) <= 1.2 * naive.abs().mean(dim=0) + 2e-4).all()
    assert rounded[:, 1].abs().mean() < naive[:, 1].abs().mean() / 2
