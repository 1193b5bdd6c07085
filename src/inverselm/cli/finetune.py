"""`inverselm sft` and `inverselm iqlearn`: TRL's SFT, and IQLearn in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from ..errors import UserError
from ..scorers.checks import check_tokenizer_has_eos
from ..scorers.markers import BASELINE_FOLDER, read_marker, write_marker
from ..training.checkpoints import BaselineCheckpointCallback
from ..training.iqlearn import IQLearnConfig, IQLearnTrainer
from ..training.scratch import build_from_scratch, texts_of
from .arguments import DataArguments, Help, parse
from .common import (
    check_chat_template,
    check_run_folder,
    clear_run_folder,
    lengths_line,
    load_checked,
    load_eval,
    quiet_libraries,
    say,
    shell,
    train,
)
from .models import check_model, check_packages, load_tokenizer, positions_of


@dataclass
class BaselineArguments(DataArguments):
    """Data arguments, and when to keep the baseline."""

    baseline_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Keep the checkpoint after this fraction of the training samples as <output_dir>/baseline: the "
            "dense reward is log pi_SFT - log pi_baseline. 0 keeps none."
        },
    )


COMMON = (
    *("model_name_or_path", "output_dir", "learning_rate", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing", "completion_only_loss"),
    *("assistant_only_loss", "use_peft", "lora_r", "eval_strategy", "save_steps", "logging_steps", "bf16", "seed"),
    *("resume_from_checkpoint", "dataset_train_split", "dataset_test_split"),
)
GUIDES = {
    "sft": Help(
        "Supervised fine-tuning with TRL's SFTTrainer. Half-way through it keeps a baseline checkpoint, so that the "
        "run contains a dense token reward (arXiv 2510.02493) for `inverselm score` and `inverselm dpr`.\n"
        "Rows are TRL's formats: {prompt, completion}, {messages} or {text}.",
        (
            "inverselm sft --model_name_or_path Qwen/Qwen3-0.6B --dataset_name train.jsonl --output_dir runs/sft",
            "inverselm sft --scratch_config tiny.yaml --dataset_name train.jsonl --output_dir runs/sft",
            "inverselm sft --config recipe.yaml --learning_rate 1e-4",
        ),
        COMMON,
    ),
    "iqlearn": Help(
        "Inverse soft-Q-learning as temporal-difference-regularised maximum likelihood (arXiv 2409.01369): the loss is "
        "-log pi + td_coef (Q - gamma V')^2. Everything else is as in `inverselm sft`; td_coef 0 is SFT.",
        (
            "inverselm iqlearn --model_name_or_path MODEL --dataset_name train.jsonl --output_dir runs/iq",
            "inverselm iqlearn --config recipe.yaml --td_coef 0.5 --mle_warmup_steps 200 --td_anneal_steps 200",
        ),
        COMMON,
    ),
}


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, train, save, and say what was written and what to do next."""
    kinds = (BaselineArguments, SFTConfig if command == "sft" else IQLearnConfig, ModelConfig)
    data, training, model_args = parse(command, kinds, argv, GUIDES[command])
    quiet_libraries()
    source = model_args.model_name_or_path
    _check_flags(data, training, model_args)
    resume = check_run_folder(training, data.overwrite_output_dir, [source])
    if source:
        check_model(source, trust_remote_code=training.trust_remote_code)
        tokenizer = load_tokenizer(source, model_args.model_revision, training.trust_remote_code)
        check_tokenizer_has_eos(tokenizer, source)
    text_field, eos = training.dataset_text_field, tokenizer.eos_token if source else None
    rows, found = load_checked(data, "demonstrations", text_field, eos=eos)
    held_out = load_eval(data, training, "demonstrations", text_field, eos)
    _check_steps(data, training, rows)
    if source:
        model = source
        training.model_init_kwargs = _loading(training, model_args)
    else:
        texts = texts_of(rows, text_field=text_field)
        model, tokenizer = build_from_scratch(
            data.scratch_config, texts, seed=training.seed, max_length=training.max_length
        )
        if resume:  # the run's own tokenizer, should the data have changed since
            tokenizer = load_tokenizer(resume)
    if not training.chat_template_path:
        check_chat_template(tokenizer, found, data.dataset_name, "pass --chat_template_path, or a model with one")
        if not data.dataset_streaming:
            say(lengths_line(tokenizer, rows, found, training))
    if training.use_cpu:
        say(f"Training on the CPU in {'bfloat16' if training.bf16 else 'float32'}.")
    clear_run_folder(training, data.overwrite_output_dir)
    trainer: Any = (SFTTrainer if command == "sft" else IQLearnTrainer)(
        model=model,
        args=training,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
    )
    if data.baseline_fraction:
        trainer.add_callback(BaselineCheckpointCallback(trainer, data.baseline_fraction))
    train(trainer, resume)
    trainer.save_model(training.output_dir)
    trainer.save_state()
    kept = bool(read_marker(Path(training.output_dir) / BASELINE_FOLDER))
    if trainer.accelerator.is_main_process:
        facts = {"steps": trainer.state.global_step, "base": source}
        if command == "iqlearn":
            facts |= {"td_coef": training.td_coef, "gamma": training.gamma}
        if kept:
            facts["baseline"] = BASELINE_FOLDER
        write_marker(training.output_dir, command, **facts)
    say(_closing(command, training.output_dir, data, kept, positions_of(trainer.model.config)))
    trainer.end()


def _check_flags(data: Any, training: Any, model_args: Any) -> None:
    if bool(data.scratch_config) == bool(model_args.model_name_or_path):
        raise UserError("pass either --model_name_or_path <model> or --scratch_config <yaml>")
    if data.scratch_config and model_args.use_peft:
        raise UserError("--use_peft: an adapter of random weights is of no use; leave it out with --scratch_config")
    if not 0.0 <= data.baseline_fraction < 1.0:
        raise UserError(f"--baseline_fraction is {data.baseline_fraction}; set it to 0 (none), or below 1")
    check_packages(model_args, training)


def _check_steps(data: Any, training: Any, rows: Any) -> None:
    """A baseline is an earlier checkpoint, so the run needs two optimiser steps."""
    if not data.baseline_fraction:
        return
    steps = training.max_steps
    if steps <= 0 and hasattr(rows, "__len__") and not training.packing:
        batches = math.ceil(len(rows) / (training.train_batch_size * training.world_size))
        steps = math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))
    if steps == 1:
        raise UserError(
            "the run has one optimiser step, so no earlier checkpoint can be its baseline; raise --max_steps or "
            "--num_train_epochs, or pass --baseline_fraction 0"
        )


def _loading(training: Any, model_args: Any) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training.model_init_kwargs or {}),
    }


def _closing(command: str, folder: str, data: Any, kept: bool, positions: int | None) -> str:
    lines = [f"Wrote {folder}: the model and its tokenizer."]
    if kept:
        lines.append(f"Wrote {folder}/{BASELINE_FOLDER}: the baseline of its dense reward.")
    model = ("--model_name_or_path", folder, "--dataset_name")
    short = [positions // 2] if positions is not None and positions < 1024 else []  # the defaults would not fit
    lines.append("Next:")
    if kept or command == "iqlearn":
        lines.append(shell("score", *model, data.dataset_name, "--html", "heatmap.html"))
    answers = ("--output_file", "answers.jsonl", *(x for n in short for x in ("--max_new_tokens", n)))
    lines.append(shell("generate", *model, "<prompts>", *answers))
    if command == "sft" and kept:
        length = (x for n in short for x in ("--max_completion_length", n))
        lines.append(shell("dpr", *model, data.dataset_name, "--output_dir", "runs/dpr", *length))
    return "\n".join(lines)
