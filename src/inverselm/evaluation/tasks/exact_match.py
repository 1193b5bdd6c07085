"""Exact match: the answer is a reference."""

from __future__ import annotations

from typing import Any

from ..examples import Example
from .base import Metric, Task, mean_of


class ExactMatch(Task):
    """`exact_match`: share of answers equal to a reference, white space at the ends aside."""

    name = "exact_match"

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        return {"exact_match": float(text.strip() in {reference.strip() for reference in example.references})}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return (mean_of("exact_match"),)
