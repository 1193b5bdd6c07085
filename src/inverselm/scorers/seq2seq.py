"""What encoder-decoder models need to know of prompts and answers: how they become ids, and what comes first."""

from __future__ import annotations

from typing import Any

from ..errors import UserError
from ..token_mdp.head import unwrap
from .text import EncodedPair, encode_pair, prompt_ids


def decoder_start_token_id(model: Any) -> int:
    """What the decoder is fed first: of the model's configuration, else of its generation configuration.

    Raises:
        UserError: neither says.
    """
    inner = unwrap(model)
    for config in (inner.config, getattr(inner, "generation_config", None)):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    raise UserError(
        "The model does not say what its decoder starts with: set model.config.decoder_start_token_id (T5: padding)."
    )


def position_limits(config: Any) -> tuple[int | None, int | None]:
    """How many positions the encoder and the decoder have; None where there is no limit (relative positions)."""
    found = []
    for part in ("encoder", "decoder"):
        own = getattr(config, part, config)  # the configuration of two joined models holds both
        limit = getattr(own, f"max_{part}_position_embeddings", getattr(own, "max_position_embeddings", None))
        found.append(limit if isinstance(limit, int) and limit > 0 else None)
    return found[0], found[1]


def encode_seq2seq_pair(
    tokenizer: Any,
    prompt: Any,
    completion: Any,
    add_eos: bool = True,
    *,
    max_source_length: int | None = None,
) -> EncodedPair:
    """Tokenise a demonstration for an encoder-decoder: the encoder's ids, and the labels of the decoder.

    Prompt and completion are tokenised apart, each with the special tokens that the tokenizer gives a source and a
    target (T5: EOS at the end of both). Conversations go through the chat template as one, and are split. What a
    tokenizer or a template puts behind the final EOS is left out: the episode is over.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: a string or a list of chat messages.
        completion: of the same kind, or a list of token ids, which is kept as it is.
        add_eos: end the labels with EOS. Off for answers that were cut.
        max_source_length: cut a longer prompt at its end; the special tokens of a text are kept.

    Raises:
        UserError: as :func:`encode_pair`.

    Example:
        >>> encode_seq2seq_pair(tokenizer, "2+2=", "4").completion_ids
    """
    given = isinstance(completion, (list, tuple)) and (not completion or isinstance(completion[0], int))
    if not isinstance(prompt, str) or not (given or isinstance(completion, str)):
        pair = encode_pair(tokenizer, prompt, completion, add_eos=add_eos)
        return EncodedPair(pair.prompt_ids[:max_source_length], pair.completion_ids)
    source = prompt_ids(tokenizer, prompt)
    if max_source_length is not None and len(source) > max_source_length:
        source = list(tokenizer(text=prompt, truncation=True, max_length=max_source_length)["input_ids"])
    if given:
        return EncodedPair(source, list(completion))
    return EncodedPair(source, _target(tokenizer, completion, add_eos))


def _target(tokenizer: Any, text: str, add_eos: bool) -> list[int]:
    eos = tokenizer.eos_token_id
    ids = list(tokenizer(text_target=text.removesuffix(tokenizer.eos_token))["input_ids"])
    if eos not in tokenizer(text_target="")["input_ids"]:
        ids.append(eos)  # this tokenizer does not end a target by itself
    last = max(i for i, token in enumerate(ids) if token == eos)
    return ids[: last + 1] if add_eos else ids[:last]
