"""The heatmap as a picture: size, colours at their places, wrapping."""

import doctest
import math
import struct
import sys
import zlib
from pathlib import Path

import pytest

from inverselm.errors import UserError
from inverselm.report import colors, png
from inverselm.report.heatmap import ScoredToken
from inverselm.report.png import Run, heatmap_png, wrap_tokens

pytest.importorskip("matplotlib")


def pixels(path: Path) -> list[list[str]]:
    """Rows of '#rrggbb' with matplotlib's own reader."""
    from matplotlib.image import imread

    return [["#" + "".join(f"{round(float(c) * 255):02x}" for c in p[:3]) for p in row] for row in imread(path)]


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert zlib.crc32(data[12:29]) == struct.unpack(">I", data[29:33])[0]
    return struct.unpack(">II", data[16:24])


def joined(lines: list[list[Run]]) -> list[str]:
    return ["".join(run.text for run in line) for line in lines]


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(png).failed == 0


def test_picture_has_the_width_and_the_colours_in_order(tmp_path: Path) -> None:
    tokens = [ScoredToken("aaaa", 1.0), ScoredToken("bbbb", -1.0), ScoredToken("cccc", 0.0)]
    path = heatmap_png(tokens, tmp_path / "new" / "heat.png", width=400, scale=1.0)
    assert path == tmp_path / "new" / "heat.png"
    assert size(path)[0] == 400
    assert [p.name for p in path.parent.iterdir()] == ["heat.png"]
    row = pixels(path)[int(png._MARGIN) + 5]  # above the letters of the first line
    step = png._SIZE * png._ADVANCE * 4
    places = [row[int(png._MARGIN + step * (n + 0.5))] for n in range(3)]
    assert places == [colors.LIGHT.positive, colors.LIGHT.negative, colors.LIGHT.surface]
    assert row[5] == row[-5] == colors.LIGHT.surface


def test_pixel_ratio_draws_the_same_layout_sharper(tmp_path: Path) -> None:
    tokens = [ScoredToken(" word", 0.1)] * 60
    small = size(heatmap_png(tokens, tmp_path / "a.png", width=400, title="T"))
    large = size(heatmap_png(tokens, tmp_path / "b.png", width=400, title="T", pixel_ratio=2))
    assert large == (2 * small[0], 2 * small[1])


def test_the_picture_is_deterministic_and_marks_and_titles_are_drawn(tmp_path: Path) -> None:
    tokens = [ScoredToken("one", 0.5), ScoredToken(" two", math.nan)]
    plain = heatmap_png(tokens, tmp_path / "a.png", width=300).read_bytes()
    assert heatmap_png(tokens, tmp_path / "b.png", width=300).read_bytes() == plain
    marked = heatmap_png(tokens, tmp_path / "c.png", width=300, marked=(1, 2))
    line = pixels(marked)[int(png._MARGIN + png._LINE - 4)]
    dark = [x for x, color in enumerate(line) if colors.contrast_ratio(color, "#ffffff") > 10]
    left = png._MARGIN + 3 * png._SIZE * png._ADVANCE
    assert min(dark) == pytest.approx(left, abs=2)
    assert max(dark) == pytest.approx(left + 4 * png._SIZE * png._ADVANCE, abs=2)
    titled = heatmap_png(tokens, tmp_path / "d.png", width=300, title="a long title that needs more than one line")
    assert size(titled)[1] >= size(marked)[1] + 2 * 24


def test_hostile_and_odd_tokens_are_drawn_as_text(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "$\\frac{", "👩‍🔬", " مرحبا", "\x00", "", "\t\r\n", "日本", "\ud83d", "   "]
    path = heatmap_png([ScoredToken(t, math.inf) for t in texts], tmp_path / "odd.png", width=300, title="$x_{\x00")
    assert size(path)[0] == 300


def test_lines_break_at_spaces_then_anywhere_and_at_newlines() -> None:
    assert joined(wrap_tokens(["The", " cat", " sat"], 8)) == ["The cat ", "sat"]
    assert joined(wrap_tokens(["abcdefghij"], 4)) == ["abcd", "efgh", "ij"]
    assert joined(wrap_tokens(["a\n\nb"], 9)) == ["a↵", "↵", "b"]
    assert wrap_tokens([], 9) == []
    assert wrap_tokens(["ab", "日本", "e\u0301x"], 9) == [
        [Run(0, "ab", 0, 2), Run(1, "日本", 2, 4), Run(2, "e\u0301x", 6, 2)]
    ]


def test_wrapping_keeps_every_token_and_the_width() -> None:
    texts = [f"{' ' if n % 3 else ''}{'w' * (n % 7 + 1)}" for n in range(300)]
    lines = wrap_tokens(texts, 40)
    assert "".join(joined(lines)) == "".join(texts)
    assert {run.token for line in lines for run in line} == set(range(300))
    assert max(line[-1].column + line[-1].width for line in lines) <= 40


def test_requests_that_cannot_be_drawn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = [ScoredToken("a", 1.0)]
    with pytest.raises(UserError, match="width must be at least 300"):
        heatmap_png(token, tmp_path / "a.png", width=10)
    with pytest.raises(UserError, match="marked="):
        heatmap_png(token, tmp_path / "a.png", marked=(0, 2))
    with pytest.raises(UserError, match="pass fewer tokens"):
        heatmap_png([ScoredToken("\n", 1.0)] * 3000, tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[report\]'"):
        heatmap_png(token, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0])
def test_text_keeps_to_its_boxes_at_every_pixel_ratio(ratio):
    pytest.importorskip("matplotlib")
    from inverselm.report import png
    from inverselm.report.drawing import style

    with style():
        _, axes = png._canvas(1100, 100, ratio)
        drawn = png._text(axes, 0, 50, "0" * 100, family=png._fonts())
        width = drawn.get_window_extent().width / ratio
    assert width == pytest.approx(png._x(100) - png._x(0), rel=2e-3)  # a tenth of a character over a line
