"""What a row of a file must hold to be looked at, and its parts as text."""

from __future__ import annotations

import json
from typing import Any

from ..errors import UserError

_FACT = 300  # characters of another column that are shown


def check_record(record: dict[str, Any], where: str, need_scores: bool = False) -> bool:
    """Whether the row holds token rewards; plain rows need a prompt and a completion.

    Args:
        record: the row.
        where: its place, for messages.
        need_scores: refuse a row without token rewards.

    Raises:
        UserError: what is missing or of another type.

    Example:
        >>> check_record({"prompt": "1+1=", "completion": "2"}, "sums.jsonl: line 1")
        False
    """
    prompt, completion = record.get("prompt"), record.get("completion")
    scored = record.get("tokens") is not None
    if prompt is None or (completion is None and not scored):
        hint = "; split 'messages': all but the last are the prompt" if "messages" in record else ""
        there = ", ".join(f"'{name}'" for name in record) or "no columns"
        raise UserError(f"{where}: needs 'prompt' and 'completion', but has {there}{hint}")
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not (value is None or isinstance(value, str) or _are_messages(value)):
            raise UserError(f"{where}: '{name}' is neither text nor a list of chat messages")
    if scored and not (isinstance(record["tokens"], list) and all(map(_is_token, record["tokens"]))):
        raise UserError(f"{where}: 'tokens' is no list of tokens with 'text' and 'reward', as `inverselm score` writes")
    if need_scores and not scored:
        raise UserError(f"{where}: has no token rewards; name the model that gives them with --model_name_or_path")
    return scored


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def _is_token(token: Any) -> bool:
    if not isinstance(token, dict) or not isinstance(token.get("text"), str):
        return False
    number = lambda value: value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    return "reward" in token and number(token["reward"]) and isinstance(token.get("token_id", 0), int)


def shown(prompt: Any) -> str:
    """A prompt as text; of chat messages a paragraph each."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def answer_text(record: dict[str, Any]) -> str:
    """The answer of a row that `check_record` took."""
    completion = record.get("completion")
    if isinstance(completion, str):
        return completion
    if completion is not None:
        return "\n\n".join(str(message.get("content")) for message in completion)
    return str(record.get("scored_text") or "".join(token["text"] for token in record["tokens"]))


def text_fact(value: Any) -> str:
    """Another column of a row as a short text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _FACT else text[: _FACT - 1] + "…"
