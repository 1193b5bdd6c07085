"""The files of `inverselm compare`: samples of several runs and seeds, paired by prompt, as tables of numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from .rewards_scores import REFERENCE_COLUMNS, metric_score, number, text_of

CORPUS = ("bleu", "chrf")
COMPUTED = {"accuracy": "gsm8k", "gsm8k": "gsm8k", "exact_match": "exact_match"}
SAMPLER = ("sampler", "temperature", "top_p", "num_beams", "calculator", "max_new_tokens")
FEW_PROMPTS = 20
NO_METRICS = {*SAMPLER, "sample", "seed", "batch_size", "example"}

Rows = list[dict[str, Any]]
Samples = dict[str, list[dict[str, Rows]]]
"""run -> for each seed: prompt -> its rows."""


@dataclass(frozen=True)
class Measure:
    """A metric as numbers that are summed over prompts.

    Attributes:
        name: of the metric.
        numbers: from the rows of a prompt to K numbers.
        score: from (..., K) sums to metrics.
        source: how the numbers came about, in words.
    """

    name: str
    numbers: Callable[[Rows], Sequence[float]]
    score: Callable[[Any], Any]
    source: str


def parse_runs(values: Sequence[str]) -> dict[str, list[str]]:
    """`name=a.jsonl,b.jsonl` ... -> name -> its files, one per seed.

    Raises:
        UserError: another form, a name or file used twice, unequal numbers of files.
    """
    runs: dict[str, list[str]] = {}
    for value in values:
        name, sign, paths = value.partition("=")
        files = _split(paths)
        if not sign or not name.strip() or not files:
            raise UserError(f"--runs {value}: write name=file.jsonl, or name=seed0.jsonl,seed1.jsonl")
        if name in runs:
            raise UserError(f"--runs: the name {name!r} is used twice; seeds of one run go into one entry, with commas")
        runs[name] = files
    if len(runs) < 2:
        raise UserError("--runs needs two or more runs, the one to compare with first: sft=a.jsonl iqlearn=b.jsonl")
    counts = {name: len(files) for name, files in runs.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UserError(f"--runs: seeds are paired, so give as many files for each run ({listed})")
    every = [file for files in runs.values() for file in files]
    twice = next((file for file in every if every.count(file) > 1), None)
    if twice:
        raise UserError(f"--runs: {twice} is given twice; a seed is a file of its own")
    return runs


def _split(paths: str) -> list[str]:
    """Comma-separated paths; a comma may also be part of an existing file's name, as `evaluate` names samplers."""
    files: list[str] = []
    rest = [piece for piece in paths.split(",") if piece.strip()]
    while rest:
        joined = [",".join(rest[:count]).strip() for count in range(len(rest), 0, -1)]
        file = next((path for path in joined if Path(path).expanduser().is_file()), rest[0].strip())
        files.append(file)
        rest = rest[file.count(",") + 1 :]
    return files


def read_samples(runs: Mapping[str, Sequence[str]], where: Sequence[str]) -> tuple[Samples, int]:
    """The rows of every file by prompt, for the prompts that all files have; and how many prompts were left out.

    Raises:
        UserError: an unreadable file, a row without prompt, no common prompts, `where` that fits no row.
    """
    from ...inputs.data import load_rows

    conditions = [_condition(value) for value in where]
    samples: Samples = {}
    for name, files in runs.items():
        samples[name] = []
        for file in files:
            by_prompt: dict[str, Rows] = {}
            for count, row in enumerate(load_rows(file), 1):
                place = row.get("__line__") or f"{file}: row {count}"
                row = {**(row.get("metrics") or {}), **row}  # as `inverselm evaluate` writes them
                if row.get("chosen") is False:  # of best-of-n
                    continue
                if not row.get("prompt"):
                    raise UserError(f"{place}: has no 'prompt'; runs are paired by it")
                if all(_holds(row, column, value, place) for column, value in conditions):
                    key = json.dumps(row["prompt"], ensure_ascii=False, sort_keys=True)
                    by_prompt.setdefault(key, []).append(row | {"__line__": place})
            if not by_prompt:
                raise UserError(f"{file}: no row fits --where {' '.join(where)}")
            samples[name].append(by_prompt)
    tables = [table for seeds in samples.values() for table in seeds]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    if not common:
        raise UserError("the files have no prompt in common: compare answers to the same prompts")
    left_out = len({key for table in tables for key in table}) - len(common)
    paired = {name: [{key: t[key] for key in common} for t in seeds] for name, seeds in samples.items()}
    return paired, left_out


def _condition(value: str) -> tuple[str, str]:
    column, sign, wanted = value.partition("=")
    if not sign or not column:
        raise UserError(f"--where {value}: write column=value, such as sampler=greedy")
    return column, wanted


def _holds(row: Mapping[str, Any], column: str, wanted: str, place: str) -> bool:
    if column not in row:
        raise UserError(f"{place}: has no column '{column}' for --where")
    value = row[column]
    if isinstance(value, bool) or value is None:
        return str(value).lower() == wanted.lower()
    if isinstance(value, int | float):
        return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", wanted, re.I)) and float(wanted) == value
    return str(value) == wanted


def measure_of(name: str, samples: Samples, reference_column: str | None) -> Measure:
    """What a name on the command line measures: a column, a ratio of two columns, or one of the known metrics.

    Raises:
        UserError: nothing of that name, naming the columns of numbers that there are; a missing package.
    """
    from ...evaluation.comparison import mean_score

    columns = _columns(samples)
    if name in CORPUS:
        return _corpus_measure(name, columns, reference_column)
    if name in columns:
        return Measure(name, partial(_mean_of, name), mean_score, f"mean of column '{name}'")
    above, sign, below = name.partition("/")
    if sign and {above, below} <= columns:
        source = f"sum of '{above}' / sum of '{below}'"
        return Measure(name, lambda rows: [_total(rows, above), _total(rows, below)], mean_score, source)
    if name in COMPUTED and "completion" in columns:
        column = _reference(columns, reference_column, name)
        score = lambda row: metric_score(COMPUTED[name], row, row[column], row["__line__"])
        return Measure(name, lambda rows: [sum(map(score, rows)) / len(rows), 1.0], mean_score, f"against '{column}'")
    first = next(iter(samples.values()))[0]
    row = next(iter(first.values()))[0]
    there = [c for c in sorted(columns) if isinstance(row[c], int | float) and c not in NO_METRICS]
    known = ", ".join([*COMPUTED, *CORPUS])
    raise UserError(
        f"--metric {name}: no such column in all files; columns of numbers: {', '.join(there) or 'none'}; a ratio of "
        f"two is written errors/words; computed from completion and reference: {known}"
    )


def _corpus_measure(name: str, columns: set[str], reference_column: str | None) -> Measure:
    from ...evaluation.corpus import CorpusScore

    scorer = CorpusScore(name)
    counts = f"{name}_counts"
    if counts in columns and reference_column is None:
        return Measure(
            name, lambda rows: _summed([row[counts] for row in rows]), scorer.score, f"corpus {name}, '{counts}'"
        )
    if "completion" not in columns:
        raise UserError(f"--metric {name}: the files have no 'completion'")
    column = _reference(columns, reference_column, name)

    def numbers(rows: Rows) -> list[float]:
        references = [r[column] if isinstance(r[column], list) else [r[column]] for r in rows]
        for row, own in zip(rows, references, strict=True):
            if not own or not all(isinstance(text, str) for text in own):
                raise UserError(f"{row['__line__']}: the reference in '{column}' is not text")
        texts = (text_of(row["completion"]) for row in rows)
        return _summed([scorer.counts(text, own) for text, own in zip(texts, references, strict=True)])

    return Measure(name, numbers, scorer.score, f"corpus {name} against '{column}'")


def _reference(columns: set[str], given: str | None, name: str) -> str:
    column = given or next((c for c in REFERENCE_COLUMNS if c in columns), None)
    if column not in columns:
        what = f"no column '{given}'" if given else "no references"
        raise UserError(f"--metric {name}: the files have {what}; name the column with --reference_column")
    return str(column)


def _columns(samples: Samples) -> set[str]:
    """Columns of all files."""
    rows = [next(iter(table.values()))[0] for seeds in samples.values() for table in seeds]
    return set.intersection(*(set(row) for row in rows)) - {"__line__", "prompt"}


def _mean_of(column: str, rows: Rows) -> list[float]:
    return [_total(rows, column) / len(rows), 1.0]


def _total(rows: Rows, column: str) -> float:
    return sum(number(row[column], f"{row['__line__']}: '{column}'") for row in rows)


def _summed(rows: Sequence[Sequence[float]]) -> list[float]:
    return [float(sum(column)) for column in zip(*rows, strict=True)]


def tables_of(samples: Samples, numbers: Callable[[Rows], Sequence[float]]) -> dict[str, Any]:
    """run -> (seeds, prompts, K) array."""
    import numpy as np

    return {name: np.array([[numbers(rows) for rows in t.values()] for t in seeds]) for name, seeds in samples.items()}


def lengths_of(samples: Samples) -> tuple[dict[str, Any] | None, str]:
    """run -> (seeds, prompts) mean answer lengths, and their unit: tokens if all files have ids, else words."""
    columns = _columns(samples)
    if "token_ids" in columns:
        unit, length = "tokens", lambda row: len(row["token_ids"] or []) - bool(row.get("finished"))  # without EOS
    elif "completion" in columns:
        unit, length = "words", lambda row: len(text_of(row["completion"]).split())
    else:
        return None, ""
    found = tables_of(samples, lambda rows: [sum(map(length, rows)) / len(rows)])
    return {name: table[:, :, 0] for name, table in found.items()}, unit


def sampler_warnings(samples: Samples) -> list[str]:
    """What was sampled differently, within a file or between runs: then samplers are compared, too."""
    out = []
    for column in (c for c in SAMPLER if c in _columns(samples)):
        found = {
            name: {json.dumps(row[column]) for t in seeds for rows in t.values() for row in rows}
            for name, seeds in samples.items()
        }
        mixed = next((name for name, values in found.items() if len(values) > 1), None)
        if mixed:
            shown = ", ".join(sorted(found[mixed])[:4])
            out.append(f"{mixed} mixes answers of different {column} ({shown}): choose with --where {column}=..")
        elif len(set(map(frozenset, found.values()))) > 1:
            listed = ", ".join(f"{name} {next(iter(values))}" for name, values in found.items())
            out.append(f"The runs differ in {column} ({listed}): the difference is of samplers, too.")
    return out


def design_warnings(seeds: int, prompts: int, left_out: int) -> list[str]:
    """What a comparison of so many seeds and prompts cannot show."""
    out = []
    if seeds == 1:
        out.append("one seed per run: this compares these runs, not the methods; another seed may say otherwise.")
    elif seeds == 2:
        out.append("two seeds say little about how much seeds differ: the intervals may be too narrow; take three.")
    if prompts < FEW_PROMPTS:
        out.append(f"only {prompts} prompts: the intervals are rough.")
    if left_out:
        out.append(f"{left_out:,} {'prompt is' if left_out == 1 else 'prompts are'} not in all files: left out.")
    return out
