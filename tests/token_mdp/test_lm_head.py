"""The soft-Q head inside models: every family's numbers and gradients are the dense reference's, and none is fooled."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from helpers.models import (
    FAMILIES,
    OBJECTIVE,
    answers,
    assert_like_dense,
    dense_stats,
    gradients,
    tiny_family,
    tiny_llama,
)
from inverselm.token_mdp import TokenBatch, of_models, project, token_loss, token_stats

NO_POSITIONS = ("mamba", "falcon_h1", "recurrent_gemma", "bloom", "mpt")  # told by the mask, or by the order alone


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_dense_numbers_and_gradients(family, reasons):
    model = tiny_family(family, seed=1)
    for temperature, side in ((1.0, "right"), (1.3, "right"), (1.0, "left")):
        if side == "right" or family not in NO_POSITIONS:
            assert_like_dense(model, answers(padding_side=side), temperature=temperature, tolerance=2e-5)
    assert not reasons


SPECS = {
    "gemma2": lambda config: (1.0, config.final_logit_softcapping),
    "gemma3_text": lambda config: (1.0, config.final_logit_softcapping),
    "recurrent_gemma": lambda config: (1.0, config.logits_soft_cap),
    "cohere": lambda config: (config.logit_scale, None),
    "cohere2": lambda config: (config.logit_scale, None),
    "granite": lambda config: (1 / config.logits_scaling, None),
    "hyperclovax": lambda config: (config.logits_scaling, None),
    "falcon_h1": lambda config: (config.lm_head_multiplier, None),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_and_cap_are_the_configs(family):
    model = tiny_family(family)
    spec = project(model, answers()).spec
    scale, cap = SPECS.get(family, lambda config: (1.0, None))(model.config)
    assert (scale, cap) != (1.0, None) or family not in SPECS
    assert spec.scale == pytest.approx(scale, rel=1e-6)
    assert spec.softcap == (None if cap is None else pytest.approx(cap, rel=1e-6))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_the_auxiliary_loss_keeps_its_gradient(family, reasons):
    model, batch = tiny_family(family), answers()
    routers = [name for name, _ in model.named_parameters() if "gate.weight" in name and "expert_gate" not in name]
    found = []
    for run in ("soft", "own"):
        model.zero_grad()
        if run == "soft":
            (loss, _), _, outputs = token_loss(model, batch, OBJECTIVE, output_router_logits=True)
        else:
            loss = OBJECTIVE(dense_stats(model, batch)).value
            outputs = model(**batch.model_inputs(), output_router_logits=True)
        (loss + 10.0 * outputs.aux_loss).backward()
        found.append((outputs.aux_loss.detach(), gradients(model)))
    (aux, grads), (expected_aux, expected) = found
    torch.testing.assert_close(aux, expected_aux)
    model.zero_grad()
    OBJECTIVE(dense_stats(model, batch)).value.backward()
    without = gradients(model)
    for name in expected:
        torch.testing.assert_close(grads[name], expected[name], rtol=1e-4, atol=1e-5)
    assert all((expected[name] - without[name]).abs().max() > 1e-3 for name in routers)
    assert not reasons


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.view_as(z)

    @staticmethod
    def backward(ctx, grad):
        return 0.5 * grad


class ClippedGradient(HalfGradient):
    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-5.0, 5.0)


def in_place(z, columns, value):
    z = z.clone()
    z[..., columns] = value
    return z


ONE = nn.functional.one_hot(torch.tensor(37), 64).float()
ALTERATIONS = {
    "a bias": lambda z, m: z + torch.linspace(-1, 1, 64),
    "a small bias of one token": lambda z, m: z + 1e-4 * ONE,
    "the same for all": lambda z, m: z + 1.0,
    "one token ruled out": lambda z, m: z.masked_fill(ONE.bool(), -1e9),
    "tokens behind the vocabulary ruled out": lambda z, m: in_place(z, slice(60, None), -1e9),
    "a slice of the vocabulary": lambda z, m: z[..., :60],
    "clamped": lambda z, m: z.clamp(-1.0, 1.0),
    "clamped from below": lambda z, m: z.clamp(min=-1.0),
    "clamped from above": lambda z, m: z.clamp(max=1.0),
    "clamped far out": lambda z, m: z.clamp(-20.0, 20.0),
    "clamped far below": lambda z, m: z.clamp(min=-500.0),
    "far below the best ruled out": lambda z, m: z.masked_fill(z < z.amax(dim=-1, keepdim=True) - 20, -1e9),
    "float16": lambda z, m: z.half(),
    "rounded to bfloat16": lambda z, m: z.bfloat16().float(),
    "normalised": lambda z, m: z.log_softmax(dim=-1),
    "centred": lambda z, m: z - z.mean(dim=-1, keepdim=True),
    "contrasted": lambda z, m: z + 0.1 * (z - z.mean(dim=-1, keepdim=True)),
    "the top 40": lambda z, m: z.masked_fill(z < z.topk(40).values[..., -1:], -1e9),
    "tokens in another order": lambda z, m: z.roll(8, dims=-1),
    "negated": lambda z, m: -z,
    "a power": lambda z, m: z * z.abs(),
    "a scale by position": lambda z, m: z * torch.linspace(1, 2, z.size(1))[:, None],
    "states in another order": lambda z, m: z.flip(1),
    "half the gradient": lambda z, m: HalfGradient.apply(z),
    "half the gradient of a cap": lambda z, m: HalfGradient.apply(2 * (z / 2).tanh()),
    "a clipped gradient": lambda z, m: ClippedGradient.apply(z),
    "no gradient for some": lambda z, m: torch.where(ONE.bool(), z.detach(), z),
    "a learnt scale": lambda z, m: z * m.learnt,
    "a learnt bias": lambda z, m: z + m.learnt_bias,
    "a scale from the hidden states": lambda z, m: z * m.seen.mean(dim=-1, keepdim=True).exp(),
}


def altered(change, seed=3):
    """A llama that does something to its logits."""

    class Altered(LlamaForCausalLM):
        def forward(self, **kwargs):
            self.runs += 1
            outputs = super().forward(**kwargs)
            outputs.logits = change(outputs.logits, self)
            return outputs

    model = tiny_llama(seed)
    model.__class__, model.runs = Altered, 0
    model.learnt = nn.Parameter(torch.tensor(0.7))
    model.learnt_bias = nn.Parameter(torch.zeros(64))
    model.model.norm.register_forward_hook(lambda module, args, out: setattr(model, "seen", out))
    return model


@pytest.mark.parametrize("grad_first", [True, False])
@pytest.mark.parametrize("what", ALTERATIONS)
def test_whatever_else_a_model_does_to_its_logits_is_noticed(what, grad_first, reasons):
    """Also where the first call is without gradients, in which a learnt scale is a number like any other."""
    model, batch = altered(ALTERATIONS[what]), answers()
    with torch.set_grad_enabled(grad_first):
        first = token_stats(model, batch).log_prob
    torch.testing.assert_close(first, dense_stats(model, batch).log_prob)
    for columns in (None, 9):  # as many columns as there are rows of probes
        assert_like_dense(model, answers(pad_to_multiple_of=columns))
    assert reasons
    model.runs = 0
    token_stats(model, batch)
    assert model.runs == 1  # what was found out is not found out again


@pytest.mark.parametrize("columns", [1, 8, 9])
def test_one_row_of_few_states_is_not_mistaken_for_the_probes(columns, reasons):
    """Where shapes happen to fit, the numbers still have to."""
    batch = answers(pad_to_multiple_of=columns)
    batch = type(batch)(**{k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()})
    for what in ("a scale by position", "a scale from the hidden states", "states in another order"):
        assert_like_dense(altered(ALTERATIONS[what]), batch)
    assert reasons


def test_a_learnt_scale_that_is_frozen_is_a_number(reasons):
    model = altered(ALTERATIONS["a learnt scale"])
    model.learnt.requires_grad_(False)
    assert_like_dense(model, answers())
    model.learnt.fill_(1.9)
    assert_like_dense(model, answers())
    assert not reasons


def test_a_scale_may_change_between_calls(reasons):
    model = tiny_family("cohere")
    for scale in (0.3, 1.7):
        model.logit_scale = scale
        assert_like_dense(model, answers())
    assert not reasons


@pytest.mark.parametrize(
    "harmless",
    [
        lambda z, m: z.mul_(0.5),
        lambda z, m: z.float() * 1.0 + torch.zeros(64),
        lambda z, m: (2 * z.double()).float(),
        lambda z, m: 3 * ((z[:, -z.size(1) :, :] / 2) / 3).tanh(),
        lambda z, m: checkpoint(lambda x: 2.0 * x, z, use_reentrant=False),
        lambda z, m: z.view(*z.shape[:2], -1).contiguous(),
    ],
)
def test_harmless_ways_are_understood(harmless, reasons):
    assert_like_dense(altered(harmless), answers())
    assert not reasons


def test_logits_of_zero_are_noticed(reasons):
    model, batch = altered(lambda z, m: z * 0.0), answers()
    stats = token_stats(model, batch, entropy=True)
    assert not stats.action_logit.any()
    assert stats.value[batch.action_mask].tolist() == pytest.approx([math.log(64)] * 9)
    assert len(reasons) == 1


def test_dropout_on_logits_is_noticed_where_it_acts(reasons):
    model = altered(lambda z, m: nn.functional.dropout(z, 0.5, m.training))
    assert_like_dense(model, answers())
    assert not reasons
    model.train()
    token_stats(model, answers())
    assert len(reasons) == 1


class Projecting(LlamaForCausalLM):
    """A llama with a way of its own to call its output layer."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        outputs = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        outputs.logits = self.way(outputs.last_hidden_state)
        return outputs


WAYS = {
    "twice": lambda self, h: self.lm_head(h) + self.lm_head(h.flip(-1)),
    "not at all": lambda self, h: nn.functional.linear(h, self.lm_head.weight),
    "on flat rows": lambda self, h: self.lm_head(h.flatten(0, 1)).view(*h.shape[:2], -1),
    "with a second head": lambda self, h: self.lm_head(h) + 0.1 * h @ self.second,
    "in a reentrant checkpoint": lambda self, h: checkpoint(self.lm_head, h, use_reentrant=True),
}


@pytest.mark.parametrize("rows", [None, 1])
@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_call_the_output_layer_are_noticed(way, rows, reasons):
    model = tiny_llama(seed=4)
    model.__class__, model.way = Projecting, WAYS[way].__get__(model)
    model.second = nn.Parameter(torch.randn(16, 64))
    batch = answers(pad_to_multiple_of=9)
    if rows:
        batch = type(batch)(**{k: v[:rows] if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()})
    with torch.no_grad():
        torch.testing.assert_close(token_stats(model, batch).value, dense_stats(model, batch).value)
    assert_like_dense(model, batch)
    assert reasons


def test_a_model_that_projects_only_the_last_state_is_refused():
    model = tiny_llama(seed=4)
    model.__class__, model.way = Projecting, lambda h: model.lm_head(h[:, -1:])
    with pytest.raises(ValueError, match="columns of logits"):
        token_stats(model, answers())


def test_a_loss_by_labels_is_the_models_own(reasons):
    model, batch = altered(lambda z, m: z), answers()
    _, _, outputs = token_loss(model, batch, OBJECTIVE, labels=batch.input_ids)
    torch.testing.assert_close(outputs.loss, model(**batch.model_inputs(), labels=batch.input_ids).loss)
    assert reasons == ["labels ask it for a loss of its own"]


def test_the_log_says_once_why(caplog, monkeypatch):
    monkeypatch.setattr(of_models, "_logged", set())
    with caplog.at_level(logging.WARNING, logger="inverselm"):
        model = altered(ALTERATIONS["a bias"])
        for _ in range(2):
            token_stats(model, answers())
        token_stats(tiny_llama(), answers())
    (record,) = caplog.records
    assert "it does more to its logits than to scale and cap them" in record.getMessage()


class LargestResult(TorchDispatchMode):
    """Size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.size = max(self.size, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "phi"])
def test_the_logits_are_never_whole(family):
    model = tiny_family(family, vocab_size=4096)
    ids = [[5 + i for i in range(20)]] * 4
    batch = TokenBatch.from_ids([[1, 3]] * 4, ids, pad_token_id=0, eos_token_ids=[2])
    with LargestResult() as soft:
        token_stats(model, batch)
    with LargestResult() as dense:
        dense_stats(model, batch)
    assert soft.size <= 80 * 2048 + 4 * 2048 < 80 * 4096 <= dense.size
