"""Answers that a policy samples while it trains, to the prompts of its own training batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation

from ..errors import UserError
from ..inference.generate import Completion, generate
from ..token_mdp import TokenBatch


class Rollouts:
    """For an IQLearnTrainer whose `args` have `max_completion_length` and `rollout_every`: own samples in its batches.

    At each step, or every `rollout_every` steps, the current policy answers the prompts of all micro-batches together,
    once each, at temperature 1.
    """

    args: Any
    state: Any
    model_wrapped: Any
    accelerator: Any
    _tokenizer: Any
    _eos_token_ids: list[int]
    _token_batch: Any
    _samples: Sequence[dict[str, Tensor]] = ()

    def with_samples(self, batches: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
        """The micro-batches of a step, each with own samples under "own", and their global number of actions."""
        if self.state.global_step % self.args.rollout_every == 0 or not self._samples:
            self._samples = self._rollout(batches)
        chosen = [self._samples[i % len(self._samples)] for i in range(len(batches))]
        total = torch.stack([sample["actions"].sum() for sample in chosen]).sum().to(device)
        if self.args.average_tokens_across_devices:
            total = self.accelerator.gather(total).sum()
        return [{**inputs, "own": {**sample, "total": total}} for inputs, sample in zip(batches, chosen, strict=True)]

    def _rollout(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Own samples on the prompts of each micro-batch, all generated together."""
        prompts = [prompts_of(self._token_batch(inputs)) for inputs in batches]
        drawn = iter(self._answers([prompt for group in prompts for prompt in group]))
        return [self._as_tensors(group, [next(drawn) for _ in group]) for group in prompts]

    def _answers(self, prompts: list[list[int]]) -> list[Completion]:
        """One answer of the current policy to each prompt."""
        args = self.args
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            answers = generate(
                model,
                self._tokenizer,
                prompts,
                max_new_tokens=args.max_completion_length,
                batch_size=args.per_device_train_batch_size,
                seed=args.seed + 1_000_003 * (self.state.global_step + 1) + 7919 * self.accelerator.process_index,
                progress=False,
            )
        return [completion for [completion] in answers]

    def _as_tensors(self, prompts: Sequence[list[int]], answers: Sequence[Completion]) -> dict[str, Tensor]:
        pad = self._tokenizer.pad_token_id
        batch = TokenBatch.from_ids(
            prompts,
            [answer.token_ids for answer in answers],
            pad_token_id=self._eos_token_ids[0] if pad is None else pad,
            eos_token_ids=self._eos_token_ids,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )
        finished = torch.tensor([float(answer.finished) for answer in answers])
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "actions": batch.action_mask,
            "finished": finished,
        }


def check_saves(args: Any) -> None:
    """Samples are not saved: checkpoints must lie where they are made anew.

    Raises:
        UserError: with `rollout_every` above 1, another `save_strategy` or `save_steps`.
    """
    saves = str(getattr(args.save_strategy, "value", args.save_strategy))
    if args.rollout_every > 1 and (saves == "epoch" or (saves == "steps" and args.save_steps % args.rollout_every)):
        raise UserError(
            f"a run can resume only where it samples anew: set save_strategy='steps' and save_steps to a multiple "
            f"of rollout_every={args.rollout_every}."
        )


def prompts_of(batch: TokenBatch) -> list[list[int]]:
    """The ids before the first action of each row that has one: what a policy is to answer.

    Example:
        >>> prompts_of(TokenBatch.from_ids([[5, 6], [7]], [[8, 2], [9, 2]], pad_token_id=0, eos_token_ids=[2]))
        [[5, 6], [7]]
    """
    prompts = []
    for ids, real, actions in zip(batch.input_ids, batch.attention_mask, batch.action_mask, strict=True):
        if bool(actions.any()):
            before = real.clone()
            before[int(actions.long().argmax()) :] = False
            prompts.append(ids[before].tolist())
    return prompts


def stacked(batch: TokenBatch, own: dict[str, Tensor], *, eos_token_ids: Sequence[int]) -> TokenBatch:
    """The rows of a batch, and below them own samples, padded to one width."""
    width = max(batch.input_ids.size(1), own["input_ids"].size(1))

    def both(first: Tensor, second: Tensor) -> Tensor:
        parts = [torch.nn.functional.pad(x, (0, width - x.size(1))) for x in (first, second.to(first.device))]
        return torch.cat(parts)

    return TokenBatch.build(
        both(batch.input_ids, own["input_ids"]),
        both(batch.action_mask, own["actions"]),
        eos_token_ids=eos_token_ids,
        attention_mask=both(batch.attention_mask, own["attention_mask"]),
    )


def below(own: Tensor, batch: TokenBatch) -> Tensor:
    """(b, t) numbers of own samples at their place in the rows of a `stacked` batch: (B, T), 0 above and beside."""
    rows, width = batch.input_ids.shape
    out = own.new_zeros(rows, width)
    out[rows - own.size(0) :, : own.size(1)] = own
    return out.to(batch.input_ids.device)
