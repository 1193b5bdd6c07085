"""A chart of a study: points with bars in both directions, joined by lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from .drawing import INK, Look
from .study_drawing import TITLE, WIDTH, Box, Frame, draw_legend, legend_rows, place_labels

_LEFT, _RIGHT, _PLOT = 44.0, 8.0, 168.0
Limits = tuple[float, float]
NAN = math.nan


@dataclass(frozen=True)
class Dot:
    """A point with its bars and its label; a bound that is not finite is left out."""

    x: float
    y: float
    x_low: float = NAN
    x_high: float = NAN
    y_low: float = NAN
    y_high: float = NAN
    label: str = ""


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: in the legend.
        look: colour, marker and dash.
        dots: in the order that they are joined in; those that are not finite are left out.
        thin: further lines of (x, y), one for each seed, drawn faintly.
        joined: whether a line joins the dots.
        markers: whether the dots are drawn.
    """

    name: str
    look: Look
    dots: Sequence[Dot] = ()
    thin: Sequence[Sequence[tuple[float, float]]] = ()
    joined: bool = True
    markers: bool = True

    @property
    def shown(self) -> list[Dot]:
        """The dots that can be drawn."""
        return [dot for dot in self.dots if math.isfinite(dot.x) and math.isfinite(dot.y)]


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: what is shown.
        xlabel: with its unit.
        ylabel: with its unit.
        lines: the first is drawn last, on top.
        levels: name -> (look, height): horizontal lines.
        logx: logarithmic x axis; all x are above 0 then.
        ticks: x -> its label; empty for the usual ones.
        xlim: limits of x; None for those of the data.
        ylim: limits of y.
        legend: rows kept for the legend, at least.
        control: whether the page may fold it away, among the controls.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    levels: Mapping[str, tuple[Look, float]] = field(default_factory=dict)
    logx: bool = False
    ticks: Mapping[float, str] = field(default_factory=dict)
    xlim: Limits | None = None
    ylim: Limits | None = None
    legend: int = 0
    control: bool = False

    @property
    def legend_rows(self) -> int:
        """Rows of its own legend."""
        return max(self.legend, legend_rows([*(line.name for line in self.lines), *self.levels]))

    @property
    def height(self) -> float:
        """In points."""
        return 24 + 13 * self.legend_rows + 22 + _PLOT + 34

    @property
    def description(self) -> str:
        """In words."""
        names = ", ".join([*(line.name for line in self.lines), *self.levels])
        return f"{self.title}: {self.ylabel} over {self.xlabel}, for {names}."

    def draw(self, frame: Frame) -> None:
        """Into the frame."""
        frame.text(0, 8, self.title, size=TITLE, fontweight="bold")
        entries = {line.name: (line.look, line.markers) for line in self.lines}
        draw_legend(frame, 20, entries | {name: (look, False) for name, (look, _) in self.levels.items()})
        top = 24 + 13 * self.legend_rows
        frame.text(0, top + 6, self.ylabel)
        axes = frame.axes(_LEFT, top + 16, WIDTH - _LEFT - _RIGHT, _PLOT)
        self._scale(axes)
        for line in reversed(self.lines):
            _draw_line(axes, line)
        for look, y in self.levels.values():
            if math.isfinite(y):
                axes.axhline(y, color=look.color, linestyle=look.dash, linewidth=1.3)
        self._label(axes)
        middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
        frame.text(middle, top + 16 + _PLOT + 26, self.xlabel, ha="center")

    def _scale(self, axes: Any) -> None:
        if self.logx:
            axes.set_xscale("log")
        axes.set_xlim(*(self.xlim or limits(self.xs, log=self.logx)))
        axes.set_ylim(*(self.ylim or limits(self.ys)))
        axes.locator_params(axis="y", nbins=6)
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        if self.ticks:
            axes.set_xticks(list(self.ticks), list(self.ticks.values()))
            axes.tick_params(axis="x", which="minor", bottom=False)
        elif not self.logx:
            axes.locator_params(axis="x", nbins=6)
            axes.ticklabel_format(axis="x", style="plain", useOffset=False)

    @property
    def xs(self) -> list[float]:
        """Everything that must lie within the axes."""
        bounds = [x for line in self.lines for dot in line.shown for x in (dot.x, dot.x_low, dot.x_high)]
        return [x for x in (*bounds, *(x for line in self.lines for thin in line.thin for x, _ in thin)) if _ok(x)]

    @property
    def ys(self) -> list[float]:
        """Everything that must lie within the axes."""
        bounds = [y for line in self.lines for dot in line.shown for y in (dot.y, dot.y_low, dot.y_high)]
        thin = (y for line in self.lines for thin in line.thin for _, y in thin)
        return [y for y in (*bounds, *thin, *(y for _, y in self.levels.values())) if _ok(y)]

    def _label(self, axes: Any) -> None:
        dots = [dot for line in self.lines for dot in line.shown]
        if not any(dot.label for dot in dots):
            return
        scale = 72 / axes.figure.dpi

        def place(x: float, y: float) -> tuple[float, float]:
            across, up = axes.transData.transform((x, y))
            return float(across) * scale, float(up) * scale

        strokes = [((a.x, a.y), (b.x, b.y)) for line in self.lines if line.joined for a, b in pairwise(line.shown)]
        strokes += [((d.x_low, d.y), (d.x_high, d.y)) for d in dots if _ok(d.x_low) and _ok(d.x_high)]
        strokes += [((d.x, d.y_low), (d.x, d.y_high)) for d in dots if _ok(d.y_low) and _ok(d.y_high)]
        along = [point for a, b in strokes for point in _along(place(*a), place(*b))]
        box = axes.get_window_extent()
        inside = Box(box.x0 * scale, box.y0 * scale, box.x1 * scale + _RIGHT, box.y1 * scale)
        named = [dot for dot in dots if dot.label]
        points, texts = [place(dot.x, dot.y) for dot in named], [dot.label for dot in named]
        obstacles = [place(dot.x, dot.y) for dot in dots]
        for text, found in zip(texts, place_labels(points, texts, inside, obstacles, lines=along), strict=True):
            if found is not None:
                x, y = axes.transData.inverted().transform((found.x / scale, found.y / scale))
                axes.text(x, y, text, fontsize=8, va="center_baseline", color=INK, alpha=0.85, clip_on=False)


def _along(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Points on a line, 3 points apart."""
    count = max(1, round(math.dist(start, end) / 3))
    return [tuple(a + (b - a) * n / count for a, b in zip(start, end, strict=True)) for n in range(count + 1)]  # type: ignore[misc]


def _draw_line(axes: Any, line: Line) -> None:
    color = line.look.color
    for thin in line.thin:
        axes.plot([x for x, _ in thin], [y for _, y in thin], color=color, linewidth=0.7, alpha=0.35)
    dots = line.shown
    for dot in dots:
        if _ok(dot.x_low) and _ok(dot.x_high):
            axes.plot([dot.x_low, dot.x_high], [dot.y, dot.y], color=color, linewidth=1.0, alpha=0.6)
        if _ok(dot.y_low) and _ok(dot.y_high):
            axes.plot([dot.x, dot.x], [dot.y_low, dot.y_high], color=color, linewidth=1.0, alpha=0.6)
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    if line.joined:
        axes.plot(xs, ys, color=color, linestyle=line.look.dash, linewidth=1.5)
    if line.markers:
        axes.plot(xs, ys, color=color, linestyle="", marker=line.look.marker, markersize=4.8)


def _ok(value: float) -> bool:
    return math.isfinite(value)


def limits(values: Sequence[float], *, log: bool = False) -> Limits:
    """Limits with a little room around the values.

    >>> limits([0.0, 100.0])
    (-7.0, 107.0)
    """
    if not values:
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** 0.09 if high > low else 2.0
        return low / room, high * room
    room = 7 * (high - low) / 100 if high > low else max(abs(high) * 0.1, 0.05)
    return low - room, high + room


def aligned(panels: Sequence[Panel], *, x: bool = True) -> list[Panel]:
    """The same panels with common limits (of x too) and equally high legends, so that they can be read together."""
    if not panels:
        return []
    xs, ys = [v for p in panels for v in p.xs], [v for p in panels for v in p.ys]
    shared: dict[str, Any] = {"ylim": limits(ys), "legend": max(panel.legend_rows for panel in panels)}
    if x:
        shared["xlim"] = limits(xs, log=panels[0].logx)
    return [replace(panel, **shared) for panel in panels]
