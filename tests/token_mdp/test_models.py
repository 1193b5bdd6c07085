"""token_stats through real (tiny) models: padding, packing, logits_to_keep, LoRA, autocast."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from helpers.models import TINY_MODELS, gradients, tiny_llama
from inverselm.token_mdp import TokenBatch, token_logits, token_stats
from inverselm.token_mdp.head import unwrap

PROMPTS = [[1, 5, 6, 7, 8], [1, 9], [1, 10, 11]]
COMPLETIONS = [[20, 21, 2], [22, 23, 24, 25], [26, 2]]
FIELDS = ("action_logit", "value", "next_value", "entropy", "log_prob")


def padded(**kwargs) -> TokenBatch:
    return TokenBatch.from_ids(PROMPTS, COMPLETIONS, pad_token_id=0, eos_token_ids=[2], **kwargs)


def packed() -> TokenBatch:
    rows = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    actions = [[0] * len(p) + [1] * len(c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    return TokenBatch.build(
        torch.tensor([[token for row in rows for token in row]]),
        torch.tensor([[action for row in actions for action in row]]),
        eos_token_ids=[2],
        position_ids=torch.tensor([[t for row in rows for t in range(len(row))]]),
    )


LAYOUTS = {
    "right": padded,
    "left": lambda: padded(padding_side="left"),
    "right, wider": lambda: padded(pad_to_multiple_of=16),
    "left, wider": lambda: padded(padding_side="left", pad_to_multiple_of=16),
    "packed": packed,
}


def on_actions(stats, name):
    return getattr(stats, name)[stats.action_mask]


def alone(model):
    """Each document by itself through the bare model: what every layout has to reproduce."""
    numbers = {name: [] for name in FIELDS}
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        q = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        for k, token in enumerate(completion):
            state = len(prompt) - 1 + k
            ended = token == 2
            log_pi = q[state].log_softmax(-1)
            numbers["action_logit"].append(q[state, token])
            numbers["value"].append(q[state].logsumexp(-1))
            numbers["next_value"].append(q.new_zeros(()) if ended else q[state + 1].logsumexp(-1))
            numbers["entropy"].append(-(log_pi.exp() * log_pi).sum())
            numbers["log_prob"].append(log_pi[token])
    return {name: torch.stack(values) for name, values in numbers.items()}


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [
        *((family, torch.float32, 1e-5) for family in TINY_MODELS),
        ("gpt2", torch.float64, 1e-10),  # the other two compute their norms in float32 whatever they are given
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_and_packing_change_nothing(family, layout, dtype, tolerance):
    model = TINY_MODELS[family](seed=1, dtype=dtype)
    with torch.no_grad():
        stats = token_stats(model, LAYOUTS[layout](), entropy=True)
        reference = alone(model)
    for name in FIELDS:
        torch.testing.assert_close(on_actions(stats, name), reference[name], rtol=tolerance, atol=tolerance, msg=name)
        assert not getattr(stats, name)[~stats.action_mask].any()


@pytest.mark.parametrize("family", TINY_MODELS)
def test_padding_and_packing_change_no_gradient(family):
    # eager attention (gemma2) has no float64: the mask of a left-padded row overflows in its float32 softmax
    model = TINY_MODELS[family](seed=2, dtype=torch.float32 if family == "gemma2" else torch.float64)
    tolerance = {"gpt2": 1e-9, "llama": 1e-5, "gemma2": 1e-4}[family]
    found = {}
    for layout, make in LAYOUTS.items():
        model.zero_grad()
        stats = token_stats(model, make(), entropy=True)
        total = stats.log_prob + 0.3 * (stats.action_logit - stats.next_value).square() + 0.1 * stats.entropy
        total.sum().backward()
        found[layout] = gradients(model)
    reference = found.pop("right")
    assert max(g.abs().max() for g in reference.values()) > 1e-3
    for layout, gradient in found.items():
        for name, value in reference.items():
            torch.testing.assert_close(gradient[name], value, rtol=tolerance, atol=tolerance, msg=f"{layout} {name}")


class WithoutLogitsToKeep(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        return super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )


@pytest.mark.parametrize("layout", ["right", "packed"])
def test_logits_to_keep_is_only_a_saving(layout):
    model = tiny_llama(seed=3)
    plain = WithoutLogitsToKeep(model.config).eval()
    plain.load_state_dict(model.state_dict())
    batch = LAYOUTS[layout]()
    width = batch.input_ids.size(1)
    projected = {"model": [], "plain": []}
    hooks = [
        m.lm_head.register_forward_pre_hook(lambda _, args, name=name: projected[name].append(args[0].size(1)))
        for name, m in (("model", model), ("plain", plain))
    ]
    with torch.no_grad():
        kept, first = token_logits(model, batch)
        whole, zero = token_logits(plain, batch)
        asked, also_zero = token_logits(model, batch, all_columns=True)
        for hook in hooks:
            hook.remove()
        for name in FIELDS:
            ours, theirs = (getattr(token_stats(m, batch, entropy=True), name) for m in (model, plain))
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert projected == {"model": [width - first, width], "plain": [width]}
    assert first == (1 if layout == "right" else 4)
    assert kept.logits.size(1) == width - first
    assert zero == also_zero == 0
    assert whole.logits.size(1) == asked.logits.size(1) == width


def test_temperature_and_greedy():
    model, batch = tiny_llama(seed=4), padded()
    with torch.no_grad():
        logits, first = token_logits(model, batch)
        warm = token_stats(model, batch, temperature=2.0, greedy=True)
    states = batch.action_mask.nonzero() - torch.tensor([0, 1 + first])
    rows = logits.logits[states[:, 0], states[:, 1]]
    tokens = batch.input_ids[batch.action_mask]
    expected = (rows / 2).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(on_actions(warm, "log_prob"), expected)
    assert torch.equal(on_actions(warm, "greedy"), rows.argmax(-1) == tokens)


def test_lora():
    base = tiny_llama(seed=5)
    with torch.no_grad():
        before = token_stats(base, padded(), entropy=True)
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, settings).eval()
    assert unwrap(model) is base
    for batch in (padded(), padded(padding_side="left"), packed()):
        outputs, first = token_logits(model, batch)
        assert outputs.logits.size(1) == batch.input_ids.size(1) - first < batch.input_ids.size(1)
        stats = token_stats(model, batch, entropy=True)
        with torch.no_grad():
            reference = alone(model)
        for name in FIELDS:
            torch.testing.assert_close(on_actions(stats, name), reference[name], rtol=1e-5, atol=1e-5)
    assert (on_actions(stats, "log_prob") - on_actions(before, "log_prob")).abs().max() > 1e-3
    stats.log_prob.sum().backward()
    assert gradients(model)
    assert all("lora" in name for name in gradients(model))


def test_prompt_learning_puts_its_tokens_in_front():
    from peft import PromptTuningConfig

    base = tiny_llama(seed=6)
    model = get_peft_model(base, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        stats = token_stats(model, padded())
        for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            q = model(input_ids=torch.tensor([prompt + completion])).logits[0, 3:]
            states = q[len(prompt) - 1 : -1]
            expected = states.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(stats.log_prob[i][stats.action_mask[i]], expected, rtol=1e-5, atol=1e-5)


def autocast_outside(model):
    return torch.autocast("cpu", dtype=torch.bfloat16), model


def autocast_inside(model):
    """What accelerate does for `bf16=True`: nothing tells, until the forward is under way."""
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    return torch.autocast("cpu", enabled=False), model


def in_bfloat16(model):
    return torch.autocast("cpu", enabled=False), model.to(torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", [autocast_outside, autocast_inside, in_bfloat16])
def test_float32_head(way, bias):
    model = tiny_llama(seed=7)
    if bias:
        model.lm_head.bias = nn.Parameter(torch.randn(64))
    with torch.no_grad():
        model.lm_head.weight.mul_(5.0)  # V of tens of nats
    context, model = way(model)
    seen = []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = padded(padding_side="left")
    error = {}
    with torch.no_grad(), context:
        for on in (True, False):
            value = on_actions(token_stats(model, batch, float32_head=on), "value")
            with torch.autocast("cpu", enabled=False):
                weight, shift = model.lm_head.weight.float(), model.lm_head.bias
                exact = nn.functional.linear(seen[-1].float(), weight, None if shift is None else shift.float())
            columns = batch.action_mask[:, -exact.size(1) :].roll(-1, 1)
            error[on] = (value - exact.logsumexp(-1)[columns]).abs().max().item()
    assert error[True] < 1e-5 < 1e-3 < error[False]


def test_float32_head_has_the_same_gradients():
    model, batch = tiny_llama(seed=8), padded()
    token_stats(model, batch, float32_head=True).value.sum().backward()
    first = gradients(model)
    model.zero_grad()
    token_stats(model, batch, float32_head=False).value.sum().backward()
    assert all(torch.equal(first[name], value) for name, value in gradients(model).items())


def test_the_head_is_left_as_it_was():
    model, batch = tiny_llama(seed=9), padded()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        token_stats(model, batch)
        assert "forward" not in vars(model.lm_head)
        model.model.forward = lambda **kwargs: 1 / 0
        with pytest.raises(ZeroDivisionError):
            token_stats(model, batch)
    assert "forward" not in vars(model.lm_head)


def test_a_head_that_someone_replaced_is_used_and_kept():
    model, batch = tiny_llama(seed=10), padded()
    calls = []
    original = model.lm_head.forward

    def offloaded(hidden):  # accelerate's hooks sit like this
        calls.append(hidden.shape)
        return original(hidden)

    model.lm_head.forward = offloaded
    token_stats(model, batch)
    assert len(calls) == 1
    assert model.lm_head.forward is offloaded


def test_wrappers_are_seen_through():
    model = tiny_llama(seed=11)

    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **kwargs):
            return self.module(**kwargs)

    assert unwrap(Wrapped(Wrapped(model))) is model
    assert unwrap(torch.compile(Wrapped(model))) is model
    with torch.no_grad():
        outputs, first = token_logits(Wrapped(model), padded())
    assert outputs.logits.size(1) == padded().input_ids.size(1) - first
