"""`inverselm rerank`: of several answers to each prompt, the best by a token reward."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...inference.reranking import BY
from ...inference.segments import UNITS
from ..arguments import Help, parse
from ..flags import ScoringFlags
from ..output import check_no_unfinished, check_output_file


@dataclass
class RerankArguments(ScoringFlags):
    """Flags of `inverselm rerank`."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Answers, several to a prompt, as `inverselm generate --num_return 8` writes them."},
    )
    by: str = field(
        default="sum",
        metadata={
            "help": "sum of the token rewards; mean; length_controlled: the sum without its trend with length within "
            "prompts; min: the worst --unit.",
            "choices": list(BY),
        },
    )
    unit: str = field(
        default="token",
        metadata={"help": "What --by min is over; of sentences and lines, the mean.", "choices": list(UNITS)},
    )
    keep: int = field(default=1, metadata={"help": "Answers of each prompt to write, the best first; 0: all."})
    output_file: str = field(default="best.jsonl", metadata={"help": "JSONL to write."})


GUIDE = Help(
    "Best-of-n: scores the answers to each prompt with a token reward, and writes the best ones: their own columns, "
    "and `rerank` (score, by, reward, tokens, rank, candidates). Rows with the same prompt are candidates of one "
    "another. Sampled ids (token_ids) are scored as they are. Says how much longer the chosen answers are, since a "
    "reward may like length.",
    (
        "inverselm generate --model_name_or_path runs/sft --dataset_name test.jsonl --num_return 8 "
        "\\\n      --output_file answers.jsonl",
        "inverselm rerank --model_name_or_path runs/sft --dataset_name answers.jsonl --output_file best.jsonl",
        "inverselm rerank --model_name_or_path runs/sft --dataset_name answers.jsonl --by length_controlled "
        "\\\n      --output_file best_lc.jsonl",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, score, order, write."""
    (args,) = parse(command, (RerankArguments,), argv, GUIDE)
    from ...inputs.models import check_positive, resolve_device
    from ..common import quiet_libraries, shell
    from .score import _check_models
    from .scored_rows import WORDS, check_reward_flags, read_rows, score_rows

    quiet_libraries()
    check_reward_flags(args)
    check_positive(args, ("batch_size",))
    if args.keep < 0:
        raise UserError(f"--keep is {args.keep}; set it to 1 or more, or to 0 for all answers")
    if args.unit != "token" and args.by != "min":
        raise UserError(f"--unit {args.unit} is for --by min; drop it")
    check_output_file(args.output_file, overwrite=args.overwrite, inputs=[args.dataset_name], flag="--output_file ")
    scores_file = Path(f"{args.output_file}.scores")
    check_no_unfinished(str(scores_file), resume=args.resume, overwrite=args.overwrite)
    kind, baselines, config = _check_models(args)
    rows = read_rows(args, config, sampled=True)
    groups = [row.key for row in rows]
    if len(set(groups)) == len(groups):
        raise UserError(f"{args.dataset_name}: no prompt has two answers; sample several: generate --num_return 8")
    args.device = resolve_device(args.device)
    scored = score_rows(args, kind, baselines, rows, scores_file, args.resume)
    left_out = sum(bool(row.why) for row in rows)
    records, facts = _ranked([row for row in rows if row.pair is not None], scored, args)
    _write(args.output_file, records)
    scores_file.unlink()
    print(f"{WORDS[kind]}, {args.by}{f' over {args.unit}s' if args.by == 'min' else ''}: {facts}")
    if left_out:
        print(f"{left_out:,} of {len(rows):,} answers are left out: without a token, or too long for the model.")
    print(f"Wrote {args.output_file}: {len(records):,} answers.")
    runs = (f"all={args.dataset_name}", f"best={args.output_file}")
    print("Next: is the chosen answer better than an average one? And does log pi choose as well (--reward log_prob)?")
    print(shell("compare", "--runs", *runs, "--metric", "<column>"))


def _ranked(rows: Sequence[Any], scored: Sequence[Any], args: Any) -> tuple[list[dict[str, Any]], str]:
    """The records to write, and what there is to say of their length."""
    from ...inference.reranking import answer_scores, length_correlation, segments_of

    groups = [row.key for row in rows]
    segments = [segments_of(completion, args.unit) for completion in scored]
    scores = answer_scores([s.rewards for s in scored], groups, by=args.by, segments=segments)
    lengths = [len(completion.tokens) for completion in scored]
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    records, chosen = [], []
    for group in members.values():
        order = sorted(group, key=lambda i: -scores[i])
        chosen.append(order[0])
        for rank, i in enumerate(order[: args.keep or None]):
            facts = {"score": scores[i], "by": args.by, "reward": scored[i].total, "tokens": lengths[i], "rank": rank}
            records.append({**rows[i].record, "rerank": {**facts, "candidates": len(group)}})
    correlation = length_correlation(scores, lengths, groups)
    mean = lambda values: math.fsum(values) / len(values)
    sizes = sorted({len(group) for group in members.values()})
    per_prompt = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    all_means = [mean([lengths[i] for i in group]) for group in members.values()]
    said = f"{len(members):,} prompts with {per_prompt} answers each.\nLength in tokens: "
    said += f"{mean([lengths[i] for i in chosen]):.1f} chosen, {mean(all_means):.1f} on average"
    if not math.isnan(correlation):
        said += f"; score and length correlate by {correlation:+.2f} within prompts"
    return records, said + "."


def _write(path: str, records: Sequence[dict[str, Any]]) -> None:
    from ...report.page import write_whole

    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(Path(path), text.encode("utf-8", "surrogatepass"))
