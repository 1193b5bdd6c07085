"""Statistics from logits against naive loops: numbers, gradients, errors."""

from __future__ import annotations

import pytest
import torch

from helpers.mdp import LAYOUTS, example_documents, lay_out, logsumexp, place, random_documents, steps
from inverselm.token_mdp import TokenBatch, state_kl, stats_from_logits
from inverselm.token_mdp.head import first_needed_column

FIELDS = ("action_logit", "value", "next_value", "entropy", "log_prob")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_against_one_document_at_a_time(layout, seed, temperature):
    documents = random_documents(seed, count=5)
    batch, logits, places = lay_out(documents, layout, extra=seed % 3)
    stats = stats_from_logits(logits, batch, entropy=True, greedy=True, temperature=temperature)
    reference = [steps(d, temperature=temperature) for d in documents]
    naive = {
        "action_logit": [[s.q for s in one] for one in reference],
        "value": [[s.v for s in one] for one in reference],
        "next_value": [[s.next_v for s in one] for one in reference],
        "entropy": [[s.entropy for s in one] for one in reference],
        "log_prob": [[s.log_prob for s in one] for one in reference],
        "greedy": [[s.greedy for s in one] for one in reference],
    }
    for name, values in naive.items():
        expected = place(values, documents, batch, places)
        torch.testing.assert_close(getattr(stats, name).double(), expected, rtol=1e-12, atol=1e-12, msg=name)
    assert torch.equal(stats.action_mask, batch.action_mask)
    assert torch.equal(stats.document_ids, batch.document_ids)
    assert stats.num_actions == sum(map(len, reference))


def test_float64_stays_and_less_becomes_float32():
    batch, logits, _ = lay_out(random_documents(0, 3))
    for given, got in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        assert stats_from_logits(logits.to(given), batch).value.dtype == got
        assert state_kl(logits.to(given), logits.to(given) + 1, batch).dtype == got


def test_optional_statistics():
    batch, logits, _ = lay_out(random_documents(0, 3))
    stats = stats_from_logits(logits, batch)
    assert stats.entropy is None
    assert stats.greedy is None
    logits.requires_grad_()
    assert stats_from_logits(logits, batch, entropy=True).entropy.requires_grad
    logged = stats_from_logits(logits, batch, entropy=True, entropy_grad=False)
    assert not logged.entropy.requires_grad
    assert logged.value.requires_grad
    assert not any(t.requires_grad for t in vars(logged.detach()).values() if t is not None)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_on_padding_is_not_read(garbage):
    documents = random_documents(3, 4)
    clean, clean_logits, _ = lay_out(documents, "right", garbage=0.0)
    _, dirty_logits, _ = lay_out(documents, "right", garbage=garbage)
    clean_stats = stats_from_logits(clean_logits, clean, entropy=True)
    dirty_stats = stats_from_logits(dirty_logits, clean, entropy=True)
    for name in FIELDS:
        assert torch.equal(getattr(clean_stats, name), getattr(dirty_stats, name)), name


def test_columns_before_the_first_state_are_not_needed():
    batch = TokenBatch.from_ids([[5, 6, 3], [5, 6, 3, 4]], [[4, 2], [3]], pad_token_id=0, eos_token_ids=[2])
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    first = first_needed_column(batch)
    assert first == 2
    whole = stats_from_logits(logits, batch, entropy=True, greedy=True)
    part = stats_from_logits(logits[:, first:], batch, first_column=first, entropy=True, greedy=True)
    for name in (*FIELDS, "greedy"):
        assert torch.equal(getattr(whole, name), getattr(part, name)), name
    other = torch.randn(2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        state_kl(logits[:, first:], other[:, first:], batch, first_column=first), state_kl(logits, other, batch)
    )
    with pytest.raises(ValueError, match="cuts off column 2"):
        stats_from_logits(logits[:, 3:], batch, first_column=3)
    with pytest.raises(ValueError, match="3 columns of logits"):
        stats_from_logits(logits[:, first:], batch)


def test_batch_without_actions():
    batch = TokenBatch.build(torch.tensor([[5, 6, 7]]), torch.zeros(1, 3), eos_token_ids=[2])
    first = first_needed_column(batch)
    logits = torch.randn(1, 3 - first, 9, requires_grad=True)
    stats = stats_from_logits(logits, batch, first_column=first, entropy=True, greedy=True)
    for name in FIELDS:
        assert getattr(stats, name).shape == (1, 3)
        assert not getattr(stats, name).any()
    (stats.log_prob.sum() + stats.next_value.sum() + stats.entropy.sum()).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ruled_out_tokens_leave_finite_numbers_and_gradients():
    """Logits of -inf (padded vocabularies, grammars) have probability 0, no entropy, and no NaN in any gradient."""
    batch = TokenBatch.from_ids([[5]], [[3, 2]], pad_token_id=0, eos_token_ids=[2])
    finite = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
    other = torch.randn(1, 3, 5, dtype=torch.float64)
    wall = torch.full((1, 3, 2), -torch.inf, dtype=torch.float64)
    logits = torch.cat([finite, wall], dim=-1)
    walled, plain = (stats_from_logits(x, batch, entropy=True) for x in (logits, finite))
    torch.testing.assert_close(walled.entropy, plain.entropy)
    kl = state_kl(logits, torch.cat([other, wall], dim=-1), batch)
    torch.testing.assert_close(kl, state_kl(finite, other, batch))
    gradient = torch.autograd.grad((walled.entropy + walled.value + kl).sum(), finite)[0]
    reference = torch.autograd.grad((plain.entropy + plain.value + state_kl(finite, other, batch)).sum(), finite)[0]
    torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_kl(layout):
    documents = random_documents(5, 5)
    others = random_documents(6, 5)
    for document, other in zip(documents, others, strict=True):
        other.ids, other.actions = document.ids, document.actions
        other.logits = (other.logits * 9)[: len(document.ids)]
    batch, logits, places = lay_out(documents, layout)
    _, other_logits, _ = lay_out(others, layout, garbage=1.0)
    naive = []
    for document, other in zip(documents, others, strict=True):
        numbers = []
        for step in steps(document):
            p, q = document.logits[step.column - 1], other.logits[step.column - 1]
            log_p, log_q = ([x - logsumexp(row) for x in row] for row in (p, q))
            numbers.append(sum(torch.tensor(a).exp().item() * (a - b) for a, b in zip(log_p, log_q, strict=True)))
        naive.append(numbers)
    kl = state_kl(logits, other_logits, batch)
    torch.testing.assert_close(kl, place(naive, documents, batch, places), rtol=1e-6, atol=1e-6)
    assert (kl >= 0).all()
    assert (kl[batch.action_mask] > 0).all()
    assert state_kl(logits, logits + 3.0, batch).abs().max() < 1e-12


def test_gradients():
    batch, logits, _ = lay_out(example_documents())

    def numbers(x):
        stats = stats_from_logits(x, batch, entropy=True, temperature=0.8)
        return stats.action_logit, stats.value, stats.next_value, stats.entropy

    assert torch.autograd.gradcheck(numbers, logits.requires_grad_())
    other = logits.detach().flip(-1)
    assert torch.autograd.gradcheck(lambda x: state_kl(x, other, batch), logits)
