"""sacrebleu's corpus scores as a task's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..corpus import corpus_score, corpus_statistics
from ..examples import Example
from ..metrics import _scorer
from .base import Measured, Metric


class CorpusScore:
    """BLEU or chrF, 0 to 100, against any number of references; sacrebleu's defaults.

    The corpus score is a function of n-gram counts summed over answers. With several answers to a prompt each is a
    segment of its own.

    Args:
        name: "bleu" or "chrf".

    Raises:
        UserError: sacrebleu is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # for one sentence the n-gram orders it is too short for do not count, as sacrebleu advises
        self._sentence = _scorer(name, effective_order=True) if name == "bleu" else _scorer(name)

    def measure(self, text: str, references: Sequence[str]) -> dict[str, Any]:
        """`bleu` (or `chrf`) of one answer, and `bleu_counts`, the numbers to be summed."""
        counts = [int(count) for count in corpus_statistics(self.name, [text], [references])[0]]
        score = self._sentence._compute_score_from_stats(list(counts)).score
        return {self.name: float(score), f"{self.name}_counts": counts}

    def metric(self) -> Metric:
        """The corpus score."""
        return Metric(self.name, "high", self._sums, partial(corpus_score, self.name))

    def signature(self, examples: Sequence[Example]) -> str:
        """sacrebleu's signature, which says how the score is made."""
        scorer = _scorer(self.name)
        counts = {len(example.references) for example in examples}
        scorer.num_refs = counts.pop() if len(counts) == 1 else -1  # "var" in the signature
        return f"{self.name}|{scorer.get_signature()}"

    def _sums(self, group: Sequence[Measured]) -> list[float]:
        return [sum(column) for column in zip(*(answer[f"{self.name}_counts"] for answer in group), strict=True)]
