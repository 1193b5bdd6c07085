"""IQLearn, and maximum likelihood, of encoder-decoder models on transformers' Seq2SeqTrainer."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from ..errors import UserError
from ..scorers.frozen import is_encoder_decoder
from ..scorers.seq2seq import decoder_start_token_id
from ..scorers.tokens import eos_token_ids
from ..token_mdp import Seq2SeqBatch
from .iqlearn_shared import IQLearnLoss, IQLearnOptions
from .seq2seq_data import Seq2SeqCollator, row_limits, tokenised

_DECODER = ("labels", "decoder_input_ids", "decoder_attention_mask")


@dataclass
class Seq2SeqIQLearnConfig(IQLearnOptions, Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with the options of IQLearn (arXiv 2409.01369).

    `td_coef=0` and `entropy_coef=0` is maximum likelihood. As in TRL's configs, `bf16` is on unless `fp16` is, and
    every tenth step is logged. Example: `Seq2SeqIQLearnConfig("runs/iqlearn", td_coef=0.1)`.
    """

    _VALID_DICT_FIELDS = [*Seq2SeqTrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012

    max_source_length: int | None = field(
        default=1024, metadata={"help": "Longest prompt in tokens: the end of a longer one is cut off."}
    )
    max_target_length: int | None = field(
        default=1024,
        metadata={
            "help": "Longest answer in tokens: a longer one is cut, and treated as truncated (no EOS, its value "
            "bootstrapped)."
        },
    )
    pad_to_multiple_of: int | None = field(default=None, metadata={"help": "Pad rows to a multiple of this length."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, for a model that is named by its path."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a checkpoint's own Python code."})
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps; below 1: this fraction of the run."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "bfloat16 mixed precision; default: on, unless fp16 is."})

    def __post_init__(self) -> None:
        self.bf16 = not self.fp16 if self.bf16 is None else self.bf16
        super().__post_init__()
        self.check_iqlearn_options()
        for name in ("max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, not {value}.")


class Seq2SeqIQLearnTrainer(IQLearnLoss, Seq2SeqTrainer):
    """Seq2SeqTrainer whose loss is -log pi + lambda (Q - gamma V')^2 (arXiv 2409.01369, eq. 14).

    Rows are {prompt, completion}, both text or both chat messages, which it tokenises; or tokenised rows {input_ids,
    attention_mask, labels}, with any collator of transformers. With `td_coef=0` its loss is the model's own
    cross-entropy, over all micro-batches and processes of a step. Logs what IQLearnTrainer logs.

    Args:
        model: an encoder-decoder LM, a PeftModel of one, or its path.
        args: the configuration.
        data_collator: None pads on the right.
        train_dataset: demonstrations.
        eval_dataset: held-out ones, or several sets by name.
        processing_class: the tokenizer; None loads it from a model's path.
        compute_loss_func: refused; the loss is this trainer's own.
        peft_config: train an adapter of `model`.
        kwargs: of Seq2SeqTrainer.

    Raises:
        UserError: a decoder-only model, no tokenizer, rows of another format, or an option that does not fit.

    Example:
        >>> trainer = Seq2SeqIQLearnTrainer("google/flan-t5-small", args=Seq2SeqIQLearnConfig("runs/iq", td_coef=0.1),
        ...                                 train_dataset=demonstrations)
        >>> trainer.train()
    """

    def __init__(
        self,
        model: Any,
        args: Seq2SeqIQLearnConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = Seq2SeqIQLearnConfig("iqlearn") if args is None else args
        if not isinstance(args, Seq2SeqIQLearnConfig):
            raise UserError(f"Seq2SeqIQLearnTrainer needs a Seq2SeqIQLearnConfig, not {type(args).__name__}.")
        if compute_loss_func is not None:
            raise UserError("Seq2SeqIQLearnTrainer has its own loss; drop compute_loss_func or use Seq2SeqTrainer.")
        if isinstance(model, (str, Path)):
            model, processing_class = _loaded(str(model), args, processing_class)
        if not is_encoder_decoder(model):
            raise UserError("Seq2SeqIQLearnTrainer trains encoder-decoder models; this is none: use IQLearnTrainer.")
        if processing_class is None:
            raise UserError("Pass processing_class, the tokenizer: it says which token ends an answer.")
        model = model if peft_config is None else _with_adapter(model, peft_config)
        self._limits = row_limits(model.config, args)
        self._encoding = (processing_class, args.dataset_num_proc)
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._start_token_id = decoder_start_token_id(model)
        self._eos_token_ids = eos_token_ids(processing_class, model)
        padding = (model.config.pad_token_id, processing_class.pad_token_id, processing_class.eos_token_id)
        self._pad_token_id = next(token for token in padding if token is not None)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or Seq2SeqCollator(self._pad_token_id, args.pad_to_multiple_of),
            train_dataset=self._tokenised(train_dataset),
            eval_dataset=(
                {name: self._tokenised(rows) for name, rows in eval_dataset.items()}
                if isinstance(eval_dataset, dict)
                else self._tokenised(eval_dataset)
            ),
            processing_class=processing_class,
            **kwargs,
        )
        self.refuse_sharded_rows()
        # the count of actions over all micro-batches and processes is what the loss is divided by
        self.model_accepts_loss_kwargs = True

    def _tokenised(self, rows: Any, need_labels: bool = True) -> Any:
        tokenizer, processes = self._encoding
        return tokenised(rows, tokenizer, *self._limits, processes, need_labels=need_labels)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Seq2SeqTrainer's; rows of text are tokenised first."""
        return super().get_eval_dataloader(
            eval_dataset if isinstance(eval_dataset, str) else self._tokenised(eval_dataset)
        )

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Seq2SeqTrainer's; rows of text are tokenised first."""
        return super().get_test_dataloader(self._tokenised(test_dataset, need_labels=False))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one micro-batch, normalised by the global number of actions `num_items_in_batch`."""
        batch = self._token_batch(inputs)
        forward = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", *_DECODER)}
        loss, stats, outputs = self.batch_loss(model, batch, num_items_in_batch, with_logits=return_outputs, **forward)
        self.record(batch, stats, loss.metrics)
        if not return_outputs:
            return loss.value
        outputs.logits = outputs.logits[:, :-1]  # aligned to the labels, as the model's own are
        return loss.value, outputs

    def _token_batch(self, inputs: dict[str, Any]) -> Seq2SeqBatch:
        labels, fed = inputs["labels"], inputs.get("decoder_input_ids")
        if fed is not None:  # a collator may have shifted the labels already, which tells nothing new
            shifted = labels.masked_fill(labels == -100, self._pad_token_id)
            shifted = nn.functional.pad(shifted, (1, -1), value=self._start_token_id)
            fed = None if torch.equal(fed, shifted) else fed
        return Seq2SeqBatch.from_labels(
            inputs["input_ids"],
            labels,
            start_token_id=self._start_token_id,
            pad_token_id=self._pad_token_id,
            eos_token_ids=self._eos_token_ids,
            attention_mask=inputs.get("attention_mask"),
            decoder_input_ids=fed,
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """As Seq2SeqTrainer's, with this trainer's loss also where answers are generated."""
        generates = self.args.predict_with_generate and not prediction_loss_only
        if inputs.get("labels") is None or not (generates or prediction_loss_only):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            count = self._get_num_items_in_batch([inputs], self.args.device)
            loss = self.compute_loss(model, inputs, num_items_in_batch=count).detach()
        if not generates:
            return loss, None, None
        asked = {k: v for k, v in inputs.items() if k not in _DECODER}
        _, answers, _ = super().prediction_step(model, asked, False, ignore_keys=ignore_keys, **gen_kwargs)
        return loss, answers, inputs["labels"]

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Seq2SeqTrainer's, with the means over all batches among its metrics."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in self._means("eval").items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Seq2SeqTrainer's, with the means since the last log."""
        super().log({**logs, **(self._means("train") if self.model.training else {})}, start_time)

    def _means(self, mode: str) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return means


def _loaded(path: str, args: Seq2SeqIQLearnConfig, tokenizer: Any) -> tuple[Any, Any]:
    """The model at a path, in float32 unless told otherwise, and its tokenizer unless one is given."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    remote = {"trust_remote_code": args.trust_remote_code}
    model = AutoModelForSeq2SeqLM.from_pretrained(
        path, **{"dtype": "float32", **remote, **(args.model_init_kwargs or {})}
    )
    return model, AutoTokenizer.from_pretrained(path, **remote) if tokenizer is None else tokenizer


def _with_adapter(model: Any, peft_config: Any) -> Any:
    from peft import get_peft_model

    if hasattr(model, "peft_config"):
        raise UserError("The model is a PeftModel already: drop peft_config, or merge its adapter first.")
    peft_config = copy.copy(peft_config)
    peft_config.task_type = "SEQ_2_SEQ_LM"
    return get_peft_model(model, peft_config)
