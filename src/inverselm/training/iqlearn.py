"""IQLearn, and its peers DFT and GEM, on TRL's SFTTrainer: the same data, formats and options, another loss."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer
from trl.data_utils import is_conversational, is_conversational_from_value

from ..errors import UserError
from ..scorers.tokens import eos_token_ids, tokens_after_eos
from ..token_mdp import TokenBatch, TokenStats
from .iqlearn_shared import IQLearnLoss, IQLearnOptions

_PEERS = {
    "dft": (
        "DFT",
        {
            "title": "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
            "id": "2508.05629",
        },
    ),
    "gem": (
        "GEM",
        {"title": "Preserving Diversity in Supervised Fine-Tuning of Large Language Models", "id": "2408.16673"},
    ),
}


@dataclass
class IQLearnConfig(IQLearnOptions, SFTConfig):
    """SFTConfig with the options of IQLearn (arXiv 2409.01369); everything of SFTConfig keeps its meaning.

    `td_coef=0` and `entropy_coef=0` is SFT; `objective="dft"` and `objective="gem"` are other losses on the same data.
    Example: `IQLearnConfig("runs/iqlearn", td_coef=0.1)`.
    """

    mask_after_eos: bool | None = field(
        default=None,
        metadata={
            "help": "Leave out of the loss what the chat template puts behind an answer's final EOS (ChatML's "
            "newline): the episode is over. Default: on if td_coef > 0, else off as in TRL."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_iqlearn_options()
        if self.loss_type != "nll":
            raise UserError(f"loss_type={self.loss_type!r} is SFTTrainer's; leave it at 'nll', and set objective.")
        if self.mask_after_eos is None:
            self.mask_after_eos = self.td_coef > 0


class IQLearnTrainer(IQLearnLoss, SFTTrainer):
    """SFTTrainer whose loss is -log pi + lambda (Q - gamma V')^2 (arXiv 2409.01369, eq. 14).

    Takes what SFTTrainer takes: dataset formats, chat templates, completion-only and assistant-only loss, packing,
    PEFT, gradient checkpointing, accelerate. With `td_coef=0` its loss is SFTTrainer's. Beside TRL's metrics it logs
    `td_coef`, `td_error` (mean |delta|, nats), `reward` (mean delta), `value_first` (V of the first state),
    `value_gap` (V minus the NLL still to come: 0 when calibrated) and `nll`.

    With `objective="dft"` or `"gem"` the loss is that of `inverselm.objectives`, and `probability` or `gem` is logged.
    Neither is a likelihood: `nll`, `entropy` and `mean_token_accuracy` are those of the model at temperature 1 for
    every objective, so compare runs by `eval_nll`, which is what SFTTrainer has as `eval_loss`.

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
        if args.objective != "iqlearn":  # what the model card says
            self._name, self._paper = _PEERS[args.objective]
            self._tag_names = ["trl", "inverselm", args.objective]
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
        self.refuse_sharded_rows()
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

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch, normalised by the global number of actions `num_items_in_batch`."""
        batch, per_token = self.loss_batch(inputs)
        read = {"input_ids", "labels", "attention_mask", "position_ids", "own"}
        forward = {k: v for k, v in inputs.items() if k not in read}
        if self.aux_loss_enabled:
            forward["output_router_logits"] = True
        loss, stats, outputs = self.batch_loss(
            model, batch, num_items_in_batch, with_logits=return_outputs, per_token=per_token, **forward
        )
        value, metrics = loss
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            value = value + self.router_aux_loss_coef * outputs.aux_loss.to(value.device) / steps
            metrics["aux_loss"] = outputs.aux_loss.detach()
        mode = "train" if self.model.training else "eval"
        tokens = self.record_loss(inputs, batch, stats, metrics)
        if mode == "train":
            self._total_train_tokens += tokens // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (value, outputs) if return_outputs else value

    def loss_batch(self, inputs: dict[str, Any]) -> tuple[TokenBatch, dict[str, Tensor]]:
        """What the loss is taken over, with (B, T) numbers that the objective takes by name."""
        return self._token_batch(inputs), {}

    def record_loss(self, inputs: dict[str, Any], batch: TokenBatch, stats: TokenStats, metrics: dict[str, Any]) -> int:
        """Keep the metrics of a micro-batch for the log; returns the global token count."""
        return self.record(batch, stats, metrics)

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


def _mask_suffix(example: dict[str, list[int]], suffix: list[int]) -> dict[str, list[int]]:
    """Take the template's tokens behind the last EOS out of a tokenised example's labels."""
    ids, labels = example["input_ids"], example["labels"]
    if ids[-len(suffix) :] == suffix:
        labels = labels[: -len(suffix)] + [-100] * len(suffix)
    return {"labels": labels}
