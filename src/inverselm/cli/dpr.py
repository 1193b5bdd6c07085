"""`inverselm dpr`: Dense-Path REINFORCE from an SFT run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, get_peft_config

from ..errors import UserError
from ..scorers.frozen import adapter_base
from ..scorers.markers import write_marker
from ..training.dense_path import DensePathConfig, DensePathTrainer
from ..training.loading import load_policy_and_reward
from .arguments import DataArguments, Help, parse
from .common import (
    check_chat_template,
    load_checked,
    load_eval,
    load_tokenizer,
    prepare_output_dir,
    quiet_libraries,
    resume_flag,
    say,
)


@dataclass
class RewardArguments(DataArguments):
    """Data arguments, and the reward's."""

    baseline: str | None = field(
        default=None,
        metadata={"help": "Earlier checkpoint(s) of the SFT run, comma-separated; default: the one the run kept."},
    )
    policy: str | None = field(
        default=None, metadata={"help": "Where the policy starts; default: the SFT model (--model_name_or_path)."}
    )
    reward_floor: float = field(
        default=1.0, metadata={"help": "Alpha of log(alpha rho + 1 - alpha), a floor under the log-ratio; 1 is off."}
    )
    reward_clip_low: float | None = field(default=None, metadata={"help": "Clip token rewards from below (nats)."})
    reward_clip_high: float | None = field(default=None, metadata={"help": "Clip token rewards from above (nats)."})
    centre_rewards: bool = field(
        default=False,
        metadata={"help": "Subtract KL(pi_SFT || pi_baseline) of the state: the reward no longer pays for length."},
    )
    baseline_mix: str = field(
        default="log",
        metadata={"help": "Mean of several baselines: 'log' or 'probability'.", "choices": ["log", "probability"]},
    )


GUIDE = Help(
    "Dense-Path REINFORCE (arXiv 2510.02493): improve an SFT model with the token reward its own run contains, "
    "log pi_SFT - log pi_baseline, without a critic. --model_name_or_path is the SFT folder that `inverselm sft` "
    "wrote; the baseline is found there. Prompts are the SFT prompts, or held-out ones.\n"
    "1/kl_coef is how far to go beyond the SFT model: the optimum is pi_SFT (pi_SFT/pi_baseline)^(1/kl_coef). Choose "
    "the checkpoint on a validation metric: the reward rises also when it is being gamed.",
    (
        "inverselm dpr --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir runs/dpr",
        "inverselm dpr --model_name_or_path runs/sft --dataset_name heldout.jsonl --output_dir runs/dpr --kl_coef 2 "
        "--max_completion_length 256 --learning_rate 1e-6",
        "inverselm dpr --config recipe.yaml --credit myopic",
    ),
    (
        *("model_name_or_path", "output_dir", "learning_rate", "max_steps", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "num_generations", "max_completion_length", "steps_per_generation"),
        *("use_vllm", "use_peft", "save_steps", "logging_steps", "bf16", "seed", "resume_from_checkpoint"),
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, train, save, and say what was written and what to do next."""
    data, training, model_args = parse(command, (RewardArguments, DensePathConfig, ModelConfig), argv, GUIDE)
    quiet_libraries()
    if data.scratch_config:
        raise UserError("dpr starts from an SFT run; build one with `inverselm sft --scratch_config ...` first")
    sft = model_args.model_name_or_path
    tokenizer = load_tokenizer(sft, model_args.model_revision, training.trust_remote_code)
    if model_args.use_peft and adapter_base(sft):
        raise UserError(
            "--use_peft: the SFT model is an adapter already, and the policy starts as a copy of it; drop it"
        )
    prepare_output_dir(training, data.overwrite_output_dir)
    rows, found = load_checked(data, "prompts")
    check_chat_template(tokenizer, found, data.dataset_name)
    held_out = load_eval(data, training, "prompts")
    policy, reward = load_policy_and_reward(
        sft,
        data.baseline.split(",") if data.baseline else None,
        policy=data.policy,
        dtype=model_args.dtype or "auto",
        device=training.device,
        trust_remote_code=training.trust_remote_code,
        mix=data.baseline_mix,
        floor_alpha=data.reward_floor,
        clip_range=(data.reward_clip_low, data.reward_clip_high),
        centred=data.centre_rewards,
    )
    trainer = DensePathTrainer(
        policy,
        reward,
        args=training,
        train_dataset=_with_room(rows, tokenizer, policy, training.max_completion_length),
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=resume_flag(training.resume_from_checkpoint))
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        write_marker(training.output_dir, "dpr", sft=str(sft), kl_coef=training.kl_coef, credit=training.credit)
    say(_closing(training.output_dir, str(sft)))
    trainer.end()


def _with_room(rows: Any, tokenizer: Any, policy: Any, answer: int) -> Any:
    """Leave out prompts that leave no room for an answer in the model's positions, and say how many."""
    positions = getattr(policy.config, "max_position_embeddings", None)
    if positions is None:
        return rows
    from ..scorers.text import prompt_ids

    fits = [len(prompt_ids(tokenizer, prompt)) + answer <= positions for prompt in rows["prompt"]]
    if not any(fits):
        raise UserError(
            f"no prompt leaves room for max_completion_length={answer} tokens in the model's {positions} positions; "
            "lower --max_completion_length"
        )
    if not all(fits):
        left_out = len(fits) - sum(fits)
        say(
            f"{left_out:,} of {len(fits):,} prompts ({100 * left_out / len(fits):.1f}%) leave no room for "
            f"max_completion_length={answer} tokens in the model's {positions} positions and are left out."
        )
        return rows.select([i for i, ok in enumerate(fits) if ok])
    return rows


def _closing(folder: str, sft: str) -> str:
    return "\n".join(
        [
            f"Wrote {folder}: the improved policy and its tokenizer.",
            "Next: compare it with the SFT model on held-out prompts, at several temperatures:",
            f"  inverselm generate --model_name_or_path {folder} --dataset_name heldout.jsonl --output_file dpr.jsonl",
            f"  inverselm generate --model_name_or_path {sft} --dataset_name heldout.jsonl --output_file sft.jsonl",
        ]
    )
