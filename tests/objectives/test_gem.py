"""GEM: the paper's formula on dense logits, its gradient, and where it ends on a table."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from helpers.mdp import LAYOUTS, example_documents, lay_out, random_documents, steps
from helpers.models import answers, gradients, tiny_family, tiny_gpt2, tiny_llama
from inverselm.objectives import gem, mle
from inverselm.tabular import TokenTree
from inverselm.token_mdp import TokenBatch, of_models, stats_from_logits, token_loss

BETA = 0.7


def formula(logits, batch, beta=BETA):
    """-log pi(y) + sum_v sg(q_v) log pi_v of every action, as the paper has it: all logits, temperature 1."""
    log_pi = logits[:, :-1].log_softmax(-1)
    q = (logits[:, :-1].detach() / beta).softmax(-1)
    chosen = log_pi.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    return (-chosen + (q * log_pi).sum(-1))[batch.action_mask[:, 1:]].mean()


@pytest.mark.parametrize("beta", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_and_value_are_the_formulas(layout, beta):
    batch, logits, _ = lay_out(random_documents(1, 6), layout)
    logits = torch.nan_to_num(logits).requires_grad_()
    stats = stats_from_logits(logits, batch, entropy=True, temperature=beta)
    ours, theirs = gem(stats, temperature=beta), formula(logits, batch, beta)
    (found,), (wanted,) = (torch.autograd.grad(value, logits) for value in (ours.value, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)
    assert wanted.abs().max() > 1e-3
    assert ours.metrics["gem"].item() == pytest.approx(theirs.item(), rel=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_one_document_at_a_time(layout):
    documents = random_documents(2, 5)
    batch, logits, _ = lay_out(documents, layout)
    found = [s.log_prob for d in documents for s in steps(d, temperature=BETA)]
    loss = gem(stats_from_logits(logits, batch, temperature=BETA), temperature=BETA)
    assert loss.value.item() == pytest.approx(-BETA * sum(found) / len(found), rel=1e-12)
    assert loss.metrics == {}, "no entropy, no value of GEM"
    given = gem(stats_from_logits(logits, batch, temperature=BETA), temperature=BETA, num_actions=50)
    assert given.value.item() == pytest.approx(-BETA * sum(found) / 50, rel=1e-12)


def test_by_hand():
    """Two tokens, logits 0 and .7: q = (1, e) / (1 + e), and the gradient is q - onehot."""
    batch = TokenBatch.from_ids([[0]], [[1]], pad_token_id=0, eos_token_ids=[1])
    logits = torch.tensor([[[0.0, 0.7], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    loss, metrics = gem(stats_from_logits(logits, batch, entropy=True, temperature=0.7))
    assert loss.item() == pytest.approx(0.7 * 0.3132616875)  # log(1 + 1/e)
    assert metrics["gem"].item() == pytest.approx(0.7 * 0.7310585786 - 0.7)  # E_q[z] - z_y
    loss.backward()
    wanted = torch.tensor([0.2689414214, -0.2689414214], dtype=torch.float64)
    torch.testing.assert_close(logits.grad[0, 0], wanted)


def test_the_values_gradient_is_the_update():
    """Finite differences of the value: nothing in it is stopped."""
    batch, logits, _ = lay_out(example_documents())
    logits = torch.nan_to_num(logits).requires_grad_()

    def value(x):
        return gem(stats_from_logits(x, batch, temperature=BETA), temperature=BETA).value

    assert torch.autograd.gradcheck(value, logits)


def test_temperature_one_is_maximum_likelihood():
    batch, logits, _ = lay_out(random_documents(3, 5))
    stats = stats_from_logits(logits, batch)
    assert gem(stats, temperature=1.0).value == mle(stats).value


def test_the_optimum_is_the_data_at_that_temperature():
    """softmax(Q / beta) = p, so that the policy at temperature 1 is p^beta: broader, with the same order."""
    tree = TokenTree(vocab_size=3, max_length=3)
    rows = [y for n, y in enumerate(tree.sequences, 1) for _ in range(n)]
    q, batch = torch.zeros(tree.num_states, 3, dtype=torch.float64, requires_grad=True), tree.batch(rows)
    optimizer = torch.optim.LBFGS([q], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        stats = stats_from_logits(tree.logits_for(batch, q), batch, temperature=BETA)
        loss = gem(stats, temperature=BETA).value
        loss.backward()
        return loss

    optimizer.step(closure)
    counts = sum(tree.visits[tree.sequences.index(y)] for y in rows)
    data = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close((tree.mask(q.detach()) / BETA).softmax(-1), data, rtol=0, atol=1e-5)
    broad = data**BETA / (data**BETA).sum(1, keepdim=True)
    torch.testing.assert_close(tree.mask(q.detach()).softmax(-1), broad, rtol=0, atol=1e-5)
    assert (broad - data).abs().max() > 0.03


MODELS = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "gemma2": lambda: tiny_family("gemma2"),  # a cap on the logits
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models_through_the_head(name, dense, monkeypatch):
    """Value, gradients of all weights, and the numbers at temperature 1 that are logged beside."""
    model, batch = MODELS[name](), answers()
    if dense:
        model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits)
    reasons = []
    monkeypatch.setattr(of_models, "fall_back", reasons.append)
    (value, metrics), stats, _ = token_loss(
        model, batch, partial(gem, temperature=BETA), temperature=BETA, stats_temperature=1.0
    )
    assert bool(reasons) == dense
    value.backward()
    ours = gradients(model)
    model.zero_grad()
    logits = model(**batch.model_inputs()).logits
    wanted = formula(logits, batch)
    wanted.backward()
    theirs = gradients(model)
    size = max(g.abs().max() for g in theirs.values())
    assert size > 1e-3
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key] / size, gradient / size, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: k + m)
    assert metrics["gem"].item() == pytest.approx(wanted.item(), abs=1e-5)
    plain = stats_from_logits(logits.detach(), batch, entropy=True, greedy=True)
    for field in ("action_logit", "value", "next_value", "entropy"):
        torch.testing.assert_close(getattr(stats, field), getattr(plain, field), rtol=1e-5, atol=1e-5)
    assert torch.equal(stats.greedy, plain.greedy)
    assert not stats.value.requires_grad


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_temperature_is_refused(bad):
    batch, logits, _ = lay_out(example_documents())
    with pytest.raises(ValueError, match="temperature must be above 0"):
        gem(stats_from_logits(logits, batch), temperature=bad)
