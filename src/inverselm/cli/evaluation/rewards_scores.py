"""Scores of sampled answers: a column of the rows, or a metric against references."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from ...errors import UserError

if TYPE_CHECKING:
    from ...evaluation.corpus import CorpusScore

SCORE_COLUMNS = ("score", "label", "right", "correct", "accuracy")
REFERENCE_COLUMNS = ("reference", "references", "answer")
METRICS = ("gsm8k", "exact_match", "bleu", "chrf")


def score_reader(rows: Any, args: Any) -> tuple[str, Callable[[dict[str, Any], str], float]]:
    """Where scores come from, in words, and a function of a row and its place that gives one.

    Raises:
        UserError: no such column; from the function: a score that is no number, an unusable reference.
    """
    names = rows.column_names
    if args.metric:
        column = args.reference_column or next((n for n in REFERENCE_COLUMNS if n in names), None)
        if column not in names:
            raise UserError(f"{args.dataset_name}: --metric needs references; --reference_column names their column")
        score = lambda row, where: metric_score(args.metric, row, row[column], where)
        return f"{args.metric} against '{column}'", score
    column = args.score_column or next((n for n in SCORE_COLUMNS if n in names), None)
    if column not in names:
        wanted = f"no column '{column}'" if column else "no score"
        there = ", ".join(f"'{n}'" for n in names if n != "__line__")
        raise UserError(
            f"{args.dataset_name}: has {wanted}, but {there}; name a column of numbers with --score_column, or measure "
            "against references with --metric"
        )
    return f"'{column}'", lambda row, where: number(row[column], f"{where}: '{column}'")


def number(value: Any, what: str) -> float:
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        shown = json.dumps(value, default=str)[:40]
        raise UserError(f"{what} is {shown}, not a number; fix it, or remove the row") from error
    if not math.isfinite(found):
        raise UserError(f"{what} is {found}; fix it, or remove the row")
    return found


def metric_score(name: str, row: dict[str, Any], reference: Any, where: str) -> float:
    """The score of one answer against one or more references."""
    from ...evaluation.gsm8k import is_correct

    references = reference if isinstance(reference, list) else [reference]
    if not references or not all(isinstance(r, str) and r.strip() for r in references):
        raise UserError(f"{where}: the reference is not text; fix it, or remove the row")
    text = text_of(row["completion"])
    if name == "gsm8k":
        try:
            return float(any(is_correct(text, r) for r in references))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if name == "exact_match":
        return float(any(text.strip() == r.strip() for r in references))
    return _corpus_score(name).sentence(text, references)


@cache
def _corpus_score(name: str) -> CorpusScore:
    from ...evaluation.corpus import CorpusScore

    return CorpusScore(name)


def text_of(completion: Any) -> str:
    """The text of an answer; of messages, that of the last one."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content")
    return content if isinstance(content, str) else ""
