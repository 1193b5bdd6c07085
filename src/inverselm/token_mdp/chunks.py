"""Which states a head has to be evaluated at, and how they are taken in chunks that lose no next state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .batch import TERMINAL, TokenBatch
from .stats import TokenStats


@dataclass(frozen=True)
class States:
    """The n states a batch needs, row by row: those of actions, and those whose value a truncated answer bootstraps.

    The next state of the action in state i is state i + 1, or the end of the episode.

    Attributes:
        index: place in the flattened (B * T,) columns of the model's output.
        action: token chosen there; 0 where none is.
        acts: True where an action is taken.
        continues: True where the action's next state is state i + 1.
        document: unique number of the document (over all rows).
        shape: (B, T) of the batch.
    """

    index: Int[Tensor, " n"]
    action: Int[Tensor, " n"]
    acts: Bool[Tensor, " n"]
    continues: Bool[Tensor, " n"]
    document: Int[Tensor, " n"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, batch: TokenBatch) -> States:
        """The states of a batch."""
        shape = batch.input_ids.shape
        acts = torch.zeros_like(batch.action_mask)
        acts[:, :-1] = batch.action_mask[:, 1:]
        followed = batch.action_mask & (batch.next_state != TERMINAL)
        needed = acts.clone()
        rows, columns = followed.nonzero(as_tuple=True)
        needed[rows, batch.next_state[rows, columns]] = True
        action = torch.zeros_like(batch.input_ids)
        action[:, :-1] = batch.input_ids[:, 1:]
        continues = torch.zeros_like(followed)
        continues[:, :-1] = followed[:, 1:]
        document = batch.document_ids + torch.arange(shape[0], device=acts.device)[:, None] * (shape[1] + 1)
        index = needed.flatten().nonzero().squeeze(1)
        acts = acts.flatten()[index]
        return cls(
            index=index,
            action=torch.where(acts, action.flatten()[index], 0),
            acts=acts,
            continues=continues.flatten()[index],
            document=document.flatten()[index],
            shape=(shape[0], shape[1]),
        )

    def __len__(self) -> int:
        return self.index.size(0)

    def at_actions(self, per_token: Tensor) -> Tensor:
        """(B, T) numbers of tokens -> (n,), aligned to the states the tokens were chosen in; 0 where none was."""
        flat = per_token.flatten()[(self.index + 1).clamp(max=per_token.numel() - 1)]
        return torch.where(self.acts, flat, torch.zeros_like(flat))

    def to_tokens(self, per_state: Tensor) -> Tensor:
        """(n,) numbers of states -> (B, T), aligned to the actions taken there; 0 elsewhere."""
        out = per_state.new_zeros(self.shape[0] * self.shape[1])
        return out.index_put((self.index[self.acts] + 1,), per_state[self.acts]).view(self.shape)

    def next_value(self, value: Tensor) -> Tensor:
        """V of the next state of each state's action, 0 after the end."""
        after = torch.cat([value[1:], value.new_zeros(1)])
        return torch.where(self.continues, after, torch.zeros_like(after))

    def stats(
        self, action_logit: Tensor, value: Tensor, entropy: Tensor | None, greedy: Tensor | None, batch: TokenBatch
    ) -> TokenStats:
        """(n,) numbers as the TokenStats of the batch."""
        return TokenStats(
            action_logit=self.to_tokens(action_logit),
            value=self.to_tokens(value),
            next_value=self.to_tokens(self.next_value(value)),
            action_mask=batch.action_mask,
            document_ids=batch.document_ids,
            entropy=None if entropy is None else self.to_tokens(entropy),
            greedy=None if greedy is None else self.to_tokens(greedy),
        )

    def flat_stats(
        self, chunk: Chunk, action_logit: Tensor, value: Tensor, entropy: Tensor | None, greedy: Tensor | None
    ) -> TokenStats:
        """The numbers of a chunk's states as the TokenStats of one row, aligned to states: (1, m)."""
        part = slice(chunk.start, chunk.stop)
        acts = self.acts[part].clone()
        acts[chunk.end - chunk.start :] = False
        after = torch.cat([value[1:], value.new_zeros(1)])
        zero = value.new_zeros(())
        return TokenStats(
            action_logit=torch.where(acts, action_logit, zero)[None],
            value=torch.where(acts, value, zero)[None],
            next_value=torch.where(acts & self.continues[part], after, zero)[None],
            action_mask=acts[None],
            document_ids=self.document[part][None],
            entropy=None if entropy is None else torch.where(acts, entropy, zero)[None],
            greedy=None if greedy is None else (greedy & acts)[None],
        )

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Cut the states into chunks of at most `size` (and one shared state), between documents where that pays."""
        n = len(self)
        ends = ((~self.continues).nonzero().squeeze(1) + 1).tolist() if n > size else []
        start = 0
        while start < n:
            limit = start + size
            end = n if limit >= n else _last_between(ends, start + size // 2, limit, default=limit)
            shared = end < n and bool(self.continues[end - 1])
            yield Chunk(start, end, end + int(shared))
            start = end


@dataclass(frozen=True)
class Chunk:
    """States start..end, with state `end` in addition (stop = end + 1) if it is the next state of the last action."""

    start: int
    end: int
    stop: int


def _last_between(numbers: list[int], low: int, high: int, default: int) -> int:
    """The largest of the sorted `numbers` in (low, high]."""
    place = bisect_right(numbers, high)
    return numbers[place - 1] if place and numbers[place - 1] > low else default
