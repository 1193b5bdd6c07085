"""What a task is: how to read references, what to measure of one answer, and how to sum that up over a corpus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..examples import Example

Measured = Mapping[str, Any]
Sums = Any


def ratio(sums: Sums) -> Any:
    """(..., 2) sums -> (...) of the first over the second; 0 for nothing over nothing.

    >>> ratio([3, 4])
    0.75
    """
    above, below = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    return above / np.where(below == 0, 1.0, below)


@dataclass(frozen=True)
class Metric:
    """A number for a whole corpus that is a function of sums over prompts, so that prompts can be resampled.

    `table` and `score` are what `inverselm.evaluation.compare_runs` takes.

    Attributes:
        name: in tables.
        better: "high" or "low".
        statistics: from what was measured of a prompt's answers to the K numbers that are summed over prompts.
        score: (..., K) sums -> (...) values.

    Example:
        >>> accuracy = mean_of("accuracy")
        >>> table = accuracy.table([[{"accuracy": 1.0}, {"accuracy": 0.0}], [{"accuracy": 1.0}]])
        >>> table.tolist(), float(accuracy.score(table.sum(axis=0)))
        ([[1.0, 2.0], [1.0, 1.0]], 0.6666666666666666)
    """

    name: str
    better: str
    statistics: Callable[[Sequence[Measured]], Sequence[float]]
    score: Callable[[Sums], Any] = ratio

    def table(self, groups: Sequence[Sequence[Measured]]) -> Any:
        """(prompts, K); `groups[i]` is what was measured of the answers to prompt i."""
        return np.array([list(self.statistics(group)) for group in groups], dtype=float)


def mean_of(name: str, better: str = "high") -> Metric:
    """The mean over all answers of a measured number of the same name."""
    return Metric(name, better, lambda group: (sum(answer[name] for answer in group), len(group)))


def ratio_of(name: str, above: str, below: str, better: str = "low") -> Metric:
    """Sum of one measured number over the sum of another: an error rate."""
    return Metric(
        name, better, lambda group: (sum(answer[above] for answer in group), sum(answer[below] for answer in group))
    )


class Task(ABC):
    """A task: subclass it in one module, and list it in `inverselm.evaluation.tasks.TASKS`.

    Attributes:
        name: on the command line.
        reference_columns: where references are, first the preferred.
        columns: other columns that `measure` reads; rows with equal prompts are one example only if these agree too.
            None: all.
        note: one line for the output on how the numbers came about, such as sacrebleu's signature.

    Example:
        class Shorter(Task):
            name = "shorter"

            def measure(self, text, example):
                return {"shorter": float(len(text) < len(example.references[0]))}

            def metrics(self, samples):
                return (mean_of("shorter"),)
    """

    name = ""
    reference_columns: tuple[str, ...] = ("references", "reference", "answer", "completion")
    columns: tuple[str, ...] | None = ()
    note = ""

    def prepare(self, examples: Sequence[Example]) -> None:
        """Look at all examples, once, before anything is sampled.

        Raises:
            UserError: an example that cannot be measured against, or a missing package.
        """
        del examples  # nothing to look at

    @abstractmethod
    def measure(self, text: str, example: Example) -> dict[str, Any]:
        """Numbers (or lists of numbers) of one answer; kept beside it in the samples."""

    @abstractmethod
    def metrics(self, samples: int) -> tuple[Metric, ...]:
        """Metrics of a corpus with `samples` answers to each prompt; the first is the main one."""
