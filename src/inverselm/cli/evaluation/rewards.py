"""`inverselm rewards`: how good is a token reward?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..arguments import Help, parse
from ..flags import LoadingFlags
from .rewards_scores import METRICS, SCORE_COLUMNS

KINDS = ("digit", "word", "token")


@dataclass
class RewardsArguments(LoadingFlags):
    """Flags of `inverselm rewards`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The SFT folder (its baseline is found there), or an IQLearn model."}
    )
    baseline: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Earlier checkpoints of the SFT run, each a reward of its own: early=A half=B late=C. Several "
            "folders after one label, comma-separated, are averaged. Default: the one in the SFT folder."
        },
    )
    q_function: list[str] = field(
        default_factory=list, metadata={"help": "IQLearn models, as label=folder or folder: their Q - gamma V'."}
    )
    gamma: float | None = field(
        default=None, metadata={"help": "Discount of Q - gamma V'. Default: what an IQLearn folder says, else 1."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Sampled answers: rows with prompt, completion and a score (or a reference, and --metric); or "
            "prompt, chosen and rejected."
        },
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    score_column: str | None = field(
        default=None,
        metadata={
            "help": f"Column of scores, numbers or true/false. Default: the first of {', '.join(SCORE_COLUMNS)}."
        },
    )
    metric: str | None = field(
        default=None, metadata={"help": "Score answers against references (per answer).", "choices": list(METRICS)}
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Column of references for --metric. Default: reference(s), else answer."}
    )
    demonstrations: str | None = field(
        default=None,
        metadata={
            "help": "Right answers, in which errors are planted: rows with prompt and completion. Rows that also have "
            "wrong and span ([start, end] in wrong, characters) bring their own errors."
        },
    )
    demonstrations_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    plant: str | None = field(
        default=None, metadata={"help": "What to make wrong in each demonstration (digit).", "choices": list(KINDS)}
    )
    precision_at: list[int] = field(default_factory=lambda: [3], metadata={"help": "The k of precision@k: 3."})
    output_dir: str = field(default="rewards", metadata={"help": "Folder for the results; new or empty."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Bootstrap resamples of prompts."})
    chart: bool = field(default=True, metadata={"help": "Write rewards.png (needs matplotlib)."})
    seed: int = field(default=0, metadata={"help": "Seed of planting, bootstrap and random controls."})
    batch_size: int = field(default=16, metadata={"help": "Answers per forward pass."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the results in output_dir."})
    resume: bool = field(
        default=False,
        metadata={"help": "Go on in output_dir: what is scored there is kept (statistics are made anew)."},
    )


GUIDE = Help(
    "How good is a token reward? Three questions, each beside controls and with 95% intervals over prompts: does the "
    "accumulated reward rank sampled answers as a task metric does, overall and among the answers to one prompt "
    "(Spearman); does it prefer the better of two answers to a prompt (pairwise accuracy); is the lowest token of an "
    "answer with one planted error the planted one (AUROC, rank, top-1).\n"
    "Judged are the dense reward log pi_SFT - log pi_baseline of every baseline, Q - gamma V' of IQLearn models and of "
    "the SFT model; the controls are log-likelihood, length and chance.",
    (
        "inverselm generate --model_name_or_path runs/sft --dataset_name test.jsonl --num_return 8 --metrics gsm8k "
        "\\\n      --output_file answers.jsonl",
        "inverselm rewards --model_name_or_path runs/sft --dataset_name answers.jsonl --metric gsm8k",
        "inverselm rewards --model_name_or_path runs/sft --q_function runs/iqlearn --demonstrations test.jsonl "
        "\\\n      --baseline early=runs/sft/checkpoint-100 half=runs/sft/baseline --plant digit",
        "inverselm rewards --model_name_or_path runs/sft --dataset_name preferences.jsonl",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, score, measure, write."""
    (args,) = parse(command, (RewardsArguments,), argv, GUIDE)
    from ...inputs.models import load_tokenizer, resolve_device
    from ..common import quiet_libraries

    quiet_libraries()
    _check_flags(args)
    folder = _check_folder(args)
    if args.chart:
        from ...report.drawing import matplotlib

        matplotlib()
    from .rewards_data import Coder
    from .rewards_models import judged_models, read_models

    models = judged_models(args)
    tokenizer = load_tokenizer(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    parts = _parts(args, Coder(tokenizer, models[0].config))
    args.device = resolve_device(args.device)
    _clear(folder, args)
    read = read_models(models, tokenizer, [pair for part in parts for pair in part.pairs], args)
    _finish(folder, args, models, parts, read)


def _check_flags(args: Any) -> None:
    from ...inputs.models import check_positive

    if not args.model_name_or_path:
        raise UserError("no model: pass --model_name_or_path <SFT folder>")
    if not args.dataset_name and not args.demonstrations:
        raise UserError("no data: pass --dataset_name <scored answers or pairs>, --demonstrations <answers>, or both")
    for flag, needs in (("score_column", "dataset_name"), ("metric", "dataset_name"), ("plant", "demonstrations")):
        if getattr(args, flag) is not None and not getattr(args, needs):
            raise UserError(f"--{flag} has no part without --{needs}")
    if args.score_column and args.metric:
        raise UserError("--score_column reads scores and --metric makes them; drop one of them")
    if args.reference_column and not args.metric:
        raise UserError("--reference_column is what --metric compares with; name a metric")
    if args.gamma is not None and not 0.0 <= args.gamma <= 1.0:
        raise UserError(f"--gamma is {args.gamma}; set it between 0 and 1")
    if not args.precision_at or min(args.precision_at) < 1:
        raise UserError("--precision_at needs one or more numbers of tokens, such as 3")
    check_positive(args, ("num_bootstrap", "batch_size"))


def _check_folder(args: Any) -> Path:
    """The output folder, after checking that nothing in it would be lost or mixed."""
    from ...inputs.data import check_output_dir

    if args.resume and args.overwrite:
        raise UserError("--resume goes on and --overwrite starts anew; drop one of them")
    check_output_dir(args.output_dir, overwrite=True)  # a file in the way, no permission
    folder = Path(args.output_dir).expanduser()
    there = (folder / "scores" / "settings.json").is_file()
    if args.resume and not there:
        raise UserError(f"--resume: there is nothing to go on with in {args.output_dir}; leave the flag out")
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and not (args.resume or (args.overwrite and there)):
        hint = "pass --overwrite or --resume, or choose another" if there else "choose another"
        raise UserError(f"--output_dir {args.output_dir}: the folder is not empty; {hint}")
    for name in filter(None, (args.dataset_name, args.demonstrations)):
        if Path(name).exists() and folder.resolve() in Path(name).expanduser().resolve().parents:
            raise UserError(f"--output_dir {args.output_dir}: {name} lies in it and is read; choose another")
    return folder


def _clear(folder: Path, args: Any) -> None:
    """Remove results of an earlier run; its scores stay with --resume."""
    from .rewards_report import FILES

    if args.overwrite and (folder / "scores").is_dir():
        shutil.rmtree(folder / "scores")
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _parts(args: Any, coder: Any) -> list[Any]:
    """The data that the flags name."""
    from .rewards_data import read_answers, read_demonstrations

    readers = ((args.dataset_name, read_answers), (args.demonstrations, read_demonstrations))
    return [read(args, coder) for name, read in readers if name]


def _finish(folder: Path, args: Any, models: Sequence[Any], parts: Sequence[Any], read: dict[str, Any]) -> None:
    """Measure, print and write."""
    import json

    from ..common import shell
    from .rewards_models import rewards_of
    from .rewards_report import print_parts, write_results

    reports: dict[str, Any] = {}
    start = 0
    for part in parts:
        rows = range(start, start + len(part.pairs))
        start = rows.stop
        reports |= _measure(part, rewards_of(models, read, rows), args)
        if part.kind == "planted":
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in part.records)
            (folder / "planted.jsonl").write_text("".join(lines), encoding="utf-8")
    print_parts(reports)
    settings = {k: v for k, v in vars(args).items() if k not in ("overwrite", "resume", "trust_remote_code")}
    settings["models"] = {model.label: {"path": model.path, "gamma": model.gamma} for model in models}
    written = write_results(folder, reports, settings, args.chart)
    written += ["planted.jsonl"] if "localisation" in reports else []
    print(f"\nWrote {args.output_dir}: {', '.join(written)}; token scores in {args.output_dir}/scores.")
    model = ("--model_name_or_path", args.model_name_or_path)
    print("Next: see where the reward is high and low, or train with it:")
    data = args.dataset_name or args.demonstrations
    print(shell("score", *model, "--dataset_name", data, "--html", "heatmap.html"))
    print(shell("dpr", *model, "--dataset_name", "<prompts>", "--output_dir", "runs/dpr"))


def _measure(part: Any, rewards: dict[str, Any], args: Any) -> dict[str, Any]:
    """The reports of one part of the data, with their headings."""
    from ...evaluation import answer_values, error_localisation, pairwise_accuracy, reward_correlation
    from .rewards_models import LOG_PI
    from .rewards_report import headings, localisation_controls

    draws = {"n": args.num_bootstrap, "seed": args.seed}
    found: dict[str, Any] = {}
    if part.kind == "planted":
        found["localisation"] = error_localisation(
            rewards, part.planted, prompts=part.prompts, controls=localisation_controls(rewards),
            precision_at=args.precision_at, **draws,
        )  # fmt: skip
        source = "as given" if part.score else f"one wrong {args.plant or 'digit'} each"
        return {name: (report, headings(name, report, source)) for name, report in found.items()}
    log_probs = rewards.pop(LOG_PI)
    values = answer_values(rewards, log_probs=log_probs, seed=args.seed)
    if part.kind == "answers":
        found["correlation"] = reward_correlation(values, part.scores, part.prompts, **draws)
    by_prompt: dict[str, set[float]] = {}
    for prompt, score in zip(part.prompts, part.scores, strict=True):
        by_prompt.setdefault(prompt, set()).add(score)
    if all(len(scores) == 1 for scores in by_prompt.values()):
        print(f"{part.name}: no prompt has answers of different scores: no pairs; sample several (--num_return).")
    else:
        groups = part.groups or None
        found["pairs"] = pairwise_accuracy(values, part.scores, part.prompts, groups=groups, **draws)
    return {name: (report, headings(name, report, part.score)) for name, report in found.items()}
