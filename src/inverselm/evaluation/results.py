"""Measured numbers with their intervals: what the evaluations of rewards return."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A number with its interval; NaN where it is not defined (a correlation with a constant, for example)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As in a table: `0.412 [0.301, 0.518]`, or `-` when undefined."""
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def shown(self) -> bool:
        """Of a difference: whether its interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class RewardReport:
    """How good each of several rewards is, by one or more measures, on the same data.

    Attributes:
        counts: how much data there was, by what is counted (`prompts`, `answers`, `pairs`, ...).
        values: measure -> reward -> its estimate.
        differences: measure -> reward -> the reward minus its control, on the same resamples.
        controls: reward -> the control that it is compared with.
        chance: measure -> what a reward that knows nothing is expected to reach, where that is one number.
        level: of the intervals.
        used: measure -> reward -> prompts that the number is a mean over, where that depends on the reward.
    """

    counts: dict[str, int]
    values: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    controls: dict[str, str]
    chance: dict[str, float]
    level: float = 0.95
    used: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.table()

    def table(self, measures: Mapping[str, str] | None = None) -> str:
        """Text table, one line per reward. `measures` chooses columns and gives them titles; default: all of them."""
        titles = dict(measures) if measures is not None else {name: name for name in self.values}
        names = list(next(iter(self.values.values())))
        rows = [["", *titles.values()]]
        rows += [[name, *(str(self.values[m][name]) for m in titles)] for name in names]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        return "\n".join("  ".join(row).rstrip() for row in cells)

    def verdict(self, measure: str, reward: str) -> str:
        """One sentence: does `reward` beat its control by this measure?

        >>> tie = {"auroc": {"r": Estimate(0.1, -0.1, 0.3)}}
        >>> RewardReport({}, {}, tie, {"r": "log pi"}, {}).verdict("auroc", "r")
        'r against log pi: no difference shown (+0.100 [-0.100, +0.300])'
        """
        found, control = self.differences[measure][reward], self.controls[reward]
        if math.isnan(found.value) or math.isnan(found.low):
            return f"{reward} against {control}: not defined on this data"
        signed = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        if not found.shown:
            return f"{reward} against {control}: no difference shown ({signed})"
        size = f"{abs(found.value):.3f} [{min(map(abs, found[1:])):.3f}, {max(map(abs, found[1:])):.3f}]"
        return f"{reward} {'beats' if found.value > 0 else 'is behind'} {control} by {size}"

    def records(self) -> Iterator[dict[str, Any]]:
        """One flat row per measure and reward, as for a CSV file; undefined numbers are None."""
        for measure, estimates in self.values.items():
            for name, estimate in estimates.items():
                row = {"measure": measure, "reward": name, **_plain(estimate, ("value", "low", "high"))}
                row["control"] = self.controls.get(name, "")
                difference = self.differences.get(measure, {}).get(name, Estimate(math.nan, math.nan, math.nan))
                row |= _plain(difference, ("difference", "difference_low", "difference_high"))
                yield row | {"prompts_used": self.used.get(measure, {}).get(name)}

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; undefined numbers are None."""
        estimates = {
            kind: {m: {name: _plain(e, Estimate._fields) for name, e in of.items()} for m, of in table.items()}
            for kind, table in (("values", self.values), ("differences", self.differences))
        }
        return {**asdict(self), **estimates}


def _plain(estimate: Estimate, names: tuple[str, ...]) -> dict[str, float | None]:
    return {n: v if math.isfinite(v) else None for n, v in zip(names, estimate, strict=True)}
