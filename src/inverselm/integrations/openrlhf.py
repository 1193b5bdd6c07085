"""The protocol of OpenRLHF's remote reward models (its `--reward.remote_url`, earlier `--remote_rm_url`).

The trainer posts `query` (prompt and answer as one text, special tokens included), `prompts` and `labels`, lists of one
length, and reads `rewards`, `scores` (of its dynamic filtering) and `extra_logs` (numbers to log), one number for each
answer. `token_rewards` and `token_ids`, which the trainer does not read, have one for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..scorers.text import EncodedPair
from .bodies import RequestError, read_json
from .rows import Asked, Row, RowReader, RowScores


def read(reader: RowReader, body: bytes, *, apart: bool = False) -> Asked:
    """The rows of `POST /get_reward`.

    Args:
        reader: of rows.
        body: JSON with `query` and `prompts`; `labels` are not read.
        apart: the model is an encoder-decoder: prompt and answer are tokenised apart, as the reader does.

    Raises:
        RequestError: a field is missing, the lists differ, a query does not begin with its prompt.
    """
    content = read_json(body)
    queries, prompts = (_texts(content, name) for name in ("query", "prompts"))
    if len(queries) != len(prompts):
        message = f"{len(queries)} queries but {len(prompts)} prompts; send one prompt for each"
        raise RequestError(422, "bad_field", message)
    reader.check_count(len(queries))

    def encode(tokenizer: Any, prompt: str, query: str, add_eos: bool) -> EncodedPair:
        text = answer_text(tokenizer, query, prompt)
        if apart:
            return reader.encode(tokenizer, prompt, text, text.endswith(tokenizer.eos_token))
        return encode_sampled(tokenizer, prompt, text)

    rows = []
    for number, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        rows.append(reader.checked(reader.encoded(prompt, query, False, number, encode), number))
    return Asked(rows)


def answer(rows: Sequence[Row], scores: Sequence[RowScores], *, mean: bool = False) -> dict[str, Any]:
    """What the trainer reads, and the token rewards.

    Args:
        rows: of the request.
        scores: of each.
        mean: the reward of an answer is the mean of its tokens' rewards, not their sum.
    """
    sums = [sum(s.rewards) for s in scores]
    lengths = [len(s.rewards) for s in scores]
    means = [total / length for total, length in zip(sums, lengths, strict=True)]
    rewards = means if mean else sums
    return {
        "rewards": rewards,
        "scores": rewards,
        "extra_logs": {"reward_sum": sums, "reward_mean": means, "scored_tokens": lengths},
        "token_rewards": [s.rewards for s in scores],
        "token_ids": [list(row.completion_ids) for row in rows],
    }


def encode_sampled(tokenizer: Any, prompt: str, text: str) -> EncodedPair:
    """Token ids of a sampled answer, as near to the sampled ones as its text allows.

    The trainer tokenises a prompt without adding special tokens and appends the sampled ids. So the prompt's ids are
    known, and the answer's begin behind them: they are cut from the ids of both together, or, if these merge over the
    border, tokenised apart.

    Example:
        >>> encode_sampled(tokenizer, "2+2=", "4<|endoftext|>").completion_ids
    """

    def ids(part: str) -> list[int]:
        return list(tokenizer(text=part, add_special_tokens=False)["input_ids"])

    before, whole = ids(prompt), ids(prompt + text)
    if whole[: len(before)] == before:
        return EncodedPair(before, whole[len(before) :])
    return EncodedPair(before, ids(text))


def answer_text(tokenizer: Any, query: str, prompt: str) -> str:
    """The query behind its prompt, which may be written as the tokenizer gives it back.

    Raises:
        ValueError: the query does not begin with its prompt.
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    ids = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    shown = str(tokenizer.decode(ids, skip_special_tokens=False))
    if shown and query.startswith(shown):
        return query[len(shown) :]
    raise ValueError(
        "the query does not begin with its prompt, so the answer in it cannot be told (a trainer that cuts long "
        "prompts needs a larger maximum length)"
    )


def _texts(content: dict[str, Any], name: str) -> list[str]:
    value = content.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        what = "is missing" if value is None else "must be a list of texts"
        message = f"'{name}' {what}; the body is query, prompts and labels, lists of one length"
        raise RequestError(422, "bad_field", message)
    return value
