"""BLEU and chrF as functions of sums over answers, so that prompts can be resampled without counting n-grams again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .metrics import _scorer


def corpus_statistics(name: str, completions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
    """sacrebleu's counts of each answer; their sums are all that the corpus score depends on.

    Args:
        name: "bleu" or "chrf", with sacrebleu's defaults.
        completions: answers.
        references: one or more references of each answer.

    Raises:
        UserError: another name, or sacrebleu is missing.

    Example:
        >>> rows = corpus_statistics("bleu", ["the cat sat on the mat"], [["the cat sat on a mat"]])
        >>> len(rows), len(rows[0])
        (1, 10)
    """
    scorer = _scorer(name)
    out = []
    for completion, own in zip(completions, references, strict=True):
        out += [list(map(float, row)) for row in scorer._extract_corpus_statistics([completion], [[r] for r in own])]
    return out


def sentence_score(name: str, completion: str, references: Sequence[str]) -> float:
    """BLEU or chrF of one answer, 0 to 100; n-gram orders that it is too short for do not count, as sacrebleu advises.

    >>> sentence_score("bleu", "the cat", ["the cat"])
    100.0
    """
    scorer = _scorer(name, effective_order=True) if name == "bleu" else _scorer(name)
    return round(float(scorer.sentence_score(completion, list(references)).score), 10)


def corpus_score(name: str, sums: Any) -> Any:
    """The corpus score, 0 to 100, of (..., K) summed counts -> (...).

    >>> counts = corpus_statistics("bleu", ["the cat sat on the mat"], [["the cat sat on the mat"]])
    >>> corpus_score("bleu", np.array(counts)).round().tolist()
    [100.0]
    """
    scorer, counts = _scorer(name), np.rint(np.asarray(sums, dtype=float)).astype(np.int64)
    flat = counts.reshape(-1, counts.shape[-1]).tolist()
    scores = [float(scorer._compute_score_from_stats(row).score) for row in flat]
    return np.array(scores).reshape(counts.shape[:-1])
