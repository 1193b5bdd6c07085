"""Tiny random causal LMs, built on the spot: no download, no dropout, eval mode."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)


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
