"""Tiny random encoder-decoder models, and their numbers computed one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.data import sums, text_tokenizer
from helpers.models import _build

EOS = 1


def tiny_t5(
    seed: int = 0, vocab_size: int = 40, dtype: torch.dtype = torch.float32, v1_1: bool = False, **kwargs: Any
) -> T5ForConditionalGeneration:
    """Padding (0) is the start token. Tied and scaled by d_model**-0.5, or as in T5 v1.1: gated, head of its own."""
    family = {"feed_forward_proj": "gated-gelu"} if v1_1 else {}
    ids = {"pad_token_id": 0, "eos_token_id": EOS, "decoder_start_token_id": 0}
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    settings = {**ids, **sizes, **family, **kwargs}
    config = T5Config(vocab_size=vocab_size, tie_word_embeddings=not v1_1, **settings)
    model = _build(T5ForConditionalGeneration, config, seed, dtype)
    assert config.scale_decoder_outputs is not v1_1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed + 100)
        if v1_1:
            model.lm_head.weight = torch.nn.Parameter(0.4 * torch.randn(vocab_size, 16, dtype=dtype))
        else:
            model.shared.weight.mul_(8.0)  # of what is scaled down again
    return model


def tiny_bart(
    seed: int = 0, vocab_size: int = 40, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> BartForConditionalGeneration:
    """EOS (1) is the start token; absolute positions; a bias for each token is added behind the output layer."""
    ids = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": EOS, "decoder_start_token_id": EOS}
    sizes = {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    settings = {**ids, **sizes, "dropout": 0.0, "forced_eos_token_id": None, **kwargs}
    config = BartConfig(vocab_size=vocab_size, **settings)
    model = _build(BartForConditionalGeneration, config, seed, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 100)
        model.final_logits_bias.copy_(torch.randn(1, vocab_size))
    return model


SEQ2SEQ_MODELS = {
    "t5": tiny_t5,
    "t5 v1.1": lambda *args, **kwargs: tiny_t5(*args, v1_1=True, **kwargs),
    "bart": tiny_bart,
}


@cache
def _t5_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(text_tokenizer())
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    return tokenizer


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that ends every text with EOS by itself, as T5's."""
    return _t5_tokenizer()


def t5_for(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **kwargs: Any) -> T5ForConditionalGeneration:
    """A tiny T5 with the tokenizer's vocabulary and special tokens."""
    pad = tokenizer.pad_token_id
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad, "decoder_start_token_id": pad}
    return tiny_t5(seed, len(tokenizer), **{**ids, **kwargs})


def naive_numbers(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], eos: int = EOS
) -> list[dict[str, torch.Tensor]]:
    """Q, V, V(next) and so on of each answer's tokens: each alone through the model, straight from the definitions."""
    found = []
    start = model.config.decoder_start_token_id
    for prompt, answer in zip(prompts, answers, strict=True):
        fed = torch.tensor([[start, *answer]])
        q = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=fed).logits[0]
        value = q.logsumexp(-1)
        tokens = torch.arange(len(answer))
        after = torch.zeros_like(value[:1]) if answer[-1] == eos else value[-1:]
        log_pi = q[:-1].log_softmax(-1)
        found.append(
            {
                "action_logit": q[tokens, torch.tensor(answer)],
                "value": value[:-1],
                "next_value": torch.cat([value[1:-1], after]),
                "entropy": -(log_pi.exp() * log_pi).sum(-1),
                "log_prob": log_pi[tokens, torch.tensor(answer)],
                "greedy": q[:-1].argmax(-1) == torch.tensor(answer),
            }
        )
    return found


def naive_iqlearn(numbers: Sequence[dict[str, torch.Tensor]], td_coef: float, gamma: float) -> torch.Tensor:
    """Mean over actions of -log pi + lambda (Q - gamma V')^2."""
    each = [-n["log_prob"] + td_coef * (n["action_logit"] - gamma * n["next_value"]) ** 2 for n in numbers]
    return torch.cat(each).mean()


def rows_of(batch: dict[str, torch.Tensor]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers of a collator's batch, without padding."""
    prompts = [ids[m.bool()].tolist() for ids, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return prompts, [labels[labels != -100].tolist() for labels in batch["labels"]]


def questions(count: int = 16) -> list[dict[str, str]]:
    """Sums whose prompts, too, are of different lengths."""
    return [{**row, "prompt": "so " * (i % 4) + row["prompt"]} for i, row in enumerate(sums(count))]


def dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    """The rows as a dataset."""
    return Dataset.from_list(list(rows))
