"""What the trainers of IQLearn share: options, schedule, objective, and what is logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives import Loss, entropy_regularised_mle, iqlearn, td_coef_at
from ..token_mdp import TokenBatch, TokenStats, stats_from_logits, token_logits, token_loss
from ..token_mdp.batch import first_actions

_PER_EPISODE = ("value_first",)  # means over episodes; all other metrics are means over actions


@dataclass
class IQLearnOptions:
    """The options of IQLearn, for a config to inherit beside its own (arXiv 2409.01369)."""

    td_coef: float = field(
        default=0.1,
        metadata={
            "help": "Lambda, the weight of the squared temporal difference (Q - gamma V')^2 beside -log pi. 0 is plain "
            "SFT; the paper used 0.1 to 1."
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per action in the temporal difference, in [0, 1]."})
    mle_warmup_steps: float = field(
        default=0.05,
        metadata={
            "help": "Pure maximum likelihood before the temporal difference sets in: optimiser steps if >= 1, else a "
            "fraction of the run."
        },
    )
    td_anneal_steps: float = field(
        default=0.05,
        metadata={
            "help": "Then td_coef rises linearly from 0 over so many optimiser steps if >= 1, else this fraction of "
            "the run."
        },
    )
    entropy_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the entropy bonus of entropy-regularised MLE (a control; needs td_coef 0)."},
    )

    def check_iqlearn_options(self) -> None:
        """Check the values; for a config's `__post_init__`.

        Raises:
            UserError: an option out of its range, or two that exclude each other.
        """
        if self.td_coef < 0:
            raise UserError(f"td_coef must be >= 0, not {self.td_coef}.")
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must be in [0, 1], not {self.gamma}.")
        for name in ("mle_warmup_steps", "td_anneal_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be >= 0, not {getattr(self, name)}.")
        if self.entropy_coef and self.td_coef:
            raise UserError("entropy_coef and td_coef are two methods: set one of them to 0.")
        if getattr(self, "label_smoothing_factor", 0):
            raise UserError("label_smoothing_factor has no meaning for soft Q-values; set it to 0.")


class IQLearnLoss:
    """For a Trainer whose `args` are IQLearnOptions: the loss of a batch, and means over its actions in `_metrics`."""

    args: Any
    model: Any
    state: Any
    accelerator: Any
    _metrics: dict[str, Any]

    def refuse_sharded_rows(self) -> None:
        """A next state has to be on the same device.

        Raises:
            UserError: rows are cut into shards.
        """
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            raise UserError(
                "A next state can lie on another shard: sequence and context parallelism are not supported."
            )

    def objective(self, stats: TokenStats, num_actions: Tensor | float | None) -> Loss:
        """The objective of the current step on one micro-batch."""
        args = self.args
        if args.entropy_coef:
            return entropy_regularised_mle(stats, entropy_coef=args.entropy_coef, num_actions=num_actions)
        return iqlearn(stats, td_coef=self.td_coef(), gamma=args.gamma, num_actions=num_actions)

    def td_coef(self) -> float:
        """lambda now: scheduled in training, the full one in evaluation (so that evaluation losses compare)."""
        if not self.model.training:
            return self.args.td_coef
        return td_coef_at(
            self.state.global_step,
            td_coef=self.args.td_coef,
            mle_warmup_steps=_as_steps(self.args.mle_warmup_steps, self.state.max_steps),
            td_anneal_steps=_as_steps(self.args.td_anneal_steps, self.state.max_steps),
        )

    def batch_loss(
        self,
        model: nn.Module,
        batch: TokenBatch,
        num_items_in_batch: Tensor | int | None,
        *,
        with_logits: bool = False,
        **forward_kwargs: Any,
    ) -> tuple[Loss, TokenStats, Any]:
        """Loss of one micro-batch, normalised by the global count, its stats, and the model's output.

        The output holds the logits of every column if they are asked for, else none.
        """
        entropy = "grad" if self.args.entropy_coef else "log"
        if with_logits:
            outputs, first = token_logits(model, batch, all_columns=True, **forward_kwargs)
            stats = stats_from_logits(
                outputs.logits, batch, first_column=first, entropy=True, entropy_grad=entropy == "grad", greedy=True
            )
            loss = self.objective(stats, num_items_in_batch)
        else:
            loss, stats, outputs = token_loss(
                model, batch, self.objective, num_actions=num_items_in_batch, entropy=entropy, **forward_kwargs
            )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the count spans all processes, and DDP averages the gradients over them
            loss = loss._replace(value=loss.value * (self.accelerator.num_processes // self.get_tp_size()))
        return loss, stats, outputs

    def record(self, batch: TokenBatch, stats: TokenStats, metrics: dict[str, Tensor]) -> int:
        """Keep means over the actions (or episodes) of all processes for the log; returns the global token count.

        Names are TRL's where TRL has one.
        """
        mode = "train" if self.model.training else "eval"
        count = stats.num_actions
        episodes = first_actions(stats.action_mask, stats.document_ids).sum()
        sums = {name: value * (episodes if name in _PER_EPISODE else count) for name, value in metrics.items()}
        assert stats.entropy is not None
        assert stats.greedy is not None
        sums["entropy"] = stats.entropy.detach().sum()
        sums["mean_token_accuracy"] = stats.greedy.sum()
        local = torch.stack([x.float() for x in (count, episodes, batch.attention_mask.sum(), *sums.values())])
        actions, episodes, tokens, *total = self.accelerator.gather_for_metrics(local.unsqueeze(0)).sum(dim=0).tolist()
        for name, value in zip(sums, total, strict=True):
            of = episodes if name in _PER_EPISODE else actions
            self._metrics[mode][name].append(value / of if of else 0.0)
        if mode == "train" and self.args.td_coef:
            self._metrics[mode]["td_coef"].append(self.td_coef())
        return int(tokens)


def _as_steps(length: float, max_steps: int) -> int:
    return int(length) if length >= 1 else int(length * max_steps)
