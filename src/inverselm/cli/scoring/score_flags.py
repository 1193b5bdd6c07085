"""Flags and help of `inverselm score`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..arguments import Help
from ..flags import ScoringFlags


@dataclass
class ScoreArguments(ScoringFlags):
    """Flags of `inverselm score`."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Answers to score: rows with prompt and completion (file, folder or hub name)."}
    )
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
