"""`inverselm gail`: adversarial imitation of demonstrations, from an SFT checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import ModelConfig, get_peft_config

from ...errors import UserError
from ...inputs.models import check_packages, load_tokenizer, positions_of
from ...scorers.checks import check_tokenizer_has_eos
from ...training.gail import GAILConfig, GAILTrainer
from ..arguments import DataArguments, Help, parse
from ..common import (
    check_chat_template,
    check_run_folder,
    clear_run_folder,
    lengths_line,
    load_checked,
    load_eval,
    quiet_libraries,
    say,
)
from .from_sft import check_start, closing, say_cpu, train_and_save, with_room

GUIDE = Help(
    "GAIL (arXiv 2409.01369, A.1.3): a discriminator learns to tell demonstrations from the policy's own answers, "
    "token by token, and pays the policy to pass for the expert; a value network, GAE and PPO's loss do the rest. "
    "--model_name_or_path is an SFT folder, --dataset_name the demonstrations.\n"
    "Watch own_length and own_truncated: without the likelihood term (--mle_coef 0) the reward, positive at every "
    "token, is known to end in answers that never stop.",
    (
        "inverselm gail --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir runs/gail",
        "inverselm gail --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir runs/gail "
        "\\\n      --critics head --max_completion_length 128 --reward_shift 0.6931",
        "inverselm gail --config recipe.yaml --mle_coef 0 --kl_coef 0.01",
    ),
    (
        *("model_name_or_path", "output_dir", "learning_rate", "num_train_epochs", "max_steps"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "assistant_only_loss"),
        *("use_peft", "lora_r", "eval_strategy", "save_steps", "logging_steps", "bf16", "seed"),
        *("resume_from_checkpoint", "dataset_train_split", "dataset_test_split"),
    ),
    hidden=("scratch_config", "td_coef", "mle_warmup_steps", "td_anneal_steps", "objective", "gem_temperature"),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, train, save, and say what was written and what to do next."""
    data, training, model_args = parse(command, (DataArguments, GAILConfig, ModelConfig), argv, GUIDE)
    quiet_libraries()
    _check_flags(model_args)
    check_packages(model_args, training)
    sft, remote = model_args.model_name_or_path, training.trust_remote_code
    resume = check_run_folder(training, data.overwrite_output_dir, [sft], training.rollout_every)
    config = check_start(command, data, model_args, remote=remote)
    tokenizer = load_tokenizer(sft, model_args.model_revision, remote)
    check_tokenizer_has_eos(tokenizer, sft)
    text_field = training.dataset_text_field
    rows, found = load_checked(data, "demonstrations", text_field, eos=tokenizer.eos_token)
    check_chat_template(tokenizer, found, data.dataset_name)
    _check_rows(found, data.dataset_name, training)
    held_out = load_eval(data, training, "demonstrations", text_field, tokenizer.eos_token)
    if "prompt" in (getattr(rows, "column_names", None) or ()):
        rows = with_room(rows, tokenizer, positions_of(config), training.max_completion_length)
    if not data.dataset_streaming:
        say(lengths_line(tokenizer, rows, found, training))
    say_cpu(training)
    clear_run_folder(training, data.overwrite_output_dir)
    training.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": remote,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training.model_init_kwargs or {}),
    }
    trainer = GAILTrainer(
        sft,
        args=training,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    facts = {"sft": str(sft), "critics": training.critics, "mle_coef": training.mle_coef, "kl_coef": training.kl_coef}
    train_and_save(trainer, training, resume, "gail", facts)
    say(closing(training, sft, "gail", "the policy and its tokenizer", ", lengths beside"))
    trainer.end()


def _check_flags(model_args: Any) -> None:
    if model_args.load_in_8bit or model_args.load_in_4bit:
        raise UserError("--load_in_4bit, --load_in_8bit: gail does not train quantised models; leave the flag out")


def _check_rows(found: str, name: str, training: Any) -> None:
    """An answer has to have a beginning."""
    if found == "text":
        raise UserError(f"{name}: the rows are texts without a prompt; gail needs prompt and completion, or messages")
    if found == "messages" and not training.assistant_only_loss:
        raise UserError(
            f"{name}: of messages gail learns the assistant's alone: pass --assistant_only_loss (the template must "
            "mark them), or split the rows into prompt and completion"
        )
