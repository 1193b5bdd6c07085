"""Calls of models with the soft-Q head: precision, exceptions, nested calls, threads."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from helpers.models import (
    OBJECTIVE,
    answers,
    assert_like_dense,
    dense_stats,
    gradients,
    left_over,
    tiny_gemma2,
    tiny_gpt2,
    tiny_llama,
    with_lora,
)
from inverselm.token_mdp import project, stats_from_logits, token_loss, token_stats
from inverselm.token_mdp.head import unwrap


def at_training_in_bfloat16(model):
    return torch.autocast("cpu", dtype=torch.bfloat16), model


def as_accelerate_does(model):
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    return nullcontext(), model


def in_bfloat16(model):
    return nullcontext(), model.bfloat16()


@pytest.mark.parametrize("way", [at_training_in_bfloat16, as_accelerate_does, in_bfloat16])
@pytest.mark.parametrize("float32", [True, False])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gemma2])
def test_low_precision(make, float32, way, reasons):
    """Against the exact head of the very hidden states; 5 percent of a gradient is what bfloat16 leaves open."""
    model, batch = make(2), answers()
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    context, model = way(model)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = {}
    with context:
        stats = token_stats(model, batch, entropy=True, float32_head=float32)
        (loss, _), fused, _ = token_loss(model, batch, OBJECTIVE, float32_head=float32)
        assert project(model, batch).spec.dtype == torch.bfloat16
    for name, scalar in (("plain", OBJECTIVE(stats).value), ("fused", loss)):
        model.zero_grad()
        scalar.backward()
        found[name] = gradients(model)
    assert stats.value.dtype == loss.dtype == torch.float32
    cap = getattr(model.config, "final_logit_softcapping", None)
    z = nn.functional.linear(seen[0].double(), model.lm_head.weight.double())
    exact = stats_from_logits(cap * (z / cap).tanh() if cap else z, batch, entropy=True)
    tolerance = 1e-4 if float32 else 0.06
    for ours in (stats, fused):
        for field in ("action_logit", "value", "next_value", "entropy"):
            pair = getattr(ours, field).double(), getattr(exact, field)
            torch.testing.assert_close(*pair, rtol=0.0, atol=tolerance)
    model.zero_grad()
    with context:
        OBJECTIVE(dense_stats(model, batch)).value.backward()
    for grads in found.values():
        for name, expected in gradients(model).items():
            assert (grads[name] - expected).norm() < 0.05 * expected.norm() + 1e-4, name
    assert not reasons


def test_float64_stays_exact(reasons):
    """Also under autocast, which leaves float64 alone."""
    model, batch = tiny_gpt2(3, dtype=torch.float64), answers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_like_dense(model, batch, tolerance=1e-9)
    assert not reasons


def failing(stats, num_actions=None):
    raise KeyError("objective")


@pytest.mark.parametrize("peft_wrapped", [False, True])
def test_exceptions_leave_the_model_as_it_was(peft_wrapped, reasons):
    model = tiny_llama(1)
    model.forward = model.forward
    model = with_lora(model, "lm_head") if peft_wrapped else model
    batch, before = answers(), left_over(model)
    bad = replace(batch, input_ids=batch.input_ids.masked_fill(batch.input_ids == 21, 64))
    with pytest.raises(IndexError):
        token_stats(model, bad)
    assert left_over(model) == before
    with pytest.raises(KeyError, match="objective"):
        token_loss(model, batch, failing)
    assert left_over(model) == before
    hook = unwrap(model).model.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        token_stats(model, batch)
    hook.remove()
    assert left_over(model) == before
    assert_like_dense(model, batch)
    assert not reasons


def test_running_out_of_memory_is_no_verdict(reasons):
    model, batch = tiny_llama(1), answers()
    own, errors = model.forward, [torch.OutOfMemoryError("for once")]

    def forward(**kwargs):
        outputs = own(**kwargs)
        if errors:
            raise errors.pop()
        return outputs

    model.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        token_stats(model, batch)
    assert_like_dense(model, batch)
    assert not reasons


def test_an_objective_may_run_the_model_itself(reasons):
    """A reference policy in the same weights, for instance."""
    model, batch = with_lora(tiny_llama(4), "lm_head", "q_proj"), answers()
    runs = []

    def objective(stats, num_actions=None):
        with torch.no_grad(), model.disable_adapter():
            runs.append((model(**batch.model_inputs()).logits, token_stats(model, batch).log_prob))
        return OBJECTIVE(stats, num_actions=num_actions)

    (loss, _), _, _ = token_loss(model, batch, objective)
    with torch.no_grad():
        torch.testing.assert_close(loss.detach(), OBJECTIVE(dense_stats(model, batch)).value)
        with model.disable_adapter():
            expected = model(**batch.model_inputs()).logits, dense_stats(model, batch).log_prob
    for run in runs:
        torch.testing.assert_close(run, expected)
    assert not reasons


class Together:
    """Runs functions in threads of their own; their models' norms wait for each other, so that their calls overlap."""

    def __init__(self, *functions):
        self.barrier, self.results = threading.Barrier(len(functions)), [None] * len(functions)
        self.threads = [threading.Thread(target=self.run, args=pair, daemon=True) for pair in enumerate(functions)]

    def meet(self, *_):
        if threading.current_thread() in self.threads:
            self.barrier.wait(timeout=30)

    def run(self, place, function):
        try:
            self.results[place] = function()
        except BaseException as error:
            self.results[place] = error

    def __call__(self):
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self.threads)
        for result in self.results:
            if isinstance(result, BaseException):
                raise result
        return self.results


@pytest.mark.parametrize("make", [lambda: tiny_gemma2(5), lambda: with_lora(tiny_llama(5), "lm_head", "q_proj")])
def test_threads_do_not_disturb_each_other(make, reasons):
    """Two read stats at different temperatures, one takes a loss, one the logits: all within the model at once."""
    model, batch = make(), answers()
    other = answers(padding_side="left", pad_to_multiple_of=16)
    functions = (
        lambda: token_stats(model, batch, temperature=0.5).log_prob.detach(),
        lambda: token_stats(model, other, temperature=2.0).log_prob.detach(),
        lambda: token_loss(model, batch, OBJECTIVE)[0].value.detach(),
        lambda: model(**batch.model_inputs()).logits.detach(),
    )
    expected, before = [function() for function in functions], left_over(model)
    together = Together(*functions)
    unwrap(model).model.norm.register_forward_pre_hook(together.meet)  # before the output layer
    for result, alone in zip(together(), expected, strict=True):
        torch.testing.assert_close(result, alone)
    assert left_over(model) == before
    assert not reasons


def test_threads_learn_at_once(reasons):
    """Backward passes with recomputed layers in two threads, none of which waits for the other's lock."""
    model, batches = tiny_llama(6).train(), [answers(), answers(padding_side="left")]
    parameters = list(model.parameters())

    def gradient(batch):
        return torch.autograd.grad(token_stats(model, batch).log_prob.sum(), parameters)

    expected = [gradient(batch) for batch in batches]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    together = Together(*(partial(gradient, batch) for batch in batches))
    model.model.norm.register_forward_pre_hook(together.meet)
    for result, alone in zip(together(), expected, strict=True):
        torch.testing.assert_close(result, alone)
    assert not reasons
