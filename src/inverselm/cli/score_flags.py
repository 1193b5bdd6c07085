"""Flags and help of `inverselm score`."""

from __future__ import annotations

from dataclasses import dataclass, field

from .arguments import Help

REWARDS = ("auto", "log_ratio", "bellman", "log_prob")


@dataclass
class RewardFlags:
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
class ScoreArguments(RewardFlags):
    """Flags of `inverselm score`."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Answers to score: rows with prompt and completion (file, folder or hub name)."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    prompt: str | None = field(default=None, metadata={"help": "Score one answer: its prompt."})
    completion: str | None = field(default=None, metadata={"help": "Score one answer: its text."})
    add_eos: bool = field(
        default=True,
        metadata={"help": "End each answer with EOS, as in training; rows with finished=false are cut, and get none."},
    )
    output_file: str | None = field(
        default=None, metadata={"help": "JSONL or .parquet to write; default: scores.jsonl for a dataset."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of shards to write, in place of one file; new or empty."}
    )
    output_format: str = field(
        default="parquet", metadata={"help": "Of the files in --output_dir.", "choices": ["parquet", "jsonl"]}
    )
    shard_size: int = field(
        default=8192, metadata={"help": "Rows that are written, resumed and given to a process as one."}
    )
    on_error: str | None = field(
        default=None,
        metadata={
            "help": "Rows that cannot be scored. keep: written with an `error` text; stop: the run ends; skip: what is "
            "too long or has no token is left out and counted, and anything else ends the run. Default: skip into a "
            "JSONL file, keep into Parquet and folders.",
            "choices": ["keep", "stop", "skip"],
        },
    )
    backend: str = field(
        default="local",
        metadata={
            "help": "local: this process, or those of accelerate launch; ray: a Ray cluster.",
            "choices": ["local", "ray"],
        },
    )
    ray_address: str | None = field(
        default=None,
        metadata={"help": "A running cluster, such as auto. Default: RAY_ADDRESS, or a local one."},
    )
    num_workers: int | None = field(
        default=None, metadata={"help": "Ray: models at work at a time. Default: one per GPU, or per CPU without GPUs."}
    )
    gpus_per_worker: float | None = field(
        default=None, metadata={"help": "Ray: GPUs of each. Default: 1, or 0 where the cluster has none."}
    )
    html: str | None = field(
        default=None, metadata={"help": "Write a page of token heatmaps here (first --html_rows rows)."}
    )
    html_rows: int = field(default=50, metadata={"help": "Rows in the page of heatmaps."})
    batch_size: int = field(default=16, metadata={"help": "Answers per forward pass."})
    dtype: str = field(
        default="auto",
        metadata={"help": "Dtype of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a checkpoint's own Python code."})
    overwrite: bool = field(default=False, metadata={"help": "Replace existing output files."})
    resume: bool = field(default=False, metadata={"help": "Continue what an interrupted run with these flags wrote."})


GUIDE = Help(
    "Token rewards of answers: one number per token, in nats, with its place in the text. From an SFT run (two "
    "checkpoints) the dense reward log pi_SFT - log pi_baseline; from an IQLearn model Q - gamma V'. One JSON line per "
    "answer: the row's own columns, scored_text, tokens (token_id, text, start, end, reward), reward, terminated.\n"
    "Into Parquet (--output_file x.parquet, or shards in --output_dir) with the same in columns. Data is read as a "
    "stream; several processes by accelerate launch, many machines by --backend ray.",
    (
        "inverselm score --model_name_or_path runs/sft --prompt '2+2=' --completion '5'",
        "inverselm score --model_name_or_path runs/sft --dataset_name answers.jsonl --output_file scored.jsonl",
        "inverselm score --model_name_or_path SFT --baseline EARLIER --dataset_name answers.jsonl "
        "\\\n      --html heatmap.html",
        "accelerate launch --num_processes 8 -m inverselm score --model_name_or_path runs/sft "
        "\\\n      --dataset_name answers.parquet --output_dir scores",
    ),
)
