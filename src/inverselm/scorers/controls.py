"""Controls of a token reward: the same rewards with one thing taken away. Training must do better with all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError
from ..token_mdp import PADDING, TokenBatch
from .base import IdScores, TokenScorer

REWARD_CONTROLS = ("shuffled_tokens", "shuffled_sequences", "sequence_sum_on_last", "log_prob_only", "random")


class _Answer(NamedTuple):
    """The rewards of one answer's actions, log pi_SFT of the same, and the ids that they belong to."""

    rewards: Float[Tensor, " A"]
    log_prob: Float[Tensor, " A"]
    ids: Sequence[int]


class ControlledReward(TokenScorer):
    """Another scorer's rewards with one thing taken away, to see what training owes to it.

    - "shuffled_tokens": an answer's rewards, dealt out anew among its actions: the same sum and the same numbers, but
      on the wrong tokens. What is left is the reward of the whole answer.
    - "sequence_sum_on_last": the sum on the last action, 0 elsewhere. The same, without the density.
    - "shuffled_sequences": each answer gets those of another answer of the call, whichever prompt that answers: no
      answer keeps its own. The donor's rewards are laid on the answer's actions from the first on; if it has more, the
      rest is added to the last action, if it has less, zeros follow. So the donor's sum is kept, and its numbers at
      their places up to the last action. What is left is the distribution of the rewards.
    - "random": Gaussian noise with the mean and standard deviation of the call's rewards. What is left are two numbers.
    - "log_prob_only": log pi_SFT of the action alone, without a baseline. What is left is the SFT model's likelihood.

    Only actions get rewards and count. The reference log-probabilities (of the KL) stay as they are.

    Random numbers depend on `seed` and on the ids of the call's prompts and answers, on nothing else: scoring the same
    rollout again gives the same rewards, whatever was drawn before, so that a resumed run equals an uninterrupted one;
    another rollout gives others. A call is one `score_ids`: in DensePathTrainer the rollout of one process.

    Args:
        scorer: gives the rewards.
        control: one of `REWARD_CONTROLS`.
        seed: of the random numbers.

    Raises:
        UserError: unknown control; while scoring, "shuffled_sequences" of a single answer.

    Example:
        >>> reward = ControlledReward(TokenReward.from_checkpoints("runs/sft"), "shuffled_tokens")
        >>> DensePathTrainer("runs/sft", reward, args=DensePathConfig("runs/control"), train_dataset=prompts).train()
    """

    def __init__(self, scorer: TokenScorer, control: str, *, seed: int = 0) -> None:
        if control not in REWARD_CONTROLS:
            raise UserError(f"The control of a reward is one of {', '.join(REWARD_CONTROLS)}, not {control!r}.")
        self.scorer, self.control, self.seed = scorer, control, seed

    def __getattr__(self, name: str) -> Any:
        """What this class does not have (tokenizer, eos_token_ids, ...) is the scorer's."""
        if name == "scorer":  # not there yet: while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.scorer, name)

    @property
    def device(self) -> torch.device:
        return self.scorer.device

    def score_ids(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        action_masks: Sequence[Sequence[int]] | None = None,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> list[IdScores]:
        """As the scorer's, with the rewards controlled over all answers of the call."""
        scores = self.scorer.score_ids(
            prompt_ids, completion_ids, action_masks, batch_size=batch_size, progress=progress
        )
        masks = [torch.ones(len(ids), dtype=torch.bool) for ids in completion_ids]
        if action_masks is not None:
            masks = [torch.tensor(mask, dtype=torch.bool) for mask in action_masks]
        answers = [
            _Answer(s.rewards[mask], s.ref_log_prob[mask], [*prompt, *completion])
            for s, mask, prompt, completion in zip(scores, masks, prompt_ids, completion_ids, strict=True)
        ]
        out = []
        for s, mask, rewards in zip(scores, masks, self._controlled(answers), strict=True):
            laid = torch.zeros_like(s.rewards)
            laid[mask] = rewards
            out.append(IdScores(laid, s.ref_log_prob))
        return out

    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """The batch is the call, its documents the answers."""
        rewards, log_prob = self.scorer.score_with_reference(batch)
        places: list[Bool[Tensor, "B T"]] = []
        answers = []
        for row, documents in enumerate(batch.document_ids):
            for document in documents[documents != PADDING].unique():
                inside = torch.zeros_like(batch.action_mask)
                inside[row] = documents == document
                places.append(inside & batch.action_mask)
                ids = batch.input_ids[inside].tolist()
                answers.append(_Answer(rewards[places[-1]].cpu(), log_prob[places[-1]].cpu(), ids))
        laid = torch.zeros_like(rewards)
        for here, own in zip(places, self._controlled(answers), strict=True):
            laid[here] = own.to(laid)
        return laid, log_prob

    def _controlled(self, answers: list[_Answer]) -> list[Float[Tensor, " A"]]:
        """The rewards of each answer's actions."""
        rewards = [answer.rewards for answer in answers]
        generator = self._generator([answer.ids for answer in answers])
        if self.control == "log_prob_only":
            return [answer.log_prob for answer in answers]
        if self.control == "sequence_sum_on_last":
            return [_on_last(own) for own in rewards]
        if self.control == "shuffled_tokens":
            return [own[torch.randperm(len(own), generator=generator)] for own in rewards]
        if self.control == "random":
            every = torch.cat(rewards) if rewards else torch.zeros(0)
            mean, std = (every.mean(), every.std(correction=0)) if len(every) else (0.0, 0.0)
            return [mean + std * torch.randn(len(own), generator=generator, dtype=own.dtype) for own in rewards]
        return _dealt(rewards, generator)

    def _generator(self, rows: list[Sequence[int]]) -> torch.Generator:
        """Seeded by the seed and the ids."""
        text = repr([self.seed, [list(map(int, row)) for row in rows]])
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(number)


def _on_last(rewards: Float[Tensor, " A"]) -> Float[Tensor, " A"]:
    out = torch.zeros_like(rewards)
    out[-1:] = rewards.sum()
    return out


def _dealt(rewards: list[Float[Tensor, " A"]], generator: torch.Generator) -> list[Float[Tensor, " A"]]:
    """To each answer another's rewards: one random cycle through all answers that have actions."""
    order = [i for i in torch.randperm(len(rewards), generator=generator).tolist() if len(rewards[i])]
    if len(order) == 1:
        raise UserError(
            "shuffled_sequences needs two answers in a call to score_ids; raise the batch size (in training, "
            "per_device_train_batch_size * steps_per_generation)."
        )
    out = [torch.zeros_like(own) for own in rewards]
    for taker, giver in zip(order, order[1:] + order[:1], strict=True):
        size, given = len(rewards[taker]), rewards[giver]
        kept = min(size, len(given))
        out[taker][:kept] = given[:kept]
        out[taker][-1] += given[kept:].sum()
    return out
