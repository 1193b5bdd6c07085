"""Batches of encoder-decoder models: the prompt is what the encoder reads, the answer is what the decoder writes.

The decoder is fed [start, y_1, ..., y_T], one token more than it is when only likelihood counts: column t - 1 of the
output is then the state in which token t was chosen, as in every :class:`TokenBatch`, and the state after the last
token of a truncated answer is there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .batch import TokenBatch


@dataclass(frozen=True)
class Seq2SeqBatch(TokenBatch):
    """A :class:`TokenBatch` of the decoder, with what the encoder reads.

    The fields of TokenBatch are the decoder's: `input_ids` are the start token and the answer, right padded. The start
    token can be the padding or the EOS token, so nothing is ever derived from ids: masks come from labels.

    Attributes:
        encoder_ids: (B, S) token ids of the prompts.
        encoder_mask: (B, S) True on their real tokens.

    Example:
        >>> batch = Seq2SeqBatch.from_ids(
        ...     [[5, 6, 1]], [[7, 8, 1]], start_token_id=0, pad_token_id=0, eos_token_ids=[1]
        ... )
        >>> batch.input_ids.tolist(), batch.action_mask.int().tolist(), batch.next_state.tolist()
        ([[0, 7, 8, 1]], [[0, 1, 1, 1]], [[-1, 1, 2, -1]])
    """

    encoder_ids: Int[Tensor, "B S"] = field(kw_only=True)
    encoder_mask: Bool[Tensor, "B S"] = field(kw_only=True)

    @classmethod
    def build(  # type: ignore[override]
        cls,
        input_ids: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        *,
        encoder_ids: Int[Tensor, "B S"],
        encoder_mask: Tensor | None = None,
        eos_token_ids: Sequence[int],
        attention_mask: Tensor | None = None,
    ) -> Seq2SeqBatch:
        """Derive documents and next states of decoder tokens (start token first; see :meth:`TokenBatch.build`).

        Raises:
            ValueError: shapes differ.
        """
        if encoder_mask is None:
            encoder_mask = torch.ones_like(encoder_ids)
        if encoder_mask.shape != encoder_ids.shape or encoder_ids.size(0) != input_ids.size(0):
            raise ValueError(
                f"The encoder's ids are {tuple(encoder_ids.shape)}, its mask {tuple(encoder_mask.shape)}, the "
                f"decoder's ids {tuple(input_ids.shape)}."
            )
        decoder = TokenBatch.build(input_ids, action_mask, eos_token_ids=eos_token_ids, attention_mask=attention_mask)
        own = {f.name: getattr(decoder, f.name) for f in fields(TokenBatch)}
        return cls(**own, encoder_ids=encoder_ids, encoder_mask=encoder_mask.bool())

    @classmethod
    def from_labels(  # type: ignore[override]
        cls,
        input_ids: Int[Tensor, "B S"],
        labels: Int[Tensor, "B T"],
        *,
        start_token_id: int,
        pad_token_id: int,
        eos_token_ids: Sequence[int],
        attention_mask: Tensor | None = None,
        decoder_input_ids: Int[Tensor, "B T"] | None = None,
        ignore_index: int = -100,
    ) -> Seq2SeqBatch:
        """From a collator's output: what the encoder reads, and the labels of the decoder, right padded.

        An `ignore_index` before a row's last label is no action. The decoder is fed padding there, as the models feed
        it, unless `decoder_input_ids` say what.

        Args:
            input_ids: (B, S) the encoder's ids.
            labels: (B, T) the tokens to be predicted; `ignore_index` is padding.
            start_token_id: what the decoder is fed first (`config.decoder_start_token_id`).
            pad_token_id: fed where there is no token.
            eos_token_ids: ids that end an episode.
            attention_mask: (B, S) of the encoder; all real if None.
            decoder_input_ids: (B, T) what the decoder is fed, start token included; None: the labels, shifted.
            ignore_index: marks labels that are none.

        Raises:
            ValueError: shapes differ; labels padded on the left without `decoder_input_ids`; or `decoder_input_ids`
                that are not the labels, shifted.
        """
        labelled = labels != ignore_index
        tokens = labels.masked_fill(~labelled, pad_token_id)
        if decoder_input_ids is None:
            if bool((labelled.any(dim=1) & ~labelled[:, 0]).any()):
                raise ValueError("Labels are padded on the left: pad them on the right (tokenizer.padding_side).")
            ids = torch.nn.functional.pad(tokens, (1, 0), value=start_token_id)
        elif decoder_input_ids.shape != labels.shape:
            raise ValueError(f"decoder_input_ids are {tuple(decoder_input_ids.shape)}, labels {tuple(labels.shape)}.")
        else:
            ids = torch.cat([decoder_input_ids, tokens[:, -1:]], dim=1)
            if not torch.equal(ids[:, 1:][labelled], labels[labelled]):
                raise ValueError("decoder_input_ids are not the labels, shifted by one to the right.")
        actions = torch.nn.functional.pad(labelled, (1, 0), value=False)
        columns = torch.arange(ids.size(1), device=ids.device)
        last = torch.where(actions, columns, 0).amax(dim=1, keepdim=True)
        return cls.build(
            ids,
            actions,
            encoder_ids=input_ids,
            encoder_mask=attention_mask,
            eos_token_ids=eos_token_ids,
            attention_mask=columns <= last,
        )

    @classmethod
    def from_ids(  # type: ignore[override]
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        start_token_id: int,
        pad_token_id: int,
        eos_token_ids: Sequence[int],
        pad_to_multiple_of: int | None = None,
        device: torch.device | str | None = None,
    ) -> Seq2SeqBatch:
        """From token ids as lists, without start tokens; every completion token is an action.

        Raises:
            ValueError: the two lists differ in length, or are empty.
        """
        if len(prompt_ids) != len(completion_ids) or not prompt_ids:
            raise ValueError(f"{len(prompt_ids)} prompts and {len(completion_ids)} completions; give as many of each.")
        encoder_ids, encoder_mask = pad_right(prompt_ids, pad_token_id, pad_to_multiple_of)
        labels, _ = pad_right(completion_ids, -100, pad_to_multiple_of)
        batch = cls.from_labels(
            encoder_ids,
            labels,
            start_token_id=start_token_id,
            pad_token_id=pad_token_id,
            eos_token_ids=eos_token_ids,
            attention_mask=encoder_mask,
        )
        return batch if device is None else batch.to(device)

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of an encoder-decoder LM's forward."""
        return {
            "input_ids": self.encoder_ids,
            "attention_mask": self.encoder_mask.long(),
            "decoder_input_ids": self.input_ids,
            "decoder_attention_mask": self.attention_mask.long(),
        }

    def to(self, device: torch.device | str) -> Seq2SeqBatch:
        """The batch on another device."""
        moved = super().to(device)
        assert isinstance(moved, Seq2SeqBatch)
        return moved


def pad_right(
    rows: Sequence[Sequence[int]], value: int, multiple_of: int | None = None
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows as one tensor, padded with `value`, and True where a token is."""
    width = max(1, *map(len, rows)) if rows else 1
    if multiple_of:
        width = -(-width // multiple_of) * multiple_of
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    real = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        real[i, : len(row)] = True
    return ids, real
