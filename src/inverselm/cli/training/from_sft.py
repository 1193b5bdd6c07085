"""What the commands share that start from an SFT model: dpr, gail and selfplay."""

from __future__ import annotations

from typing import Any

from ...errors import UserError
from ...inputs.models import check_model
from ...scorers.frozen import adapter_base
from ...scorers.markers import write_marker
from ...scorers.text import prompt_ids
from ..common import say, shell, train


def check_start(command: str, data: Any, model_args: Any, *, remote: bool, policy: str | None = None) -> Any:
    """The configuration of the SFT model, if this command can start from it.

    Args:
        command: for the messages.
        data: the data arguments.
        model_args: TRL's model arguments.
        remote: whether code from the hub may run.
        policy: where the policy starts, if not at the SFT model.

    Raises:
        UserError: a model from scratch, an encoder-decoder, or a second adapter on one.
    """
    sft = model_args.model_name_or_path
    if data.scratch_config:
        raise UserError(f"{command} starts from an SFT run; build one with `inverselm sft --scratch_config ...` first")
    config = check_model(sft, trust_remote_code=remote)
    if config.is_encoder_decoder:
        raise UserError(f"--model_name_or_path {sft}: {command} does not train encoder-decoder models (iqlearn does)")
    if model_args.use_peft and adapter_base(policy or sft):
        raise UserError("--use_peft: the policy starts as an adapter already; leave the flag out")
    return config


def say_cpu(training: Any) -> None:
    """In which precision a processor trains, if it does."""
    if training.use_cpu:
        say(f"Training on the CPU in {'bfloat16' if training.bf16 else 'float32'}.")


def train_and_save(trainer: Any, training: Any, resume: str | None, kind: str, facts: dict[str, Any]) -> None:
    """Train, and write the model, its tokenizer, the trainer's state and what the folder is."""
    train(trainer, resume)
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        write_marker(training.output_dir, kind, **facts, steps=trainer.state.global_step)


def with_room(rows: Any, tokenizer: Any, positions: int | None, answer: int) -> Any:
    """Leave out prompts that leave no room for an answer in the model's positions, and say how many."""
    if positions is None or not hasattr(rows, "select"):
        return rows
    lengths = [len(prompt_ids(tokenizer, prompt)) for prompt in rows["prompt"]]
    fits = [length + answer <= positions for length in lengths]
    if not any(fits):
        raise UserError(
            f"no prompt leaves room for --max_completion_length {answer} in the model's {positions} positions (the "
            f"shortest prompt has {min(lengths)} tokens); lower it"
        )
    if all(fits):
        return rows
    left_out = len(fits) - sum(fits)
    say(
        f"{left_out:,} of {len(fits):,} prompts ({left_out / len(fits):.1%}) are left out: they leave no room for "
        f"{answer} tokens (--max_completion_length) in the model's {positions} positions."
    )
    return rows.select([i for i, ok in enumerate(fits) if ok])


def closing(training: Any, sft: str, name: str, written: str, beside: str = "") -> str:
    """What was written, and how to compare it with the SFT model.

    Args:
        training: the config of the run.
        sft: the SFT model.
        name: of the command.
        written: what lies in the output folder.
        beside: what to look at, too.
    """
    options = ("--dataset_name", "<held-out prompts>", "--max_new_tokens", training.max_completion_length)
    lines = [
        f"Wrote {training.output_dir}: {written}.",
        f"Next: compare it with the SFT model on held-out prompts, at several temperatures{beside}:",
    ]
    for model, stem in ((training.output_dir, name), (sft, "sft")):
        lines.append(shell("generate", "--model_name_or_path", model, *options, "--output_file", f"{stem}.jsonl"))
    return "\n".join(lines)
