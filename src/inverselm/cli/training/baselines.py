"""The baselines that a training run keeps: when, where, and what is said of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...scorers.markers import BASELINE_FOLDER, read_marker, write_marker
from ...training.checkpoints import BaselineCheckpointCallback, baseline_folder
from ...training.ema import EMA_FOLDER, EMABaselineCallback
from ..arguments import DataArguments


@dataclass
class BaselineArguments(DataArguments):
    """Data arguments, and which baselines to keep."""

    baseline_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Keep the checkpoint after this fraction of the training samples as <output_dir>/baseline: the "
            "dense reward is log pi_SFT - log pi_baseline. 0 keeps none."
        },
    )
    extra_baseline_fractions: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Further baselines, to compare: 0.25 0.75 keeps <output_dir>/baseline-25 and baseline-75. Name one "
            "with --baseline in later commands, which else take <output_dir>/baseline."
        },
    )
    ema_baseline_decay: float = field(
        default=0.0,
        metadata={
            "help": "Also keep the exponential moving average of the weights as <output_dir>/baseline-ema, with this "
            "decay per optimiser step (0.999, say; it lags by 1 / (1 - decay) steps). 0 keeps none."
        },
    )


def check_baselines(data: Any, training: Any) -> None:
    """The flags of the baselines.

    Raises:
        UserError: a fraction or decay out of range, a fraction twice, an average of sharded weights.
    """
    if not 0.0 <= data.baseline_fraction < 1.0:
        raise UserError(f"--baseline_fraction is {data.baseline_fraction}; set it to 0 (none), or below 1")
    extra = data.extra_baseline_fractions = _numbers(data.extra_baseline_fractions)
    bad = next((fraction for fraction in extra if not 0.0 < fraction < 1.0), None)
    if bad is not None:
        raise UserError(f"--extra_baseline_fractions holds {bad}; set each between 0 and 1")
    if len({baseline_folder(fraction) for fraction in extra}) < len(extra):
        raise UserError("--extra_baseline_fractions names a fraction twice; leave one out")
    if not 0.0 <= data.ema_baseline_decay < 1.0:
        raise UserError(f"--ema_baseline_decay is {data.ema_baseline_decay}; set it to 0 (none), or below 1")
    if data.ema_baseline_decay and (training.deepspeed or training.fsdp):
        raise UserError("--ema_baseline_decay does not support sharded weights (--fsdp, --deepspeed); leave it out")


def _numbers(given: Any) -> list[float]:
    """A list of fractions; a YAML file may hold a single one, or text."""
    items = given if isinstance(given, list) else [given]
    numbers = []
    for item in items:
        try:
            numbers.append(float(item))
        except (TypeError, ValueError):
            raise UserError(f"--extra_baseline_fractions holds {item!r}, which is no number") from None
    return numbers


def check_steps(data: Any, training: Any, rows: Any) -> None:
    """A baseline is an earlier checkpoint, so the run needs two optimiser steps, and steps left after it.

    Raises:
        UserError: there is no earlier checkpoint.
    """
    fractions = [("extra_baseline_fractions", fraction) for fraction in data.extra_baseline_fractions]
    fractions += [("baseline_fraction", data.baseline_fraction)] if data.baseline_fraction else []
    steps = training.max_steps
    if steps <= 0 and hasattr(rows, "__len__") and not training.packing:
        batches = math.ceil(len(rows) / (training.train_batch_size * training.world_size))
        steps = math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))
    if steps <= 0 or not fractions:
        return
    if steps == 1:
        raise UserError(
            "the run has one optimiser step, so no earlier checkpoint can be its baseline; raise --max_steps or "
            "--num_train_epochs, or pass --baseline_fraction 0"
        )
    for name, fraction in fractions:
        if math.ceil(fraction * steps) >= steps:
            raise UserError(
                f"--{name} {fraction:g} of {steps} optimiser steps is the end of the run, where a baseline would be "
                "the model itself; lower it"
            )


def add_baselines(trainer: Any, data: Any) -> None:
    """Let the trainer keep what the flags ask for."""
    if data.baseline_fraction:
        trainer.add_callback(BaselineCheckpointCallback(trainer, data.baseline_fraction))
    for fraction in data.extra_baseline_fractions:
        trainer.add_callback(BaselineCheckpointCallback(trainer, fraction, baseline_folder(fraction)))
    if data.ema_baseline_decay:
        trainer.add_callback(EMABaselineCallback(trainer, data.ema_baseline_decay))


def kept_baselines(output_dir: str, data: Any) -> dict[str, dict[str, Any]]:
    """The baselines in a run's folder, the main one first: folder -> marker."""
    names = [BASELINE_FOLDER, *map(baseline_folder, data.extra_baseline_fractions), EMA_FOLDER]
    found = {name: read_marker(Path(output_dir) / name) for name in names}
    return {name: marker for name, marker in found.items() if marker.get("role") == "baseline"}


def baseline_lines(output_dir: str, kept: dict[str, dict[str, Any]]) -> list[str]:
    """One line on each."""
    lines = []
    for name, marker in kept.items():
        what = "the baseline of its dense reward" if name == BASELINE_FOLDER else "another baseline"
        if "ema_decay" in marker:
            share = marker["ema_decay"] ** marker["step"]
            what += f", the average of the weights ({share:.1%} of it is where the run began)"
        lines.append(f"Wrote {output_dir}/{name}: {what}.")
    return lines


def baseline_facts(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the run's own marker says of them."""
    more = [name for name in kept if name != BASELINE_FOLDER]
    facts: dict[str, Any] = {"baseline": BASELINE_FOLDER} if BASELINE_FOLDER in kept else {}
    return facts | ({"more_baselines": more} if more else {})


def set_late_baselines_aside(trainer: Any, data: Any) -> list[str]:
    """If the run's best checkpoint, which was loaded, is not later than a baseline, they are no reward together.

    Such a baseline stays where it is, with another role in its marker: later commands do not find it by themselves. An
    average of the weights is late if it holds weights from after the best checkpoint.

    Returns:
        Lines for the user, if there is one.
    """
    folder, best = trainer.args.output_dir, trainer.state.best_global_step
    if not (trainer.args.load_best_model_at_end and best):
        return []
    late = {n: m for n, m in kept_baselines(folder, data).items() if m["step"] - ("ema_decay" in m) >= best}
    if not late:
        return []
    trainer.accelerator.wait_for_everyone()  # all have read the markers
    if trainer.accelerator.is_main_process:
        for name, marker in late.items():
            facts = {**{key: value for key, value in marker.items() if key != "role"}, "best_step": best}
            write_marker(Path(folder) / name, "late_baseline", **facts)
    trainer.accelerator.wait_for_everyone()
    steps = {name: f"{'up to ' if 'ema_decay' in marker else ''}step {marker['step']}" for name, marker in late.items()}
    listed = ", ".join(f"{folder}/{name} ({step})" for name, step in steps.items())
    return [
        f"The best checkpoint, which was kept, is that of step {best}: no later than {listed}, so they are no reward "
        "together, and later commands will not take them for one. Name an earlier checkpoint with --baseline."
    ]
