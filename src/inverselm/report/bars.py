"""Bars with intervals as a PNG: several panels, one below the other, each with a row per name."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverselm.errors import UserError

from .colors import LIGHT, mix
from .drawing import COLORS, matplotlib, style
from .page import write_whole

Bar = tuple[float, float, float]
_ROW, _PANEL = 15.0, 80.0  # points per bar, and of a panel's title and axis
_WIDTH = 560.0


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: what is measured, of how much.
        xlabel: the measure, with which side is better.
        series: name -> row -> (value, low, high); a value that is not finite is left out, a bound too.
        faint: rows to draw in a lighter colour (controls).
        chance: where to draw a line, such as 0.5 for an accuracy; None for none.
    """

    title: str
    xlabel: str
    series: Mapping[str, Mapping[str, Bar]]
    faint: Sequence[str] = ()
    chance: float | None = None


def interval_bars(panels: Sequence[Panel], path: str | Path, *, title: str = "") -> Path:
    """Draw horizontal bars from `chance` (or 0) to the values, with their intervals, and return the PNG's path.

    Raises:
        UserError: no panel, a panel without a finite value, or matplotlib is missing.

    >>> import tempfile
    >>> panel = Panel("Pairs", "accuracy", {"": {"dense": (0.7, 0.6, 0.8), "length": (0.4, 0.3, 0.5)}}, ["length"], 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     interval_bars([panel], f"{folder}/pairs.png").name
    'pairs.png'
    """
    if not panels:
        raise UserError("interval_bars needs at least one panel")
    for panel in panels:
        if not any(math.isfinite(bar[0]) for rows in panel.series.values() for bar in rows.values()):
            raise UserError(f"the panel {panel.title!r} has no finite value to draw")
    matplotlib()
    from matplotlib.figure import Figure

    heights = [_height(panel) for panel in panels]
    with style():
        size = (_WIDTH / 72, (sum(heights) + (26 if title else 0)) / 72)
        figure = Figure(figsize=size, dpi=144, layout="constrained", facecolor=LIGHT.surface)
        all_axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw(axes, panel)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=figure.dpi, metadata={"Software": None})
    write_whole(Path(path), buffer.getvalue())
    return Path(path)


def _height(panel: Panel) -> float:
    names = {name for rows in panel.series.values() for name in rows}
    return _PANEL + _ROW * sum(map(len, panel.series.values())) + 5 * len(names) + 14 * _title(panel).count("\n")


def _draw(axes: Any, panel: Panel) -> None:
    names = list(dict.fromkeys(name for rows in panel.series.values() for name in rows))
    start = panel.chance or 0.0
    count = len(panel.series)
    thickness = 0.76 / count
    for slot, rows in enumerate(panel.series.values()):
        for name, (value, low, high) in rows.items():
            if not math.isfinite(value):
                continue
            y = names.index(name) + (slot - (count - 1) / 2) * thickness
            color = mix(COLORS[slot], LIGHT.surface, 0.6) if name in panel.faint else COLORS[slot]
            axes.barh(y, value - start, left=start, height=thickness * 0.86, color=color, linewidth=0)
            if math.isfinite(low) and math.isfinite(high):
                axes.plot([low, high], [y, y], color=LIGHT.text, linewidth=1.1, solid_capstyle="butt")
                axes.plot([low, high], [y, y], color=LIGHT.text, linestyle="", marker="|", markersize=4.5)
            axes.text(
                1.015,
                y,
                f"{round(value, 2) + 0.0:.2f}",
                transform=axes.get_yaxis_transform(),
                va="center_baseline",
                fontsize=8.5,
            )
    axes.axvline(start, color=LIGHT.text, linewidth=0.9)
    axes.set_yticks(range(len(names)), [f"{name} (control)" if name in panel.faint else name for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.grid(axis="x", color=LIGHT.text, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(panel.xlabel, fontsize=9)
    named = [(slot, series) for slot, series in enumerate(panel.series) if series]
    axes.set_title(_title(panel), loc="left", fontsize=10.5, pad=22 if named else 8)
    if named:
        from matplotlib.patches import Patch

        patches = [Patch(color=COLORS[slot], label=series) for slot, series in named]
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.01), "borderaxespad": 0.0, "borderpad": 0.0}
        axes.legend(handles=patches, **place, ncols=count, frameon=False, fontsize=9)


def _title(panel: Panel) -> str:
    return "\n".join(textwrap.wrap(panel.title, 62))
