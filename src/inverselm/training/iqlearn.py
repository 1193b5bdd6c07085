"""IQLearn on TRL's SFTTrainer: the same data, formats and options, another loss."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer
from trl.data_utils import is_conversational, is_conversational_from_value

from ..errors import UserError
from ..objectives import Loss, entropy_regularised_mle, iqlearn, td_coef_at
from ..scorers.tokens import eos_token_ids, tokens_after_eos
from ..token_mdp import TokenBatch, TokenStats, stats_from_logits, token_logits, token_loss
from ..token_mdp.batch import first_actions

logger = logging.get_logger(__name__)
_PER_EPISODE = ("value_first",)  # means over episodes; all other metrics are means over actions


@dataclass
class IQLearnConfig(SFTConfig):
    """SFTConfig with the options of IQLearn (arXiv 2409.01369); everything of SFTConfig keeps its meaning.

    `td_coef=0` and `entropy_coef=0` is SFT. Example: `IQLearnConfig("runs/iqlearn", td_coef=0.1)`.
    """

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
    mask_after_eos: bool | None = field(
        default=None,
        metadata={
            "help": "Leave out of the loss what the chat template puts behind an answer's final EOS (ChatML's "
            "newline): the episode is over. Default: on if td_coef > 0, else off as in TRL."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.td_coef < 0:
            raise UserError(f"td_coef must be >= 0, not {self.td_coef}.")
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must be in [0, 1], not {self.gamma}.")
        for name in ("mle_warmup_steps", "td_anneal_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be >= 0, not {getattr(self, name)}.")
        if self.entropy_coef and self.td_coef:
            raise UserError("entropy_coef and td_coef are two methods: set one of them to 0.")
        if self.loss_type != "nll":
            raise UserError(f"loss_type={self.loss_type!r} is another loss than IQLearn's; leave it at 'nll'.")
        if self.label_smoothing_factor:
            raise UserError("label_smoothing_factor has no meaning for soft Q-values; set it to 0.")
        if self.mask_after_eos is None:
            self.mask_after_eos = self.td_coef > 0


class IQLearnTrainer(SFTTrainer):
    """SFTTrainer whose loss is -log pi + lambda (Q - gamma V')^2 (arXiv 2409.01369, eq. 14).

    Takes what SFTTrainer takes: dataset formats, chat templates, completion-only and assistant-only loss, packing,
    PEFT, gradient checkpointing, accelerate. With `td_coef=0` its loss is SFTTrainer's. Beside TRL's metrics it logs
    `td_coef`, `td_error` (mean |delta|, nats), `reward` (mean delta), `value_first` (V of the first state),
    `value_gap` (V minus the NLL still to come: 0 when calibrated) and `nll`.

    Raises:
        UserError: a vision dataset, a `compute_loss_func`, sequence parallelism, or "wrapped" packing of conversations
            (its rows do not say where a conversation ends).

    Example:
        >>> trainer = IQLearnTrainer("Qwen/Qwen3-0.6B", args=IQLearnConfig("runs/iqlearn", td_coef=0.1),
        ...                          train_dataset=demonstrations)
        >>> trainer.train()
    """

    _tag_names = ["trl", "inverselm", "iqlearn"]  # noqa: RUF012  (TRL's class attribute)
    _name = "IQLearn"
    _paper = {"title": "Imitating Language via Scalable Inverse Reinforcement Learning", "id": "2409.01369"}  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        args: IQLearnConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        **kwargs: Any,
    ) -> None:
        args = IQLearnConfig("iqlearn") if args is None else args
        if not isinstance(args, IQLearnConfig):
            raise UserError(f"IQLearnTrainer needs an IQLearnConfig, not {type(args).__name__}.")
        if compute_loss_func is not None:
            raise UserError("IQLearnTrainer has its own loss; drop compute_loss_func or use SFTTrainer.")
        self._template_suffix: list[int] = []
        super().__init__(
            model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if self._is_vision_dataset:
            raise UserError("IQLearnTrainer handles text only; vision datasets are not supported.")
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            raise UserError(
                "A next state can lie on another shard: sequence and context parallelism are not supported."
            )
        # the count of actions over all micro-batches and processes is what the loss is divided by
        self.model_accepts_loss_kwargs = True
        # without a temporal difference there are no next states to keep apart, and the loss is SFTTrainer's
        self._document_ends_at_eos = args.packing and args.packing_strategy == "wrapped" and args.td_coef > 0
        self._eos_token_ids = eos_token_ids(self._tokenizer, self.model)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        """TRL's preparation, with the template's tokens behind the final EOS taken out of the labels on the way."""
        first = next(iter(dataset))
        chat = formatting_func is None and (is_conversational(first) or is_conversational_from_value(first))
        if chat and packing and args.packing_strategy == "wrapped" and args.td_coef > 0:
            raise UserError("packing_strategy='wrapped' hides where a conversation ends; use 'bfd' or 'bfd_split'.")
        suffix = tokens_after_eos(processing_class, eos_token_ids(processing_class, self.__dict__.get("model")))
        if not (chat and args.mask_after_eos and suffix and "input_ids" not in first):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        tokenise_only = copy.copy(args)
        tokenise_only.max_length, tokenise_only.shuffle_dataset = None, False
        tokenised = super()._prepare_dataset(
            dataset, processing_class, tokenise_only, False, formatting_func, dataset_name
        )
        masked = tokenised.map(_mask_suffix, fn_kwargs={"suffix": suffix})
        return super()._prepare_dataset(masked, processing_class, args, packing, formatting_func, dataset_name)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The global number of actions. "wrapped" rows label first tokens of documents too: no state precedes those."""
        if self._document_ends_at_eos:
            actions = [self._token_batch(inputs).action_mask for inputs in batch_samples]
            batch_samples = [
                {**inputs, "labels": inputs["labels"].masked_fill(~mask, -100)}
                for inputs, mask in zip(batch_samples, actions, strict=True)
            ]
        return super()._get_num_items_in_batch(batch_samples, device)

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

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch, normalised by the global number of actions `num_items_in_batch`."""
        batch = self._token_batch(inputs)
        own = {"input_ids", "labels", "attention_mask", "position_ids"}
        forward = {k: v for k, v in inputs.items() if k not in own}
        if self.aux_loss_enabled:
            forward["output_router_logits"] = True
        entropy = "grad" if self.args.entropy_coef else "log"
        if return_outputs:
            outputs, first = token_logits(model, batch, all_columns=True, **forward)
            stats = stats_from_logits(
                outputs.logits, batch, first_column=first, entropy=True, entropy_grad=entropy == "grad", greedy=True
            )
            loss, metrics = self.objective(stats, num_items_in_batch)
        else:
            (loss, metrics), stats, outputs = token_loss(
                model, batch, self.objective, num_actions=num_items_in_batch, entropy=entropy, **forward
            )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the count spans all processes, and DDP averages the gradients over them
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss.to(loss.device) / steps
            metrics["aux_loss"] = outputs.aux_loss.detach()
        self._record(batch, stats, metrics)
        return (loss, outputs) if return_outputs else loss

    def _token_batch(self, inputs: dict[str, Any]) -> TokenBatch:
        packed = "attention_mask" not in inputs
        return TokenBatch.from_labels(
            inputs["input_ids"],
            inputs["labels"],
            eos_token_ids=self._eos_token_ids,
            attention_mask=inputs.get("attention_mask"),
            position_ids=inputs["position_ids"] if packed else None,
            document_ends_at_eos=self._document_ends_at_eos,
        )

    def _record(self, batch: TokenBatch, stats: TokenStats, metrics: dict[str, Tensor]) -> None:
        """Average over the actions (or episodes) of all processes, under TRL's names where TRL has one."""
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
        if mode == "train":
            self._total_train_tokens += int(tokens) // self._tp_size
            if self.args.td_coef:
                self._metrics[mode]["td_coef"].append(self.td_coef())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _as_steps(length: float, max_steps: int) -> int:
    return int(length) if length >= 1 else int(length * max_steps)


def _mask_suffix(example: dict[str, list[int]], suffix: list[int]) -> dict[str, list[int]]:
    """Take the template's tokens behind the last EOS out of a tokenised example's labels."""
    ids, labels = example["input_ids"], example["labels"]
    if ids[-len(suffix) :] == suffix:
        labels = labels[: -len(suffix)] + [-100] * len(suffix)
    return {"labels": labels}
