"""Counters, gauges and histograms in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number that only grows, one for each set of labels.

    Example:
        >>> rows = Counter("rows_total", "Rows scored."); rows.add(3); print(rows.text())
        # HELP rows_total Rows scored.
        # TYPE rows_total counter
        rows_total 3
    """

    def __init__(self, name: str, help_text: str) -> None:
        self.name, self.help_text = name, help_text
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        """Grow by `amount`; any thread."""
        key = tuple(labels.items())
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def text(self) -> str:
        """Its lines; 0 without labels as long as nothing was added."""
        with self._lock:
            values = dict(self._values)
        lines = [f"{self.name}{_labels(key)} {_number(value)}" for key, value in (values or {(): 0}).items()]
        return "\n".join([*_head(self.name, self.help_text, "counter"), *lines])


class Gauge:
    """A number that is read when it is asked for."""

    def __init__(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        self.name, self.help_text, self.read = name, help_text, read

    def text(self) -> str:
        """Its lines."""
        return "\n".join([*_head(self.name, self.help_text, "gauge"), f"{self.name} {_number(self.read())}"])


class Histogram:
    """How many observations are at most so large, one set of counts for each set of labels.

    Args:
        name: of the metric.
        help_text: what is observed.
        bounds: upper bounds, inclusive, ascending; +Inf comes behind them.
    """

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self.name, self.help_text, self.bounds = name, help_text, tuple(bounds)
        self._lock = threading.Lock()
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Count a value; any thread."""
        key = tuple(labels.items())
        with self._lock:
            counts = self._counts.setdefault(key, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[key] = self._sums.get(key, 0.0) + value

    def text(self) -> str:
        """Its lines: cumulative buckets, sum and count."""
        with self._lock:
            found = {key: (list(counts), self._sums[key]) for key, counts in self._counts.items()}
        lines = _head(self.name, self.help_text, "histogram")
        for key, (counts, total) in found.items():
            running = 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                running += count
                lines.append(f"{self.name}_bucket{_labels((*key, ('le', bound)))} {running}")
            lines.append(f"{self.name}_sum{_labels(key)} {_number(total)}")
            lines.append(f"{self.name}_count{_labels(key)} {running}")
        return "\n".join(lines)


def exposition(metrics: Sequence[Counter | Gauge | Histogram]) -> str:
    """The page that Prometheus reads."""
    return "\n".join(metric.text() for metric in metrics) + "\n"


def _head(name: str, help_text: str, kind: str) -> list[str]:
    escaped = help_text.replace("\\", "\\\\").replace("\n", "\\n")
    return [f"# HELP {name} {escaped}", f"# TYPE {name} {kind}"]


def _labels(labels: Sequence[tuple[str, str]] | Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in dict(labels).items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
