"""Demonstrations as rows of an encoder-decoder: tokenised, cut, and padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from torch import Tensor

from ..errors import UserError
from ..scorers.seq2seq import encode_seq2seq_pair, position_limits
from ..scorers.tokens import tokens_after_eos
from ..token_mdp.seq2seq import pad_right


def row_limits(config: Any, args: Any) -> tuple[int | None, int | None]:
    """Tokens of a prompt and of an answer that the options and the model have room for; None: any number."""
    source, target = position_limits(config)
    return (
        _shorter(args.max_source_length, source),
        _shorter(args.max_target_length, target and target - 1),  # the start token has a position too
    )


def _shorter(asked: int | None, limit: int | None) -> int | None:
    return min((length for length in (asked, limit) if length is not None), default=None)


def tokenised(
    rows: Any,
    tokenizer: Any,
    max_source: int | None,
    max_target: int | None,
    num_proc: int | None,
    *,
    need_labels: bool = True,
) -> Any:
    """Rows {prompt, completion} as {input_ids, attention_mask, labels}; rows of ids, and None, as they are.

    A target cut at `max_target` has no EOS: it counts as truncated.

    Raises:
        UserError: rows of another format, or of ids without labels where these are needed.
    """
    if rows is None:
        return None
    first = next(iter(rows), None)
    if first is None:
        raise UserError("The dataset has no rows.")
    if "input_ids" in first:
        if need_labels and "labels" not in first:
            raise UserError("Tokenised rows need 'labels' beside 'input_ids': the ids of the answer.")
        return rows
    if "prompt" not in first or "completion" not in first:
        hint = ""
        if "messages" in first or "conversations" in first:
            hint = " Split conversations: the last message is the completion, those before it the prompt."
        raise UserError(
            f"An encoder-decoder needs rows with 'prompt' and 'completion', not with {', '.join(sorted(first))}.{hint}"
        )
    # a missing chat template shows here, and not in a worker process
    encode_seq2seq_pair(tokenizer, first["prompt"], first["completion"])
    if not isinstance(first["prompt"], str):
        tokens_after_eos(tokenizer, [tokenizer.eos_token_id])  # warns of a template without EOS
    options = {"tokenizer": tokenizer, "max_source": max_source, "max_target": max_target}
    streamed = not hasattr(rows, "__len__")
    more = {} if streamed else {"num_proc": num_proc, "desc": "Tokenising"}
    with PartialState().main_process_first():
        return rows.map(_tokenise, fn_kwargs=options, remove_columns=list(first), **more)


def _tokenise(
    row: dict[str, Any], tokenizer: Any, max_source: int | None, max_target: int | None
) -> dict[str, list[int]]:
    pair = encode_seq2seq_pair(tokenizer, row["prompt"], row["completion"], max_source_length=max_source)
    return {
        "input_ids": pair.prompt_ids,
        "attention_mask": [1] * len(pair.prompt_ids),
        "labels": pair.completion_ids[:max_target],
    }


@dataclass
class Seq2SeqCollator:
    """Pads prompts with the padding token and labels with -100, both on the right whatever the tokenizer does.

    Attributes:
        pad_token_id: of the encoder's input.
        pad_to_multiple_of: width of the rows.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows of lists as tensors."""
        ids, real = pad_right([row["input_ids"] for row in rows], self.pad_token_id, self.pad_to_multiple_of)
        if "attention_mask" in rows[0]:
            real, _ = pad_right([row["attention_mask"] for row in rows], 0, self.pad_to_multiple_of)
        batch = {"input_ids": ids, "attention_mask": real.long()}
        if "labels" in rows[0]:
            batch["labels"], _ = pad_right([row["labels"] for row in rows], -100, self.pad_to_multiple_of)
        return batch
