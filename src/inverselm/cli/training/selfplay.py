"""`inverselm selfplay`: SPIN and GSIL from an SFT run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import ModelConfig, get_peft_config

from ...errors import UserError
from ...inputs.models import check_packages, load_tokenizer
from ...scorers.checks import check_tokenizer_has_eos
from ...training.self_play import RUN, can_resume, self_play
from ...training.self_play_config import SelfPlayConfig
from ..arguments import DataArguments, Help, parse
from ..common import (
    check_chat_template,
    check_run_folder,
    clear_run_folder,
    load_checked,
    load_eval,
    quiet_libraries,
    resume_flag,
    say,
)
from .from_sft import check_start, closing, say_cpu

GUIDE = Help(
    "Self-play: sample an answer to every demonstration's prompt from the last iterate, train the policy to tell "
    "demonstrations from these answers by its own log-ratio to that iterate, and repeat. SPIN (arXiv 2401.01335) ranks "
    "the two, GSIL (arXiv 2410.10093) estimates their density ratio. --model_name_or_path is an SFT model, "
    "--dataset_name its demonstrations.\n"
    "--max_steps, --num_train_epochs and the learning rate's schedule are of one iteration. The published learning "
    "rate, 5e-7, is one for 7B models: small ones need more.",
    (
        "inverselm selfplay --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir runs/spin",
        "inverselm selfplay --config recipe.yaml --loss_type gsil_bernoulli --iterations 2 --learning_rate 1e-5",
        "inverselm selfplay --config recipe.yaml --iterations 4 --resume_from_checkpoint True",
    ),
    (
        *("model_name_or_path", "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "max_length", "use_peft", "lora_r", "eval_strategy", "save_steps"),
        *("logging_steps", "bf16", "seed", "dataset_train_split", "dataset_test_split"),
    ),
    hidden=("scratch_config",),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, play, and say what was written and what to do next."""
    data, training, model_args = parse(command, (DataArguments, SelfPlayConfig, ModelConfig), argv, GUIDE)
    quiet_libraries()
    check_packages(model_args, training)
    sft, remote = model_args.model_name_or_path, training.trust_remote_code
    _check_folder(training, data.overwrite_output_dir, sft)
    check_start(command, data, model_args, remote=remote)
    tokenizer = load_tokenizer(sft, model_args.model_revision, remote)
    check_tokenizer_has_eos(tokenizer, sft)
    rows, found = load_checked(data, "answers", eos=tokenizer.eos_token)
    check_chat_template(tokenizer, found, data.dataset_name)
    held_out = load_eval(data, training, "answers", eos=tokenizer.eos_token)
    say_cpu(training)
    clear_run_folder(training, data.overwrite_output_dir)
    _clear_iterations(training, data.overwrite_output_dir)
    training.model_init_kwargs = {"dtype": model_args.dtype, **(training.model_init_kwargs or {})}
    try:
        self_play(
            sft,
            rows,
            training,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
            say=say,
        )
    except KeyboardInterrupt as error:
        hint = "The same command with --resume_from_checkpoint True continues it."
        raise KeyboardInterrupt(hint if can_resume(training.output_dir) else "Nothing was written.") from error
    written = f"the policy of iteration {training.iterations} and its tokenizer; those of all iterations are in "
    say(closing(training, sft, "selfplay", f"{written}iteration_1, ... there"))


def _check_folder(training: Any, overwrite: bool, sft: str) -> None:
    resume = resume_flag(training.resume_from_checkpoint)
    if not resume:
        check_run_folder(training, overwrite, [sft])
    elif resume is not True:
        raise UserError(f"--resume_from_checkpoint {resume}: pass True; the run in --output_dir knows where it stopped")
    elif not can_resume(training.output_dir):
        raise UserError(f"--resume_from_checkpoint: {training.output_dir} holds no run of selfplay; start anew")


def _clear_iterations(training: Any, overwrite: bool) -> None:
    """With `overwrite`, remove an earlier run's iterations."""
    state = PartialState()
    folder = Path(training.output_dir).expanduser()
    if overwrite and not resume_flag(training.resume_from_checkpoint) and state.is_main_process and folder.is_dir():
        (folder / RUN).unlink(missing_ok=True)
        for old in folder.glob("iteration_*"):
            if old.is_dir() and re.fullmatch(r"iteration_\d+", old.name):
                shutil.rmtree(old)
    state.wait_for_everyone()
