"""`inverselm sft` and `inverselm iqlearn`: TRL's SFT, and IQLearn in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from ..errors import UserError
from ..scorers.checks import check_tokenizer_has_eos
from ..scorers.markers import BASELINE_FOLDER, write_marker
from ..training.checkpoints import BaselineCheckpointCallback, last_complete_checkpoint
from ..training.iqlearn import IQLearnConfig, IQLearnTrainer
from ..training.scratch import build_from_scratch, texts_of
from .arguments import DataArguments, Help, parse
from .common import (
    check_chat_template,
    lengths_line,
    load_checked,
    load_eval,
    load_tokenizer,
    prepare_output_dir,
    quiet_libraries,
    resume_flag,
    say,
)


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
    if bool(data.scratch_config) == bool(model_args.model_name_or_path):
        raise UserError("pass either --model_name_or_path <model> or --scratch_config <yaml>")
    prepare_output_dir(training, data.overwrite_output_dir)
    text_field = training.dataset_text_field
    rows, found = load_checked(data, "demonstrations", text_field)
    held_out = load_eval(data, training, "demonstrations", text_field)
    model, tokenizer = _model_and_tokenizer(data, training, model_args, rows)
    check_tokenizer_has_eos(tokenizer, model_args.model_name_or_path or data.scratch_config)
    check_chat_template(tokenizer, "" if training.chat_template_path else found, data.dataset_name)
    if not training.packing and not data.dataset_streaming and not training.chat_template_path:
        say(lengths_line(tokenizer, rows, found, training.max_length, text_field))
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
    resume = resume_flag(training.resume_from_checkpoint)
    if resume is True:
        found_checkpoint = last_complete_checkpoint(training.output_dir)
        if found_checkpoint is None:
            raise UserError(f"--resume_from_checkpoint: no complete checkpoint in {training.output_dir}")
        resume = str(found_checkpoint)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        facts = {"steps": trainer.state.global_step, "base": model_args.model_name_or_path}
        if command == "iqlearn":
            facts |= {"td_coef": training.td_coef, "gamma": training.gamma}
        if data.baseline_fraction:
            facts["baseline"] = BASELINE_FOLDER
        write_marker(training.output_dir, command, **facts)
    say(_closing(command, training.output_dir, data))
    trainer.end()


def _model_and_tokenizer(data: Any, training: Any, model_args: Any, rows: Any) -> tuple[Any, Any]:
    if data.scratch_config:
        return build_from_scratch(
            data.scratch_config,
            texts_of(rows, text_field=training.dataset_text_field),
            seed=training.seed,
            max_length=training.max_length,
        )
    training.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training.model_init_kwargs or {}),
    }
    name = model_args.model_name_or_path
    return name, load_tokenizer(name, model_args.model_revision, training.trust_remote_code)


def _closing(command: str, folder: str, data: Any) -> str:
    lines = [f"Wrote {folder}: the model and its tokenizer."]
    if data.baseline_fraction:
        lines.append(f"Wrote {folder}/{BASELINE_FOLDER}: the baseline of its dense reward.")
    lines.append("Next:")
    lines.append(f"  inverselm generate --model_name_or_path {folder} --dataset_name <prompts> --output_file out.jsonl")
    lines.append(
        f"  inverselm score --model_name_or_path {folder} --dataset_name {data.dataset_name} --html heatmap.html"
    )
    if command == "sft" and data.baseline_fraction:
        lines.append(
            f"  inverselm dpr --model_name_or_path {folder} --dataset_name {data.dataset_name} --output_dir runs/dpr"
        )
    return "\n".join(lines)
