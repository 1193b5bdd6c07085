"""What every scorer shares: from prompts and completions to one reward per token with its place in the text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import UserError
from ..token_mdp import Seq2SeqBatch, TokenBatch
from .frozen import is_encoder_decoder
from .prefix import CannotShareError, plan, prefixed
from .seq2seq import decoder_start_token_id, encode_seq2seq_pair
from .text import encode_pair, token_spans
from .tokens import eos_token_ids

Rows = Sequence[Sequence[int]]


class TokenScore(NamedTuple):
    """One action: its reward in nats, and where it lies in the completion's text (`text[start:end]`)."""

    token_id: int
    text: str
    start: int
    end: int
    reward: float


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion with the reward of each of its tokens.

    Attributes:
        text: the completion as scored (EOS shown as text).
        tokens: one entry per action, in order.
        terminated: whether it ends with EOS (else it counts as truncated).
    """

    text: str
    tokens: tuple[TokenScore, ...]
    terminated: bool

    @property
    def rewards(self) -> list[float]:
        """The rewards alone, nats."""
        return [token.reward for token in self.tokens]

    @property
    def total(self) -> float:
        """Accumulated reward, nats."""
        return sum(self.rewards)


class IdScores(NamedTuple):
    """Rewards and reference log-probabilities of one completion's tokens, each (C,) float32 on the CPU."""

    rewards: Tensor
    ref_log_prob: Tensor


class TokenScorer(ABC):
    """A frozen source of token rewards. Subclasses say what the reward of a batch is.

    Attributes:
        tokenizer: shared by all models of the scorer.
        eos_token_ids: ids that end an answer.
        shares_prompts: whether `score_with_reference` knows what to do with a `PrefixedBatch`: answers to one prompt
            then share the prompt's computation. Switched off at the first model whose cache does not allow it.
    """

    shares_prompts = False

    def __init__(self, tokenizer: Any, model: Any = None) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids(tokenizer, model)
        self._start_token_id = decoder_start_token_id(model) if is_encoder_decoder(model) else None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where batches are scored."""

    @abstractmethod
    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Rewards, and log pi_SFT of the same actions (the reference of a KL), float32, 0 off the actions."""

    def score_batch(self, batch: TokenBatch) -> Float[Tensor, "B T"]:
        """Token rewards in nats, (B, T) float32 on the batch's device, 0 off the actions."""
        return self.score_with_reference(batch)[0]

    def score_ids(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        action_masks: Sequence[Sequence[int]] | None = None,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[IdScores]:
        """Score sampled ids as they are; nothing is decoded or tokenised again.

        Args:
            prompt_ids: token ids of each prompt.
            completion_ids: token ids of each completion, EOS included where it was sampled.
            action_masks: 1 where a completion token was chosen by the policy (0: a tool's answer); all of them if None.
            batch_size: rows per forward pass; rows of like length go together.
            progress: show a progress bar.

        Returns:
            One IdScores per completion, in order; entries off the actions are 0.
        """
        out: list[IdScores | None] = [None] * len(completion_ids)
        batches, shared = plan(prompt_ids, completion_ids, batch_size, share=self.shares_prompts)
        with tqdm(total=len(out), desc="Scoring", unit="answer", disable=not progress) as bar:
            for rows in batches:
                prompts, completions = [prompt_ids[i] for i in rows], [completion_ids[i] for i in rows]
                masks = None if action_masks is None else [action_masks[i] for i in rows]
                for i, scores in zip(rows, self._score_rows(prompts, completions, masks, shared), strict=True):
                    out[i] = scores
                bar.update(len(rows))
        return [scores for scores in out if scores is not None]

    def _score_rows(self, prompts: Rows, completions: Rows, masks: Rows | None, shared: bool) -> Iterator[IdScores]:
        """The scores of one batch's rows, in order."""
        if shared and self.shares_prompts:
            last = [ids[-1:] for ids in prompts]
            batch = self._with_masks(self._batch(last, completions), last, masks)
            try:
                joined = prefixed(batch, prompts, pad_token_id=self._pad_token_id, device=self.device)
                return _rows(self.score_with_reference(joined), last, completions)
            except CannotShareError:
                self.shares_prompts = False
        before = prompts if self._start_token_id is None else [[self._start_token_id]] * len(prompts)
        batch = self._with_masks(self._batch(prompts, completions), before, masks)
        return _rows(self.score_with_reference(batch), before, completions)

    def score(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        completions: Sequence[str | list[dict[str, Any]] | list[int]],
        *,
        add_eos: bool = True,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[ScoredCompletion]:
        """Score completions: one float per token with its text span.

        Args:
            prompts: strings, or lists of chat messages.
            completions: strings or lists of messages, tokenised as in training (a causal model's prompt and completion
                together, as in TRL's SFT; an encoder-decoder's apart), or lists of token ids, taken as they are.
            add_eos: end a text completion with EOS, as in training. Off for answers that were cut.
            batch_size: rows per forward pass.
            progress: show a progress bar.

        Raises:
            UserError: the numbers of prompts and completions differ, or a completion is empty.

        Example:
            >>> scored = reward.score(["2+2="], ["4"])[0]
            >>> [(token.text, round(token.reward, 2)) for token in scored.tokens]
        """
        if len(prompts) != len(completions):
            raise UserError(f"{len(prompts)} prompts but {len(completions)} completions; give one for each.")
        encode = encode_pair if self._start_token_id is None else encode_seq2seq_pair
        pairs = [encode(self.tokenizer, p, c, add_eos) for p, c in zip(prompts, completions, strict=True)]
        for i, pair in enumerate(pairs):
            if not pair.completion_ids:
                raise UserError(f"Completion {i} is empty: there is no token to score.")
            if not pair.prompt_ids:
                raise UserError(f"Prompt {i} has no token; the first token of a row has no state to be chosen in.")
        scores = self.score_ids(
            [pair.prompt_ids for pair in pairs],
            [pair.completion_ids for pair in pairs],
            batch_size=batch_size,
            progress=progress,
        )
        return [self._scored(pair.completion_ids, s.rewards) for pair, s in zip(pairs, scores, strict=True)]

    def _scored(self, ids: list[int], rewards: Tensor) -> ScoredCompletion:
        text, spans = token_spans(self.tokenizer, ids)
        tokens = tuple(
            TokenScore(token, text[start:end], start, end, reward)
            for token, (start, end), reward in zip(ids, spans, rewards.tolist(), strict=True)
        )
        return ScoredCompletion(text, tokens, ids[-1] in self.eos_token_ids)

    @property
    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.eos_token_ids[0] if pad is None else int(pad)

    def _batch(self, prompt_ids: Rows, completion_ids: Rows) -> TokenBatch:
        if self._start_token_id is not None:
            return Seq2SeqBatch.from_ids(
                prompt_ids,
                completion_ids,
                start_token_id=self._start_token_id,
                pad_token_id=self._pad_token_id,
                eos_token_ids=self.eos_token_ids,
                device=self.device,
            )
        return TokenBatch.from_ids(
            prompt_ids,
            completion_ids,
            pad_token_id=self._pad_token_id,
            eos_token_ids=self.eos_token_ids,
            device=self.device,
        )

    def _with_masks(self, batch: TokenBatch, prompt_ids: Rows, action_masks: Rows | None) -> TokenBatch:
        if action_masks is None:
            return batch
        actions = batch.action_mask.clone()
        for row, (prompt, chosen) in enumerate(zip(prompt_ids, action_masks, strict=True)):
            mask = torch.tensor(chosen, dtype=torch.bool, device=actions.device)
            actions[row, len(prompt) : len(prompt) + len(mask)] &= mask
        masked = TokenBatch.build(
            batch.input_ids, actions, eos_token_ids=self.eos_token_ids, attention_mask=batch.attention_mask
        )
        return replace(batch, action_mask=masked.action_mask, next_state=masked.next_state)


def _rows(scores: tuple[Tensor, Tensor], prompts: Rows, completions: Rows) -> Iterator[IdScores]:
    """The completions' part of (B, T) scores, row by row."""
    rewards, reference = (x.float().cpu() for x in scores)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        columns = slice(len(prompt), len(prompt) + len(completion))
        yield IdScores(rewards[row, columns], reference[row, columns])
