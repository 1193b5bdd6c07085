"""Token batches: which tokens are actions, and which state follows each of them.

The token MDP: a state is a prompt with the tokens so far, an action is the next token, the transition appends it. All
tensors share one shape (B, T). Column t of the *token* tensors is token t; the *state* in which token t was chosen is
column t - 1 of the model's output, so the first token of a document is never an action: no state precedes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

TERMINAL = -1
"""`next_state` of an action that ended its episode: V(next) = 0."""

PADDING = -1
"""`document_ids` of padding."""


@dataclass(frozen=True)
class TokenBatch:
    """Token ids with the structure of the MDP they are trajectories of; every tensor is (B, T).

    Build it with :meth:`build`, :meth:`from_labels` or :meth:`from_ids`; they derive `next_state` by these rules:

    - the action is followed by another action of the same document: the state in which *that* one is chosen. Tokens
      the policy did not choose (a user's or a tool's turn) may lie between;
    - it is the last action of its document and an EOS token: `TERMINAL`, V(next) = 0;
    - it is the last action and no EOS (truncated): the last state of the document; V(next) is bootstrapped there.

    Attributes:
        input_ids: token ids.
        attention_mask: True on real tokens.
        action_mask: True where the token was chosen by the policy (completion or assistant tokens, EOS included).
        next_state: column of the model's output that holds V(next) of the action in this column; `TERMINAL` for the
            end of an episode and wherever `action_mask` is False.
        document_ids: which document of its row a token belongs to; `PADDING` on padding.
        position_ids: position of a token within its document.
        packed: whether a row can hold several documents (then attention is told by `position_ids`).

    Example:
        >>> batch = TokenBatch.from_ids([[5, 6]], [[7, 8, 2]], pad_token_id=0, eos_token_ids=[2])
        >>> batch.action_mask.int().tolist(), batch.next_state.tolist()
        ([[0, 0, 1, 1, 1]], [[-1, -1, 2, 3, -1]])
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    action_mask: Bool[Tensor, "B T"]
    next_state: Int[Tensor, "B T"]
    document_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    packed: bool = False

    @classmethod
    def build(
        cls,
        input_ids: Int[Tensor, "B T"],
        action_mask: Bool[Tensor, "B T"],
        *,
        eos_token_ids: Sequence[int],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        document_ends_at_eos: bool = False,
    ) -> TokenBatch:
        """Derive documents and next states.

        Args:
            input_ids: (B, T) token ids.
            action_mask: (B, T) True on the tokens the policy chose. First tokens of documents are cleared.
            eos_token_ids: ids that end an episode.
            attention_mask: (B, T) non-zero on real tokens, left or right padded; all real if None.
            position_ids: (B, T) given for packed rows only: a 0 starts a new document.
            document_ends_at_eos: every EOS closes a document, action or not. For streams whose boundaries are marked
                by nothing else (TRL's "wrapped" packing).

        Raises:
            ValueError: shapes differ, or both packed `position_ids` and padding are given.
        """
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for name, tensor in (("action_mask", action_mask), ("attention_mask", real), ("position_ids", position_ids)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}.")
        if position_ids is not None and attention_mask is not None and not bool(real.all()):
            raise ValueError("position_ids are for packed rows without padding. Leave them out for padded rows.")
        if not eos_token_ids:
            raise ValueError("eos_token_ids is empty: no episode could ever terminate. Give the tokenizer's EOS id.")
        is_eos = torch.isin(input_ids, torch.as_tensor(list(eos_token_ids), device=input_ids.device))
        starts = torch.zeros_like(real) if position_ids is None else position_ids == 0
        if document_ends_at_eos:
            starts[:, 1:] |= is_eos[:, :-1] & real[:, :-1]
        document_ids = starts.cumsum(dim=1) - starts[:, :1].long()
        document_ids = document_ids.masked_fill(~real, PADDING)
        if position_ids is None:
            position_ids = (real.long().cumsum(dim=1) - 1).clamp(min=0)
            packed = False
        else:
            packed = True
        has_state = torch.zeros_like(real)
        has_state[:, 1:] = real[:, :-1] & (document_ids[:, 1:] == document_ids[:, :-1])
        actions = action_mask.bool() & real & has_state
        return cls(
            input_ids=input_ids,
            attention_mask=real,
            action_mask=actions,
            next_state=_next_states(actions, document_ids, is_eos),
            document_ids=document_ids,
            position_ids=position_ids,
            packed=packed,
        )

    @classmethod
    def from_labels(
        cls, input_ids: Int[Tensor, "B T"], labels: Int[Tensor, "B T"], *, ignore_index: int = -100, **kwargs: Any
    ) -> TokenBatch:
        """From a collator's output: actions are the tokens whose label is not `ignore_index` (see :meth:`build`)."""
        return cls.build(input_ids, labels != ignore_index, **kwargs)

    @classmethod
    def from_ids(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        pad_token_id: int,
        eos_token_ids: Sequence[int],
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        device: torch.device | str | None = None,
    ) -> TokenBatch:
        """Pad prompts with their completions to one batch; every completion token is an action.

        Raises:
            ValueError: the two lists differ in length, are empty, or `padding_side` is neither "left" nor "right".
        """
        if len(prompt_ids) != len(completion_ids) or not prompt_ids:
            raise ValueError(f"{len(prompt_ids)} prompts and {len(completion_ids)} completions; give as many of each.")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', not {padding_side!r}.")
        rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        width = max(len(row) for row in rows)
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
        real = torch.zeros((len(rows), width), dtype=torch.bool)
        actions = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, (row, prompt) in enumerate(zip(rows, prompt_ids, strict=True)):
            start = width - len(row) if padding_side == "left" else 0
            ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
            real[i, start : start + len(row)] = True
            actions[i, start + len(prompt) : start + len(row)] = True
        batch = cls.build(ids, actions, eos_token_ids=eos_token_ids, attention_mask=real)
        return batch if device is None else batch.to(device)

    @property
    def num_actions(self) -> Int[Tensor, ""]:
        """Number of actions in the batch, as a 0-d tensor."""
        return self.action_mask.sum()

    @property
    def terminal(self) -> Bool[Tensor, "B T"]:
        """True on actions that ended their episode."""
        return self.action_mask & (self.next_state == TERMINAL)

    @property
    def truncated(self) -> Bool[Tensor, "B T"]:
        """True on the last action of a document that has no EOS: its next value is bootstrapped."""
        return last_actions(self.action_mask, self.document_ids) & (self.next_state != TERMINAL)

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a causal LM's forward. Packed rows are told by positions, the rest by the mask."""
        if self.packed:
            return {"input_ids": self.input_ids, "position_ids": self.position_ids}
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask.long()}
        if not bool(self.attention_mask[:, 0].all()):  # left padded: absolute positions would shift
            inputs["position_ids"] = self.position_ids
        return inputs

    def rows(self, part: slice) -> TokenBatch:
        """Some of the rows."""
        return replace(self, **{f.name: getattr(self, f.name)[part] for f in fields(self) if f.name != "packed"})

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "packed"}
        return replace(self, **moved)


def first_actions(action_mask: Bool[Tensor, "B T"], document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True on the first action of every document."""
    columns = torch.arange(action_mask.size(1), device=action_mask.device)
    seen = torch.where(action_mask, columns, -1).cummax(dim=1).values
    before = torch.full_like(seen, -1)
    before[:, 1:] = seen[:, :-1]
    same = document_ids.gather(1, before.clamp(min=0)) == document_ids
    return action_mask & ~((before >= 0) & same)


def last_actions(action_mask: Bool[Tensor, "B T"], document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True on the last action of every document."""
    return first_actions(action_mask.flip(1), document_ids.flip(1)).flip(1)


def _next_action(action_mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Column of the next action to the right in the row; T where there is none."""
    width = action_mask.size(1)
    columns = torch.arange(width, device=action_mask.device)
    here = torch.where(action_mask, columns, width)
    after = torch.full_like(here, width)
    after[:, :-1] = here[:, 1:].flip(1).cummin(dim=1).values.flip(1)
    return after


def _next_states(
    action_mask: Bool[Tensor, "B T"], document_ids: Int[Tensor, "B T"], is_eos: Bool[Tensor, "B T"]
) -> Int[Tensor, "B T"]:
    width = action_mask.size(1)
    columns = torch.arange(width, device=action_mask.device)
    following = _next_action(action_mask)
    inside = following.clamp(max=width - 1)
    continues = (following < width) & (document_ids.gather(1, inside) == document_ids)
    ends_document = torch.ones_like(action_mask)
    ends_document[:, :-1] = document_ids[:, :-1] != document_ids[:, 1:]
    last_column = torch.where(ends_document, columns, width - 1).flip(1).cummin(dim=1).values.flip(1)
    terminal = torch.full_like(following, TERMINAL)
    next_state = torch.where(continues, inside - 1, torch.where(is_eos, terminal, last_column))
    return torch.where(action_mask, next_state, terminal)
