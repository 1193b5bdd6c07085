"""Small training runs that tests also start as processes: `python -m helpers.jobs FOLDER KIND ... [--hang-at STEP]`.

Each kind runs in FOLDER/KIND. With `--hang-at` each is a process of its own, which waits there to be killed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from helpers.data import sums, text_tokenizer, tiny_for, toy_tokenizer
from helpers.gail import by_prompt
from helpers.gail import gail as gail_run
from helpers.rollouts import SFT, dense_path
from helpers.training import arguments, make, steps
from inverselm.training.checkpoints import BaselineCheckpointCallback
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer
from inverselm.training.loading import load_policy_and_reward
from inverselm.training.online import OnlineIQLearnConfig, OnlineIQLearnTrainer

SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "optim": "adamw_torch", "learning_rate": 1e-2}
LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"]}


def iqlearn(folder: Path) -> Any:
    args = arguments(IQLearnConfig, folder, td_coef=0.3, mle_warmup_steps=1, td_anneal_steps=3, **SAVED)
    return make(IQLearnTrainer, args, sums(), text_tokenizer())


def iqlearn_lora(folder: Path) -> Any:
    """With dropout, so that the state of the random numbers matters."""
    torch.manual_seed(0)
    args = arguments(IQLearnConfig, folder, td_coef=0.3, gradient_accumulation_steps=2, **SAVED)
    lora = LoraConfig(**LORA, lora_dropout=0.3)
    return make(IQLearnTrainer, args, sums(), text_tokenizer(), peft_config=lora)


def iqlearn_online(folder: Path) -> Any:
    """The temporal difference sets in at step 1; a checkpoint lies where samples are made anew."""
    args = arguments(
        OnlineIQLearnConfig, folder, td_coef=0.3, mix_in=0.4, rollout_every=2, max_completion_length=6,
        mle_warmup_steps=1, td_anneal_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=2, **SAVED,
    )  # fmt: skip
    return make(OnlineIQLearnTrainer, args, sums(), text_tokenizer())


def sft(folder: Path) -> Any:
    trainer = make(SFTTrainer, arguments(SFTConfig, folder, **SAVED), sums(), text_tokenizer())
    trainer.add_callback(BaselineCheckpointCallback(trainer, fraction=0.3))
    return trainer


def dpr(folder: Path) -> Any:
    return dense_path(folder, SFT, gradient_accumulation_steps=2, per_device_train_batch_size=4, **SAVED)


def dpr_buffer(folder: Path) -> Any:
    """One rollout lasts two optimiser steps."""
    return dense_path(folder, SFT, steps_per_generation=2, per_device_train_batch_size=4, **SAVED)


def dpr_adapters(folder: Path) -> Any:
    """Policy, SFT model and baseline are adapters on one base."""
    source = Path(folder) / "source"
    if not (source / "sft").exists():
        tiny_for(toy_tokenizer()).save_pretrained(source / "base")
        for seed, name in ((1, "baseline"), (2, "sft")):
            torch.manual_seed(seed)
            model = get_peft_model(tiny_for(toy_tokenizer()), LoraConfig(**LORA))
            for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
                torch.nn.init.normal_(parameter, std=0.5)
            model.peft_config["default"].base_model_name_or_path = str(source / "base")
            model.save_pretrained(source / name)
            toy_tokenizer().save_pretrained(source / name)
    policy, reward = load_policy_and_reward(source / "sft", source / "baseline")
    return dense_path(folder, policy, reward, **SAVED)


def gail(folder: Path) -> Any:
    """A checkpoint lies where samples are made anew; the weight of the KL is on its way."""
    options = {"rollout_every": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    return gail_run(folder, kl_anneal_steps=5, collapse_steps=9, **options, **SAVED)


def gail_head(folder: Path) -> Any:
    """An adapter, and heads on its base."""
    lora = LoraConfig(**LORA, lora_dropout=0.3)
    return gail_run(folder, critics="head", peft_config=lora, entropy_coef=0.1, **SAVED)


def gail_global_batch(folder: Path) -> Any:
    """The same 8 rows at each step, and answers that depend on the prompt alone."""
    size = 8 // int(os.environ.get("WORLD_SIZE", "1"))
    return gail_run(folder, fixed=by_prompt, per_device_train_batch_size=size, max_steps=4, entropy_coef=0.1)


def iqlearn_global_batch(folder: Path) -> Any:
    """The same 8 rows at each step, however many processes there are."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = arguments(
        IQLearnConfig, folder, td_coef=0.5, gamma=0.9, mle_warmup_steps=0, td_anneal_steps=2, max_steps=4,
        per_device_train_batch_size=8 // world, learning_rate=0.01,
    )  # fmt: skip
    return make(IQLearnTrainer, args, sums(), text_tokenizer())


def dpr_spread_group(folder: Path) -> Any:
    """Groups of 4 answers, but 2 on each of two processes; the policy starts away from the SFT model."""
    return dense_path(
        folder, 2, per_device_train_batch_size=2, num_generations=4, max_steps=2, kl_coef=0.3, learning_rate=0.01,
        gradient_accumulation_steps=2,
    )  # fmt: skip


KINDS = {
    job.__name__: job
    for job in (
        iqlearn,
        iqlearn_lora,
        iqlearn_online,
        sft,
        dpr,
        dpr_buffer,
        dpr_adapters,
        gail,
        gail_head,
        gail_global_batch,
        iqlearn_global_batch,
        dpr_spread_group,
    )
}


class HangAt(TrainerCallback):
    """Stops in the middle of a run and writes the file `hanging`, waiting to be killed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            (Path(args.output_dir) / "hanging").touch()
            time.sleep(600)


def run(kind: str, folder: Path, hang_at: int | None = None) -> None:
    trainer = KINDS[kind](folder)
    if hang_at:
        trainer.add_callback(HangAt(hang_at))
    trainer.train()
    weights = trainer.accelerator.unwrap_model(trainer.model).parameters()
    found = {
        "steps": steps(trainer),
        "world": trainer.accelerator.num_processes,
        "weights": float(sum(p.double().abs().sum() for p in weights)),
        "rollouts": [
            [seen["prompts"], seen["completions"], seen["advantages"].tolist()]
            for seen in getattr(trainer, "seen", [])
            if isinstance(seen, dict)
        ],
    }
    (folder / f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="+")
    parser.add_argument("--hang-at", type=int)
    options = parser.parse_args()
    children = []
    for kind in options.kinds:
        if not options.hang_at:
            run(kind, options.folder / kind)
        elif child := os.fork():
            children.append(child)
        else:
            try:
                run(kind, options.folder / kind, options.hang_at)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
