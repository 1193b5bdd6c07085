"""The callback that keeps an SFT run's baseline, and where a killed run can resume."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.utils import logging

from ..errors import UserError
from ..scorers.markers import BASELINE_FOLDER, read_marker, write_marker

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.get_logger(__name__)


def last_complete_checkpoint(output_dir: str | Path, multiple_of: int = 1) -> Path | None:
    """The newest `checkpoint-N` that was written to its end (a kill can leave a half one), N a multiple of the given.

    `trainer_state.json` is what the Trainer writes last.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdigit() and int(step) % multiple_of == 0 and _is_complete(folder):
            found.append((int(step), folder))
    return max(found)[1] if found else None


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class BaselineCheckpointCallback(TrainerCallback):
    """Keep the checkpoint reached after a fraction of the training samples: the baseline of the dense reward.

    The dense reward of an SFT run is log pi_SFT - log pi_baseline (arXiv 2510.02493, eq. 5); the checkpoint after half
    of the samples was reported best there. The model (full, or the adapter alone) goes to `<output_dir>/baseline` with
    its tokenizer and a marker, once, and survives `save_total_limit`. A resumed run keeps what it finds.

    Args:
        trainer: the Trainer it is added to; saving goes through it, which keeps FSDP and DeepSpeed right.
        fraction: of the training samples (= of the optimiser steps), in (0, 1).

    Example:
        >>> trainer.add_callback(BaselineCheckpointCallback(trainer, fraction=0.5))
    """

    def __init__(self, trainer: Trainer, fraction: float = 0.5) -> None:
        if not 0.0 < fraction < 1.0:
            raise UserError(f"The baseline's fraction must lie between 0 and 1, not {fraction}.")
        self.trainer = trainer
        self.fraction = fraction

    def _folder(self, args: Any) -> Path:
        return Path(args.output_dir) / BASELINE_FOLDER

    def _target(self, state: Any) -> int:
        return max(1, math.ceil(self.fraction * state.max_steps))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the run can have a baseline, and that a resumed one still has its own."""
        if state.max_steps < 2:
            raise UserError("A run of one optimiser step has no earlier checkpoint; train longer to get a baseline.")
        if state.global_step >= self._target(state) and not read_marker(self._folder(args)):
            logger.warning(
                f"Resumed at step {state.global_step}, past the baseline's step {self._target(state)}, but "
                f"{self._folder(args)} is missing: this run will have no baseline. Resume from an earlier checkpoint."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save at the one step that completes the fraction."""
        if state.global_step != self._target(state):
            return
        folder = self._folder(args)
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        if args.should_save and unfinished.exists():
            shutil.rmtree(unfinished)
        self.trainer.save_model(str(unfinished), _internal_call=True)
        if args.should_save:
            # the pickled arguments of the Trainer are of no use to a baseline
            (unfinished / "training_args.bin").unlink(missing_ok=True)
            write_marker(
                unfinished,
                "baseline",
                fraction=self.fraction,
                step=state.global_step,
                of_steps=state.max_steps,
                epoch=state.epoch,
            )
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(unfinished, folder)
            logger.info(f"Kept the baseline of step {state.global_step} of {state.max_steps} in {folder}.")
        self.trainer.accelerator.wait_for_everyone()
