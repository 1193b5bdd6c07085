"""Flags that several commands share, with one meaning and one help text."""

from __future__ import annotations

from dataclasses import dataclass, field

REWARDS = ("auto", "log_ratio", "bellman", "log_prob")


@dataclass
class LoadingFlags:
    """How frozen models are loaded."""

    dtype: str = field(
        default="auto",
        metadata={"help": "Dtype of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a checkpoint's own Python code."})


@dataclass
class RewardFlags(LoadingFlags):
    """Which reward, of which models: what the commands that score share."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The SFT folder (its baseline is found there), or an IQLearn model."}
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "Earlier checkpoint(s) of the SFT run, comma-separated. Default: the one in its folder."},
    )
    reward: str = field(
        default="auto",
        metadata={
            "help": "log_ratio: log pi_SFT - log pi_baseline; bellman: Q - gamma V' of one model; log_prob: log pi. "
            "auto takes bellman for an IQLearn folder, else log_ratio.",
            "choices": list(REWARDS),
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of the bellman reward."})


@dataclass
class ScoringFlags(RewardFlags):
    """Rows that are scored into a file or folder, which can be continued."""

    dataset_name: str | None = field(default=None, metadata={"help": "Rows to score (file, folder or hub name)."})
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    batch_size: int = field(default=16, metadata={"help": "Answers per forward pass."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier run wrote."})
    resume: bool = field(default=False, metadata={"help": "Continue what an interrupted run with these flags wrote."})


@dataclass
class RewardShapeFlags:
    """What is made of the log-ratio to the baseline."""

    baseline_mix: str = field(
        default="log",
        metadata={"help": "Mean of several baselines: 'log' or 'probability'.", "choices": ["log", "probability"]},
    )
    reward_floor: float = field(
        default=1.0, metadata={"help": "Alpha of log(alpha rho + 1 - alpha), a floor under the log-ratio; 1 is off."}
    )
    reward_clip_low: float | None = field(default=None, metadata={"help": "Clip token rewards from below (nats)."})
    reward_clip_high: float | None = field(default=None, metadata={"help": "Clip token rewards from above (nats)."})
    centre_rewards: bool = field(
        default=False,
        metadata={"help": "Subtract KL(pi_SFT || pi_baseline) of the state: the sum no longer pays for length."},
    )
