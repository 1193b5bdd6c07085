"""`inverselm dpr`: Dense-Path REINFORCE from an SFT run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig, get_peft_config

from ...errors import UserError
from ...inputs.models import (
    check_model,
    check_packages,
    check_reward_models,
    check_shared_tokenizer,
    load_tokenizer,
    positions_of,
)
from ...scorers import REWARD_CONTROLS, ControlledReward
from ...training.dense_path import DensePathConfig, DensePathTrainer
from ...training.loading import load_policy_and_reward
from ..arguments import DataArguments, Help, parse
from ..common import (
    check_chat_template,
    check_run_folder,
    clear_run_folder,
    load_checked,
    load_eval,
    quiet_libraries,
    say,
)
from ..flags import RewardShapeFlags
from .from_sft import check_start, closing, say_cpu, train_and_save, with_room


@dataclass
class RewardArguments(RewardShapeFlags, DataArguments):
    """Data arguments, and the reward's."""

    baseline: str | None = field(
        default=None,
        metadata={"help": "Earlier checkpoint(s) of the SFT run, comma-separated; default: the one the run kept."},
    )
    policy: str | None = field(
        default=None, metadata={"help": "Where the policy starts; default: the SFT model (--model_name_or_path)."}
    )
    reward_control: str | None = field(
        default=None,
        metadata={
            "help": "Train on a control in place of the reward: its values shuffled between an answer's tokens or "
            "between answers, the sum on the last token, log pi_SFT alone, or noise of the same mean and spread.",
            "choices": list(REWARD_CONTROLS),
        },
    )


GUIDE = Help(
    "Dense-Path REINFORCE (arXiv 2510.02493): improve an SFT model with the token reward its own run contains, "
    "log pi_SFT - log pi_baseline, without a critic. --model_name_or_path is the SFT folder that `inverselm sft` "
    "wrote; the baseline is found there. Prompts are the SFT prompts, or held-out ones.\n"
    "1/kl_coef is how far to go beyond the SFT model: the optimum is pi_SFT (pi_SFT/pi_baseline)^(1/kl_coef). Choose "
    "the checkpoint on a validation metric: the reward rises also when it is being gamed.",
    (
        "inverselm dpr --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir runs/dpr",
        "inverselm dpr --model_name_or_path runs/sft --dataset_name heldout.jsonl --output_dir runs/dpr "
        "\\\n      --kl_coef 2 --max_completion_length 256 --learning_rate 1e-6",
        "inverselm dpr --config recipe.yaml --credit myopic",
        "inverselm dpr --config recipe.yaml --reward_control shuffled_tokens --output_dir runs/control",
    ),
    (
        *("model_name_or_path", "output_dir", "learning_rate", "max_steps", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "num_generations", "max_completion_length", "steps_per_generation"),
        *("use_vllm", "use_peft", "save_steps", "logging_steps", "bf16", "seed", "resume_from_checkpoint"),
    ),
    hidden=("scratch_config",),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, train, save, and say what was written and what to do next."""
    data, training, model_args = parse(command, (RewardArguments, DensePathConfig, ModelConfig), argv, GUIDE)
    quiet_libraries()
    _check_flags(data, training)
    check_packages(model_args, training)
    sft, remote = model_args.model_name_or_path, training.trust_remote_code
    reads = [sft, data.policy, *(data.baseline or "").split(",")]
    resume = check_run_folder(training, data.overwrite_output_dir, reads, training.steps_per_rollout)
    config = check_start(command, data, model_args, remote=remote, policy=data.policy)
    baselines = check_reward_models(sft, data.baseline, remote)
    tokenizer = load_tokenizer(sft, model_args.model_revision, remote)
    if data.policy:
        check_model(data.policy, "--policy", remote)
        check_shared_tokenizer(tokenizer, sft, data.policy, remote)
    if data.centre_rewards and len(baselines) > 1:
        raise UserError("--centre_rewards is defined for one baseline; name one, or leave it out")
    rows, found = load_checked(data, "prompts")
    check_chat_template(tokenizer, found, data.dataset_name)
    room = positions_of(config), training.max_completion_length
    rows, held_out = with_room(rows, tokenizer, *room), load_eval(data, training, "prompts")
    held_out = held_out and with_room(held_out, tokenizer, *room)
    policy, reward = load_policy_and_reward(
        sft,
        baselines,
        policy=data.policy,
        dtype=model_args.dtype or "auto",
        device=training.device,
        trust_remote_code=remote,
        mix=data.baseline_mix,
        floor_alpha=data.reward_floor,
        clip_range=(data.reward_clip_low, data.reward_clip_high),
        centred=data.centre_rewards,
    )
    if data.reward_control:
        reward = ControlledReward(reward, data.reward_control, seed=training.seed)
        say(f"Control: the reward is {data.reward_control}, not the dense reward.")
    say_cpu(training)
    clear_run_folder(training, data.overwrite_output_dir)
    trainer = DensePathTrainer(
        policy,
        reward,
        args=training,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    facts = {"sft": str(sft), "kl_coef": training.kl_coef, "credit": training.credit}
    facts |= {"reward_control": data.reward_control} if data.reward_control else {}
    train_and_save(trainer, training, resume, "dpr", facts)
    say(closing(training, sft, "dpr", "the improved policy and its tokenizer"))
    trainer.end()


def _check_flags(data: Any, training: Any) -> None:
    if not 0.0 < data.reward_floor <= 1.0:
        raise UserError(f"--reward_floor is {data.reward_floor}; set it above 0 and at most 1 (off)")
    if (data.reward_clip_low or 0.0) > 0.0 or (data.reward_clip_high or 0.0) < 0.0:
        raise UserError("--reward_clip_low must be at most 0, and --reward_clip_high at least 0")
    if data.reward_control == "shuffled_sequences":
        _check_answers_to_shuffle(training)


def _check_answers_to_shuffle(training: Any) -> None:
    """Rewards are shuffled between the answers that one process scores at a time."""
    sizes = {"per_device_train_batch_size": training.per_device_train_batch_size * training.steps_per_generation}
    if str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no":
        sizes["per_device_eval_batch_size"] = training.per_device_eval_batch_size
        sizes["num_generations_eval"] = training.num_generations_eval or training.num_generations
    for name, size in sizes.items():
        if size < 2:
            raise UserError(f"--reward_control shuffled_sequences needs two answers at a time; raise --{name}")
