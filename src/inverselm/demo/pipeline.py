"""The demo's stages: data, SFT with its baseline, IQLearn, Dense-Path REINFORCE. Each is a command of its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from .problems import train_test_problems


@dataclass(frozen=True)
class Size:
    """How much the demo does.

    Attributes:
        demonstrations: rows to train on.
        held_out: problems to measure on.
        steps: optimiser steps of SFT and of IQLearn.
        dpr_steps: optimiser steps of Dense-Path REINFORCE.
        samples: answers per problem above temperature 0.
    """

    demonstrations: int = 4000
    held_out: int = 200
    steps: int = 500
    dpr_steps: int = 30
    samples: int = 2


ERROR_RATE, SLOPPY_RATE = 0.15, 0.15
TEMPERATURES = (0.0, 0.5, 1.0)


def write_data(folder: Path, size: Size, seed: int) -> list[dict[str, Any]]:
    """Write train.jsonl and test.jsonl; returns the held-out problems."""
    train, test = train_test_problems(
        size.demonstrations, size.held_out, seed, error_rate=ERROR_RATE, sloppy_rate=SLOPPY_RATE
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, columns in (("train", train, ("prompt", "completion")), ("test", test, tuple(test[0]))):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps({key: row[key] for key in columns}) + "\n")
    return test


def commands(folder: Path, size: Size, seed: int) -> dict[str, list[str]]:
    """The command line of every training stage."""
    train, scratch = folder / "data" / "train.jsonl", files("inverselm.demo") / "tiny.yaml"
    shared = [
        *("--dataset_name", str(train), "--gradient_checkpointing", "False", *_precision()),
        *("--logging_steps", "10" if size.steps >= 100 else "1", "--save_strategy", "no"),
        *("--seed", str(seed), "--report_to", "none"),
    ]
    supervised = [
        *("--scratch_config", str(scratch), "--max_length", "192", "--max_steps", str(size.steps)),
        *("--per_device_train_batch_size", "32", "--learning_rate", "3e-3", "--lr_scheduler_type", "cosine"),
        *("--warmup_steps", "30", "--pad_to_multiple_of", "16", *shared),
    ]
    return {
        "sft": ["sft", *supervised, "--output_dir", str(folder / "sft")],
        "iqlearn": [
            *("iqlearn", *supervised, "--output_dir", str(folder / "iqlearn"), "--td_coef", "0.1"),
            *("--baseline_fraction", "0"),
        ],
        "dpr": [
            *("dpr", "--model_name_or_path", str(folder / "sft"), "--output_dir", str(folder / "dpr")),
            *("--max_steps", str(size.dpr_steps), "--per_device_train_batch_size", "64", "--num_generations", "4"),
            *("--max_completion_length", "96", "--learning_rate", "5e-5", "--kl_coef", "4.0"),
            *("--centre_rewards", "True", "--lr_scheduler_type", "constant", *shared, "--logging_steps", "2"),
        ],
    }


def _precision() -> list[str]:
    """bfloat16 where the hardware multiplies it (a CPU without the instruction would emulate it, slowly)."""
    if torch.cuda.is_available():
        return ["--bf16", str(torch.cuda.is_bf16_supported())]
    fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return ["--use_cpu", "True", "--bf16", str(fast)]


def run_command(argv: Sequence[str]) -> None:
    """Print a command as a user would type it, and run it here."""
    from ..cli.training import dpr, finetune

    print(f"\n$ inverselm {shlex.join(argv)}", flush=True)
    (dpr if argv[0] == "dpr" else finetune).run(argv[0], argv[1:])


def curves(folder: Path) -> list[dict[str, float]]:
    """The logged steps of a finished stage."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [row for row in state["log_history"] if "loss" in row]
