"""One iteration of self-play on TRL's DPOTrainer: its batches and forward, with the losses of SPIN and GSIL."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from trl import DPOTrainer

from ..errors import UserError
from ..objectives import self_play_loss
from ..scorers.tokens import eos_token_ids
from .self_play_config import SelfPlayConfig


class SelfPlayTrainer(DPOTrainer):
    """DPOTrainer on token ids whose loss is SPIN's or GSIL's; the reference is the model as it is handed over.

    `loss_type="spin"` is DPO's sigmoid loss. The reference's log-probabilities are computed once, in the constructor.
    A whole run samples and trains several times: :func:`self_play`.

    Logged: `rewards/margins`, `rewards/accuracies`, `log_ratio/real`, `log_ratio/generated` (see
    `objectives.self_play_loss`), `generated_length` (tokens, EOS included), `generated_truncated` (share without EOS),
    `generated_equal` (share of own answers that are the demonstration, token by token), and `num_tokens`.

    Args:
        model: where the iteration starts: a name, a model, or a PeftModel whose "default" adapter is trained.
        args: options.
        train_dataset: rows of token ids: `prompt_ids`, `chosen_ids` (the demonstration's answer) and `rejected_ids`
            (the model's own; as sampled: a truncated one has no EOS, and none is added).
        kwargs: of DPOTrainer; no `ref_model`.

    Raises:
        UserError: another config, a reference model, or a tokenizer without EOS.

    Example:
        >>> rows = Dataset.from_list([{"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8]}])
        >>> SelfPlayTrainer("runs/sft", SelfPlayConfig("runs/one"), rows).train()
    """

    _tag_names = ["trl", "inverselm", "self-play"]  # noqa: RUF012  (TRL's class attribute)
    _name = "Self-play"
    _paper = {  # noqa: RUF012
        "title": "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
        "id": "2401.01335",
    }

    def __init__(self, model: Any, args: SelfPlayConfig, train_dataset: Any, **kwargs: Any) -> None:
        if not isinstance(args, SelfPlayConfig):
            raise UserError(f"SelfPlayTrainer needs a SelfPlayConfig, not {type(args).__name__}.")
        if kwargs.get("ref_model") is not None:
            raise UserError(
                "The reference of self-play is the model that the iteration starts from: pass no ref_model."
            )
        super().__init__(model, args=copy.copy(args), train_dataset=train_dataset, **kwargs)
        self._eos_token_ids = eos_token_ids(self._tokenizer, self.model)
        if "ref" in getattr(self.model, "peft_config", {}):  # DPOTrainer's copy of the adapter has done its work
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # token ids already

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Two columns more; kept in memory by every process, as the model is the reference only now."""
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator, shuffle=False)
        parts: list[list[torch.Tensor]] = [[], []]
        hidden = self.args.disable_tqdm or not self.accelerator.is_main_process
        bar = tqdm(self.accelerator.prepare(loader), desc="Reference", unit="batch", file=sys.stderr, disable=hidden)
        self.model.eval()  # training sets its mode itself
        for batch in bar:
            both = self.accelerator.gather_for_metrics(self.compute_ref_log_probs(self.model, batch))
            for part, values in zip(parts, both, strict=True):
                part.append(values.float().cpu())
        for side, part in zip(("chosen", "rejected"), parts, strict=True):
            dataset = dataset.add_column(f"ref_{side}_logps", torch.cat(part).tolist())
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The objective on the log-ratios of whole answers; the batch holds real answers, then generated ones."""
        names = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
        forward = {name: value for name, value in inputs.items() if name not in names} | {"use_cache": False}
        if self.aux_loss_enabled:
            forward["output_router_logits"] = True
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        outputs = model(**forward, labels=labels, fused_lm_head=True)
        width = labels.size(1) - 1  # a prompt-learning adapter puts columns of its own in front
        real, generated = outputs.log_probs[:, -width:].float().sum(dim=1).chunk(2)
        args = self.args
        loss, metrics = self_play_loss(
            args.loss_type,
            real - inputs["ref_chosen_logps"],
            generated - inputs["ref_rejected_logps"],
            beta=args.beta,
            scale=args.gsil_scale,
            offset=args.gsil_offset,
        )
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self._record(inputs, labels, metrics)
        return (loss, outputs) if return_outputs else loss

    def _record(self, inputs: dict[str, Any], labels: torch.Tensor, metrics: dict[str, torch.Tensor]) -> None:
        """Means over the pairs of all processes."""
        mode = "train" if self.model.training else "eval"
        real, own = labels.chunk(2)
        lengths = (own != -100).sum(dim=1)
        # an answer lies at the row's end, before padding on the right
        last = own.gather(1, inputs["attention_mask"].chunk(2)[1].sum(dim=1, keepdim=True) - 1)
        ended = torch.isin(last[:, 0], torch.tensor(self._eos_token_ids, device=own.device))
        metrics = {
            **metrics,
            "generated_length": lengths.float().mean(),
            "generated_truncated": 1 - ended.float().mean(),
            "generated_equal": (real == own).all(dim=1).float().mean(),
        }
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(inputs["attention_mask"].sum()).sum())
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        local = torch.stack([value.float() for value in metrics.values()])
        for name, value in zip(metrics, self.accelerator.reduce(local, reduction="mean").tolist(), strict=True):
            self._metrics[mode][name].append(value)
