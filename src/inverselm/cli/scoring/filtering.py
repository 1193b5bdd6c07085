"""`inverselm filter`: demonstrations ranked by a token reward: what is probably wrong, and what to keep."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...inference.reranking import BY
from ...inference.segments import UNITS
from ..arguments import Help, parse
from ..flags import REWARDS, ScoringFlags

FILES = ("review.jsonl", "review.html", "report.txt", "report.html", "report.json", "scores.jsonl", "kept.jsonl")
DROPPED = "dropped.jsonl"
_OWN_RUN = ("output_dir", "keep_share", "drop_below", "device", "overwrite", "resume")
"""Flags of one run, not of the ranking."""
FIRST_LOW = 1 / 3  # how low, of the lowest reward, the first suspicious token is


@dataclass
class FilterArguments(ScoringFlags):
    """Flags of `inverselm filter`."""

    reward: str = field(
        default="log_prob",
        metadata={
            "help": "log_prob: log pi of the model; log_ratio: log pi_SFT - log pi_baseline; bellman: Q - gamma V'; "
            "auto: bellman for an IQLearn folder, else log_ratio.",
            "choices": list(REWARDS),
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Demonstrations: prompt and completion, or messages (file, folder, hub name)."}
    )
    by: str = field(
        default="min",
        metadata={
            "help": "What rows are ranked by: their worst --unit (min), the sum or mean of their token rewards, or the "
            "sum without its trend with length over the data (length_controlled).",
            "choices": list(BY),
        },
    )
    unit: str = field(
        default="token",
        metadata={"help": "What --by min is over; of sentences and lines, the mean.", "choices": list(UNITS)},
    )
    step: str = field(
        default="line",
        metadata={"help": "The step around the lowest token that is named, too.", "choices": list(UNITS[1:])},
    )
    keep_share: float | None = field(default=None, metadata={"help": "Keep this share of the rows, the best ones."})
    drop_below: float | None = field(default=None, metadata={"help": "Drop rows with a lower score (nats)."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Rows with more tokens, prompt included, are too long. Default: the model's positions."},
    )
    output_dir: str = field(default="filtered", metadata={"help": "Folder for the results; new or empty."})
    review_rows: int = field(default=50, metadata={"help": "Most suspicious rows to write for review."})


GUIDE = Help(
    "Ranks demonstrations by a token reward, and says where each is probably wrong: its lowest token, and the line "
    "around it. Writes the most suspicious rows for review (JSONL, and a page with their heatmaps), a report on the "
    "data (distributions, length, duplicates, rows too long), and, with --keep_share or --drop_below, the rows to "
    "keep, unchanged.\nA low reward is a suspicion, not an error: look at the page before you drop anything.",
    (
        "inverselm filter --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir filtered",
        "inverselm filter --model_name_or_path runs/sft --dataset_name train.jsonl --keep_share 0.9",
        "inverselm filter --model_name_or_path runs/sft --dataset_name train.jsonl --reward log_ratio --by sum "
        "\\\n      --drop_below -5",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, score, rank, write."""
    (args,) = parse(command, (FilterArguments,), argv, GUIDE)
    from ...inputs.models import resolve_device
    from ..common import quiet_libraries
    from .score import _check_models
    from .scored_rows import read_rows, score_rows

    quiet_libraries()
    again = _flags_given(args)
    _check_flags(args)
    folder = _check_folder(args)
    kind, baselines, config = _check_models(args)
    rows = read_rows(args, config, max_length=args.max_length)
    args.device = resolve_device(args.device)
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "rewards.jsonl"
    scored = score_rows(args, kind, baselines, rows, raw, args.resume)
    for name in (*FILES, DROPPED):  # of an earlier run
        (folder / name).unlink(missing_ok=True)
    _finish(folder, args, kind, rows, scored, again)
    raw.unlink()


def _check_flags(args: Any) -> None:
    from ...inputs.models import check_positive
    from .scored_rows import check_reward_flags

    check_reward_flags(args)
    if args.keep_share is not None and args.drop_below is not None:
        raise UserError("--keep_share and --drop_below both say what to keep; drop one of them")
    if args.keep_share is not None and not 0 < args.keep_share <= 1:
        raise UserError(f"--keep_share is {args.keep_share}; set it above 0 and at most 1")
    if args.unit != "token" and args.by != "min":
        raise UserError(f"--unit {args.unit} is for --by min; drop it")
    if args.resume and args.overwrite:
        raise UserError("--resume goes on and --overwrite starts anew; drop one of them")
    check_positive(args, ("batch_size", "review_rows", "max_length"))


def _check_folder(args: Any) -> Path:
    """The output folder, after checking that nothing in it would be lost."""
    from ...inputs.data import check_output_dir

    check_output_dir(args.output_dir, overwrite=True)  # a file in the way, no permission
    folder = Path(args.output_dir).expanduser()
    own = {*FILES, DROPPED, "rewards.jsonl", "rewards.jsonl.unfinished", "rewards.jsonl.unfinished.json"}
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - own or (there and not (args.overwrite or args.resume)):
        hint = "choose another" if there - own else "pass --overwrite or --resume, or choose another"
        raise UserError(f"--output_dir {args.output_dir}: the folder is not empty; {hint}")
    source = Path(args.dataset_name).expanduser()
    if source.exists() and folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(f"--output_dir {args.output_dir}: {args.dataset_name} lies in it and is read; choose another")
    return folder


def _finish(
    folder: Path, args: Any, kind: str, rows: Sequence[Any], scored: Sequence[Any], again: Sequence[str]
) -> None:
    from ...evaluation.data_report import data_report
    from ...inference.filtering import keep_rows, suspicion
    from ...inference.reranking import answer_scores, segments_of
    from ..common import shell
    from .filter_report import Judged, write_report, write_review
    from .scored_rows import WORDS, text_key

    there = [i for i, row in enumerate(rows) if row.pair is not None]
    segments = [segments_of(completion, args.unit) for completion in scored]
    scores = answer_scores([s.rewards for s in scored], ["data"] * len(scored), by=args.by, segments=segments)
    judged = [
        Judged(i, rows[i], s, score, suspicion(s), suspicion(s, args.step), suspicion(s, share=FIRST_LOW))
        for i, s, score in zip(there, scored, scores, strict=True)
    ]
    order = sorted(judged, key=lambda item: item.score)
    what = f"{WORDS[kind]}, {args.by}{f' over {args.unit}s' if args.by == 'min' else ''}"
    unscored: dict[str, int] = {}
    for row in rows:
        if row.why:
            unscored[row.why] = unscored.get(row.why, 0) + 1
    keys = [(row.key, text_key(row.completion)) for row in rows]
    report = data_report([s.rewards for s in scored], keys, unscored=unscored)
    kept: set[int] | None = None
    if args.keep_share is not None or args.drop_below is not None:
        choice = keep_rows(scores, share=args.keep_share, threshold=args.drop_below)
        kept = {item.number for item, good in zip(judged, choice, strict=True) if good}
        _write_rows(folder / "kept.jsonl", [row.record for i, row in enumerate(rows) if i in kept])
        _write_rows(folder / DROPPED, [row.record for i, row in enumerate(rows) if i not in kept])
    _write_rows(folder / "scores.jsonl", _scores(rows, judged, kept))
    write_review(folder, order[: args.review_rows], what, args)
    text = write_report(folder, report, judged, what, args)
    print(text)
    print(f"\nWrote {folder}: review.html and review.jsonl ({min(args.review_rows, len(order))} rows), report, scores.")
    if kept is None:
        print("Next: look at review.html; then keep the best share:")
        print(shell("filter", *again, "--output_dir", args.output_dir, "--overwrite", "--keep_share", "0.9"))
        return
    print(f"Kept {len(kept):,} of {len(rows):,} rows: {folder / 'kept.jsonl'}; the others: {folder / DROPPED}.")
    if not kept:
        print("No row reaches --drop_below: there is nothing to train on; lower it.")
        return
    data = ("--dataset_name", folder / "kept.jsonl", "--output_dir", "<folder>")
    print("Next: does a model that is trained on them do better on held-out data?\n" + shell("sft", *data))


def _flags_given(args: Any) -> list[str]:
    """Those that decide how rows are ranked, to be repeated."""
    out = []
    for flag in dataclasses.fields(FilterArguments):
        value = getattr(args, flag.name)
        if flag.name not in _OWN_RUN and value != flag.default:
            out += [f"--{flag.name}", str(value)]
    return out


def _scores(rows: Sequence[Any], judged: Sequence[Any], kept: set[int] | None) -> list[dict[str, Any]]:
    """One record for each row of the data, in its order."""
    found = {item.number: item for item in judged}
    out = []
    for number, row in enumerate(rows):
        record: dict[str, Any] = {"row": number, "where": row.where}
        record |= found[number].facts() if number in found else {"score": None, "why": row.why}
        out.append(record if kept is None else {**record, "kept": number in kept})
    return out


def _write_rows(path: Path, records: Sequence[dict[str, Any]]) -> None:
    from ...report.page import write_whole

    text = "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)
    write_whole(path, text.encode("utf-8", "surrogatepass"))
