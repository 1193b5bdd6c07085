"""Runs of self-play that stop at a chosen place and wait to be killed.

`python -m helpers.selfplay_job FOLDER PLACE ...`: each place is a run of its own, in FOLDER/PLACE. The place
`shared` is one run of all processes of a launcher, on a model that is there.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import TrainerCallback

from helpers.data import sums, tiny_for, toy_tokenizer
from helpers.training import arguments
from inverselm.training import self_play_rollouts
from inverselm.training.self_play import self_play
from inverselm.training.self_play_config import SelfPlayConfig

PLACES = ("sampling", "training", "saving", "adapter")
SETTINGS = {
    "iterations": 3, "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch",
    "learning_rate": 1e-2, "max_completion_length": 8, "generation_batch_size": 1,
}  # fmt: skip

SHARED = {"iterations": 2, "max_steps": 2, "save_strategy": "no", "optim": "sgd", "per_device_train_batch_size": 2}
"""Of a run by two processes: 4 rows at each step."""


def prepare(folder: Path) -> None:
    """The SFT model that all runs start from."""
    tiny_for(toy_tokenizer()).save_pretrained(folder / "sft")
    toy_tokenizer().save_pretrained(folder / "sft")


def play(sft: Path, folder: Path, kind: str, **options: Any) -> Path:
    """A whole run of three iterations."""
    adapter = kind == "adapter"
    more = {"loss_type": "gsil_bernoulli", "gsil_scale": 1.0, "disable_dropout": False} if adapter else {}
    args = arguments(SelfPlayConfig, folder, **{**SETTINGS, **more, **options.pop("config", {})})
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.3) if adapter else None
    return self_play(sft, sums(), args, peft_config=lora, **options)


def hang(folder: Path) -> None:
    (folder / "hanging").touch()
    time.sleep(600)


class HangAt(TrainerCallback):
    """In the second iteration: after step 3, one past a checkpoint, or when all steps are done but nothing is saved."""

    def __init__(self, place: str) -> None:
        self.place = place

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.output_dir.endswith("iteration_2") and state.global_step == 3 and self.place != "saving":
            hang(Path(args.output_dir).parent)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.output_dir.endswith("iteration_2") and self.place == "saving":
            hang(Path(args.output_dir).parent)


def hang_in_sampling(folder: Path) -> None:
    """When two parts of the second iteration's answers are written."""
    plain = self_play_rollouts._write

    def write(path: Path, records: Any) -> None:
        plain(path, records)
        if path.parent.parent.name == "iteration_2" and len(list(path.parent.glob("*.jsonl"))) == 2:
            hang(folder)

    self_play_rollouts._write = write


def run(root: Path, place: str) -> None:
    if place == "sampling":
        hang_in_sampling(root / place)
    callbacks = [] if place == "sampling" else [HangAt(place)]
    play(root / "sft", root / place, place, callbacks=callbacks)


def main() -> None:
    root, *places = sys.argv[1:]
    if places == ["shared"]:
        play(Path(root) / "sft", Path(root) / "shared", "plain", config=SHARED)
        return
    prepare(Path(root))
    for place in places:
        if not os.fork():
            try:
                run(Path(root), place)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
    for _ in places:
        os.wait()


if __name__ == "__main__":
    main()
