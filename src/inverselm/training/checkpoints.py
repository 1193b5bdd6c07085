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
        folder: name of the folder in the run's; for further baselines beside the one that later commands find.

    Example:
        >>> trainer.add_callback(BaselineCheckpointCallback(trainer, fraction=0.5))
        >>> trainer.add_callback(BaselineCheckpointCallback(trainer, 0.25, folder=baseline_folder(0.25)))
    """

    def __init__(self, trainer: Trainer, fraction: float = 0.5, folder: str = BASELINE_FOLDER) -> None:
        if not 0.0 < fraction < 1.0:
            raise UserError(f"The baseline's fraction must lie between 0 and 1, not {fraction}.")
        self.trainer = trainer
        self.fraction = fraction
        self.folder = folder

    def _folder(self, args: Any) -> Path:
        return Path(args.output_dir) / self.folder

    def _target(self, state: Any) -> int:
        return max(1, math.ceil(self.fraction * state.max_steps))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the run can have a baseline, and that a resumed one still has its own."""
        if state.max_steps < 2:
            raise UserError("A run of one optimiser step has no earlier checkpoint; train longer to get a baseline.")
        if self._target(state) >= state.max_steps:
            raise UserError(
                f"After {self.fraction:g} of {state.max_steps} optimiser steps the run is at its end: a baseline there "
                "would be the model itself. Lower the fraction, or train longer."
            )
        if state.global_step >= self._target(state) and not read_marker(self._folder(args)):
            logger.warning(
                f"Resumed at step {state.global_step}, past the baseline's step {self._target(state)}, but "
                f"{self._folder(args)} is missing: this run will not have it. Resume from an earlier checkpoint."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save at the one step that completes the fraction."""
        if state.global_step == self._target(state):
            save_baseline(self.trainer, self._folder(args), fraction=self.fraction, step=state.global_step)


def baseline_folder(fraction: float) -> str:
    """Where a baseline beside the main one is kept: `baseline-25` for 0.25, `baseline-12.5` for 0.125."""
    return f"{BASELINE_FOLDER}-{100 * fraction:g}"


def save_baseline(trainer: Trainer, folder: Path, **facts: Any) -> None:
    """Write the trainer's model as it is now into a folder with a baseline's marker; it appears when it is complete.

    To be called by all processes. `facts` go into the marker, beside the step and epoch of the run.
    """
    args, state = trainer.args, trainer.state
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if args.should_save and unfinished.exists():
        shutil.rmtree(unfinished)
    trainer.save_model(str(unfinished), _internal_call=True)
    if args.should_save:
        # the pickled arguments of the Trainer are of no use to a baseline
        (unfinished / "training_args.bin").unlink(missing_ok=True)
        facts = {**facts, "of_steps": state.max_steps, "epoch": state.epoch}
        write_marker(unfinished, "baseline", **facts)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unfinished, folder)
        logger.info(f"Kept the baseline of step {state.global_step} of {state.max_steps} in {folder}.")
    trainer.accelerator.wait_for_everyone()
