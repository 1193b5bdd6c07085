"""`inverselm evaluate`: models x samplers on a task, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...evaluation.samplers import SYNTAX, Sampler, parse_samplers
from ...evaluation.tasks import TASKS, load_task
from ..arguments import Help, parse
from ..flags import LoadingFlags
from .evaluation_folder import SAMPLES, EvaluationFolder, check_folder, safe_name, samples_name
from .evaluation_models import DEFAULT_LENGTH

if TYPE_CHECKING:
    from ...evaluation.examples import Example
    from ...evaluation.sampling import Settings
    from ...evaluation.summary import Row
    from ...evaluation.tasks import Task

CALCULATOR = ("without", "with", "both")


@dataclass
class EvaluateArguments(LoadingFlags):
    """Flags of `inverselm evaluate`."""

    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"help": "Folders or hub names of the models (or adapters), one or several."}
    )
    labels: list[str] = field(
        default_factory=list, metadata={"help": "Names of the models in the results. Default: their folders' names."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "The task file: rows with prompt and reference (file, folder, hub name)."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split, or a slice such as train[:100]."})
    task: str | None = field(
        default=None, metadata={"help": f"What to measure: {', '.join(TASKS)}, or path/to/file.py:function."}
    )
    reference_column: str | None = field(
        default=None,
        metadata={"help": "Column with the reference(s); default: references, reference, answer, completion."},
    )
    output_dir: str = field(default="evaluation", metadata={"help": "Folder for the samples and the results."})
    samplers: list[str] = field(
        default_factory=lambda: ["greedy", "T=0.5", "T=1.0"],
        metadata={"help": f"{SYNTAX} (default: greedy T=0.5 T=1.0)"},
    )
    num_samples: int = field(default=4, metadata={"help": "Answers per prompt, where sampling is random."})
    reward: str | None = field(
        default=None,
        metadata={
            "help": "SFT or SFT:BASELINE: the token reward that best_of=8,by=sum_reward (or mean_reward) chooses by."
        },
    )
    guided_by: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The baseline of guided=0.5: one for all models, or one for each. Default: the one that `inverselm "
            "sft` kept in each model's folder."
        },
    )
    calculator: str | None = field(
        default=None,
        metadata={
            "help": "Run each sampler without GSM8K's calculator, with it, or both. Default: both for the task gsm8k, "
            "else without; samplers that name it themselves are taken as they are.",
            "choices": list(CALCULATOR),
        },
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Longest answer, in tokens. Default: {DEFAULT_LENGTH}, or what all models have room for."},
    )
    batch_size: int = field(default=32, metadata={"help": "Answers (or beams) per batch."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the evaluation in the output folder."})
    resume: bool = field(
        default=False,
        metadata={"help": "Continue an evaluation: what is done is kept; more models or samplers may come."},
    )


GUIDE = Help(
    "Sample answers of one or several models with one or several samplers, and measure them: the task's metrics (with "
    "a 95% interval), diversity, length, entropy and truncation, one row for each model and sampler. Each model has "
    "its own best sampler: compare fronts, not single settings.\nWrites samples/<model>/<sampler>.jsonl with what was "
    "measured of each answer, results.json and results.csv. A run that was stopped goes on with --resume, to the same "
    "answers.",
    (
        "inverselm evaluate --model_name_or_path runs/sft runs/iq --dataset_name test.jsonl --task gsm8k "
        "\\\n      --samplers greedy T=0.5 T=1.0 T=1.0,top_p=0.9 --output_dir eval",
        "inverselm evaluate --model_name_or_path runs/sft --dataset_name test.jsonl --task translation "
        "\\\n      --samplers greedy beam=4,length_penalty=0.6 best_of=8,T=1.0,by=sum_log_prob",
        "inverselm evaluate --model_name_or_path runs/sft --dataset_name valid.jsonl --task g2p "
        "\\\n      --samplers T=1.0 T=1.0,guided=0.5 T=1.0,guided=1",
        "inverselm evaluate --model_name_or_path runs/sft --dataset_name test.jsonl --task my_metrics.py:politeness",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, sample, measure, write."""
    (args,) = parse(command, (EvaluateArguments,), argv, GUIDE)
    from ..common import quiet_libraries
    from .evaluation_models import check_guided, check_models, check_reward
    from .evaluation_run import interruptible, sweep

    quiet_libraries()
    _check_flags(args)
    task = load_task(args.task)
    samplers = _samplers(args)
    inputs = [args.dataset_name, args.reward, *args.model_name_or_path, *args.guided_by]
    check_folder(args.output_dir, overwrite=args.overwrite, resume=args.resume, inputs=inputs)
    models = check_models(args)
    if any(sampler.guidance_weight for sampler in samplers):
        check_guided(args, models)
    examples = _examples(args, task)
    settings = _settings(args, models, examples, samplers)
    reward = check_reward(args, models) if args.reward else None
    folder = _folder(args, models, reward, examples, settings)
    folder.start(args.overwrite)
    pairs = [(model, sampler, folder.pair(model.label, sampler)) for model in models for sampler in samplers]
    with interruptible(args.output_dir):
        rows = sweep(args, pairs, examples, task, settings, reward)
    folder.write_results(rows, task.note)
    _report(args, rows, task)


def _check_flags(args: Any) -> None:
    from ...inputs.models import check_positive

    for name in ("model_name_or_path", "labels", "samplers", "guided_by"):  # a YAML file may hold one of them as text
        value = getattr(args, name)
        if isinstance(value, str | dict):
            setattr(args, name, value.split() if name == "samplers" and isinstance(value, str) else [value])
    if not args.model_name_or_path:
        raise UserError("no model: pass --model_name_or_path <folders or hub names>")
    if not args.dataset_name:
        raise UserError("no task file: pass --dataset_name <file, folder or hub dataset>")
    if not args.task:
        raise UserError(f"no task: pass --task, one of {', '.join(TASKS)}, or path/to/file.py:function")
    check_positive(args, ("max_new_tokens", "batch_size", "num_samples"))
    args.labels = [str(label) for label in args.labels] or default_labels(args.model_name_or_path)
    if len(args.labels) != len(args.model_name_or_path):
        raise UserError(
            f"--labels names {len(args.labels)} of {len(args.model_name_or_path)} models; name each of them"
        )
    folders = [safe_name(label) for label in args.labels]
    twice = next((label for label, name in zip(args.labels, folders, strict=True) if folders.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the label {twice!r} stands for two models; give each its own with --labels")


def default_labels(names: Sequence[str]) -> list[str]:
    """The last parts of the models' paths, as many as tell them apart.

    >>> default_labels(["runs/a/sft", "runs/b/sft"])
    ['a/sft', 'b/sft']
    """
    parts = [str(name).rstrip("/").split("/") for name in names]
    labels: list[str] = []
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            break
    return labels


def _samplers(args: Any) -> list[Sampler]:
    samplers = parse_samplers(args.samplers)
    if len(samplers) < len(args.samplers):
        print(f"The samplers are {' '.join(sampler.name for sampler in samplers)}: equal ones run once.")
    wanted = args.calculator or ("both" if args.task == "gsm8k" else "without")
    if any(sampler.calculator for sampler in samplers):
        if args.calculator:
            raise UserError("--calculator and a sampler that names the calculator: leave one of them out")
    elif wanted != "without":
        beams = [sampler.name for sampler in samplers if sampler.num_beams > 1]
        if beams and wanted == "with":
            raise UserError(f"sampler {beams[0]}: beam search does not work with --calculator with")
        if beams:
            print(f"Without the calculator only: {' '.join(beams)}.")
        kinds = (False, True) if wanted == "both" else (True,)
        samplers = [replace(s, calculator=c) for s in samplers for c in kinds if not (c and s.num_beams > 1)]
    by_reward = [sampler.name for sampler in samplers if sampler.uses_reward]
    if by_reward and not args.reward:
        raise UserError(f"sampler {by_reward[0]}: chooses by a reward; pass --reward <SFT folder>[:<baseline>]")
    if args.reward and not by_reward:
        raise UserError("--reward has no part in these samplers; write best_of=8,T=1.0,by=sum_reward, or leave it out")
    if args.guided_by and not any(sampler.guidance_weight for sampler in samplers):
        raise UserError("--guided_by has no part in these samplers; write T=1.0,guided=0.5, or leave it out")
    return samplers


def _examples(args: Any, task: Task) -> list[Example]:
    from ...evaluation.examples import read_examples
    from ...evaluation.summary import check_names
    from ...inputs.data import check_demonstrations, load_rows

    rows = load_rows(args.dataset_name, split=args.dataset_split)
    check_demonstrations(rows, args.dataset_name, need="prompts")
    examples = read_examples(rows, task, reference_column=args.reference_column, source=args.dataset_name)
    task.prepare(examples)
    check_names(task)
    if len(examples) < len(rows):
        count = sum(len(example.references) for example in examples)
        print(f"{len(rows):,} rows are {len(examples):,} prompts with {count:,} references.")
    return examples


def _settings(args: Any, models: Sequence[Any], examples: list[Example], samplers: list[Sampler]) -> Settings:
    """The settings, with a longest answer that every prompt leaves room for in every model."""
    from ...evaluation.sampling import Settings, check_calculator
    from .evaluation_models import room

    found = min(room(model, examples, args) for model in models)
    if args.max_new_tokens is None and found < DEFAULT_LENGTH:
        print(f"Answers have at most {found} tokens: the models have room for no more.")
    if any(sampler.calculator for sampler in samplers):
        for model in models:
            check_calculator(model.tokenizer)
    return Settings(args.num_samples, int(found), args.batch_size, args.seed)


def _folder(
    args: Any, models: Sequence[Any], reward: Any, examples: list[Example], settings: Settings
) -> EvaluationFolder:
    from ...evaluation.examples import content_hash
    from ...inputs.models import resolve_device

    args.device = resolve_device(args.device)
    facts = {
        "settings": {**asdict(settings), "dtype": args.dtype, "device": args.device.split(":")[0]},
        "data": {"prompts": len(examples), "content": content_hash(examples)},
    }
    fingerprints = {model.label: model.fingerprint() for model in models}
    baselines = {model.label: model.baseline_fingerprint() for model in models if model.baseline}
    fingerprint = reward.fingerprint() if reward else None
    return EvaluationFolder(args.output_dir, facts, fingerprints, fingerprint, baselines, args.resume)


def _report(args: Any, rows: list[Row], task: Task) -> None:
    from ...evaluation.summary import ORDER, render

    print(render(rows))
    several = sorted({row.samples for row in rows if row.self_bleu is not None})
    print(f"{rows[0].prompts:,} prompts; [95% interval over prompts]; * best of its column, whether or not by chance.")
    if several:
        counts = "/".join(map(str, several))
        print(
            f"Self-BLEU: n-grams up to {ORDER}, {counts} samples per prompt, T as in the sampler; high = less diverse."
        )
    if task.note:
        print(task.note)
    print(f"Wrote {args.output_dir}: results.json, results.csv, {SAMPLES}/.")
    print(_next(args, rows))


def _next(args: Any, rows: list[Row]) -> str:
    """A paired test of the models, each at its best sampler; of one model, its token rewards."""
    from ..common import shell

    name, better = next(iter(rows[0].better.items()))
    best: dict[str, Row] = {}
    for row in rows:
        held = best.setdefault(row.model, row)
        ahead = row.main.value - held.main.value
        if (ahead if better == "high" else -ahead) > 0:
            best[row.model] = row
    files = {m: f"{args.output_dir}/{SAMPLES}/{samples_name(m, row.sampler)}" for m, row in best.items()}
    if len(files) == 1:
        scored = ("--dataset_name", *files.values(), "--html", "heatmap.html")
        return "Next:\n" + shell("score", "--model_name_or_path", "<SFT folder>", *scored)
    runs = [f"{safe_name(model)}={file}" for model, file in files.items()]
    direction = ["--lower_is_better", name] if better == "low" else []
    test = shell("compare", "--runs", *runs, "--metric", name, *direction)
    return f"Next: a paired test, of samplers that were chosen on other data:\n{test}"
