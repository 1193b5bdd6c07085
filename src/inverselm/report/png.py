"""The token heatmap as a PNG, for READMEs and papers."""

import io
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inverselm.errors import UserError

from .colors import LEVELS, LIGHT, mix, ramp_color
from .drawing import matplotlib, style
from .heatmap import ScoredToken, check_marked, check_scale, format_reward, reward_level, shared_scale, visible_text
from .page import write_whole

MAX_PIXELS = 60_000
_SIZE, _LINE, _MARGIN, _ADVANCE = 15.0, 27.0, 28.0, 0.602  # pixels at ratio 1; a monospace advance is 0.602 em
_GLYPHS = {"\n": "↵", "\r": "↵", "\t": "→   "}


@dataclass(frozen=True)
class Run:
    """A stretch of one token on one line: its token, text, column and width in columns."""

    token: int
    text: str
    column: int
    width: int


def heatmap_png(
    tokens: Sequence[ScoredToken],
    path: str | Path,
    *,
    width: int = 1100,
    title: str = "",
    scale: float | None = None,
    marked: tuple[int, int] | None = None,
    pixel_ratio: float = 1.0,
) -> Path:
    """Draw the heatmap of `token_heatmap` to a PNG `width` pixels wide and return its path.

    `pixel_ratio=2` draws twice the pixels in both directions, with the same layout, for sharp text.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     heatmap_png([ScoredToken("2+2", 0.4), ScoredToken("=5", -1.3)], f"{folder}/sum.png").name
    'sum.png'
    """
    if width < 300:
        raise UserError(f"width must be at least 300 pixels, not {width}")
    full = check_scale(scale) if scale is not None else shared_scale([tokens])
    start, end = check_marked(marked, len(tokens))
    columns = int((width - 2 * _MARGIN) / (_SIZE * _ADVANCE))
    lines = wrap_tokens([token.text for token in tokens], columns)
    titles = textwrap.wrap(visible_text(title), int((width - 2 * _MARGIN) / 11))
    top = _MARGIN + (len(titles) * 24 + 10 if titles else 0)
    height = top + len(lines) * _LINE + 62
    if max(width, height) * pixel_ratio > MAX_PIXELS:
        raise UserError(
            f"the picture would be {height * pixel_ratio:.0f} pixels high; pass fewer tokens or a larger width"
        )
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure, axes = _canvas(width, height, pixel_ratio)
        for number, text in enumerate(titles):
            _text(axes, _MARGIN, _MARGIN + 4 + 24 * number, text, size=17, family="DejaVu Sans", weight="bold")
        _draw_boxes(axes, lines, top, [reward_level(float(token.reward), full) for token in tokens])
        for number, line in enumerate(lines):
            _draw_line(axes, line, top + (number + 0.5) * _LINE)
            for run in (run for run in line if start <= run.token < end):
                height = top + (number + 1) * _LINE - 4
                axes.plot([_x(run.column), _x(run.column + run.width)], [height] * 2, color=LIGHT.text, linewidth=1.6)
        _legend(axes, top + len(lines) * _LINE + 18, full, len(tokens), start < end)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=figure.dpi, metadata={"Software": None})
    write_whole(Path(path), buffer.getvalue())
    return Path(path)


def wrap_tokens(texts: Sequence[str], columns: int) -> list[list[Run]]:
    """Set the tokens as running text: lines break at spaces where there are any, and at newlines (shown as a glyph).

    >>> [[run.text for run in line] for line in wrap_tokens(["one", " two", " three"], 9)]
    [['one', ' two', ' '], ['three']]
    """
    lines: list[list[Run]] = []
    line: list[tuple[int, str, int]] = []
    for cell in _cells(texts):
        if line and sum(width for _, _, width in line) + cell[2] > columns:
            after_space = next((n for n in range(len(line), 0, -1) if line[n - 1][1] == " "), len(line))
            lines.append(_runs(line[:after_space]))
            line = line[after_space:]
        line.append(cell)
        if cell[1] == _GLYPHS["\n"]:
            lines.append(_runs(line))
            line = []
    return [*lines, _runs(line)] if line else lines


def _cells(texts: Sequence[str]) -> Iterable[tuple[int, str, int]]:
    """(token, character with its combining marks, columns) for everything to draw."""
    for token, text in enumerate(texts):
        clean = visible_text(text).replace("\r\n", "\n") or "∅"
        cells: list[str] = []
        for char in "".join(_GLYPHS.get(char, char) for char in clean):
            if cells and _columns(char) == 0:
                cells[-1] += char
            else:
                cells.append(char)
        yield from ((token, cell, max(1, _columns(cell[0]))) for cell in cells)


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _runs(cells: Sequence[tuple[int, str, int]]) -> list[Run]:
    runs: list[Run] = []
    column = 0
    for token, text, width in cells:
        if runs and runs[-1].token == token:
            runs[-1] = Run(token, runs[-1].text + text, runs[-1].column, runs[-1].width + width)
        else:
            runs.append(Run(token, text, column, width))
        column += width
    return runs


def _canvas(width: float, height: float, ratio: float) -> tuple[Any, Any]:
    matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100 * ratio, facecolor=LIGHT.surface)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def _text(
    axes: Any, x: float, y: float, text: str, *, size: float = _SIZE, color: str = LIGHT.text, **more: Any
) -> Any:
    return axes.text(x, y, text, fontsize=size * 0.72, color=color, va="center_baseline", **more)


def _draw_boxes(axes: Any, lines: Sequence[Sequence[Run]], top: float, levels: Sequence[int | None]) -> None:
    from matplotlib.collections import PolyCollection

    places = [(run.token, _box(run, top + n * _LINE)) for n, line in enumerate(lines) for run in line]
    full = [(box, ramp_color(levels[token] or 0)) for token, box in places if levels[token]]
    axes.add_collection(PolyCollection([box for box, _ in full], facecolors=[c for _, c in full], linewidths=0))
    unknown = [box for token, box in places if levels[token] is None]
    axes.add_collection(
        PolyCollection(unknown, facecolors="none", edgecolors=LIGHT.muted, linestyles=":", linewidths=0.7)
    )


def _draw_line(axes: Any, line: Sequence[Run], y: float) -> None:
    """The text of a line: stretches of plain characters at once, the others where their token begins."""
    stretches: list[Run] = []
    for run in line:
        if stretches and stretches[-1].text.isascii() and run.text.isascii():
            last = stretches[-1]
            stretches[-1] = Run(last.token, last.text + run.text, last.column, last.width + run.width)
        else:
            stretches.append(run)
    for stretch in stretches:
        faint = stretch.text.strip() in {*_GLYPHS.values(), "∅", "→"}
        color = mix(LIGHT.muted, LIGHT.surface, 0.3) if faint else LIGHT.text
        blank = len(stretch.text) - len(stretch.text.lstrip(" "))
        if stretch.text.strip():
            _text(axes, _x(stretch.column + blank), y, stretch.text.strip(" "), color=color, family=_fonts())


def _x(column: int) -> float:
    return _MARGIN + column * _SIZE * _ADVANCE


def _box(run: Run, y: float) -> list[tuple[float, float]]:
    left, right, low, high = _x(run.column), _x(run.column + run.width), y + 2.5, y + _LINE - 2.5
    return [(left, low), (right, low), (right, high), (left, high)]


@cache
def _fonts() -> list[str]:
    from matplotlib import font_manager

    known = set(font_manager.fontManager.get_font_names())
    more = ("Noto Sans Mono CJK SC", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Emoji")
    return ["DejaVu Sans Mono", "DejaVu Sans", *(name for name in more if name in known)]


def _legend(axes: Any, y: float, scale: float, count: int, marked: bool) -> None:
    limit = format_reward(scale).lstrip("+")
    axes.plot([_MARGIN, axes.get_xlim()[1] - _MARGIN], [y - 7] * 2, color=LIGHT.border, linewidth=0.8)
    note: dict[str, Any] = {"size": 13, "color": LIGHT.muted, "family": "DejaVu Sans"}
    low = _text(axes, _MARGIN, y + 15, f"reward  −{limit}", **note).get_window_extent()
    left = axes.transData.inverted().transform((low.x1, 0))[0] + 8
    colors = [[_channels(ramp_color(level)) for level in range(-LEVELS, LEVELS + 1)]]
    axes.imshow(colors, extent=(left, left + 150, y + 21, y + 9), aspect="auto", interpolation="bilinear")
    rest = f"+{limit}   ·   {count:,} tokens" + ("   ·   underlined: marked span" if marked else "")
    _text(axes, left + 158, y + 15, rest, **note)


def _channels(color: str) -> tuple[float, ...]:
    return tuple(int(color[n : n + 2], 16) / 255 for n in (1, 3, 5))
