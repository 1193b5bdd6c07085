"""BLEU and chrF as functions of sums over answers, so that prompts can be resampled without counting n-grams again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .examples import Example
from .metrics import _scorer
from .tasks.base import Measured, Metric


class CorpusScore:
    """BLEU or chrF, 0 to 100, against any number of references; sacrebleu's defaults.

    The corpus score is a function of n-gram counts summed over answers. With several answers to a prompt each is a
    segment of its own.

    Args:
        name: "bleu" or "chrf".

    Raises:
        UserError: another name, or sacrebleu is not installed.

    Example:
        >>> bleu = CorpusScore("bleu")
        >>> counts = bleu.counts("the cat sat on the mat", ["the cat sat on a mat"])
        >>> round(float(bleu.score(counts)))  # (5/6 * 3/5 * 2/4 * 1/3) ** (1/4)
        54
    """

    def __init__(self, name: str) -> None:
        self.name, self._corpus = name, _scorer(name)
        # for one sentence the n-gram orders it is too short for do not count, as sacrebleu advises
        self._sentence = _scorer(name, effective_order=True) if name == "bleu" else self._corpus

    def counts(self, text: str, references: Sequence[str]) -> list[int]:
        """sacrebleu's counts of one answer: their sums over answers are all that the corpus score depends on."""
        [found] = self._corpus._extract_corpus_statistics([text], [[reference] for reference in references])
        return [int(count) for count in found]

    def score(self, sums: Any) -> Any:
        """The corpus score of (..., K) summed counts -> (...)."""
        counts = np.rint(np.asarray(sums, dtype=float)).astype(np.int64)
        scores = [
            self._corpus._compute_score_from_stats(row).score for row in counts.reshape(-1, counts.shape[-1]).tolist()
        ]
        return np.array(scores, dtype=float).reshape(counts.shape[:-1])

    def sentence(self, text: str, references: Sequence[str]) -> float:
        """The score of one answer.

        >>> CorpusScore("bleu").sentence("the cat", ["the cat"])
        100.0
        """
        return round(float(self._sentence._compute_score_from_stats(self.counts(text, references)).score), 10)

    def measure(self, text: str, references: Sequence[str]) -> dict[str, Any]:
        """`bleu` (or `chrf`) of one answer, and `bleu_counts`, the numbers to be summed."""
        return {self.name: self.sentence(text, references), f"{self.name}_counts": self.counts(text, references)}

    def metric(self) -> Metric:
        """The corpus score, of what `measure` gives."""
        return Metric(self.name, "high", self._sums, self.score)

    def signature(self, examples: Sequence[Example]) -> str:
        """sacrebleu's signature, which says how the score is made."""
        scorer = _scorer(self.name)
        counts = {len(example.references) for example in examples}
        scorer.num_refs = counts.pop() if len(counts) == 1 else -1  # "var" in the signature
        return f"{self.name}|{scorer.get_signature()}"

    def _sums(self, group: Sequence[Measured]) -> list[float]:
        return [sum(column) for column in zip(*(answer[f"{self.name}_counts"] for answer in group), strict=True)]
