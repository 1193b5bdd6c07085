"""Online IQLearn: the temporal difference is also taken over answers that the policy samples while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..objectives import Loss, iqlearn_online
from ..token_mdp import TokenBatch, TokenStats
from .iqlearn import IQLearnConfig, IQLearnTrainer
from .rollouts import Rollouts, check_saves, prompts_of, stacked

__all__ = ["OnlineIQLearnConfig", "OnlineIQLearnTrainer", "prompts_of", "stacked"]


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
        check_saves(self)


class OnlineIQLearnTrainer(Rollouts, IQLearnTrainer):
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

    # --- rollouts -----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of a step, each with own samples of its prompts."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.mix_in and batches and self.scheduled_td_coef():
            batches = self.with_samples(batches, device)
        return batches, count

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
