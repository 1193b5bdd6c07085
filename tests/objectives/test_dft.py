"""DFT: a naive reference, its gradient, and TRL's loss on the same batch."""

from __future__ import annotations

import math

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from helpers.data import sums, text_tokenizer, tiny_for
from helpers.mdp import LAYOUTS, example_documents, lay_out, random_documents, steps
from helpers.models import gradients
from helpers.training import arguments, make
from inverselm.objectives import dft
from inverselm.token_mdp import TokenBatch, masked_mean, stats_from_logits, token_stats


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_against_one_document_at_a_time(layout, seed):
    documents = random_documents(seed, 5)
    batch, logits, _ = lay_out(documents, layout)
    value, metrics = dft(stats_from_logits(logits, batch))
    found = [s.log_prob for d in documents for s in steps(d)]
    assert value.item() == pytest.approx(sum(-math.exp(p) * p for p in found) / len(found), rel=1e-12)
    assert metrics["nll"].item() == pytest.approx(-sum(found) / len(found), rel=1e-12)
    assert metrics["probability"].item() == pytest.approx(sum(map(math.exp, found)) / len(found), rel=1e-12)


def test_by_hand():
    """One action of probability 3/4: -.75 log .75; and the gradient of its logit, -p (1 - p) = -.1875."""
    batch = TokenBatch.from_ids([[0]], [[1]], pad_token_id=0, eos_token_ids=[1])
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    value = dft(stats_from_logits(logits, batch)).value
    assert value.item() == pytest.approx(0.75 * 0.287682072)
    value.backward()
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([0.1875, -0.1875], dtype=torch.float64))


def test_the_gradient_is_that_of_the_probability():
    """Finite differences cannot see a stopped gradient; sg(p) grad log p = grad p, which they can."""
    batch, logits, _ = lay_out(example_documents())
    logits.requires_grad_()

    def minus_probability(x):
        stats = stats_from_logits(x, batch)
        return -masked_mean(stats.log_prob.exp(), stats.action_mask)

    assert torch.autograd.gradcheck(minus_probability, logits)
    (ours,) = torch.autograd.grad(dft(stats_from_logits(logits, batch)).value, logits)
    (wanted,) = torch.autograd.grad(minus_probability(logits), logits)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-14)
    assert ours.abs().max() > 1e-3


def test_trl_computes_the_same_loss(tmp_path):
    """TRL's loss_type of the same name: value and gradient of one batch, normalised by a given count."""
    args = arguments(SFTConfig, tmp_path, loss_type="dft", per_device_train_batch_size=8)
    trainer = make(SFTTrainer, args, sums(), text_tokenizer())
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(50))
    theirs.backward()
    model = tiny_for(text_tokenizer())
    batch = TokenBatch.from_labels(
        inputs["input_ids"], inputs["labels"], eos_token_ids=[0], attention_mask=inputs["attention_mask"]
    )
    ours = dft(token_stats(model, batch), num_actions=50).value
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    wanted = gradients(trainer.model)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)
    assert max(g.abs().max() for g in wanted.values()) > 1e-4
