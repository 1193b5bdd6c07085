"""A chart of a study: differences with their intervals, one below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inverselm.errors import UserError

from .drawing import INK, Look
from .study_drawing import TITLE, WIDTH, Frame
from .study_panels import Limits, limits

_RIGHT, _ROW, _HEAD = 8.0, 29.0, 22.0


@dataclass(frozen=True)
class Difference:
    """One row of a `Forest`: a difference with its interval, and a word on it.

    `shown` says whether it is a difference at all; then it is drawn strongly.
    """

    name: str
    value: float
    low: float
    high: float
    look: Look
    shown: bool
    word: str = ""


@dataclass(frozen=True)
class Forest:
    """Differences from something, one below the other, with a line at none.

    Attributes:
        title: what is compared with what.
        xlabel: the difference, with its unit.
        rows: differences, or texts: headings of the rows that follow.
        lower: whether less is better: which side of the line is.
        xlim: limits of x.
    """

    title: str
    xlabel: str
    rows: Sequence[Difference | str]
    lower: bool
    xlim: Limits | None = None

    def __post_init__(self) -> None:
        if not any(isinstance(row, Difference) for row in self.rows):
            raise UserError(f"the chart {self.title!r} has no difference to draw")

    @property
    def height(self) -> float:
        """In points."""
        return 36 + sum(_HEAD if isinstance(row, str) else _ROW for row in self.rows) + 38

    @property
    def description(self) -> str:
        """In words."""
        rows = (f"{r.name} {r.value:+.3g} [{r.low:+.3g}, {r.high:+.3g}]" for r in self.rows if not isinstance(r, str))
        return f"{self.title}; {self.xlabel}: {'; '.join(rows)}."

    @property
    def xs(self) -> list[float]:
        """Everything that must lie within the axes."""
        found = [x for row in self.rows if not isinstance(row, str) for x in (row.value, row.low, row.high)]
        return [0.0, *filter(math.isfinite, found)]

    def draw(self, frame: Frame) -> None:
        """Into the frame."""
        frame.text(0, 8, self.title, size=TITLE, fontweight="bold")
        depth = self.height - 36 - 38
        axes = frame.axes(_RIGHT, 36, WIDTH - 2 * _RIGHT, depth)
        axes.set_xlim(*(self.xlim or limits(self.xs)))
        axes.set_ylim(depth, 0)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=6)
        axes.ticklabel_format(axis="x", style="plain", useOffset=False)
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.25)
        better, worse = ("← better", "worse →") if self.lower else ("better →", "← worse")
        left, right = (better, worse) if self.lower else (worse, better)
        frame.text(_RIGHT, 26, left, alpha=0.75)
        frame.text(WIDTH - _RIGHT, 26, right, ha="right", alpha=0.75)
        y = 0.0
        for row in self.rows:
            if isinstance(row, str):
                frame.text(0, 36 + y + 13, row, fontweight="bold")
                y += _HEAD
                continue
            frame.text(_RIGHT, 36 + y + 9, row.name, width=WIDTH * 0.74)
            frame.text(WIDTH - _RIGHT, 36 + y + 9, row.word, width=WIDTH * 0.24, ha="right")
            _draw_difference(axes, row, y + 21)
            y += _ROW
        frame.text(WIDTH / 2, self.height - 10, self.xlabel, ha="center")


def _draw_difference(axes: Any, row: Difference, y: float) -> None:
    color, alpha = row.look.color, 1.0 if row.shown else 0.5
    axes.plot([0, 0], [y - 7, y + 7], color=INK, linewidth=1.1, alpha=0.8)
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [y, y], color=color, linewidth=2.6 if row.shown else 1.4, alpha=alpha)
    if math.isfinite(row.value):
        size = 6.5 if row.shown else 4.5
        axes.plot([row.value], [y], color=color, marker=row.look.marker, markersize=size, linestyle="", alpha=alpha)
