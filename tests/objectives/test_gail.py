"""GAIL's functions against loops over documents, by hand, and by finite differences."""

from __future__ import annotations

import math
import random

import pytest
import torch

from helpers.mdp import LAYOUTS, Document, example_documents, lay_out, random_documents, steps
from inverselm.objectives import mle
from inverselm.objectives.gail import (
    discriminator_loss,
    gae,
    gail_policy,
    gail_reward,
    kl_coef_at,
    rescale_advantages,
    state_values,
    value_loss,
)
from inverselm.token_mdp import TokenBatch, stats_from_logits


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else 0.0


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def per_state(documents, batch, places, seed, garbage=float("nan")):
    """A random number for the state after each token, of each document and as a (B, T) tensor."""
    draw = random.Random(seed)
    numbers = [[draw.gauss(0, 1.5) for _ in document.ids] for document in documents]
    tensor = torch.full(batch.input_ids.shape, garbage, dtype=torch.float64)
    for row, (at, start) in zip(numbers, places, strict=True):
        tensor[at, start : start + len(row)] = torch.tensor(row, dtype=torch.float64)
    return numbers, tensor


def flags(documents, batch, places):
    """Every other document is the policy's own."""
    own = torch.zeros_like(batch.action_mask)
    for number, (document, (row, start)) in enumerate(zip(documents, places, strict=True)):
        own[row, start : start + len(document.ids)] = bool(number % 2)
    return own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_discriminator_against_one_action_at_a_time(layout):
    documents = random_documents(80, 8)
    batch, _, places = lay_out(documents, layout)
    numbers, logits = per_state(documents, batch, places, 81)
    expert, own = ([], [])
    for number, (document, row) in enumerate(zip(documents, numbers, strict=True)):
        (own if number % 2 else expert).extend(row[step.column] for step in steps(document))  # the state *after* it
    value, metrics = discriminator_loss(logits, batch.action_mask, flags(documents, batch, places))
    expected = sum(-math.log(1 / (1 + math.exp(-d))) for d in expert)
    expected += sum(-math.log(1 - 1 / (1 + math.exp(-d))) for d in own)
    assert value.item() == pytest.approx(expected / (len(expert) + len(own)), rel=1e-10)
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(
        {
            "accuracy_expert": mean(d > 0 for d in expert),
            "accuracy_own": mean(d < 0 for d in own),
            "reward_expert": mean(map(softplus, expert)),
            "reward_own": mean(map(softplus, own)),
        },
        rel=1e-10,
    )


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0), (0.8, 1.0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_advantages_against_one_document_at_a_time(layout, gamma, lam):
    """delta and its discounted sum, as they are written; the value after EOS is 0, that of a cut answer is not."""
    documents = random_documents(82, 8)
    batch, _, places = lay_out(documents, layout)
    logits, d = per_state(documents, batch, places, 83)
    values, at_state = per_state(documents, batch, places, 84)
    value, next_value = state_values(at_state, batch)
    rewards = gail_reward(d, batch.action_mask, shift=0.3)
    found = gae(rewards, value, next_value, batch, gamma=gamma, gae_lambda=lam)
    ends = set()
    for document, row, v, (at, start) in zip(documents, logits, values, places, strict=True):
        taken = steps(document)
        deltas = []
        for step in taken:
            after = 0.0 if step.next_column is None else v[step.next_column]
            deltas.append(softplus(row[step.column]) - 0.3 + gamma * after - v[step.column - 1])
        ends |= {step.next_column is None for step in taken[-1:]}
        for k, step in enumerate(taken):
            expected = sum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, len(taken)))
            assert found[at, start + step.column].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert ends == {True, False}, "both kinds of ends occur"
    assert not found[~batch.action_mask].any()


def test_advantages_by_hand():
    """7 8 EOS after a prompt of one token, and 7 8 cut; D = 0, so r = log 2; V = 1, 2, 3; gamma = lambda = 1/2."""
    batch = TokenBatch.from_ids([[5], [5]], [[7, 8, 2], [7, 8]], pad_token_id=0, eos_token_ids=[2])
    value, next_value = state_values(torch.tensor([[1.0, 2.0, 3.0, 5.0]] * 2, dtype=torch.float64), batch)
    assert value.tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert next_value.tolist() == [[0, 2, 3, 0], [0, 2, 3, 0]]
    rewards = gail_reward(torch.zeros(2, 4, dtype=torch.float64), batch.action_mask)
    r = math.log(2.0)
    found = gae(rewards, value, next_value, batch, gamma=0.5, gae_lambda=0.5)
    deltas = [r + 1 - 1, r + 1.5 - 2, r - 3]
    first = [deltas[0] + 0.25 * (deltas[1] + 0.25 * deltas[2]), deltas[1] + 0.25 * deltas[2], deltas[2]]
    second = [deltas[0] + 0.25 * deltas[1], deltas[1]]
    assert found[0].tolist() == pytest.approx([0.0, *first])
    assert found[1].tolist() == pytest.approx([0.0, *second, 0.0])


def test_rescaling():
    mask = torch.tensor([[True, True, False], [True, False, True]])
    held = torch.tensor([[1.0, 4.0, float("nan")], [3.0, float("nan"), 0.0]], dtype=torch.float64)
    spread = math.sqrt(mean((x - 2.0) ** 2 for x in (1, 4, 3, 0)))
    for kind, centre, scale in (("none", 0, 1), ("std", 0, spread), ("whiten", 2, spread)):
        expected = [(x - centre) / scale for x in (1, 4, 3, 0)]
        found = rescale_advantages(held, mask, kind)
        assert found[mask].tolist() == pytest.approx(expected, rel=1e-5)
        assert not found[~mask].any()
    with pytest.raises(ValueError, match="must be one of"):
        rescale_advantages(held, mask, "max")


def policy_case(layout, seed=85):
    documents = random_documents(seed, 8)
    batch, logits, places = lay_out(documents, layout)
    own = flags(documents, batch, places)
    stats = stats_from_logits(logits, batch, entropy=True)
    tensors = [per_state(documents, batch, places, seed + i)[1] for i in (1, 2, 3)]
    held, old, ref = tensors[0], stats.log_prob + tensors[1] / 3, stats.log_prob + tensors[2] / 3
    return batch, logits, own, held, old, ref


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_policy_against_one_action_at_a_time(layout, on_policy, estimator):
    batch, logits, own, held, old, ref = policy_case(layout)
    stats = stats_from_logits(logits, batch, entropy=True)
    sums, nll = [], []
    for row, column in batch.action_mask.nonzero().tolist():
        x = logits[row, column - 1].tolist()
        v = math.log(sum(math.exp(a) for a in x))
        log_prob = x[int(batch.input_ids[row, column])] - v
        if not own[row, column]:
            nll.append(-log_prob)
            continue
        a, before, reference = (float(t[row, column]) for t in (held, old, ref))
        ratio = 1.0 if on_policy else math.exp(log_prob - before)
        gain = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        gap = log_prob - reference
        kl = gap * gap / 2 if estimator == "k2" else math.exp(-gap) - 1 + gap
        entropy = -sum(math.exp(q - v) * (q - v) for q in x)
        sums.append((-gain + 0.3 * kl - 0.05 * entropy, gap, entropy))
    value, metrics = gail_policy(
        stats, own=own, advantages=held, ref_log_prob=ref, old_log_prob=None if on_policy else old, clip_range=0.2,
        kl_coef=0.3, kl_estimator=estimator, mle_coef=0.7, entropy_coef=0.05,
    )  # fmt: skip
    assert value.item() == pytest.approx(mean(x for x, *_ in sums) + 0.7 * mean(nll), rel=1e-10)
    assert metrics["nll"].item() == pytest.approx(mean(nll), rel=1e-10)
    assert metrics["kl"].item() == pytest.approx(mean(gap for _, gap, _ in sums), rel=1e-9)
    assert metrics["own_entropy"].item() == pytest.approx(mean(h for *_, h in sums), rel=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_loss_against_one_action_at_a_time(layout):
    documents = random_documents(89, 8)
    batch, _, places = lay_out(documents, layout)
    values, at_state = per_state(documents, batch, places, 90)
    goals, returns = per_state(documents, batch, places, 91)
    rows = zip(documents, values, goals, strict=True)
    pairs = [(v[step.column - 1], g[step.column]) for document, v, g in rows for step in steps(document)]
    value, metrics = value_loss(state_values(at_state, batch)[0], returns, batch.action_mask)
    squared = mean((v - g) ** 2 for v, g in pairs)
    assert value.item() == pytest.approx(squared / 2, rel=1e-10)
    assert {k: x.item() for k, x in metrics.items()} == pytest.approx(
        {"value": mean(v for v, _ in pairs), "return": mean(g for _, g in pairs), "value_squared_error": squared}
    )


def test_without_own_samples_it_is_maximum_likelihood():
    batch, logits, own, held, _, ref = policy_case("right")
    stats = stats_from_logits(logits, batch)
    none = torch.zeros_like(own)
    found = gail_policy(stats, own=none, advantages=held, ref_log_prob=ref, kl_coef=0.1).value
    torch.testing.assert_close(found, mle(stats).value, rtol=1e-12, atol=1e-12)
    everything = gail_policy(stats, own=~none, advantages=held, ref_log_prob=ref, mle_coef=1.0)
    assert everything.metrics["nll"] == 0.0


def test_counts_of_a_larger_batch():
    """Losses of micro-batches with global counts add up to that of the whole batch."""
    batch, logits, own, held, old, ref = policy_case("right")
    stats, mask = stats_from_logits(logits, batch, entropy=True), batch.action_mask
    counts, d = {"num_actions": (mask & ~own).sum(), "num_own": (mask & own).sum()}, torch.where(mask, held, 0.0)
    options = {"kl_coef": 0.2, "entropy_coef": 0.1}
    whole = [
        gail_policy(stats, own=own, advantages=held, ref_log_prob=ref, old_log_prob=old, **options).value,
        discriminator_loss(d, mask, own).value,
        value_loss(d, d + 1 + d.square(), mask).value,
    ]
    parts = []
    for some in (slice(0, 3), slice(3, None)):
        parts.append(
            [
                gail_policy(
                    stats.rows(some), own=own[some], advantages=held[some], ref_log_prob=ref[some],
                    old_log_prob=old[some], **counts, **options,
                ).value,
                discriminator_loss(d[some], mask[some], own[some], num_actions=mask.sum()).value,
                value_loss(d[some], (d + 1 + d.square())[some], mask[some], num_actions=mask.sum()).value,
            ]
        )  # fmt: skip
    for one, a, b in zip(whole, *parts, strict=True):
        torch.testing.assert_close(a + b, one, rtol=1e-12, atol=1e-12)


def test_gradients():
    documents = [*example_documents(), Document([3, 1, 2], [False, True, True], [[0.3, -0.2, 0.1, 0.8, 0.5]] * 3)]
    batch, logits, places = lay_out(documents)
    own = flags(documents, batch, places)
    own[2] = True  # one own answer that is cut, one that ends
    stats = stats_from_logits(logits, batch)
    shift = torch.where(batch.input_ids % 2 == 0, 0.5, -0.4).double()  # ratios far from 0.8 and 1.2
    _, held = per_state(documents, batch, places, 86)

    def policy(x):
        return gail_policy(
            stats_from_logits(x, batch, entropy=True), own=own, advantages=held, ref_log_prob=stats.log_prob + shift,
            old_log_prob=stats.log_prob - shift, kl_coef=0.3, mle_coef=0.5, entropy_coef=0.2,
        ).value  # fmt: skip

    d = per_state(documents, batch, places, 87, garbage=0.3)[1]
    returns = d.flip(1)
    mask = batch.action_mask
    assert torch.autograd.gradcheck(policy, logits.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: discriminator_loss(x, mask, own).value, d.clone().requires_grad_())
    fit = lambda x: value_loss(state_values(x, batch)[0], returns, mask).value
    assert torch.autograd.gradcheck(fit, d.clone().requires_grad_())


def test_rewards_advantages_and_returns_are_constants():
    batch, _, _, held, _, _ = policy_case("right")
    leaf = torch.where(batch.action_mask, held, 0.0).requires_grad_()
    assert not gail_reward(leaf, batch.action_mask).requires_grad
    value, next_value = state_values(leaf, batch)
    assert not gae(leaf, value, next_value, batch).requires_grad
    constant = leaf.detach().clone().requires_grad_()
    loss = value_loss(leaf * 2, constant, batch.action_mask).value
    assert torch.autograd.grad(loss, constant, allow_unused=True) == (None,)


def test_garbage_off_the_actions_is_not_read():
    batch, _, own, held, *_ = policy_case("left")
    mask = batch.action_mask
    clean = torch.where(mask, held, 0.0)
    found = []
    for garbage in (0.0, float("nan"), -1e4):
        leaf = torch.where(mask, clean, garbage).requires_grad_()
        loss = discriminator_loss(leaf, mask, own).value + value_loss(leaf, clean - 1, mask).value
        loss.backward()
        found.append((loss.item(), leaf.grad))
    for value, grad in found[1:]:
        assert value == found[0][0]
        torch.testing.assert_close(grad, found[0][1], rtol=0, atol=0)


def test_an_empty_part_is_no_nan():
    batch, logits, own, held, _, ref = policy_case("right")
    leaf = logits.clone().requires_grad_()
    for flag in (torch.zeros_like(own), torch.ones_like(own)):
        loss, metrics = gail_policy(stats_from_logits(leaf, batch), own=flag, advantages=held, ref_log_prob=ref)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(metric) for metric in metrics.values())
        values = discriminator_loss(torch.zeros_like(held), batch.action_mask, flag)
        assert values.value.item() == pytest.approx(math.log(2.0))
        assert all(torch.isfinite(metric) for metric in values.metrics.values())


def test_kl_schedule():
    at = lambda step, steps=10: kl_coef_at(step, kl_coef_start=0.1, kl_coef=0.001, kl_anneal_steps=steps)
    assert [at(0), at(5), at(10), at(99), at(0, steps=0)] == pytest.approx([0.1, 0.0505, 0.001, 0.001, 0.001])


def test_refused():
    batch, logits, own, held, _, ref = policy_case("right")
    stats = stats_from_logits(logits, batch)
    with pytest.raises(ValueError, match="entropy=True"):
        gail_policy(stats, own=own, advantages=held, ref_log_prob=ref, entropy_coef=0.1)
    with pytest.raises(ValueError, match="zero expected gradient"):
        gail_policy(stats, own=own, advantages=held, ref_log_prob=ref, kl_coef=0.1, kl_estimator="k1")
    with pytest.raises(ValueError, match="gae_lambda"):
        gae(held, held, held, batch, gae_lambda=1.1)
