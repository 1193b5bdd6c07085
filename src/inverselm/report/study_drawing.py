"""Frames of a figure in points, and what the charts of a study share: looks, legends, labels that keep clear."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from inverselm.errors import UserError

from .colors import LIGHT
from .drawing import COLORS, DASHES, INK, MARKERS, Look, matplotlib, style, to_svg
from .heatmap import visible_text
from .page import write_whole

WIDTH = 300.0
"""Of a chart, in points: small enough for a phone, two beside each other on a laptop."""

SMALL, TITLE = 9.2, 11.0
"""Sizes of text, in points; a phone shows a chart about as many pixels wide as it has points."""

_GAP, _DPI = 20.0, 150
_WIDE = 0.58  # of a character, in font sizes


class Chart(Protocol):
    """Something to draw into a frame of `WIDTH` by `height` points."""

    @property
    def height(self) -> float:
        """In points."""

    @property
    def description(self) -> str:
        """For who cannot see it."""

    def draw(self, frame: Frame) -> None:
        """Into the frame."""


class Frame:
    """A rectangle of a figure; x to the right and y down from its top left corner, in points."""

    def __init__(self, figure: Any, left: float, top: float) -> None:
        self.figure, self.left, self.top = figure, left, top
        width, height = figure.get_size_inches()
        self._size = 72 * width, 72 * height

    def at(self, x: float, y: float) -> tuple[float, float]:
        """As parts of the figure, from its bottom left corner."""
        return (self.left + x) / self._size[0], 1 - (self.top + y) / self._size[1]

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """New axes whose top left corner is (x, y), without a box around them."""
        left, bottom = self.at(x, y + height)
        axes = self.figure.add_axes((left, bottom, width / self._size[0], height / self._size[1]))
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_alpha(0.45)
        axes.tick_params(length=0, labelsize=SMALL, pad=4)
        axes.grid(color=INK, alpha=0.12, linewidth=0.7)
        axes.set_axisbelow(True)
        return axes

    def text(self, x: float, y: float, text: str, *, width: float = WIDTH, size: float = SMALL, **more: Any) -> None:
        """One line with its middle at height y, cut to `width`."""
        left, bottom = self.at(x, y)
        options = {"fontsize": size, "va": "center_baseline", "color": INK, **more}
        self.figure.text(left, bottom, fit(text, width, size), **options)

    def swatch(self, x: float, y: float, look: Look, *, marker: bool = True) -> None:
        """A piece of line as in a legend, 20 points wide."""
        from matplotlib.lines import Line2D

        (start, height), (middle, _), (end, _) = (self.at(x + step, y) for step in (0, 10, 20))
        kind: dict[str, Any] = {"marker": look.marker, "markevery": [1], "markersize": 4.5} if marker else {}
        line = Line2D(
            [start, middle, end], [height] * 3, color=look.color, linestyle=look.dash, linewidth=1.6,
            transform=self.figure.transFigure, **kind,
        )  # fmt: skip
        self.figure.add_artist(line)


def looks(reference: str, others: Iterable[str]) -> dict[str, Look]:
    """A look for every method: the reference in the text's colour, the others by their place; no two are the same.

    >>> looks("sft", ["a", "b"])["sft"].color == INK
    True
    """
    colors, markers = [c for c in COLORS if c != INK], MARKERS[1:]
    found = {reference: Look(INK, MARKERS[0], DASHES[0])}
    for place, name in enumerate(others):
        turn = place // len(colors)
        found[name] = Look(
            colors[place % len(colors)], markers[(place + turn) % len(markers)], DASHES[turn % len(DASHES)]
        )
    return found


def chart_svg(chart: Chart) -> str:
    """The chart as inline SVG."""
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = _figure(WIDTH, chart.height)
        chart.draw(Frame(figure, 0, 0))
        return to_svg(figure, chart.description, max_width=480)


def charts_png(charts: Sequence[Chart], path: str | Path, *, title: str = "", note: str = "", columns: int = 3) -> Path:
    """All charts of a figure in one PNG, row by row, and its path.

    Raises:
        UserError: no chart, matplotlib missing, or the file cannot be written.
    """
    if not charts:
        raise UserError("charts_png needs at least one chart")
    columns = min(columns, len(charts))
    rows = [charts[start : start + columns] for start in range(0, len(charts), columns)]
    heights = [max(chart.height for chart in row) for row in rows]
    top = _GAP + (24 if title else 0) + (16 if note else 0)
    width = _GAP + columns * (WIDTH + _GAP)
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = _figure(width, top + sum(heights) + _GAP * len(rows))
        figure.set_facecolor(LIGHT.surface)
        head = Frame(figure, _GAP, _GAP)
        if title:
            head.text(0, 8, title, width=width - 2 * _GAP, size=13, fontweight="bold")
        if note:
            head.text(0, 30 if title else 8, note, width=width - 2 * _GAP)
        for row, height in zip(rows, heights, strict=True):
            for column, chart in enumerate(row):
                chart.draw(Frame(figure, _GAP + column * (WIDTH + _GAP), top))
            top += height + _GAP
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write_whole(Path(path), buffer.getvalue())
    return Path(path)


def _figure(width: float, height: float) -> Any:
    matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72)


def text_width(text: str, size: float) -> float:
    """Points that a text takes, roughly."""
    return _WIDE * size * len(text)


def fit(text: str, width: float, size: float) -> str:
    """A text on one line that is not wider than `width` points, cut with an ellipsis.

    >>> fit("a long label", 30.0, 10.0)
    'a lo…'
    """
    line = re.sub(r"\s+", " ", visible_text(text)).strip()
    room = max(2, int(width / (_WIDE * size)))
    return line if len(line) <= room else f"{line[: room - 1].rstrip()}…"


class Box(NamedTuple):
    """A rectangle: left, bottom, right, top."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether they have an area in common."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def within(self, other: Box) -> bool:
        """Whether the other holds it."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


class Placed(NamedTuple):
    """Where a label goes: its left edge and its middle."""

    x: float
    y: float


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    inside: Box,
    obstacles: Sequence[tuple[float, float]],
    *,
    lines: Sequence[tuple[float, float]] = (),
    size: float = 8.0,
) -> list[Placed | None]:
    """A place beside each point where its label touches no obstacle and no other label; None where there is no room.

    Places that touch none of `lines`, points along lines, come first.

    >>> place_labels([(50.0, 50.0)], ["greedy"], Box(0, 0, 100, 100), [(50.0, 50.0)])[0] is not None
    True
    """
    dots = [Box(x - 3.2, y - 3.2, x + 3.2, y + 3.2) for x, y in obstacles]
    thin = [Box(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in lines]
    taken: list[Box] = []
    found: list[Placed | None] = []
    half = 0.52 * size
    for (x, y), text in zip(points, texts, strict=True):
        width = text_width(text, size)
        right, left, middle = x + 6, x - 6 - width, x - width / 2
        places = [(right, y), (middle, y + 10), (middle, y - 10), (left, y)]
        places += [(start, y + step) for start in (right, left) for step in (8, -8)]
        boxes = {(start, centre): Box(start, centre - half, start + width, centre + half) for start, centre in places}
        free = [
            place
            for place, box in boxes.items()
            if box.within(inside) and not any(box.overlaps(other) for other in (*dots, *taken))
        ]
        clear = [place for place in free if not any(boxes[place].overlaps(other) for other in thin)]
        chosen = next(iter(clear or free), None)
        if chosen is not None:
            taken.append(boxes[chosen])
        found.append(None if chosen is None else Placed(*chosen))
    return found


def legend_rows(names: Sequence[str]) -> int:
    """Rows that `draw_legend` needs: two names beside each other if they are all short."""
    return (len(names) + 1) // 2 if _short(names) else len(names)


def draw_legend(frame: Frame, top: float, entries: Mapping[str, tuple[Look, bool]]) -> None:
    """Names with their looks (and whether they have markers) from `top` down, 13 points a row."""
    names = list(entries)
    columns = 2 if _short(names) else 1
    rows = legend_rows(names)
    room = WIDTH / columns - 30
    for place, (name, (look, marker)) in enumerate(entries.items()):
        x, y = (place // rows) * WIDTH / columns, top + 13 * (place % rows) + 6
        frame.swatch(x, y, look, marker=marker)
        frame.text(x + 26, y, name, width=room)


def _short(names: Sequence[str]) -> bool:
    return len(names) > 1 and all(text_width(visible_text(name), SMALL) <= WIDTH / 2 - 30 for name in names)
