"""MLE and its entropy-regularised form: naive references, gradients, normalisation."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from helpers.mdp import LAYOUTS, example_documents, lay_out, random_documents, steps
from inverselm.objectives import dft, entropy_regularised_mle, iqlearn, mle, policy_gradient
from inverselm.token_mdp import TokenBatch, stats_from_logits

ENTROPY_COEF = 0.05
OBJECTIVES = {
    "mle": mle,
    "dft": dft,
    "entropy": partial(entropy_regularised_mle, entropy_coef=ENTROPY_COEF),
    "iqlearn": partial(iqlearn, td_coef=0.3, gamma=0.9),
    "policy gradient": lambda stats, **kwargs: policy_gradient(
        stats,
        stats.action_mask.double(),
        ref_log_prob=torch.where(stats.action_mask, -1.5, 0.0),
        kl_coef=0.1,
        **kwargs,
    ),
}
"""What holds for every objective is tested here for all of them."""


def statistics(documents, layout="right", dtype=torch.float64, **kwargs):
    batch, logits, _ = lay_out(documents, layout, dtype=dtype, **kwargs)
    logits.requires_grad_()
    return stats_from_logits(logits, batch, entropy=True), logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_against_one_document_at_a_time(layout, seed):
    documents = random_documents(seed, 5)
    stats, _ = statistics(documents, layout)
    actions = [s for d in documents for s in steps(d)]
    nll = sum(-s.log_prob for s in actions) / len(actions)
    entropy = sum(s.entropy for s in actions) / len(actions)
    value, metrics = mle(stats)
    assert value.item() == pytest.approx(nll, rel=1e-12)
    assert metrics["nll"].item() == pytest.approx(nll, rel=1e-12)
    value, metrics = entropy_regularised_mle(stats, entropy_coef=ENTROPY_COEF)
    assert value.item() == pytest.approx(nll - ENTROPY_COEF * entropy, rel=1e-12)
    assert metrics["nll"].item() == pytest.approx(nll, rel=1e-12)
    assert metrics["entropy"].item() == pytest.approx(entropy, rel=1e-12)
    assert torch.equal(entropy_regularised_mle(stats, entropy_coef=0.0).value, mle(stats).value)


def test_by_hand():
    """One action over two tokens with probabilities 3/4 (chosen) and 1/4."""
    batch = TokenBatch.from_ids([[0]], [[1]], pad_token_id=0, eos_token_ids=[1])
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]], dtype=torch.float64)
    stats = stats_from_logits(logits, batch, entropy=True)
    assert mle(stats).value.item() == pytest.approx(0.287682072)  # -log .75
    entropy = 0.562335145  # -.75 log .75 - .25 log .25
    regularised = entropy_regularised_mle(stats, entropy_coef=0.1).value.item()
    assert regularised == pytest.approx(0.287682072 - 0.1 * entropy)


def test_entropy_has_to_be_there():
    batch, logits, _ = lay_out(example_documents())
    with pytest.raises(ValueError, match="entropy=True"):
        entropy_regularised_mle(stats_from_logits(logits, batch), entropy_coef=0.1)


@pytest.mark.parametrize("name", ["mle", "entropy", "iqlearn"])  # the policy gradient: in its own file
def test_gradient(name):
    batch, logits, _ = lay_out(example_documents())
    objective = lambda x: OBJECTIVES[name](stats_from_logits(x, batch, entropy=True)).value
    assert torch.autograd.gradcheck(objective, logits.requires_grad_())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_metrics_are_detached_scalars(name):
    value, metrics = OBJECTIVES[name](statistics(example_documents())[0])
    assert value.requires_grad
    assert value.shape == ()
    assert metrics
    assert all(m.shape == () and not m.requires_grad for m in metrics.values())


@pytest.mark.parametrize("garbage", [0.0, float("nan")])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_without_actions_is_zero_with_a_graph(name, garbage):
    batch = TokenBatch.build(torch.tensor([[3, 4, 1]]), torch.zeros(1, 3), eos_token_ids=[2])
    leaf = torch.full((1, 3, 5), 0.5, requires_grad=True)
    stats = stats_from_logits(leaf.clamp(max=1.0), batch, entropy=True)
    if garbage != garbage:  # what a fused head may leave where nothing is asked
        broken = torch.where(stats.action_mask, stats.value, garbage)
        stats = type(stats)(**{**vars(stats), "value": broken})
    value, metrics = OBJECTIVES[name](stats)
    assert value.item() == 0.0
    assert all(m.item() == 0.0 for m in metrics.values())
    value.backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_sum_to_the_batch(name, as_tensor):
    documents = random_documents(31, 6)
    whole_stats, whole = statistics(documents)
    count = whole_stats.num_actions if as_tensor else int(whole_stats.num_actions)
    total = OBJECTIVES[name](whole_stats).value
    total.backward()
    width = whole.size(1)
    parts, gradients = [], []
    for part in (documents[:1], documents[1:]):
        stats, logits = statistics(part, extra=width - max(len(d.ids) for d in part))
        loss = OBJECTIVES[name](stats, num_actions=count).value
        loss.backward()
        parts.append(loss.item())
        gradients.append(logits.grad)
    assert sum(parts) == pytest.approx(total.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat(gradients), whole.grad, rtol=1e-12, atol=1e-12)
    own = [OBJECTIVES[name](statistics(part)[0]).value.item() for part in (documents[:1], documents[1:])]
    assert sum(own) / 2 != pytest.approx(total.item(), rel=1e-3)  # means of means would not do


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_and_packing_change_nothing(name):
    documents = random_documents(32, 5)
    reference = OBJECTIVES[name](statistics(documents, dtype=torch.float32)[0])
    for layout, extra in (("right", 7), ("left", 0), ("left", 7), ("packed", 0)):
        found = OBJECTIVES[name](statistics(documents, layout, torch.float32, extra=extra)[0])
        assert found.value.item() == pytest.approx(reference.value.item(), rel=1e-5)
        for metric, number in reference.metrics.items():
            assert found.metrics[metric].item() == pytest.approx(number.item(), rel=1e-5, abs=1e-6), metric
