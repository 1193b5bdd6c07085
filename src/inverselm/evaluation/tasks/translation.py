"""Translation: BLEU and chrF of sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..corpus import CorpusScore
from ..examples import Example
from .base import Metric, Task


class Translation(Task):
    """`bleu` and `chrf`, 0 to 100, against one or more references; sacrebleu's defaults, corpus level.

    White space at the ends makes no difference. Of one answer, `bleu` is sentence BLEU (effective order).
    """

    name = "translation"

    def prepare(self, examples: Sequence[Example]) -> None:
        self.scores = [CorpusScore(name) for name in ("bleu", "chrf")]
        self.note = "; ".join(score.signature(examples) for score in self.scores)

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        return {key: value for s in self.scores for key, value in s.measure(text, example.references).items()}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return tuple(score.metric() for score in self.scores)
