"""`inverselm score`: token rewards of answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..scorers import QFunctionReward, ScoredCompletion, TokenReward, TokenScorer
from ..scorers.markers import read_marker
from .arguments import Help, parse
from .data import check_demonstrations, load_rows

REWARDS = ("auto", "log_ratio", "bellman", "log_prob")


@dataclass
class ScoreArguments:
    """Flags of `inverselm score`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The SFT folder (its baseline is found there), or an IQLearn model."}
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "Earlier checkpoint(s) of the SFT run, comma-separated, if not kept in its folder."},
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
    dataset_name: str | None = field(
        default=None, metadata={"help": "Answers to score: rows with prompt and completion (file, folder or hub name)."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    prompt: str | None = field(default=None, metadata={"help": "Score one answer: its prompt."})
    completion: str | None = field(default=None, metadata={"help": "Score one answer: its text."})
    add_eos: bool = field(
        default=True, metadata={"help": "End each answer with EOS, as in training; off for cut answers."}
    )
    output_file: str | None = field(
        default=None, metadata={"help": "JSONL to write; default: scores.jsonl for a dataset."}
    )
    html: str | None = field(
        default=None, metadata={"help": "Write a page of token heatmaps here (first --html_rows rows)."}
    )
    html_rows: int = field(default=50, metadata={"help": "Rows in the page of heatmaps."})
    batch_size: int = field(default=16, metadata={"help": "Answers per forward pass."})
    dtype: str = field(default="auto", metadata={"help": "Dtype of the weights: auto, float32, bfloat16."})
    device: str | None = field(default=None, metadata={"help": "Default: the GPU if there is one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run a checkpoint's own Python code."})
    overwrite: bool = field(default=False, metadata={"help": "Replace existing output files."})


GUIDE = Help(
    "Token rewards of answers: one number per token, in nats, with its place in the text. From an SFT run (two "
    "checkpoints) the dense reward log pi_SFT - log pi_baseline; from an IQLearn model Q - gamma V'.",
    (
        "inverselm score --model_name_or_path runs/sft --prompt '2+2=' --completion '5'",
        "inverselm score --model_name_or_path runs/sft --dataset_name answers.jsonl --output_file scored.jsonl",
        "inverselm score --model_name_or_path SFT --baseline EARLIER --dataset_name answers.jsonl --html heatmap.html",
    ),
    (),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, score, write."""
    (args,) = parse(command, (ScoreArguments,), argv, GUIDE)
    single = args.prompt is not None and args.completion is not None
    if (args.prompt is None) != (args.completion is None):
        raise UserError("--prompt and --completion go together")
    if single == bool(args.dataset_name):
        raise UserError("pass either --dataset_name <answers> or --prompt and --completion")
    if not args.model_name_or_path:
        raise UserError("no model: pass --model_name_or_path <SFT or IQLearn folder>")
    if single and not args.completion.strip():
        raise UserError("--completion is empty: there is no token to score")
    output = _check_outputs(args, single)
    rows: list[dict[str, Any]] = [{"prompt": args.prompt, "completion": args.completion}] if single else _answers(args)
    scorer = load_scorer(args)
    scored = scorer.score(
        [row["prompt"] for row in rows],
        [row["completion"] for row in rows],
        add_eos=args.add_eos,
        batch_size=args.batch_size,
        progress=not single,
    )
    if single:
        print(terminal_heatmap(scored[0], color=sys.stdout.isatty()))
    if output:
        write_jsonl(output, (record(row, s) for row, s in zip(rows, scored, strict=True)))
        print(f"Wrote {output}: {len(rows):,} answers, {sum(len(s.tokens) for s in scored):,} token rewards.")
    if args.html:
        _write_page(args, rows, scored)
        print(f"Wrote {args.html}: open it in a browser.")
    if not single:
        print(f"Next: inverselm dpr --model_name_or_path {args.model_name_or_path} trains with these rewards.")


def _check_outputs(args: Any, single: bool) -> str | None:
    output = args.output_file or (None if single else "scores.jsonl")
    for path in filter(None, (output, args.html)):
        if Path(path).exists() and not args.overwrite:
            raise UserError(f"{path} exists; pass --overwrite, or name another file")
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: its folder does not exist")
    return output


def _answers(args: Any) -> list[dict[str, Any]]:
    rows = load_rows(args.dataset_name, split=args.dataset_split)
    found = check_demonstrations(rows, args.dataset_name, need="answers")
    if found == "messages":
        name = "messages" if "messages" in rows.column_names else "conversations"
        raise UserError(f"{args.dataset_name}: score needs prompt and completion; split {name} into the two columns")
    return [{k: v for k, v in row.items() if k != "__line__"} for row in rows]


def load_scorer(args: Any) -> TokenScorer:
    """The scorer that the flags (or the folder's marker) ask for.

    Raises:
        UserError: flags that contradict each other, or nothing that loads.
    """
    marker = read_marker(args.model_name_or_path) if Path(args.model_name_or_path).is_dir() else {}
    kind = args.reward
    if kind == "auto":
        kind = "bellman" if marker.get("role") == "iqlearn" and not args.baseline else "log_ratio"
    loading = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    if kind == "log_ratio":
        baseline = args.baseline.split(",") if args.baseline else None
        return TokenReward.from_checkpoints(args.model_name_or_path, baseline, **loading)
    if args.baseline:
        raise UserError(f"--baseline has no part in --reward {kind}; drop one of them")
    gamma = marker.get("gamma", args.gamma) if args.gamma == 1.0 else args.gamma
    return QFunctionReward.from_checkpoint(args.model_name_or_path, kind=kind, gamma=gamma, **loading)


def record(row: dict[str, Any], scored: ScoredCompletion) -> dict[str, Any]:
    """The input row with its scores: `tokens` (text, start, end, token_id, reward), `reward`, `terminated`."""
    return {
        **row,
        "scored_text": scored.text,
        "tokens": [token._asdict() for token in scored.tokens],
        "reward": scored.total,
        "terminated": scored.terminated,
    }


def write_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Write all of it or nothing."""
    temporary = Path(f"{path}.unfinished")
    with open(temporary, "w", encoding="utf-8") as stream:
        for item in records:
            stream.write(json.dumps(item, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def terminal_heatmap(scored: ScoredCompletion, color: bool = True) -> str:
    """Tokens on blue (positive) or orange (negative) in a terminal; a table without colour."""
    scale = max((abs(r) for r in scored.rewards), default=0.0) or 1.0
    lines = ["".join(_painted(scored, scale))] if color else []
    lines += [f"{token.reward:+8.3f}  {token.text!r}" for token in scored.tokens]
    lines.append(f"{scored.total:+8.3f}  sum of {len(scored.tokens)} tokens, nats")
    return "\n".join(lines)


def _painted(scored: ScoredCompletion, scale: float) -> Iterator[str]:
    for token in scored.tokens:
        share = min(1.0, abs(token.reward) / scale)
        target = (86, 180, 233) if token.reward >= 0 else (230, 159, 0)
        red, green, blue = (round(255 + (c - 255) * share) for c in target)
        yield f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m{_plain(token.text)}\x1b[0m"


def _plain(text: str) -> str:
    """Control characters of an answer must not reach the terminal."""
    return "".join(c if c.isprintable() else "⏎\n" if c == "\n" else "·" for c in text)


def _write_page(args: Any, rows: list[dict[str, Any]], scored: list[ScoredCompletion]) -> None:
    from ..report.heatmap import ScoredAnswer, ScoredToken, heatmap_page

    answers = [
        ScoredAnswer(
            tokens=[ScoredToken(t.text, t.reward) for t in s.tokens],
            title=f"Answer {i + 1}: {s.total:+.2f} nats",
            prompt=_shown(row["prompt"]),
        )
        for i, (row, s) in enumerate(zip(rows[: args.html_rows], scored, strict=False))
    ]
    Path(args.html).write_text(heatmap_page(answers, f"Token rewards of {args.model_name_or_path}"), encoding="utf-8")


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m.get('role')}: {m.get('content')}" for m in prompt)
