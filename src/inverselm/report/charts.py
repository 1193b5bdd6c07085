"""Charts as inline SVG: deterministic, readable in light and dark mode, colour-blind safe, directly labelled."""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from inverselm.errors import UserError

from .drawing import Look, label_ends, look, new_axes, slots, style, to_svg

MAX_POINTS = 1200
"""Longer lines keep the smallest and largest value of each stretch, so that no spike is lost."""

Point = tuple[float, float]
Interval = tuple[float, float, float, float]


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    smooth: int = 1,
    logy: bool = False,
    slot: Mapping[str, int] | None = None,
) -> str:
    """Lines of y over x, one per name, as an `<svg>` string. Values that are not finite leave a gap.

    `smooth` draws a centred mean over that many points on top of the faint raw line. `logy` leaves out values <= 0.
    `slot` fixes a series' look (0, 1, ..) so that a method keeps its colour across charts.

    >>> svg = line_chart({"loss": ([0, 1, 2], [3.0, 2.0, 1.5])}, xlabel="step", ylabel="loss (nats/token)")
    >>> svg.startswith("<svg")
    True
    """
    if smooth < 1:
        raise UserError(f"smooth must be at least 1 (points in the moving average), not {smooth}")
    lines = {name: _line(name, xs, ys, logy) for name, (xs, ys) in series.items()}
    _check_any({name: [y for _, y in line] for name, line in lines.items()}, "line_chart", logy)
    ends: dict[str, tuple[float, Look]] = {}
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure, axes = new_axes(xlabel=xlabel, ylabel=ylabel, title=title)
        if logy:
            axes.set_yscale("log")
        for name, number in slots(list(lines), slot).items():
            smoothed = moving_mean([y for _, y in lines[name]], smooth)
            points = list(zip([x for x, _ in lines[name]], smoothed, strict=True))
            if smooth > 1:
                _plot(axes, lines[name], look(number), faint=True)
            _plot(axes, points, look(number))
            last = [y for y in smoothed if math.isfinite(y)]
            if last:
                ends[name] = (last[-1], look(number))
        label_ends(figure, axes, ends)
        return to_svg(figure, _description("Line chart", title, xlabel, ylabel, lines))


def interval_chart(
    series: Mapping[str, Sequence[Interval]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    slot: Mapping[str, int] | None = None,
) -> str:
    """Points with their intervals, (x, y, low, high) per point, one line per name, as an `<svg>` string.

    Names are set beside each other a little, so that their intervals do not hide one another. A point whose y is not
    finite is left out; one whose bounds are not finite is drawn without a bar.

    >>> rows = [(0.2, 61.0, 58.5, 63.4), (1.0, 55.0, 52.1, 57.8)]
    >>> svg = interval_chart({"SFT": rows}, xlabel="temperature", ylabel="accuracy (%)")
    >>> 'role="img"' in svg
    True
    """
    rows = {name: sorted(_interval(name, row) for row in given) for name, given in series.items()}
    rows = {name: [row for row in given if all(map(math.isfinite, row[:2]))] for name, given in rows.items()}
    _check_any({name: [row[1] for row in given] for name, given in rows.items()}, "interval_chart", False)
    ticks = sorted({row[0] for given in rows.values() for row in given})
    step = _dodge(ticks, len(rows))
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure, axes = new_axes(xlabel=xlabel, ylabel=ylabel, title=title)
        ends: dict[str, tuple[float, Look]] = {}
        for place, (name, number) in enumerate(slots(list(rows), slot).items()):
            shift = (place - (len(rows) - 1) / 2) * step
            _plot_intervals(axes, [(x + shift, *rest) for x, *rest in rows[name]], look(number))
            if rows[name]:
                ends[name] = (rows[name][-1][1], look(number))
        if len(ticks) <= 8:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        label_ends(figure, axes, ends)
        return to_svg(figure, _description("Chart with intervals", title, xlabel, ylabel, rows))


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean of the finite values within `window` places, shorter at both ends; a gap stays a gap.

    >>> moving_mean([0.0, 3.0, 6.0], 3)
    [1.5, 3.0, 4.5]
    """
    if window == 1:
        return list(values)
    finite = [math.isfinite(value) for value in values]
    sums = [0.0, *accumulate(value if ok else 0.0 for value, ok in zip(values, finite, strict=True))]
    counts = [0, *accumulate(finite)]
    means = []
    for index, ok in enumerate(finite):
        low, high = max(0, index - (window - 1) // 2), min(len(finite), index + window // 2 + 1)
        means.append((sums[high] - sums[low]) / (counts[high] - counts[low]) if ok else math.nan)
    return means


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points (or a few more): the lowest and highest of each stretch, its gaps, and both ends.

    >>> len(thin([(float(n), 0.0) for n in range(100_000)])) <= MAX_POINTS + 2
    True
    """
    if len(points) <= limit:
        return list(points)
    kept, size = {0, len(points) - 1}, math.ceil(2 * len(points) / limit)
    for start in range(0, len(points), size):
        places = range(start, min(start + size, len(points)))
        finite = [n for n in places if math.isfinite(points[n][1])]
        kept.update(
            {min(finite, key=lambda n: points[n][1]), max(finite, key=lambda n: points[n][1])} if finite else ()
        )
        kept.update(next(([n] for n in places if not math.isfinite(points[n][1])), ()))
    return [points[n] for n in sorted(kept)]


def _line(name: str, xs: Sequence[float], ys: Sequence[float], logy: bool) -> list[Point]:
    if len(xs) != len(ys):
        raise UserError(
            f"series {name!r} has {len(xs)} x values and {len(ys)} y values; give as many of one as of the other"
        )
    pairs = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    return [(x, y if math.isfinite(y) and (y > 0 or not logy) else math.nan) for x, y in pairs if math.isfinite(x)]


def _interval(name: str, row: Interval) -> Interval:
    if len(row) != 4:
        raise UserError(f"series {name!r} has a point with {len(row)} numbers; give (x, y, low, high)")
    x, y, low, high = (float(value) for value in row)
    if low > high:
        raise UserError(
            f"series {name!r} has an interval from {low} to {high} at x={x}; give (x, y, low, high) with low <= high"
        )
    return x, y, low, high


def _check_any(values: Mapping[str, Sequence[float]], chart: str, logy: bool) -> None:
    if not any(math.isfinite(value) for given in values.values() for value in given):
        what = "positive finite value (logy leaves out the others)" if logy else "finite value"
        raise UserError(f"{chart} needs at least one {what}; its series {list(values)} have none")


def _dodge(ticks: Sequence[float], count: int) -> float:
    gaps = [after - before for before, after in pairwise(ticks)]
    return (min(gaps) if gaps else 1.0) * 0.36 / max(count, 2)


def _plot(axes: Any, points: Sequence[Point], series: Look, faint: bool = False) -> None:
    shown = thin(points)
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    if faint:
        axes.plot(xs, ys, color=series.color, linewidth=0.9, alpha=0.3)
        return
    axes.plot(xs, ys, color=series.color, linestyle=series.dash, linewidth=1.8, solid_capstyle="round")
    marked = [point for point in shown if math.isfinite(point[1])]
    marked = marked if len(points) <= 30 else marked[-1:]
    axes.plot([x for x, _ in marked], [y for _, y in marked], color=series.color, marker=series.marker, ms=4.5, ls="")


def _plot_intervals(axes: Any, rows: Sequence[Sequence[float]], series: Look) -> None:
    xs, ys = [row[0] for row in rows], [row[1] for row in rows]
    axes.plot(xs, ys, color=series.color, linestyle=series.dash, linewidth=1.2, alpha=0.75)
    bars = [row for row in rows if math.isfinite(row[2]) and math.isfinite(row[3])]
    if bars:
        axes.vlines([b[0] for b in bars], [b[2] for b in bars], [b[3] for b in bars], color=series.color, linewidth=1.8)
    axes.plot(xs, ys, color=series.color, linestyle="", marker=series.marker, markersize=5.5)


def _description(kind: str, title: str, xlabel: str, ylabel: str, names: Mapping[str, Any]) -> str:
    about = f"{kind}: {title}. " if title else f"{kind}. "
    return f"{about}{ylabel} over {xlabel}, for {', '.join(names)}."
