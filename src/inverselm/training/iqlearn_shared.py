"""What the trainers of IQLearn share: options, schedule, objectives (its own, DFT, GEM), and what is logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives import Loss, dft, entropy_regularised_mle, gem, iqlearn, td_coef_at
from ..token_mdp import TokenBatch, TokenStats, masked_mean, stats_from_logits, token_logits, token_loss
from ..token_mdp.batch import first_actions

OBJECTIVES = ("iqlearn", "dft", "gem")
GEM_TEMPERATURE = 0.7
"""The temperature of GEM's linear form in arXiv 2408.16673."""

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
    objective: str = field(
        default="iqlearn",
        metadata={
            "help": "The loss: iqlearn; or one of its peers on the same data, dft (arXiv 2508.05629) or gem (linear "
            "form, arXiv 2408.16673), which need td_coef 0.",
            "choices": list(OBJECTIVES),
        },
    )
    gem_temperature: float | None = field(
        default=None,
        metadata={"help": f"Beta of the objective gem, above 0; 1 is plain SFT. Default: {GEM_TEMPERATURE}."},
    )

    def check_iqlearn_options(self) -> None:
        """Check the values; for a config's `__post_init__`, behind that of TrainingArguments.

        The best checkpoint by `eval_nll` is the lowest one: transformers would take it for a metric to be raised.

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
        self._check_objective()
        if str(getattr(self, "metric_for_best_model", None)).endswith("nll"):
            self.greater_is_better = False
        if getattr(self, "label_smoothing_factor", 0):
            raise UserError("label_smoothing_factor has no meaning for soft Q-values; set it to 0.")

    def _check_objective(self) -> None:
        """The peers' options; gem_temperature gets its default."""
        if self.objective not in OBJECTIVES:
            raise UserError(f"objective={self.objective!r} is unknown; choose {', '.join(OBJECTIVES)}.")
        if self.objective != "iqlearn" and (self.td_coef or self.entropy_coef):
            raise UserError(f"objective={self.objective!r} is another loss: set td_coef and entropy_coef to 0.")
        if self.objective != "gem" and self.gem_temperature is not None:
            raise UserError("gem_temperature belongs to objective='gem'; leave it out.")
        if self.objective == "gem" and self.gem_temperature is None:
            self.gem_temperature = GEM_TEMPERATURE
        if self.gem_temperature is not None and not 0.0 < self.gem_temperature < math.inf:
            raise UserError(f"gem_temperature must be above 0, not {self.gem_temperature}.")


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
        """The objective of the current step on one micro-batch; GEM's takes the stats of its temperature."""
        args = self.args
        if args.objective == "dft":
            return dft(stats, num_actions=num_actions)
        if args.objective == "gem":
            return gem(stats, temperature=args.gem_temperature, num_actions=num_actions)
        if args.entropy_coef:
            return entropy_regularised_mle(stats, entropy_coef=args.entropy_coef, num_actions=num_actions)
        return iqlearn(stats, td_coef=self.td_coef(), gamma=args.gamma, num_actions=num_actions)

    def td_coef(self) -> float:
        """lambda now: scheduled in training, the full one in evaluation (so that evaluation losses compare)."""
        return self.scheduled_td_coef() if self.model.training else self.args.td_coef

    def scheduled_td_coef(self) -> float:
        """lambda of the coming optimiser step."""
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
        per_token: Mapping[str, Tensor] | None = None,
        **forward_kwargs: Any,
    ) -> tuple[Loss, TokenStats, Any]:
        """Loss of one micro-batch, normalised by the global count, its stats, and the model's output.

        `per_token` are (B, T) numbers that the objective takes by name. Stats and the metric `nll` are at temperature 1
        whatever the loss is, so that runs compare. The output holds the logits of every column if they are asked for,
        else none.
        """
        entropy = "grad" if self.args.entropy_coef else "log"
        temperature = self.args.gem_temperature if self.args.objective == "gem" else 1.0
        if with_logits:
            outputs, first = token_logits(model, batch, all_columns=True, **forward_kwargs)
            read = partial(stats_from_logits, outputs.logits, batch, first_column=first, entropy=True, greedy=True)
            stats = read(entropy_grad=entropy == "grad", temperature=temperature)
            loss = self.objective(stats, num_items_in_batch, **(per_token or {}))
            stats = stats if temperature == 1.0 else read(entropy_grad=False)
        else:
            loss, stats, outputs = token_loss(
                model,
                batch,
                self.objective,
                num_actions=num_items_in_batch,
                per_token=per_token,
                entropy=entropy,
                temperature=temperature,
                stats_temperature=1.0,
                **forward_kwargs,
            )
        loss.metrics.setdefault("nll", masked_mean(-stats.log_prob.detach(), stats.action_mask))
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the count spans all processes, and DDP averages the gradients over them
            loss = loss._replace(value=loss.value * (self.accelerator.num_processes // self.get_tp_size()))
        return loss, stats, outputs

    def record(self, batch: TokenBatch, stats: TokenStats, metrics: dict[str, Tensor]) -> int:
        """Keep means over the actions (or episodes) of all processes for the log; returns the global token count.

        Names are TRL's where TRL has one. In evaluation the objective's numbers count once for each row, as the
        Trainer's `eval_loss` does: `eval_nll` of one run compares with `eval_loss` of plain SFT.
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
            times = len(batch.input_ids) if mode == "eval" and name in metrics else 1
            self._metrics[mode][name] += [value / of if of else 0.0] * times
        if mode == "train" and self.args.td_coef:
            self._metrics[mode]["td_coef"].append(self.td_coef())
        return int(tokens)


def _as_steps(length: float, max_steps: int) -> int:
    return int(length) if length >= 1 else int(length * max_steps)
