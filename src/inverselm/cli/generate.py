"""`inverselm generate`: sample answers to prompts, and measure them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..evaluation.gsm8k import CalculatorLogitsProcessor
from ..evaluation.metrics import METRICS, compute_metrics
from ..inference.generate import generate
from ..scorers import load_model
from .arguments import Help, parse
from .common import load_tokenizer
from .data import check_demonstrations, load_rows
from .score import write_jsonl


@dataclass
class GenerateArguments:
    """Flags of `inverselm generate`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or hub name of the model (or adapter)."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Prompts: rows with a prompt (file, folder, hub name)."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    output_file: str = field(default="generations.jsonl", metadata={"help": "JSONL to write, one line per answer."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling."})
    num_beams: int = field(default=1, metadata={"help": "Beam search (with --temperature 0)."})
    num_return: int = field(default=1, metadata={"help": "Answers per prompt."})
    batch_size: int = field(default=32, metadata={"help": "Prompts per batch."})
    calculator: bool = field(default=False, metadata={"help": "Fill in the results of GSM8K's <<a*b= marks."})
    metrics: list[str] = field(
        default_factory=list, metadata={"help": f"Measure against a reference column: {', '.join(METRICS)}."}
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Column with the reference; default: answer, else completion."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    dtype: str = field(default="auto", metadata={"help": "Dtype of the weights: auto, float32, bfloat16."})
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a checkpoint's own Python code."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output file."})


GUIDE = Help(
    "Sample answers to prompts, and measure them if a metric is named. The same prompts, seed and batch size give the "
    "same answers. Compare models at several temperatures: each has its own best one.",
    (
        "inverselm generate --model_name_or_path runs/sft --dataset_name heldout.jsonl --temperature 0 "
        "--metrics gsm8k --output_file greedy.jsonl",
        "inverselm generate --model_name_or_path runs/dpr --dataset_name test.jsonl --num_return 4 --metrics bleu chrf",
    ),
    (),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, sample, write, measure."""
    (args,) = parse(command, (GenerateArguments,), argv, GUIDE)
    unknown = [name for name in args.metrics if name not in METRICS]
    if unknown:
        raise UserError(f"unknown metric {unknown[0]}; known: {', '.join(METRICS)}")
    if not args.dataset_name:
        raise UserError("no prompts: pass --dataset_name <file, folder or hub dataset>")
    output = Path(args.output_file)
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} exists; pass --overwrite, or name another --output_file")
    rows = load_rows(args.dataset_name, split=args.dataset_split)
    check_demonstrations(rows, args.dataset_name, need="prompts")
    references = _references(rows, args) if args.metrics else None
    tokenizer = load_tokenizer(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    model: Any = load_model(args.model_name_or_path, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    answers = generate(
        model.to(device),
        tokenizer,
        rows["prompt"],
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        num_beams=args.num_beams,
        num_return=args.num_return,
        batch_size=args.batch_size,
        seed=args.seed,
        logits_processor=CalculatorLogitsProcessor if args.calculator else None,
    )
    settings = {k: v for k, v in dataclasses.asdict(args).items() if k in ("temperature", "top_p", "num_beams", "seed")}
    write_jsonl(output, _records(rows, references, answers, settings))
    flat = [answer for group in answers for answer in group]
    cut = sum(not answer.finished for answer in flat) / len(flat)
    print(f"Wrote {output}: {len(flat):,} answers to {len(answers):,} prompts; {cut:.1%} truncated.")
    if references is not None:
        texts = [[answer.text for answer in group] for group in answers]
        for name, value in compute_metrics(args.metrics, texts, references).items():
            print(f"  {name}: {value:.4g}")
    print(f"Next: inverselm score --model_name_or_path <SFT folder> --dataset_name {output} --html heatmap.html")


def _references(rows: Any, args: Any) -> list[str]:
    names = [args.reference_column] if args.reference_column else ["answer", "completion"]
    for name in names:
        if name in rows.column_names:
            values = list(rows[name])
            bad = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
            if bad is not None:
                raise UserError(f"{args.dataset_name}: row {bad + 1}: the reference in {name} is no string")
            return values
    raise UserError(
        f"{args.dataset_name}: --metrics needs a reference column ({' or '.join(names)}); there are: "
        f"{', '.join(c for c in rows.column_names if c != '__line__')}. Name it with --reference_column."
    )


def _records(rows: Any, references: Any, answers: Any, settings: dict[str, Any]) -> Any:
    for i, group in enumerate(answers):
        for k, answer in enumerate(group):
            item = {"prompt": rows[i]["prompt"], "completion": answer.text, "sample": k, "finished": answer.finished}
            if references is not None:
                item["reference"] = references[i]
            yield item | settings | {"token_ids": list(answer.token_ids)}
