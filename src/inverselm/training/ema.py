"""An exponential moving average of the weights as a baseline, kept beside a run and saved with its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import UserError
from ..scorers.markers import BASELINE_FOLDER
from .checkpoints import save_baseline

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)

EMA_FOLDER = f"{BASELINE_FOLDER}-ema"
EMA_FILE = "ema.safetensors"


class EMABaselineCallback(TrainerCallback):
    """Average the trained weights, ema <- d ema + (1 - d) theta after each optimiser step, and keep that as a baseline.

    A smoother baseline than a single checkpoint (a choice of ours, beside arXiv 2510.02493): its weights lag behind by
    some 1 / (1 - d) steps, and the share d^steps of them is where the run began. Of an adapter only the adapter is
    averaged, of a partly frozen model only what is trained. The average is float32 whatever the model's dtype is, and
    takes as much memory as a float32 copy of the trained weights, in one process.

    At the end of training it goes to `<output_dir>/baseline-ema`, a checkpoint folder like any other (in the model's
    dtype, with a baseline's marker). Every checkpoint of the run holds it as `ema.safetensors`, from which a resumed
    run goes on.

    Args:
        trainer: the Trainer it is added to.
        decay: d, in (0, 1).
        folder: name of the folder in the run's.

    Raises:
        UserError: a bad decay. When training begins: sharded weights (FSDP, DeepSpeed ZeRO), or a checkpoint without
            the average, with another decay's or with another model's.

    Example:
        >>> trainer.add_callback(EMABaselineCallback(trainer, decay=0.99))
    """

    def __init__(self, trainer: Trainer, decay: float = 0.999, folder: str = EMA_FOLDER) -> None:
        if not 0.0 < decay < 1.0:
            raise UserError(f"The decay of the weights' average must lie between 0 and 1, not {decay}.")
        self.trainer, self.decay, self.folder = trainer, decay, folder
        self.average: dict[str, Tensor] = {}
        self._saved_at = -1  # the step of the last file of this run

    def _weights(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the weights as they are, or where the resumed checkpoint's average was."""
        sharded = any(isinstance(weight.data, DTensor) for weight in self._weights().values())
        if sharded or self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled:
            raise UserError("The average of the weights does not support sharded ones (FSDP, DeepSpeed): leave it out.")
        if not args.should_save:
            return
        if state.global_step:
            self.average = self._load(args, state)
        else:
            self.average = {name: weight.detach().float().clone() for name, weight in self._weights().items()}
        share = self.decay**state.max_steps
        if share > 0.5:
            logger.warning(
                f"With a decay of {self.decay} over {state.max_steps} steps, {share:.0%} of the averaged weights will "
                f"be those the run began with; {1 - 2 / max(state.max_steps, 3):.3g} would lag behind by half the run."
            )

    def _load(self, args: Any, state: Any) -> dict[str, Tensor]:
        name = f"checkpoint-{state.global_step}"
        given = Path(str(args.resume_from_checkpoint or ""))
        path = (given if given.name == name else Path(args.output_dir) / name) / EMA_FILE
        try:
            with safe_open(path, framework="pt") as file:
                decay = (file.metadata() or {}).get("decay")
            average = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: the average of the weights cannot be read ({error}); resume from a checkpoint that has it, "
                "or start anew"
            ) from error
        if decay != repr(self.decay):
            raise UserError(f"{path}: is the average with a decay of {decay}, not {self.decay}; resume with that")
        weights = self._weights()
        if {n: w.shape for n, w in weights.items()} != {n: t.shape for n, t in average.items()}:
            raise UserError(f"{path}: is the average of other weights than those that are trained")
        return {name: average[name].to(weight.device) for name, weight in weights.items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Average; and write it before the checkpoint of this step is complete (its trainer_state.json comes last)."""
        if not args.should_save:
            return
        with torch.no_grad():
            for name, weight in self._weights().items():
                self.average[name].lerp_(weight.float(), 1.0 - self.decay)
        if control.should_save:
            self._save(args, state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it for a checkpoint at the end of an epoch."""
        if args.should_save and control.should_save:
            self._save(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it for a checkpoint that was decided on since, because of an evaluation."""
        if args.should_save and self._saved_at != state.global_step:
            self._save(args, state)

    def _file(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / EMA_FILE

    def _save(self, args: Any, state: Any) -> None:
        path = self._file(args, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file(self.average, temporary, metadata={"format": "pt", "decay": repr(self.decay)})
        os.replace(temporary, path)
        self._saved_at = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep it as a baseline."""
        with self._averaged(args.should_save):
            save_baseline(
                self.trainer, Path(args.output_dir) / self.folder, ema_decay=self.decay, step=state.global_step
            )

    @contextmanager
    def _averaged(self, here: bool) -> Iterator[None]:
        """The model with the averaged weights in place of its own."""
        weights = self._weights() if here else {}
        own = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            try:
                for name, weight in weights.items():
                    weight.copy_(self.average[name])
                yield
            finally:
                for name, weight in weights.items():
                    weight.copy_(own[name])
