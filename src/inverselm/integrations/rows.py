"""From a request to rows of token ids, with errors that say what to change; and from scores to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from .bodies import RequestError, kind_of, read_json

BODY_FIELDS = ("rows", "return_text")


@dataclass(frozen=True)
class Row:
    """A prompt and a completion to score.

    Attributes:
        prompt_ids: token ids of the prompt.
        completion_ids: token ids of the completion.
        action_mask: 1 where the policy chose the token, 0 elsewhere (a tool's answer); None: all chosen.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    action_mask: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        """Of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


class RowScores(NamedTuple):
    """Numbers of one row's completion, one per token; `values` is None if the scorer has none."""

    rewards: list[float]
    log_probs: list[float]
    values: list[float] | None = None


class Asked(NamedTuple):
    """What a request asks for: its rows, and whether tokens are wanted as text with their places."""

    rows: list[Row]
    return_text: bool = True


@dataclass(frozen=True)
class RowReader:
    """Reads rows, and refuses what cannot be scored before it comes near the model.

    Args:
        tokenizer: of the scorer.
        encode: `encode_pair` or `encode_seq2seq_pair`.
        fits: whether so many tokens of prompt and completion have a place in the model.
        positions: the model's, for the message; None: no limit.
        max_rows: rows of a request, at most.
        max_row_tokens: tokens of prompt and completion, at most; None: the model's positions alone count.
        vocab_size: token ids are below it.
        add_eos: end a text completion with EOS, unless its row says `"finished": false`.
    """

    tokenizer: Any
    encode: Callable[..., Any]
    fits: Callable[[int, int], bool] = lambda prompt, completion: True
    positions: int | None = None
    max_rows: int = 256
    max_row_tokens: int | None = None
    vocab_size: int = 2**31
    add_eos: bool = True

    def read(self, body: bytes) -> Asked:
        """The rows of `POST /v1/token_rewards`.

        Raises:
            RequestError: with what to change.
        """
        content = read_json(body)
        return_text = content.get("return_text", True)
        if not isinstance(return_text, bool):
            raise RequestError(422, "bad_field", "'return_text' must be true or false")
        if "rows" not in content:
            return Asked([self.row(content, None)], return_text)
        unknown = sorted(set(content) - set(BODY_FIELDS))
        if unknown:
            known = ", ".join(BODY_FIELDS)
            raise RequestError(422, "unknown_field", f"unknown field {unknown[0]!r} beside 'rows'; known: {known}")
        rows = content["rows"]
        if not isinstance(rows, list) or not rows:
            raise RequestError(422, "bad_field", "'rows' must be a list of at least one row")
        self.check_count(len(rows))
        return Asked([self.row(row, number) for number, row in enumerate(rows)], return_text)

    def check_count(self, rows: int) -> None:
        """Raises RequestError for too many rows."""
        if rows > self.max_rows:
            raise RequestError(
                422,
                "too_many_rows",
                f"{rows:,} rows in one request, but this server takes {self.max_rows:,}; send them in parts, or start "
                "it with a larger --max_rows",
            )

    def row(self, row: Any, number: int | None) -> Row:
        """One row: `prompt` and `completion`, or `messages`, or `prompt_ids` and `completion_ids`."""
        if not isinstance(row, dict):
            raise RequestError(422, "bad_row", f"a row must be an object, not {kind_of(row)}", row=number)
        if "prompt_ids" in row or "completion_ids" in row:
            return self.checked(self._ids(row, number), number)
        finished = row.get("finished", True)
        if not isinstance(finished, bool):
            raise RequestError(422, "bad_field", "'finished' must be true or false", row=number)
        prompt, completion = _pair(row, number)
        return self.checked(self.encoded(prompt, completion, self.add_eos and finished, number), number)

    def encoded(
        self, prompt: Any, completion: Any, add_eos: bool, number: int | None, encode: Callable[..., Any] | None = None
    ) -> Row:
        """Text or messages as ids, by the reader's `encode` or another one."""
        try:
            pair = (encode or self.encode)(self.tokenizer, prompt, completion, add_eos)
        except Exception as error:  # a UserError, lone surrogates, whatever a chat template refuses
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RequestError(422, "not_tokenised", f"cannot be tokenised: {reason}", row=number) from error
        return Row(tuple(pair.prompt_ids), tuple(pair.completion_ids))

    def _ids(self, row: dict[str, Any], number: int | None) -> Row:
        lists: dict[str, tuple[int, ...]] = {}
        for name in ("prompt_ids", "completion_ids", "action_mask"):
            ids = row.get(name)
            if ids is None and name == "action_mask":
                continue
            if not isinstance(ids, list) or not all(type(x) is int for x in ids):
                what = "is missing" if ids is None else "must be a list of whole numbers"
                raise RequestError(422, "bad_field", f"'{name}' {what}", row=number)
            lists[name] = tuple(ids)
        mask = lists.get("action_mask")
        for name in ("prompt_ids", "completion_ids"):
            wrong = next((x for x in lists[name] if not 0 <= x < self.vocab_size), None)
            if wrong is not None:
                message = f"'{name}' holds {wrong}; the vocabulary has the ids 0 to {self.vocab_size - 1}"
                raise RequestError(422, "unknown_token", message, row=number)
        if mask is not None and (len(mask) != len(lists["completion_ids"]) or not set(mask) <= {0, 1}):
            message = "'action_mask' must hold 0 or 1 for each of 'completion_ids'"
            raise RequestError(422, "bad_field", message, row=number)
        return Row(lists["prompt_ids"], lists["completion_ids"], mask)

    def checked(self, row: Row, number: int | None) -> Row:
        """The row, if it has something to score and is not too long."""
        prompt, completion = len(row.prompt_ids), len(row.completion_ids)
        if not completion:
            message = "the completion has no token: there is nothing to score; leave the row out"
            raise RequestError(422, "empty_completion", message, row=number)
        if not prompt:
            message = "the prompt has no token; the first token of a row has no state to be chosen in"
            raise RequestError(422, "empty_prompt", message, row=number)
        if self.max_row_tokens is not None and row.tokens > self.max_row_tokens:
            _too_long(
                row, f"this server takes {self.max_row_tokens:,}", "start it with a larger --max_row_tokens", number
            )
        if not self.fits(prompt, completion):
            _too_long(row, f"the model has {self.positions:,} positions", "leave the row out", number)
        return row


def _too_long(row: Row, limit: str, otherwise: str, number: int | None) -> NoReturn:
    prompt, completion = len(row.prompt_ids), len(row.completion_ids)
    size = f"{prompt:,} + {completion:,} tokens of prompt and completion"
    message = f"the row has {size}, but {limit}; shorten it, or {otherwise}"
    raise RequestError(422, "row_too_long", message, row=number)


def _pair(row: dict[str, Any], number: int | None) -> tuple[Any, Any]:
    """Prompt and completion, as text or messages."""
    if "messages" in row and not {"prompt", "completion"} & set(row):
        messages = _messages(row["messages"], "messages", number)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            message = (
                "'messages' must be a prompt of at least one message and, at its end, the assistant's to be scored"
            )
            raise RequestError(422, "bad_row", message, row=number)
        return messages[:-1], messages[-1:]
    for name in ("prompt", "completion"):
        if name not in row:
            message = (
                f"'{name}' is missing: a row has prompt and completion, or messages, or prompt_ids and completion_ids"
            )
            raise RequestError(422, "bad_row", message, row=number)
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str):
        prompt = _messages(prompt, "prompt", number)
    if not isinstance(completion, str):
        completion = _messages(completion, "completion", number)
    if isinstance(prompt, str) and not isinstance(completion, str):
        raise RequestError(
            422, "bad_row", "'prompt' is text, but 'completion' is messages; send both as one", row=number
        )
    return prompt, completion


def _messages(value: Any, name: str, number: int | None) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise RequestError(
            422, "bad_field", f"'{name}' must be text or a list of messages, not {kind_of(value)}", row=number
        )
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise RequestError(
                422, "bad_field", f"each message of '{name}' must have a 'role' and a 'content'", row=number
            )
    return value


# ---- answers ---------------------------------------------------------------------------------------------------------
def answer(
    row: Row, scores: RowScores, *, spans: Callable[[list[int]], tuple[str, Any]] | None, eos_ids: Sequence[int]
) -> dict[str, Any]:
    """What a client is told of one row.

    Args:
        row: as it was scored.
        scores: of its completion's tokens.
        spans: the text of ids and each one's (start, end) in it; None leaves the text out.
        eos_ids: what ends an answer.
    """
    ids = list(row.completion_ids)
    out: dict[str, Any] = {
        "reward": sum(scores.rewards),
        "rewards": scores.rewards,
        "log_probs": scores.log_probs,
        "token_ids": ids,
        "terminated": ids[-1] in eos_ids,
    }
    if scores.values is not None:
        out["values"] = scores.values
    if spans is not None:
        text, places = spans(ids)
        out |= {"scored_text": text, "tokens": [text[a:b] for a, b in places], "offsets": [list(p) for p in places]}
    return out
