"""The bars: a PNG whose bars begin at chance, end at the values, and are fainter for controls."""

import doctest
import math
import sys

import pytest

from inverselm.errors import UserError
from inverselm.report import bars
from inverselm.report.bars import Panel, interval_bars
from inverselm.report.colors import LIGHT, mix
from inverselm.report.drawing import COLORS

pytest.importorskip("matplotlib")

SERIES = {"all": {"dense": (0.7, 0.6, 0.8), "length": (0.4, 0.3, 0.5)}, "some": {"dense": (0.9, math.nan, math.nan)}}
PANEL = Panel("Pairs", "accuracy", SERIES, faint=["length"], chance=0.5)


def drawn(panel, monkeypatch, tmp_path):
    """The axes of the panel."""
    kept = []
    real = bars._draw
    monkeypatch.setattr(bars, "_draw", lambda axes, of: kept.append(axes) or real(axes, of))
    interval_bars([panel], tmp_path / "bars.png")
    return kept[0]


def test_examples_in_docstrings():
    assert doctest.testmod(bars).failed == 0


def test_a_png_is_written_and_repeats(tmp_path):
    one = interval_bars([PANEL, PANEL], tmp_path / "a.png", title="How good?")
    two = interval_bars([PANEL, PANEL], tmp_path / "b.png", title="How good?")
    assert one.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert one.read_bytes() == two.read_bytes()


def test_bars_begin_at_chance_and_end_at_the_values(monkeypatch, tmp_path):
    axes = drawn(PANEL, monkeypatch, tmp_path)
    found = [(round(b.get_x(), 6), round(b.get_x() + b.get_width(), 6)) for b in axes.patches]
    assert [tuple(sorted(bar)) for bar in found] == [(0.5, 0.7), (0.4, 0.5), (0.5, 0.9)]
    lines = [sorted(map(float, line.get_xdata())) for line in axes.lines]
    assert lines.count([0.6, 0.8]) == 2
    assert lines.count([0.3, 0.5]) == 2
    assert not any(math.isnan(x) for line in lines for x in line)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "length (control)"]
    assert {text.get_text() for text in axes.texts} == {"0.70", "0.40", "0.90"}
    import matplotlib.colors

    colors = [matplotlib.colors.to_hex(b.get_facecolor()) for b in axes.patches]
    assert colors == [COLORS[0], mix(COLORS[0], LIGHT.surface, 0.6), COLORS[1]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["all", "some"]


def test_values_that_are_not_finite_are_left_out(monkeypatch, tmp_path):
    axes = drawn(Panel("x", "y", {"": {"a": (math.nan, 0.0, 1.0), "b": (-0.001, -1.0, 1.0)}}), monkeypatch, tmp_path)
    assert len(axes.patches) == 1
    assert [text.get_text() for text in axes.texts] == ["0.00"]
    assert axes.get_legend() is None


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="at least one panel"):
        interval_bars([], tmp_path / "x.png")
    with pytest.raises(UserError, match="no finite value"):
        interval_bars([Panel("x", "y", {"": {"a": (math.nan, 0.0, 1.0)}})], tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install"):
        interval_bars([PANEL], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
