"""What `inverselm judge` reads: pairs of answers from the files of several runs, and fields of requests."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from .compare_inputs import Rows, design_warnings, read_samples, sampler_warnings
from .rewards_scores import text_of

if TYPE_CHECKING:
    from ...evaluation.judging import Pair

RESULTS = ("judge.json", "judge.csv", "pairs.jsonl")


def check_folder(args: Any, inputs: Sequence[str], cache: str) -> None:
    """It must be possible to write the results, and nothing may be lost. Creates nothing.

    Raises:
        UserError: results are there already, a folder is a file or not writable, an output is an input.
    """
    folder = Path(args.output_dir)
    for path, flag in ((folder, "--output_dir"), (Path(cache).parent, "--cache_file")):
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not there.is_dir():
            raise UserError(f"{flag} {path}: {there} is a file; name a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{flag} {path}: no permission to write in {there}")
    if Path(cache).is_dir():
        raise UserError(f"--cache_file {cache}: is a folder; name a file")
    outputs = [folder / name for name in RESULTS]
    for path in (*outputs, Path(cache)):
        if any(path.exists() and Path(file).exists() and path.samefile(file) for file in inputs):
            raise UserError(f"{path}: is one of --runs; choose another --output_dir or --cache_file")
    if Path(cache).resolve() in [path.resolve() for path in outputs]:
        raise UserError(f"--cache_file {cache}: is where results go; name another file")
    old = [path.name for path in outputs if path.exists()]
    if old and not args.overwrite and not args.dry_run:
        raise UserError(f"--output_dir {folder}: holds {old[0]}; pass --overwrite (the cache stays), or choose another")


def extra_fields(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """`--extra_body` as fields.

    Raises:
        UserError: it is no JSON object.
    """
    if not given:
        return {}
    if isinstance(given, Mapping):  # from a YAML file
        return dict(given)
    try:
        found = json.loads(given)
    except ValueError as error:
        raise UserError(f"--extra_body: not valid JSON ({error}); quote it: '{{\"top_p\": 0.9}}'") from error
    if not isinstance(found, dict):
        raise UserError("--extra_body: must be a JSON object, such as '{\"top_p\": 0.9}'")
    return found


def read_pairs(runs: Mapping[str, Sequence[str]], args: Any) -> tuple[dict[str, list[Pair]], list[str]]:
    """Every run's pairs with the first run, by prompt and seed, the k-th answers together; and notes.

    Raises:
        UserError: files that cannot be used (see `read_samples`), a row without answer or reference, one prompt alone.
    """
    samples, left_out = read_samples(runs, args.where)
    prompts = list(next(iter(samples.values()))[0])
    if args.num_prompts is not None and args.num_prompts < len(prompts):
        chosen = set(random.Random(args.seed).sample(range(len(prompts)), args.num_prompts))
        prompts = [prompt for i, prompt in enumerate(prompts) if i in chosen]
        samples = {name: [{key: t[key] for key in prompts} for t in seeds] for name, seeds in samples.items()}
    if len(prompts) < 2:
        raise UserError("the files have one prompt in common; judging needs at least two")
    first, *others = samples
    seeds = len(samples[first])
    notes = design_warnings(seeds, len(prompts), left_out) + sampler_warnings(samples)
    pairs: dict[str, list[Pair]] = {}
    unpaired = 0
    for name in others:
        pairs[name], lost = _pairs(samples[name], samples[first], prompts, args)
        unpaired += lost
    if unpaired:
        answers = "answer has" if unpaired == 1 else "answers have"
        notes.append(f"{unpaired:,} {answers} no partner: the runs have different numbers of answers to a prompt.")
    return pairs, notes


def _pairs(
    run: list[dict[str, Rows]], against: list[dict[str, Rows]], prompts: Sequence[str], args: Any
) -> tuple[list[Pair], int]:
    from ...evaluation.judging import Pair, as_text

    found, unpaired = [], 0
    for seed, (ours, theirs) in enumerate(zip(run, against, strict=True)):
        for number, key in enumerate(prompts):
            asked = as_text(json.loads(key))
            rows = list(zip(ours[key], theirs[key], strict=False))
            unpaired += abs(len(ours[key]) - len(theirs[key]))
            for sample, (one, two) in enumerate(rows[: args.samples_per_prompt]):
                reference = _reference(two, args.reference_column)
                found.append(Pair(asked, (_answer(one), _answer(two)), reference, number, seed, sample))
    return found, unpaired


def _answer(row: Mapping[str, Any]) -> str:
    completion = row.get("completion")
    if completion is None:
        raise UserError(f"{row['__line__']}: has no 'completion'; the judge compares answers")
    if not isinstance(completion, str | list) or completion == []:
        raise UserError(f"{row['__line__']}: its 'completion' is neither text nor messages")
    return text_of(completion)


def _reference(row: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    value = row.get(column)
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{row['__line__']}: has no reference in '{column}' (--reference_column)")
    return "\n".join(texts)
