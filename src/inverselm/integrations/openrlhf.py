"""The protocol of OpenRLHF's remote reward models (its `--reward.remote_url`, earlier `--remote_rm_url`).

The trainer posts `query` (prompt and answer as one text, special tokens included), `prompts` and `labels`, lists of one
length, and reads `rewards`, `scores` (of its dynamic filtering) and `extra_logs` (numbers to log), one number for each
answer. `token_rewards` and `token_ids`, which the trainer does not read, have one for each token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..scorers.text import EncodedPair
from .bodies import RequestError, read_json
from .rows import Asked, Row, RowReader, RowScores


def read(reader: RowReader, body: bytes, *, apart: bool = False, eos_ids: Sequence[int] = ()) -> Asked:
    """The rows of `POST /get_reward`.

    Args:
        reader: of rows.
        body: JSON with `query` and `prompts`; `labels` are not read.
        apart: the model is an encoder-decoder: prompt and answer are tokenised apart, as the reader does.
        eos_ids: what ends an answer; default: the tokenizer's EOS.

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
        asked, text = split_query(tokenizer, query, prompt, eos_ids)
        if apart:
            return reader.encode(tokenizer, prompt, text, text.endswith(tokenizer.eos_token))
        return encode_sampled(tokenizer, prompt, text, asked)

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


def encode_sampled(tokenizer: Any, prompt: str, text: str, asked: Sequence[int] | None = None) -> EncodedPair:
    """Token ids of a sampled answer, as near to the sampled ones as its text allows.

    The trainer tokenises a prompt without adding special tokens and appends the sampled ids. So the prompt's ids are
    known, and the answer's begin behind them: they are cut from the ids of both together, or, if these merge over the
    border, tokenised apart.

    Args:
        tokenizer: of the scorer.
        prompt: text.
        text: the answer, with its special tokens.
        asked: the prompt's ids, where they are more than those of its text (`split_query`).

    Example:
        >>> encode_sampled(tokenizer, "2+2=", "4<|endoftext|>").completion_ids
    """
    begin, whole = _ids(tokenizer, prompt) if asked is None else list(asked), _ids(tokenizer, prompt + text)
    plain = begin
    if whole[: len(begin)] != begin and asked is not None:  # which has a BOS that the text has not
        plain = _ids(tokenizer, prompt)
    same = whole[: len(plain)] == plain
    return EncodedPair(begin, whole[len(plain) :] if same else _ids(tokenizer, text))


def split_query(tokenizer: Any, query: str, prompt: str, eos_ids: Sequence[int] = ()) -> tuple[list[int], str]:
    """The prompt's ids in a query, and the answer behind them.

    The prompt may stand there as it was written, or as the tokenizer gives its ids back; with the BOS that a tokenizer
    adds, which it then has once and no other; and behind padding on the left, which goes. Padding behind the answer
    goes too, but for the first token of it where that ends answers and no other end stands before it.

    Args:
        tokenizer: of the scorer.
        query: prompt and answer.
        prompt: text.
        eos_ids: what ends an answer; default: the tokenizer's EOS.

    Raises:
        ValueError: the query does not begin with its prompt.

    Example:
        >>> split_query(tokenizer, "<pad><s>2+2=4</s><pad>", "2+2=")[1]
        '4</s>'
    """
    pad = tokenizer.pad_token or tokenizer.eos_token  # trainers pad with EOS where there is nothing else
    ends = [text for token in eos_ids if (text := _shown(tokenizer, [token]))] or [tokenizer.eos_token]
    heads: list[tuple[list[int], str]] = []
    for ids, shown in _heads(tokenizer, prompt):  # as far as needed: the first is the usual one
        if query.startswith(shown):
            return ids, _without_padding(query[len(shown) :], pad, ends)
        heads.append((ids, shown))
    while query.startswith(pad):
        query = query[len(pad) :]
        for ids, shown in heads:
            if query.startswith(shown):
                return ids, _without_padding(query[len(shown) :], pad, ends)
    raise ValueError(
        "the query does not begin with its prompt, so the answer in it cannot be told (a trainer that cuts long "
        "prompts needs a larger maximum length)"
    )


def _heads(tokenizer: Any, prompt: str) -> Iterator[tuple[list[int], str]]:
    """How a query may begin: ids of the prompt with their text, without and with special tokens of the tokenizer's."""
    plain = _ids(tokenizer, prompt)
    yield plain, prompt
    added = list(tokenizer(text=prompt)["input_ids"])
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for ids in (plain, added, [*begin, *plain]):
        if shown := _shown(tokenizer, ids):
            yield ids, shown


def _without_padding(text: str, pad: str, ends: Sequence[str]) -> str:
    bare = text
    while bare.endswith(pad):
        bare = bare[: -len(pad)]
    ended = any(bare.endswith(end) for end in ends)
    return bare + pad if bare != text and pad in ends and not ended else bare


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text=text, add_special_tokens=False)["input_ids"])


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _texts(content: dict[str, Any], name: str) -> list[str]:
    value = content.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        what = "is missing" if value is None else "must be a list of texts"
        message = f"'{name}' {what}; the body is query, prompts and labels, lists of one length"
        raise RequestError(422, "bad_field", message)
    return value
