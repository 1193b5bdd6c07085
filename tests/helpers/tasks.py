"""Helpers to measure with a task."""

from __future__ import annotations

from typing import Any

from inverselm.evaluation.examples import Example
from inverselm.evaluation.tasks import load_task


def example(*references: str, **row: Any) -> Example:
    """With these references and columns."""
    return Example("p", references, {"prompt": "p", **row})


def prepared(name: str, *examples: Example) -> Any:
    """A task that has seen the examples."""
    task = load_task(name)
    task.prepare(examples or [example("1")])
    return task


def corpus(task: Any, groups: list) -> dict[str, float]:
    """Metric name -> value, of measured groups."""
    metrics = task.metrics(len(groups[0]))
    return {m.name: float(m.score(m.table(groups).sum(axis=0))) for m in metrics}
