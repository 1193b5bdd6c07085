"""Tiny random causal LMs, built on the spot: no download, no dropout, eval mode."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from inverselm.objectives import iqlearn
from inverselm.token_mdp import TokenBatch, TokenStats, stats_from_logits, token_logits, token_loss, token_stats


def _build(model_class: type, config: Any, seed: int, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():  # the usual 0.02 would make every policy nearly uniform
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def tiny_llama(
    seed: int = 0, vocab_size: int = 64, dtype: torch.dtype = torch.float32, tied: bool = False, **kwargs: Any
) -> LlamaForCausalLM:
    """Rotary positions, untied head."""
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **kwargs,
    }
    return _build(
        LlamaForCausalLM, LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=tied, **settings), seed, dtype
    )


def tiny_gpt2(
    seed: int = 0, vocab_size: int = 64, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> GPT2LMHeadModel:
    """Learned absolute positions: a shift by left padding changes the result; tied head."""
    settings = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "summary_first_dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **kwargs,
    }
    return _build(GPT2LMHeadModel, GPT2Config(vocab_size=vocab_size, **settings), seed, dtype)


def tiny_gemma2(
    seed: int = 0, vocab_size: int = 64, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> Gemma2ForCausalLM:
    """A tanh softcap on the logits, low enough to bite; tied head."""
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 64,
        "max_position_embeddings": 128,
        "final_logit_softcapping": 2.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **kwargs,
    }
    return _build(Gemma2ForCausalLM, Gemma2Config(vocab_size=vocab_size, **settings), seed, dtype)


TINY_MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "gemma2": tiny_gemma2}


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Copies of the gradients by parameter name."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


_HEADS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
_ROTARY = {**_HEADS, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_ROTARY, "tie_word_embeddings": False},
    "llama, tied": {**_ROTARY, "tie_word_embeddings": True},
    "qwen2": _ROTARY,
    "qwen3": _ROTARY,
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},  # a bias in the head
    "gpt_neox": {**_HEADS, "intermediate_size": 32},
    "opt": {**_HEADS, "ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0},
    "phi": {**_HEADS, "intermediate_size": 32},  # a bias in the head
    "gemma2": {**_ROTARY, "final_logit_softcapping": 2.0},
    "gemma3_text": {**_ROTARY, "final_logit_softcapping": 2.0},
    "recurrent_gemma": {**_ROTARY, "num_hidden_layers": 3, "lru_width": 16, "logits_soft_cap": 2.0},
    "cohere": {**_ROTARY, "logit_scale": 0.3},
    "cohere2": {**_ROTARY, "logit_scale": 0.3},
    "granite": {**_ROTARY, "logits_scaling": 3.0},
    "hyperclovax": {**_ROTARY, "logits_scaling": 3.0},
    "minicpm3": {**_HEADS, **_LATENT, "intermediate_size": 32, "num_key_value_heads": 2, "dim_model_base": 8},
    "falcon_h1": {
        **_ROTARY, "lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_d_state": 8, "mamba_n_groups": 1,
    },
    "mixtral": {**_ROTARY, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_ROTARY, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
    },
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "stablelm": _ROTARY,
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 128},
}  # fmt: skip
"""Settings of tiny models; a family's name up to a comma is its `model_type`. Scales and caps are not the defaults."""


def tiny_family(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """A tiny causal LM of the family, with random biases too."""
    settings = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **FAMILIES[name], **kwargs}
    model = _build(AutoModelForCausalLM.from_config, AutoConfig.for_model(name.split(",")[0], **settings), seed, dtype)
    if model.get_output_embeddings().bias is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


def with_lora(model: Any, *targets: str, adapters: tuple[str, ...] = ("default",), **options: Any) -> Any:
    """LoRA adapters with random weights, all of them active."""
    torch.manual_seed(0)
    make = lambda: LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, **options)
    model = get_peft_model(model, make(), adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, make())
    model.base_model.set_adapter(list(adapters))
    return model.eval()


def left_over(model: torch.nn.Module) -> dict[str, Any]:
    """What is set on the modules themselves, and the methods among it."""
    methods = ("forward", "_call_impl")
    return {n: (set(vars(m)), *(vars(m).get(name) for name in methods)) for n, m in model.named_modules()}


OBJECTIVE = partial(iqlearn, td_coef=0.3, gamma=0.9)


def answers(**kwargs: Any) -> TokenBatch:
    """Three prompts with answers of different lengths, one of them truncated."""
    prompts, completions = [[1, 5, 6, 7, 8], [1, 9], [1, 10, 11]], [[20, 21, 2], [22, 23, 24, 25], [26, 2]]
    return TokenBatch.from_ids(prompts, completions, pad_token_id=0, eos_token_ids=[2], **kwargs)


def dense_stats(model: torch.nn.Module, batch: TokenBatch, temperature: float = 1.0, **forward: Any) -> TokenStats:
    """From the model's whole logits."""
    outputs, first = token_logits(model, batch, **forward)
    return stats_from_logits(
        outputs.logits, batch, first_column=first, entropy=True, greedy=True, temperature=temperature
    )


def every_number(stats: TokenStats) -> torch.Tensor:
    """A scalar with gradients through all numbers of the stats."""
    return (stats.log_prob + 0.3 * (stats.action_logit - stats.next_value).square() + 0.1 * stats.entropy).sum()


def assert_like_dense(
    model: torch.nn.Module, batch: TokenBatch, *, temperature: float = 1.0, tolerance: float = 1e-5, **forward: Any
) -> None:
    """`token_stats` and `token_loss` give the dense reference's numbers, and gradients of all parameters."""

    def of(make: Any) -> tuple[TokenStats, torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        stats, loss = make()
        if loss.requires_grad:
            loss.backward()
        return stats.detach(), loss.detach(), gradients(model)

    def plain(stats: TokenStats) -> tuple[TokenStats, torch.Tensor]:
        return stats, every_number(stats)

    def fused() -> tuple[TokenStats, torch.Tensor]:
        loss, stats, _ = token_loss(model, batch, OBJECTIVE, temperature=temperature, **forward)
        return stats, loss.value

    def reference() -> tuple[TokenStats, torch.Tensor]:
        stats = dense_stats(model, batch, temperature, **forward)
        return stats, OBJECTIVE(stats).value

    pairs = {
        "token_stats": (
            lambda: plain(token_stats(model, batch, entropy=True, temperature=temperature, **forward)),
            lambda: plain(dense_stats(model, batch, temperature, **forward)),
        ),
        "token_loss": (fused, reference),
    }
    for name, (ours, theirs) in pairs.items():
        (stats, loss, grads), (expected_stats, expected_loss, expected_grads) = of(ours), of(theirs)
        _assert_close(loss, expected_loss, tolerance, name)
        for field in ("action_logit", "value", "next_value", "entropy", "greedy"):
            _assert_close(getattr(stats, field), getattr(expected_stats, field), tolerance, f"{name} {field}")
        assert grads.keys() == expected_grads.keys()
        size = max((g.abs().max().item() for g in expected_grads.values()), default=1.0)
        assert size > 1e-3
        for key, expected in expected_grads.items():
            _assert_close(grads[key] / size, expected / size, tolerance, f"{name} {key}")


def _assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")
