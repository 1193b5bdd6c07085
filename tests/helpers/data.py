"""Tiny tokenizers and datasets: byte-level, so that any text round-trips; made on the spot."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from helpers.models import tiny_llama
from inverselm.training.scratch_tokenizer import build_tokenizer

CHATML_WITH_NEWLINE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>\\n' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML as published models write it: a line break behind every `<|im_end|>`, the EOS."""


def sums(count: int = 16) -> list[dict[str, str]]:
    """Prompt-completion rows of different lengths."""
    pairs = [(a, b) for a in range(10) for b in range(8)]
    return [{"prompt": f"Q: {a}+{b}=", "completion": f" {a + b}" + " ok" * (a % 3 + b % 2)} for a, b in pairs][::5][
        :count
    ]


def texts(count: int = 16) -> list[dict[str, str]]:
    """Rows of one text each."""
    return [{"text": row["prompt"] + row["completion"]} for row in sums(count)]


def chats(count: int = 16, turns: int = 1) -> list[dict[str, Any]]:
    """Conversations of `turns` questions and answers each."""
    rows = sums(count)
    talk = lambda i: [
        {"role": "user", "content": rows[i % count]["prompt"]},
        {"role": "assistant", "content": rows[i % count]["completion"]},
    ]
    return [{"messages": [message for k in range(turns) for message in talk(i + k)]} for i in range(count)]


def chat_pairs(count: int = 16) -> list[dict[str, Any]]:
    """Conversational prompt-completion rows."""
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in chats(count)]


@cache
def _byte_level(chat: str | None) -> PreTrainedTokenizerFast:
    section: dict[str, Any] = {"type": "bpe", "vocab_size": 290}
    if chat:
        section["chat_template"] = "chatml"
    tokenizer = build_tokenizer(section, [text["text"] for text in texts()])
    if chat == "newline":
        tokenizer.chat_template = CHATML_WITH_NEWLINE
    return tokenizer


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with `<|endoftext|>` (EOS) and `<|pad|>`, no chat template."""
    return _byte_level(None)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose ChatML puts a line break behind `<|im_end|>` (EOS)."""
    return _byte_level("newline")


def clean_chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose ChatML ends an answer with its EOS."""
    return _byte_level("clean")


@cache
def toy_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character of the sums, some 20 in all: a random model's answers end by themselves now and then."""
    section = {"type": "char", **({"chat_template": "chatml"} if chat else {})}
    return build_tokenizer(section, [text["text"] for text in texts()])


def tiny_for(tokenizer: PreTrainedTokenizerFast, seed: int = 0, dtype: torch.dtype = torch.float32, **kwargs: Any):
    """A tiny llama with the tokenizer's vocabulary and special tokens."""
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return tiny_llama(seed, vocab_size=len(tokenizer), dtype=dtype, **{**ids, **kwargs})
