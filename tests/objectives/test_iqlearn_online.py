"""Online IQLearn against loops over documents, by hand, and where it is the offline objective."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.mdp import LAYOUTS, lay_out, random_documents, steps
from inverselm.objectives import iqlearn, iqlearn_online, mixed_residual
from inverselm.token_mdp import TokenBatch, stats_from_logits


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


@pytest.mark.parametrize(("gamma", "mix_in"), [(1.0, 0.1), (0.9, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_one_document_at_a_time(layout, gamma, mix_in):
    documents = random_documents(70, 8)
    batch, logits, places = lay_out(documents, layout)
    expert, own, flags = [], [], torch.zeros_like(batch.action_mask)
    for number, (document, (row, start)) in enumerate(zip(documents, places, strict=True)):
        (own if number % 2 else expert).extend(steps(document))
        flags[row, start : start + len(document.ids)] = bool(number % 2)

    def r(s):
        return s.v + s.log_prob / (1 - mix_in) - gamma * s.next_v

    stats = stats_from_logits(logits, batch)
    value, metrics = iqlearn_online(stats, own=flags, td_coef=0.3, mix_in=mix_in, gamma=gamma)
    expected = mean(-s.log_prob for s in expert)
    expected += 0.3 * ((1 - mix_in) * mean(r(s) ** 2 for s in expert) + mix_in * mean(r(s) ** 2 for s in own))
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert metrics["nll"].item() == pytest.approx(mean(-s.log_prob for s in expert), rel=1e-10)
    assert metrics["own_reward"].item() == pytest.approx(mean(r(s) for s in own), rel=1e-9, abs=1e-12)
    assert metrics["td_error"].item() == pytest.approx(mean(abs(r(s)) for s in expert), rel=1e-10)


def test_by_hand():
    """Tokens {0, 1 = EOS}; the expert says 0 1, the policy 1. Logits (0, log 3), then (0, log 2); alpha = 1/2.

    V_1 = log 4, V_2 = log 3. Expert: r_1 = log 4 - 2 log 4 - log 3, r_2 = log 3 + 2 log(2/3). Own: log 4 + 2 log(3/4).
    """
    batch = TokenBatch.from_ids([[0], [0]], [[0, 1], [1]], pad_token_id=0, eos_token_ids=[1])
    first, second = [0.0, math.log(3.0)], [0.0, math.log(2.0)]
    logits = torch.tensor([[first, second, [5.0, 5.0]], [first, [7.0, 7.0], [5.0, 5.0]]], dtype=torch.float64)
    own = torch.tensor([[False] * 3, [True] * 3])
    value, _ = iqlearn_online(stats_from_logits(logits, batch), own=own, td_coef=1.0, mix_in=0.5)
    expert = [-math.log(4.0) - math.log(3.0), math.log(3.0) + 2 * math.log(2 / 3)]
    mine = math.log(4.0) + 2 * math.log(3 / 4)
    nll = (math.log(4.0) + math.log(1.5)) / 2
    assert value.item() == pytest.approx(nll + 0.5 * (expert[0] ** 2 + expert[1] ** 2) / 2 + 0.5 * mine**2, abs=1e-12)


def test_without_own_samples_it_is_offline_iqlearn():
    batch, logits, _ = lay_out(random_documents(71, 5))
    stats = stats_from_logits(logits, batch)
    none = torch.zeros_like(batch.action_mask)
    online = iqlearn_online(stats, own=none, td_coef=0.4, mix_in=0.0, gamma=0.9)
    offline = iqlearn(stats, td_coef=0.4, gamma=0.9)
    torch.testing.assert_close(online.value, offline.value, rtol=1e-12, atol=1e-12)
    for name, value in offline.metrics.items():
        torch.testing.assert_close(online.metrics[name], value, rtol=1e-12, atol=1e-12)


def test_own_samples_get_no_likelihood_and_empty_parts_no_nan():
    batch, logits, _ = lay_out(random_documents(72, 4))
    leaf = logits.clone().requires_grad_()
    everything = torch.ones_like(batch.action_mask)
    value, metrics = iqlearn_online(stats_from_logits(leaf, batch), own=everything, td_coef=0.0, mix_in=0.3)
    value.backward()
    assert value.item() == 0.0
    assert leaf.grad.abs().max() == 0.0
    assert all(torch.isfinite(metric) for metric in metrics.values())


def test_counts_of_a_larger_batch():
    """Two micro-batches with global counts add up to the whole."""
    documents = random_documents(73, 8)
    batch, logits, _ = lay_out(documents, "right")
    own = torch.zeros_like(batch.action_mask)
    own[1::2] = True
    arguments = {"td_coef": 0.2, "mix_in": 0.4}
    whole = iqlearn_online(stats_from_logits(logits, batch), own=own, **arguments).value
    stats = stats_from_logits(logits, batch)
    counts = {"num_actions": (batch.action_mask & ~own).sum(), "num_own": (batch.action_mask & own).sum()}
    parts = []
    for rows in (slice(0, 3), slice(3, None)):
        tensors = {name: getattr(stats, name) for name in vars(stats)}
        some = type(stats)(**{name: None if t is None else t[rows] for name, t in tensors.items()})
        parts.append(iqlearn_online(some, own=own[rows], **arguments, **counts).value)
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)


def test_gradients():
    batch, logits, _ = lay_out(random_documents(74, 3))
    own = torch.zeros_like(batch.action_mask)
    own[0] = True

    def loss(x):
        return iqlearn_online(stats_from_logits(x, batch), own=own, td_coef=0.3, mix_in=0.2, gamma=0.9).value

    assert torch.autograd.gradcheck(loss, logits.double().requires_grad_())


def test_refused():
    batch, logits, _ = lay_out(random_documents(75, 1))
    stats = stats_from_logits(logits, batch)
    with pytest.raises(ValueError, match="mix_in must be in"):
        iqlearn_online(stats, own=batch.action_mask, td_coef=0.1, mix_in=1.0)
    assert mixed_residual(stats, mix_in=0.5)[~batch.action_mask].abs().sum() == 0
