"""One row per model and sampler: task metrics with intervals, diversity, length, entropy, truncation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .examples import Example
from .metrics import distinct_n, self_bleu
from .results import Estimate
from .samplers import Sampler
from .statistics import bootstrap, percentile

if TYPE_CHECKING:
    from .tasks import Metric, Task

Record = dict[str, Any]
ORDER = 4
"""Longest n-grams of Self-BLEU."""
COLUMNS = frozenset(
    (
        *("model", "sampler", "task", "prompts", "samples_per_prompt", "metrics", "self_bleu", "self_bleu_n"),
        *("distinct_1", "distinct_2", "distinct_3", "length", "length_ratio", "entropy", "truncated"),
        *("temperature", "top_p", "num_beams", "length_penalty", "best_of", "best_of_by", "calculator"),
        *("guidance_weight", "guided_by", "max_new_tokens", "batch_size", "seed", "example", "sample", "prompt"),
        *("completion", "references", "reference_length", "finished", "log_prob", "token_ids", "score", "chosen"),
    )
)
"""Names in the rows of results and samples, which a metric cannot have."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Row:
    """What one model does with one sampler on a task.

    Attributes:
        model: its label.
        sampler: in `Sampler.name`'s notation.
        task: its name.
        prompts: number of prompts.
        samples: answers to each prompt that are measured.
        metrics: name -> value with its 95% percentile bootstrap interval over prompts; the first is the main one.
        better: name -> "high" or "low".
        self_bleu: Self-BLEU-4 of a prompt's answers, 0 to 100 (high = less diverse), mean over prompts; None for one
            answer.
        distinct: n -> different n-grams / n-grams of words, over all answers.
        length: mean tokens of an answer, EOS not counted.
        length_ratio: tokens of all answers / tokens of their references; None if the references are bare results.
        entropy: nats per token, of the model itself (unguided, at temperature 1) at the states that its answers visit
            (EOS included).
        truncated: share of answers that the length limit ended.
        settings: of the sampler and of the run.
        records: the answers, with what was measured of each: the lines of the samples file.
        statistics: name -> (prompts, K) numbers whose sums the metric is a function of; for `compare_runs`.
    """

    model: str
    sampler: str
    task: str
    prompts: int
    samples: int
    metrics: dict[str, Estimate]
    better: dict[str, str]
    self_bleu: float | None
    distinct: dict[int, float]
    length: float
    length_ratio: float | None
    entropy: float
    truncated: float
    settings: dict[str, Any]
    records: list[Record] = field(default_factory=list, repr=False, compare=False)
    statistics: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def main(self) -> Estimate:
        """The main metric."""
        return next(iter(self.metrics.values()))

    def per_prompt(self, name: str) -> list[float]:
        """Mean of a measured number over the answers to each prompt, for paired statistics."""
        groups = group_records(self.records, self.prompts)
        return [float(np.mean([record["metrics"][name] for record in group])) for group in groups]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the answers, ready for JSON."""
        return {
            "model": self.model,
            "sampler": self.sampler,
            "task": self.task,
            "prompts": self.prompts,
            "samples_per_prompt": self.samples,
            "metrics": {name: estimate._asdict() for name, estimate in self.metrics.items()},
            "better": self.better,
            **self._shared(),
            "settings": self.settings,
        }

    def flat(self) -> dict[str, Any]:
        """One line of a CSV file: intervals for the main metric alone."""
        names = list(self.metrics)
        main = {names[0]: self.main.value, f"{names[0]}_low": self.main.low, f"{names[0]}_high": self.main.high}
        others = {name: self.metrics[name].value for name in names[1:]}
        head = {"model": self.model, "sampler": self.sampler, "task": self.task}
        counts = {"prompts": self.prompts, "samples_per_prompt": self.samples}
        return head | main | others | counts | self._shared() | self.settings

    def _shared(self) -> dict[str, Any]:
        diversity = {"self_bleu": self.self_bleu, "self_bleu_n": ORDER}
        diversity |= {f"distinct_{n}": value for n, value in self.distinct.items()}
        lengths = {"length": self.length, "length_ratio": self.length_ratio}
        return diversity | lengths | {"entropy": self.entropy, "truncated": self.truncated}


def check_names(task: Task) -> None:
    """In tables a metric and a column of the same name would take each other's place.

    Raises:
        UserError: the task, which is prepared, has such a metric.
    """
    for metric in task.metrics(2):
        if metric.name in COLUMNS:
            raise UserError(
                f"task {task.name}: the metric '{metric.name}' has the name of a column of the results; rename it"
            )


def measure(records: Iterable[Record], examples: Sequence[Example], task: Task) -> list[Record]:
    """The same records with `metrics`, what the task measures of each answer, in the order of examples and samples."""
    ordered = sorted(records, key=lambda record: (record["example"], record["sample"]))
    return [r | {"metrics": task.measure(r["completion"], examples[r["example"]])} for r in ordered]


def summarise(
    records: list[Record],
    task: Task,
    sampler: Sampler,
    *,
    model: str,
    prompts: int,
    settings: dict[str, Any] | None = None,
) -> Row:
    """The row of measured records; of best-of-n the chosen answers count.

    Args:
        records: from `measure`.
        task: that measured them.
        sampler: that drew them.
        model: label.
        prompts: number of examples.
        settings: to be kept with the row.
    """
    counted = [record for record in records if record.get("chosen", True)]
    groups = group_records(counted, prompts)
    samples = min(map(len, groups))
    metrics = task.metrics(samples)
    tables = {metric.name: metric.table([[r["metrics"] for r in group] for group in groups]) for metric in metrics}
    words = [record["completion"].split() for record in counted]
    tokens = np.array([len(record["token_ids"]) for record in counted])
    return Row(
        model=model,
        sampler=sampler.name,
        task=task.name,
        prompts=prompts,
        samples=samples,
        metrics={metric.name: _estimate(metric, tables[metric.name]) for metric in metrics},
        better={metric.name: metric.better for metric in metrics},
        self_bleu=_mean([self_bleu([r["completion"] for r in group]) for group in groups]) if samples > 1 else None,
        distinct={n: distinct_n(words, n) for n in (1, 2, 3)},
        length=_mean([record["length"] for record in counted]),
        length_ratio=_length_ratio(counted),
        entropy=float((np.array([record["entropy"] for record in counted]) * tokens).sum() / tokens.sum()),
        truncated=_mean([not record["finished"] for record in counted]),
        settings={
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "num_beams": sampler.num_beams,
            "length_penalty": sampler.length_penalty,
            "best_of": sampler.best_of,
            "best_of_by": sampler.by if sampler.best_of > 1 else None,
            "calculator": sampler.calculator,
            "guidance_weight": sampler.guidance_weight,
            **(settings or {}),
        },
        records=records,
        statistics=tables,
    )


def group_records(records: Iterable[Record], prompts: int) -> list[list[Record]]:
    """The counted records of each prompt, in order."""
    groups: list[list[Record]] = [[] for _ in range(prompts)]
    for record in records:
        if record.get("chosen", True):
            groups[record["example"]].append(record)
    return groups


def render(rows: Sequence[Row]) -> str:
    """A text table, one line per row; `*` marks the best value of each task metric."""
    arrows = {"high": "↑", "low": "↓"}
    better = {name: direction for row in rows for name, direction in row.better.items()}
    best = {name: _best(rows, name, direction) for name, direction in better.items()}
    titles = ["model", "sampler", *(f"{name} {arrows[direction]}" for name, direction in better.items())]
    lines = [[*titles, "Self-BLEU", "distinct-2", "length", "ratio", "entropy", "truncated"]]
    for row in rows:
        cells = [row.model, row.sampler]
        for number, name in enumerate(better):
            estimate = row.metrics.get(name)
            text = "-" if estimate is None else _interval(estimate) if number == 0 else _number(estimate.value)
            cells.append(text + ("*" if estimate is not None and estimate.value == best[name] else ""))
        cells += ["-" if row.self_bleu is None else f"{row.self_bleu:.1f}", f"{row.distinct[2]:.3f}"]
        cells += [f"{row.length:.1f}", "-" if row.length_ratio is None else f"{row.length_ratio:.2f}"]
        lines.append([*cells, f"{row.entropy:.3f}", f"{row.truncated:.1%}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _estimate(metric: Metric, table: Any) -> Estimate:
    def statistic(weights: Any) -> Any:
        return np.asarray(metric.score(weights @ table))[:, None]

    values, replicates = bootstrap(statistic, np.arange(len(table)), RESAMPLES)
    return percentile(float(values[0]), replicates[:, 0])


def _length_ratio(records: Sequence[Record]) -> float | None:
    known = [record for record in records if record["reference_length"]]
    if not known:
        return None
    return sum(record["length"] for record in known) / sum(record["reference_length"] for record in known)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _best(rows: Sequence[Row], name: str, direction: str) -> float | None:
    """The best value of a metric; None if there is nothing to tell apart."""
    values = [row.metrics[name].value for row in rows if name in row.metrics]
    return (max if direction == "high" else min)(values) if len(set(values)) > 1 else None


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}"


def _interval(estimate: Estimate) -> str:
    if max(map(abs, estimate)) <= 1:
        return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
