"""`inverselm compare`: is one run better than another?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..arguments import Help, parse
from ..output import check_output_file

if TYPE_CHECKING:
    from ...evaluation.comparison import Comparison


@dataclass
class CompareArguments:
    """Flags of `inverselm compare`."""

    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "name=file, the run to compare with first; one file per seed, comma-separated: "
            "sft=s0.jsonl,s1.jsonl iqlearn=i0.jsonl,i1.jsonl. The k-th files of all runs belong together."
        },
    )
    metric: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to compare: columns of numbers in the files, ratios of two (errors/words), or, from "
            "completion and reference, accuracy (GSM8K's final answer), exact_match, bleu, chrf."
        },
    )
    lower_is_better: list[str] = field(
        default_factory=list, metadata={"help": "Metrics of which less is better, such as wer."}
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Column of references. Default: reference(s), else answer."}
    )
    where: list[str] = field(
        default_factory=list, metadata={"help": "Only rows with column=value, such as sampler=greedy."}
    )
    num_samples: int = field(default=10_000, metadata={"help": "Bootstrap resamples, and permutations."})
    alpha: float = field(
        default=0.05, metadata={"help": "Level of the tests; intervals hold with probability 1 - alpha."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of resamples and permutations."})
    output_file: str = field(default="comparison.json", metadata={"help": "JSON to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output file."})


GUIDE = Help(
    "Paired statistics between runs: every run against the first one, on the same prompts. Reads files of one JSON "
    "line per answer, with its prompt, as generate and score write them. Per comparison: the difference with a "
    "bootstrap interval over prompts (and seeds), a two-sided sign-flip permutation test, Holm's correction over all "
    "tests of the command, and the difference in length. It says 'no difference shown' unless both the interval and "
    "the corrected p show one.",
    (
        "inverselm compare --runs sft=sft.jsonl dpr=dpr.jsonl --metric accuracy",
        "inverselm compare --runs sft=s0.jsonl,s1.jsonl,s2.jsonl iqlearn=i0.jsonl,i1.jsonl,i2.jsonl \\\n"
        "      --metric bleu chrf --reference_column target",
        "inverselm compare --runs a=scored_a.jsonl b=scored_b.jsonl --metric reward wer --lower_is_better wer",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, read, pair, test, print, write."""
    (args,) = parse(command, (CompareArguments,), argv, GUIDE)
    from ..common import quiet_libraries
    from .compare_inputs import design_warnings, lengths_of, measure_of, parse_runs, read_samples, sampler_warnings

    quiet_libraries()
    runs = parse_runs(args.runs)
    _check_flags(args)
    files = [file for of_run in runs.values() for file in of_run]
    check_output_file(args.output_file, overwrite=args.overwrite, inputs=files, flag="--output_file ")
    samples, left_out = read_samples(runs, args.where)
    measures = [measure_of(name, samples, args.reference_column) for name in args.metric]
    lengths, unit = lengths_of(samples)
    seeds, prompts = len(next(iter(runs.values()))), len(next(iter(samples.values()))[0])
    warnings = design_warnings(seeds, prompts, left_out) + sampler_warnings(samples)
    found = _compare(samples, measures, lengths, args)
    count = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    print(f"{prompts:,} prompts, {count} per run; differences from {next(iter(runs))}.")
    for measure in measures:
        print("\n" + _table([c for c in found if c.metric == measure.name], measure, lengths, unit))
    for warning in warnings:
        print(f"\nNote: {warning}")
    settings = {k: v for k, v in vars(args).items() if k != "overwrite"} | {"runs": runs}
    sources = {measure.name: measure.source for measure in measures}
    content = {"settings": settings, "metrics": sources, "notes": warnings}
    means = {name: float(table.mean()) for name, table in (lengths or {}).items()}
    content["lengths"] = {"unit": unit, **means} if lengths else None
    content["comparisons"] = [c.as_dict() for c in found]
    Path(args.output_file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nWrote {args.output_file}: {len(found)} {'comparison' if len(found) == 1 else 'comparisons'}.")
    print(_closing(found, seeds))


def _check_flags(args: Any) -> None:
    from ...inputs.models import check_positive

    if not args.metric:
        raise UserError("no metric: pass --metric <column of numbers>, or accuracy, exact_match, bleu, chrf")
    if len(set(args.metric)) < len(args.metric):
        raise UserError("--metric names a metric twice")
    unknown = [name for name in args.lower_is_better if name not in args.metric]
    if unknown:
        raise UserError(f"--lower_is_better {unknown[0]}: is not among --metric {' '.join(args.metric)}")
    if not 0 < args.alpha < 1:
        raise UserError(f"--alpha is {args.alpha}; set it between 0 and 1")
    check_positive(args, ("num_samples",))


def _compare(samples: Any, measures: Sequence[Any], lengths: Any, args: Any) -> list[Comparison]:
    from tqdm.auto import tqdm

    from ...evaluation.comparison import adjust, compare_runs
    from .compare_inputs import tables_of

    found: list[Comparison] = []
    first, *others = samples
    total = len(measures) * len(others)
    with tqdm(total=total, desc="Comparing", unit="pair", disable=None) as bar:
        for measure in measures:
            tables = tables_of(samples, measure.numbers)
            for name in others:
                pair = [first, name]
                found += compare_runs(
                    {n: tables[n] for n in pair},
                    lengths=None if lengths is None else {n: lengths[n] for n in pair},
                    metric=measure.name,
                    score=measure.score,
                    lower_is_better=measure.name in args.lower_is_better,
                    n=args.num_samples,
                    alpha=args.alpha,
                    seed=args.seed,
                )
                bar.update()
    return adjust(found)


def _table(found: Sequence[Comparison], measure: Any, lengths: Any, unit: str) -> str:
    means = {} if lengths is None else {name: float(table.mean()) for name, table in lengths.items()}
    reference = found[0]
    lower = ", lower is better" if reference.lower_is_better else ""
    head = ["", measure.name, *([f"length ({unit})"] if means else []), "difference", "p", "p (Holm)"]
    if means:
        head.insert(4, "length difference")
    rows = [head, [reference.reference, f"{reference.reference_value:.4g}"]]
    rows[-1] += [f"{means[reference.reference]:.1f}"] if means else []
    for c in found:
        row = [c.run, f"{c.value:.4g}", *([f"{means[c.run]:.1f}"] if means else []), _signed(c.difference)]
        row += [_signed(c.length)] if c.length is not None else []
        rows.append([*row, f"{c.p:.2g}", f"{c.p_adjusted:.2g}"])
    width = len(head)
    rows = [row + [""] * (width - len(row)) for row in rows]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(s) if i == 0 else c.rjust(s) for i, (c, s) in enumerate(zip(r, sizes, strict=True)))
        for r in rows
    ]
    verdicts = [f"{c.run}: {c.verdict}" for c in found]
    title = f"{measure.name} ({measure.source}{lower})"
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines), *verdicts])


def _signed(estimate: Any) -> str:
    value, low, high = estimate
    return f"{value:+.4g} [{low:+.4g}, {high:+.4g}]"


def _closing(found: Sequence[Comparison], seeds: int) -> str:
    if seeds < 3:
        return "Next: train two more seeds of each run (--seed), and compare again with their files, comma-separated."
    if any(c.shown for c in found):
        return "Next: look at other samplers: a difference at one temperature may be gone at each run's best."
    return "Next: more prompts or seeds narrow the intervals; a difference that matters may still be hidden in them."
