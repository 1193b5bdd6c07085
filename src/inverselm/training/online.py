"""Online IQLearn: the temporal difference is also taken over answers that the policy samples while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation

from ..errors import UserError
from ..inference.generate import Completion, generate
from ..objectives import Loss, iqlearn_online
from ..token_mdp import TokenBatch, TokenStats
from .iqlearn import IQLearnConfig, IQLearnTrainer


@dataclass
class OnlineIQLearnConfig(IQLearnConfig):
    """IQLearnConfig with own samples mixed in; `mix_in=0` is the offline method, exactly.

    Example: `OnlineIQLearnConfig("runs/online", td_coef=0.1, mix_in=0.1, max_completion_length=128)`.
    """

    mix_in: float = field(
        default=0.0,
        metadata={
            "help": "Alpha, the share of the policy's own samples in the temporal difference, in [0, 1); 0 is offline, "
            "the paper's comparison of rewards used 0.1. Samples answer the batch's own prompts, at temperature 1."
        },
    )
    rollout_every: int = field(
        default=1,
        metadata={"help": "Sample anew every so many optimiser steps; between them the last samples are used again."},
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest own sample, in tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.mix_in < 1.0:
            raise UserError(f"mix_in must be in [0, 1), not {self.mix_in}.")
        for name in ("rollout_every", "max_completion_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if not self.mix_in:
            return
        if not self.td_coef:
            raise UserError("mix_in has no part in the loss without a temporal difference; set td_coef above 0.")
        if self.packing:
            raise UserError("mix_in answers the prompt of each row: set packing=False.")
        saves = str(getattr(self.save_strategy, "value", self.save_strategy))
        if self.rollout_every > 1 and (saves == "epoch" or (saves == "steps" and self.save_steps % self.rollout_every)):
            raise UserError(
                f"a run can resume only where it samples anew: set save_strategy='steps' and save_steps to a multiple "
                f"of rollout_every={self.rollout_every}."
            )


class OnlineIQLearnTrainer(IQLearnTrainer):
    """IQLearnTrainer whose temporal difference is over demonstrations and own samples (arXiv 2409.01369, eq. 15-17).

    -log pi over demonstrations + td_coef [(1 - mix_in) r^2 over demonstrations + mix_in r^2 over own samples], with
    r = V + log pi / (1 - mix_in) - gamma V'. At each step the current policy answers the prompts of the batch once (of
    all its micro-batches together), while td_coef is above 0. Beside IQLearnTrainer's metrics, which are of the
    demonstrations, it logs `own_td_squared`, `own_reward` (mean r), `own_length` (actions per sample) and
    `own_truncated` (share of samples without EOS). Evaluation is that of the offline method.

    Raises:
        UserError: an encoder-decoder, FSDP, packed rows, or a prompt without room for an answer.

    Example:
        >>> args = OnlineIQLearnConfig("runs/online", td_coef=0.1, mix_in=0.1)
        >>> OnlineIQLearnTrainer("runs/sft", args=args, train_dataset=demonstrations).train()
    """

    _tag_names = ["trl", "inverselm", "iqlearn", "online"]  # noqa: RUF012  (TRL's class attribute)

    def __init__(self, model: Any, args: OnlineIQLearnConfig | None = None, **kwargs: Any) -> None:
        args = OnlineIQLearnConfig("iqlearn-online") if args is None else args
        if not isinstance(args, OnlineIQLearnConfig):
            raise UserError(f"OnlineIQLearnTrainer needs an OnlineIQLearnConfig, not {type(args).__name__}.")
        super().__init__(model, args=args, **kwargs)
        if args.mix_in and self.is_fsdp_enabled:
            raise UserError("mix_in with FSDP is not supported: sampling needs whole weights. Use DDP or DeepSpeed.")
        self._samples: list[dict[str, Tensor]] = []

    # --- rollouts -----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of a step, each with own samples of its prompts."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.mix_in and batches and self.scheduled_td_coef():
            if self.state.global_step % self.args.rollout_every == 0 or not self._samples:
                self._samples = self._rollout(batches)
            chosen = [self._samples[i % len(self._samples)] for i in range(len(batches))]
            total = torch.stack([sample["actions"].sum() for sample in chosen]).sum().to(device)
            if self.args.average_tokens_across_devices:
                total = self.accelerator.gather(total).sum()
            batches = [
                {**inputs, "own": {**sample, "total": total}} for inputs, sample in zip(batches, chosen, strict=True)
            ]
        return batches, count

    def _rollout(self, batches: Sequence[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Own samples on the prompts of each micro-batch, all generated together."""
        prompts = [prompts_of(self._token_batch(inputs)) for inputs in batches]
        args = self.args
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            answers = generate(
                model,
                self._tokenizer,
                [prompt for group in prompts for prompt in group],
                max_new_tokens=args.max_completion_length,
                batch_size=args.per_device_train_batch_size,
                seed=args.seed + 1_000_003 * (self.state.global_step + 1) + 7919 * self.accelerator.process_index,
                progress=False,
            )
        drawn = iter(completion for [completion] in answers)
        return [self._as_tensors(group, [next(drawn) for _ in group]) for group in prompts]

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

    # --- loss ---------------------------------------------------------------------------------------------------------

    def loss_batch(self, inputs: dict[str, Any]) -> tuple[TokenBatch, dict[str, Tensor]]:
        """Demonstrations, and below them own samples if there are any."""
        batch = self._token_batch(inputs)
        own = inputs.get("own")
        if own is None:
            return batch, {}
        self._own_total = own["total"]
        both = stacked(batch, own, eos_token_ids=self._eos_token_ids)
        flags = torch.zeros_like(both.action_mask)
        flags[len(batch.input_ids) :] = True
        return both, {"own": flags}

    def objective(self, stats: TokenStats, num_actions: Any, own: Tensor | None = None) -> Loss:
        """The objective of the current step on one micro-batch."""
        if own is None:
            return super().objective(stats, num_actions)
        return iqlearn_online(
            stats,
            own=own,
            td_coef=self.td_coef(),
            mix_in=self.args.mix_in,
            gamma=self.args.gamma,
            num_actions=num_actions,
            num_own=self._own_total,
        )

    def record_loss(self, inputs: dict[str, Any], batch: TokenBatch, stats: TokenStats, metrics: dict[str, Any]) -> int:
        """Metrics of the demonstrations as offline; those of own samples beside them."""
        own = inputs.get("own")
        if own is None:
            return super().record_loss(inputs, batch, stats, metrics)
        rows = len(inputs["input_ids"])
        sums = {name: metrics.pop(name) * own["actions"].sum() for name in ("own_td_squared", "own_reward")}
        answers = torch.tensor(float(len(own["finished"])), device=own["actions"].device)
        local = torch.stack([own["actions"].sum(), answers, (1 - own["finished"]).sum(), *sums.values()]).float()
        actions, answers, cut, *total = self.accelerator.gather_for_metrics(local.unsqueeze(0)).sum(dim=0).tolist()
        for name, value in zip(sums, total, strict=True):
            self._metrics["train"][name].append(value / max(actions, 1.0))
        self._metrics["train"]["own_length"].append(actions / max(answers, 1.0))
        self._metrics["train"]["own_truncated"].append(cut / max(answers, 1.0))
        return super().record_loss(inputs, batch.rows(slice(rows)), stats.rows(slice(rows)), metrics)


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
