"""Every state and every answer of a small token MDP, enumerated, so that claims can be checked without sampling.

The tree: a state is a prefix without EOS, an action is a token, the transition appends it. Two rules make every episode
end with an EOS that the policy chose, as `TokenBatch` wants it (an answer without EOS would be *truncated* there, and
V(next) bootstrapped):

- a state of length `max_length - 1` allows EOS only. This is a fixed horizon: at most `max_length` actions, EOS
  included, and V = 0 after every EOS. The forced EOS is an ordinary action: log pi = 0, but Q and a reward of its own;
- a state of length less than `min_length - 1` does not allow EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..token_mdp.batch import PADDING, TokenBatch

FORBIDDEN = -1e9
"""Logit of an action the tree does not allow: probability exactly 0 in float64, and finite, so that 0 * log 0 = 0."""

MAX_STATES = 20_000
"""Larger trees are refused: everything is enumerated."""


@dataclass(frozen=True)
class TokenTree:
    """All prefixes (states, S) and all complete sequences (N) over a vocabulary of A tokens.

    The root, state 0, is the empty prefix; `terminal` = S is the index after EOS. In a `TokenBatch` the root is a
    document that holds one EOS token, as GPT-2 starts its documents: the first action needs a state.

    Attributes:
        vocab_size: A, EOS included.
        max_length: longest sequence in actions, EOS included.
        eos: id of EOS.
        min_length: shortest sequence in actions, EOS included.

    Raises:
        ValueError: sizes that make no tree, or one of more than `MAX_STATES` states.

    Example:
        >>> tree = TokenTree(vocab_size=3, max_length=2)
        >>> tree.states, tree.sequences
        (((), (1,), (2,)), ((0,), (1, 0), (2, 0)))
        >>> tree.next_state.tolist()  # 3 is the terminal state
        [[3, 1, 2], [3, 3, 3], [3, 3, 3]]
    """

    vocab_size: int
    max_length: int
    eos: int = 0
    min_length: int = 1

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or not 0 <= self.eos < self.vocab_size:
            raise ValueError(f"Need vocab_size >= 2 and 0 <= eos < vocab_size: got {self.vocab_size} and {self.eos}.")
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError(f"Need 1 <= min_length <= max_length: got {self.min_length} and {self.max_length}.")
        if sum((self.vocab_size - 1) ** length for length in range(self.max_length)) > MAX_STATES:
            raise ValueError(f"More than {MAX_STATES} states: lower vocab_size or max_length.")

    @cached_property
    def states(self) -> tuple[tuple[int, ...], ...]:
        """All prefixes without EOS, shorter first; the index of a prefix is its state."""
        tokens = [token for token in range(self.vocab_size) if token != self.eos]
        return tuple(prefix for length in range(self.max_length) for prefix in product(tokens, repeat=length))

    @property
    def num_states(self) -> int:
        """S, without the terminal state."""
        return len(self.states)

    @property
    def terminal(self) -> int:
        """Index of the state after EOS: S, so that `values[next_state]` works for values of S + 1 states."""
        return self.num_states

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """All N complete sequences, EOS included."""
        return tuple((*prefix, self.eos) for prefix in self.states if len(prefix) + 1 >= self.min_length)

    @cached_property
    def allowed(self) -> Bool[Tensor, "S A"]:
        """Which actions a state has."""
        allowed = torch.ones(self.num_states, self.vocab_size, dtype=torch.bool)
        for state, prefix in enumerate(self.states):
            allowed[state, self.eos] = len(prefix) + 1 >= self.min_length
            if len(prefix) + 1 == self.max_length:
                allowed[state] = torch.arange(self.vocab_size) == self.eos
        return allowed

    @cached_property
    def next_state(self) -> Int[Tensor, "S A"]:
        """State after an action; `terminal` after EOS, and for actions that are not allowed."""
        index = {prefix: state for state, prefix in enumerate(self.states)}
        table = [[index.get((*prefix, a), self.terminal) for a in range(self.vocab_size)] for prefix in self.states]
        return torch.tensor(table)

    @cached_property
    def visits(self) -> Float[Tensor, "N S A"]:
        """1 where a sequence takes an action in a state: sums over a sequence are products with this table."""
        index = {prefix: state for state, prefix in enumerate(self.states)}
        table = torch.zeros(len(self.sequences), self.num_states, self.vocab_size, dtype=torch.float64)
        for n, sequence in enumerate(self.sequences):
            for t, action in enumerate(sequence):
                table[n, index[sequence[:t]], action] = 1.0
        return table

    def mask(self, q: Float[Tensor, "S A"]) -> Float[Tensor, "S A"]:
        """`q` with `FORBIDDEN` where an action is not allowed (no gradient flows there)."""
        return torch.where(self.allowed, q, FORBIDDEN)

    def batch(
        self,
        sequences: Sequence[Sequence[int]] | None = None,
        *,
        prompt_length: int = 0,
        padding_side: str = "right",
    ) -> TokenBatch:
        """Sequences as the package's batch, one per row; all N of them by default.

        Args:
            sequences: token ids from the root. One without EOS is truncated, as everywhere in the package.
            prompt_length: how many first tokens of every sequence are its prompt, not actions.
            padding_side: "right" or "left".
        """
        rows = self.sequences if sequences is None else sequences
        return TokenBatch.from_ids(
            [[self.eos, *row[:prompt_length]] for row in rows],
            [list(row[prompt_length:]) for row in rows],
            pad_token_id=self.eos,
            eos_token_ids=[self.eos],
            padding_side=padding_side,
        )

    def state_ids(self, batch: TokenBatch) -> Int[Tensor, "B T"]:
        """The state of every output column of a model, that is after its token; `terminal` after EOS and on padding."""
        after = torch.cat([self.next_state, torch.full((1, self.vocab_size), self.terminal)])
        state = torch.full_like(batch.input_ids[:, 0], self.terminal)
        previous = torch.full_like(state, PADDING)
        columns = []
        for token, document in zip(batch.input_ids.unbind(1), batch.document_ids.unbind(1), strict=True):
            state = torch.where(document != previous, 0, after[state, token])
            state = torch.where(document == PADDING, self.terminal, state)
            previous = document
            columns.append(state)
        return torch.stack(columns, dim=1)

    def logits_for(self, batch: TokenBatch, q: Float[Tensor, "S A"]) -> Float[Tensor, "B T A"]:
        """A table of soft Q-values as a language model's logits on a batch, with gradient into the table.

        Columns after EOS and on padding are nan: whoever reads them is found out.

        Example:
            >>> tree = TokenTree(vocab_size=3, max_length=4)
            >>> q = torch.randn(tree.num_states, 3, dtype=torch.float64, requires_grad=True)
            >>> batch = tree.batch()
            >>> stats = stats_from_logits(tree.logits_for(batch, q), batch)
        """
        return torch.cat([self.mask(q), q.new_full((1, self.vocab_size), float("nan"))])[self.state_ids(batch)]

    def at_actions(self, table: Float[Tensor, "S A"], batch: TokenBatch) -> Float[Tensor, "B T"]:
        """Numbers of (state, action), such as rewards, on the actions of a batch; 0 elsewhere."""
        values = table.new_zeros(batch.input_ids.shape)
        values[batch.action_mask] = table[self._pairs(batch)]
        return values

    def to_table(self, values: Float[Tensor, "B T"], batch: TokenBatch) -> Float[Tensor, "S A"]:
        """The inverse of :meth:`at_actions`; 0 for pairs that the batch does not visit.

        Raises:
            ValueError: `values` are not a function of state and action: two rows disagree.
        """
        pairs, given = self._pairs(batch), values[batch.action_mask]
        table = values.new_zeros(self.num_states, self.vocab_size)
        table[pairs] = given
        if not torch.allclose(table[pairs], given, rtol=1e-9, atol=1e-9):
            raise ValueError("values differ between rows at the same state and action: they are no table over (s, a).")
        return table

    def _pairs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """State and action index of every action of the batch, flattened."""
        before = torch.nn.functional.pad(self.state_ids(batch)[:, :-1], (1, 0))
        return before[batch.action_mask], batch.input_ids[batch.action_mask]
