"""What a tokenizer and a model say about the end of an answer."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from ..errors import UserError

logger = logging.get_logger(__name__)


def eos_token_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Every id that ends an answer: the tokenizer's EOS and those of the model's generation config.

    Raises:
        UserError: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "The tokenizer has no EOS token, so no answer ever ends. Set tokenizer.eos_token (or pass --eos_token)."
        )
    generation = getattr(model, "generation_config", None)
    declared = getattr(generation, "eos_token_id", None)
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return [tokenizer.eos_token_id, *(i for i in declared if i != tokenizer.eos_token_id)]


def tokens_after_eos(tokenizer: Any, eos_ids: list[int]) -> list[int]:
    """Token ids that the chat template puts behind an answer's final EOS; empty without a chat template.

    Warns if the template never writes an EOS: every answer would count as truncated.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return []
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
    ends = [position for position, token in enumerate(ids) if token in eos_ids]
    if not ends:
        logger.warning(
            f"The chat template never writes an EOS token (ids {eos_ids}): every answer will count as truncated, and "
            "its last value will be bootstrapped. Add the EOS token to the template, or set eos_token to its end mark."
        )
        return []
    return list(ids[ends[-1] + 1 :])
