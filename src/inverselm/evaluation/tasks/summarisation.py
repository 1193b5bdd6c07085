"""Summarisation: ROUGE-1, ROUGE-2 and ROUGE-Lsum of the package rouge-score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..examples import Example
from .base import Metric, Task, mean_of

NAMES = ("rouge1", "rouge2", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Summarisation(Task):
    """`rouge1`, `rouge2`, `rougeLsum`: F-measures, 0 to 100, with Porter's stemmer; the best of several references.

    ROUGE-Lsum compares sentence by sentence. Sentences are lines; a text without a line break is split after `.`, `!`
    or `?` and white space.
    """

    name = "summarisation"

    def prepare(self, examples: Sequence[Example]) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise UserError("ROUGE needs rouge-score: pip install 'inverselm[eval]'") from error
        self.scorer = RougeScorer(list(NAMES), use_stemmer=True)
        self.note = "rouge-score, stemmed, F-measure, best reference; sentences of rougeLsum: lines, else [.!?]"

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        scores = self.scorer.score_multi([sentences(reference) for reference in example.references], sentences(text))
        return {name: 100.0 * scores[name].fmeasure for name in NAMES}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return tuple(mean_of(name) for name in NAMES)


def sentences(text: str) -> str:
    """One sentence per line.

    Example:
        >>> sentences("It rained. We left.")
        'It rained.\\nWe left.'
    """
    text = text.strip()
    return text if "\n" in text else _SENTENCE_END.sub("\n", text)
