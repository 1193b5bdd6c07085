"""The soft-Q head in the place of all kinds of output layers, inside all kinds of wrappers."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils._pytree import tree_map

from helpers.models import (
    answers,
    assert_like_dense,
    every_number,
    gradients,
    left_over,
    tiny_llama,
    with_lora,
)
from inverselm.token_mdp import stats_from_logits, token_logits, token_stats


def with_peft(model, config):
    """An adapter with random weights."""
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def of_class(base, **attributes):
    """The model with its output layer of a class derived from `base`."""
    model = tiny_llama(1)
    model.lm_head.__class__ = type("Derived", (base,), attributes)
    return model


def changed(change, model=None):
    model = tiny_llama(1) if model is None else model
    change(model)
    return model


def biased(model):
    model.lm_head.bias = nn.Parameter(torch.randn(64))


def two_times(model):
    original = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 2.0 * original(hidden)


def gathered(model):
    """As DeepSpeed's third stage has it: the weight is there once the layer is called."""
    weight = model.lm_head.weight
    whole, weight.ds_shape = weight.data, weight.shape
    weight.data = torch.empty(0)
    model.lm_head.register_forward_pre_hook(lambda *_: setattr(weight, "data", whole))
    model.model.register_forward_pre_hook(lambda *_: setattr(weight, "data", torch.empty(0)))


class Subclass(torch.Tensor):
    """A weight of another type, as quantised or distributed ones are."""


def disabled_after_merging(model):
    model.merge_adapter()
    model.base_model.disable_adapter_layers()


MODULES_TO_SAVE = {"modules_to_save": ["lm_head"]}
SOFT = {
    "frozen": lambda: changed(lambda m: m.lm_head.requires_grad_(False)),
    "all frozen but the norm": lambda: changed(lambda m: m.requires_grad_(False).model.norm.requires_grad_(True)),
    "all frozen": lambda: changed(lambda m: m.requires_grad_(False)),
    "bias": lambda: changed(biased),
    "subclass": lambda: of_class(nn.Linear),
    "weight norm": lambda: changed(lambda m: nn.utils.parametrizations.weight_norm(m.lm_head)),
    "forward attribute on the model": lambda: changed(lambda m: setattr(m, "forward", m.forward)),
    "hook before it": lambda: changed(lambda m: m.lm_head.register_forward_pre_hook(lambda _, args: 2.0 * args[0])),
    "gathered in the call": lambda: changed(gathered),
    "lora": lambda: with_lora(tiny_llama(1), "lm_head", "q_proj"),
    "lora with biases": lambda: with_lora(changed(biased), "lm_head", lora_bias=True),
    "lora, rank-stabilised": lambda: with_lora(tiny_llama(1), "lm_head", use_rslora=True, lora_alpha=3),
    "lora, dropout in evaluation": lambda: with_lora(tiny_llama(1), "lm_head", lora_dropout=0.5),
    "lora, two adapters": lambda: with_lora(tiny_llama(1), "lm_head", "q_proj", adapters=("a", "b")),
    "lora, one of two": lambda: changed(
        lambda m: m.set_adapter("b"), with_lora(tiny_llama(1), "lm_head", adapters=("a", "b"))
    ),
    "lora, disabled": lambda: changed(
        lambda m: m.base_model.disable_adapter_layers(), with_lora(tiny_llama(1), "lm_head", "q_proj")
    ),
    "lora, merged": lambda: changed(lambda m: m.merge_adapter(), with_lora(tiny_llama(1), "lm_head", "q_proj")),
    "lora, tied": lambda: with_lora(tiny_llama(1, tied=True), "lm_head"),
    "lora elsewhere, tied": lambda: with_lora(tiny_llama(1, tied=True), "q_proj", "down_proj"),
    "lora on the embedding, tied": lambda: with_lora(tiny_llama(1, tied=True), "embed_tokens"),
    "saved whole": lambda: with_lora(tiny_llama(1), "q_proj", **MODULES_TO_SAVE),
    "saved whole, another weight": lambda: changed(
        lambda m: m.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(2.0),
        with_lora(tiny_llama(1), "q_proj", **MODULES_TO_SAVE),
    ),
    "saved whole, disabled": lambda: changed(
        lambda m: (
            m.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(2.0),
            m.base_model.disable_adapter_layers(),
        ),
        with_lora(tiny_llama(1), "q_proj", **MODULES_TO_SAVE),
    ),
    "new tokens": lambda: with_lora(tiny_llama(1), "q_proj", trainable_token_indices=[20, 21]),
    "virtual tokens": lambda: with_peft(
        tiny_llama(1), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    ),
    "prefix": lambda: with_peft(
        tiny_llama(1), peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM", token_dim=8, num_layers=2)
    ),
    "layers compiled": lambda: changed(lambda m: [layer.compile(backend="eager") for layer in m.model.layers]),
    "wrapped": lambda: Wrapper(tiny_llama(1)),
}
DENSE = {
    "replaced forward": lambda: changed(two_times),
    "own forward": lambda: of_class(nn.Linear, forward=lambda self, x: 2.0 * nn.Linear.forward(self, x)),
    "weight of another type": lambda: changed(
        lambda m: setattr(m.lm_head, "weight", nn.Parameter(m.lm_head.weight.detach().as_subclass(Subclass)))
    ),
    "hook behind it": lambda: changed(lambda m: m.lm_head.register_forward_hook(lambda _, args, out: 2.0 * out)),
    "hook behind it, for all shapes": lambda: changed(
        lambda m: m.lm_head.register_forward_hook(lambda _, args, out: tree_map(lambda x: 2.0 * x, out))
    ),
    "hook on its gradient": lambda: changed(
        lambda m: m.lm_head.register_full_backward_hook(lambda _, grad, out: (3.0 * grad[0],))
    ),
    "hook behind the model": lambda: changed(lambda m: m.register_forward_hook(halved)),
    "hook inside lora": lambda: changed(
        lambda m: m.base_model.model.lm_head.base_layer.register_forward_hook(lambda _, args, out: 2.0 * out),
        with_lora(tiny_llama(1), "lm_head"),
    ),
    "hook on lora's factor": lambda: changed(
        lambda m: m.base_model.model.lm_head.lora_B["default"].register_forward_hook(lambda _, args, out: 2.0 * out),
        with_lora(tiny_llama(1), "lm_head"),
    ),
    "lora, merged and disabled": lambda: changed(disabled_after_merging, with_lora(tiny_llama(1), "lm_head")),
    "dora": lambda: with_lora(tiny_llama(1), "lm_head", use_dora=True),
    "new tokens, tied": lambda: with_lora(tiny_llama(1, tied=True), "q_proj", trainable_token_indices=[20, 21]),
    "new tokens of the head": lambda: with_lora(tiny_llama(1), "q_proj", trainable_token_indices={"lm_head": [20, 21]}),
    "adalora": lambda: with_peft(
        tiny_llama(1), peft.AdaLoraConfig(target_modules=["lm_head"], total_step=10, tinit=1, tfinal=1)
    ),
    "ia3": lambda: with_peft(
        tiny_llama(1), peft.IA3Config(target_modules=["lm_head", "q_proj"], feedforward_modules=[])
    ),
    "loha": lambda: with_peft(tiny_llama(1), peft.LoHaConfig(r=2, target_modules=["lm_head"])),
    "vera": lambda: with_peft(tiny_llama(1), peft.VeraConfig(r=2, target_modules=["lm_head"])),
    "layer compiled": lambda: changed(lambda m: setattr(m, "lm_head", torch.compile(m.lm_head, backend="eager"))),
    "layer compiled in place": lambda: changed(lambda m: m.lm_head.compile(backend="eager")),
    "model compiled": lambda: torch.compile(tiny_llama(1), backend="eager"),
    "model compiled in place": lambda: changed(lambda m: m.compile(backend="eager")),
    "model compiled and wrapped": lambda: Wrapper(torch.compile(tiny_llama(1), backend="eager")),
    "data parallel": lambda: nn.DataParallel(tiny_llama(1)),
    "data parallel and wrapped": lambda: Wrapper(nn.DataParallel(tiny_llama(1))),
    "wrapped, called twice": lambda: Wrapper(tiny_llama(1), times=2),
    "wrapped, logits scaled": lambda: Wrapper(tiny_llama(1), scale=3),
    "wrapped, logits divided": lambda: Wrapper(tiny_llama(1), scale=0.3),
    "wrapped, inside out": lambda: InsideOut(tiny_llama(1)),
}


def halved(module, args, outputs):
    outputs.logits = outputs.logits / 2


class Wrapper(nn.Module):
    """As DDP wraps, or with a will of its own."""

    def __init__(self, module, times=1, scale=None):
        super().__init__()
        self.module, self.times, self.scale = module, times, scale

    def forward(self, **kwargs):
        for _ in range(self.times):
            outputs = self.module(**kwargs)
        if self.scale:
            outputs.logits = outputs.logits * self.scale
        return outputs


class InsideOut(nn.Module):
    """Calls the parts of the model, and never the model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, logits_to_keep=0, **kwargs):
        hidden = self.module.model(**kwargs).last_hidden_state
        return SimpleNamespace(logits=self.module.lm_head(hidden[:, -logits_to_keep:]))


@pytest.mark.parametrize("layer", SOFT)
def test_layers_it_stands_in_for(layer, reasons):
    model = SOFT[layer]()
    before = left_over(model)
    assert_like_dense(model, answers())
    if layer != "prefix":  # PEFT takes no positions there
        assert_like_dense(model, answers(padding_side="left"), temperature=0.7)
    assert not reasons
    assert left_over(model) == before


@pytest.mark.parametrize("layer", DENSE)
def test_layers_it_leaves_alone(layer, reasons):
    model = DENSE[layer]()
    before = left_over(model)
    ids = [[1, 5], [1, 6, 7], [1, 8], [9, 3]]
    batch = type(answers()).from_ids(ids, [[20, 21, 2]] * 4, pad_token_id=0, eos_token_ids=[2])  # as many rows as stats
    assert_like_dense(model, batch)
    assert reasons
    if "merged" not in layer:
        assert left_over(model) == before


def test_adapters_chosen_row_by_row_are_left_to_peft(reasons):
    model, batch = with_lora(tiny_llama(1), "lm_head", adapters=("a", "b")), answers()
    with torch.no_grad():
        mixed = token_stats(model, batch, adapter_names=["a", "__base__", "b"]).log_prob
        assert reasons == ["its output layer is called in a way of its own"]
        for row, name in ((0, "a"), (2, "b")):
            model.set_adapter(name)
            torch.testing.assert_close(mixed[row], token_stats(model, batch).log_prob[row])
        with model.disable_adapter():
            torch.testing.assert_close(mixed[1], token_stats(model, batch).log_prob[1])
    assert len(reasons) == 1


def test_lora_dropout_in_training(reasons):
    """The same draws as the layer's own, if it is asked for the same columns."""
    model, batch = with_lora(tiny_llama(1), "lm_head", lora_dropout=0.5).train(), answers()
    found = []
    for run in ("soft", "own"):
        torch.manual_seed(7)
        model.zero_grad()
        if run == "soft":
            stats = token_stats(model, batch, entropy=True)
        else:
            stats = stats_from_logits(token_logits(model, batch, all_columns=True)[0].logits, batch, entropy=True)
        every_number(stats).backward()
        found.append((stats.log_prob.detach(), gradients(model)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert (found[0][0] - token_stats(model.eval(), batch).log_prob).abs().max() > 1e-2
    assert not reasons
