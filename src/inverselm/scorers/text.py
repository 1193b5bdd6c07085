"""Between text and token ids: encode a demonstration as TRL's SFT does, and find each token's place in the text."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import UserError


class EncodedPair(NamedTuple):
    """Token ids of a prompt and of its completion."""

    prompt_ids: list[int]
    completion_ids: list[int]


def encode_pair(tokenizer: Any, prompt: Any, completion: Any, add_eos: bool = True) -> EncodedPair:
    """Tokenise a demonstration as TRL's SFT does: prompt and completion together, split where the prompt's ids end.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: a string or a list of chat messages.
        completion: of the same kind, or a list of token ids, which is kept as it is.
        add_eos: append EOS to a text completion that does not end with it.

    Raises:
        UserError: prompt and completion are of different kinds, or the completion holds another speaker's turn.

    Example:
        >>> encode_pair(tokenizer, "2+2=", "4").completion_ids
    """
    if isinstance(completion, (list, tuple)) and (not completion or isinstance(completion[0], int)):
        return EncodedPair(prompt_ids(tokenizer, prompt), list(completion))
    if isinstance(prompt, str) and isinstance(completion, str):
        if add_eos and not completion.endswith(tokenizer.eos_token):
            completion = completion + tokenizer.eos_token
        return _split(prompt_ids(tokenizer, prompt), tokenizer(text=prompt + completion)["input_ids"])
    if isinstance(prompt, list):
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
        if any(message.get("role") != "assistant" for message in answer):
            raise UserError("The completion holds another speaker's turn: the turns before an answer are prompt.")
        asked = prompt_ids(tokenizer, prompt)
        whole = tokenizer.apply_chat_template(prompt + answer, tokenize=True, return_dict=True)["input_ids"]
        ids = _split(asked, whole)
        return EncodedPair(ids.prompt_ids, _up_to_eos(tokenizer, ids.completion_ids, keep_eos=add_eos))
    raise UserError("Prompt and completion must be of one kind: two strings, or two lists of chat messages.")


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """Ids of a prompt: a string, or chat messages with the template's generation prompt.

    Raises:
        UserError: messages, but the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError("The prompt is a list of chat messages, but the tokenizer has no chat template; set one.")
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def _split(prompt: list[int], whole: list[int]) -> EncodedPair:
    length = 0
    for a, b in zip(prompt, whole, strict=False):
        if a != b:
            break
        length += 1
    return EncodedPair(list(whole[:length]), list(whole[length:]))


def _up_to_eos(tokenizer: Any, ids: list[int], keep_eos: bool) -> list[int]:
    """Cut what a template puts behind the final EOS: the episode is over there."""
    ends = [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id]
    return ids if not ends else ids[: ends[-1] + (1 if keep_eos else 0)]


def token_spans(tokenizer: Any, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """Text of the ids, and each token's (start, end) in it, in characters.

    Exact for any tokenizer, byte-level ones included: a token that only begins a character gets an empty span, and the
    token that completes it gets the character. Special tokens are shown as text.

    Example:
        >>> text, spans = token_spans(tokenizer, ids); [text[a:b] for a, b in spans]
    """
    text = ""
    spans: list[tuple[int, int]] = []
    window, read = 0, 0  # ids[window:read] is decoded context, as decoding depends on the neighbour to the left
    for i in range(len(ids)):
        before = _decode(tokenizer, ids[window:read])
        after = _decode(tokenizer, ids[window : i + 1])
        unfinished = after.endswith("\ufffd") and i + 1 < len(ids)
        if unfinished:
            spans.append((len(text), len(text)))
            continue
        new = after[len(before) :]
        spans.append((len(text), len(text) + len(new)))
        text += new
        window, read = read, i + 1
    return text, spans


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
