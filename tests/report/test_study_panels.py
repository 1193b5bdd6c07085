"""The charts of a study: what is drawn lies within the axes, labels keep clear, looks differ, SVG is well-formed."""

import doctest
import itertools
import math
import random
from xml.etree import ElementTree

import pytest

from inverselm.errors import UserError
from inverselm.report import study_drawing, study_figures, study_forest, study_panels, study_tables, study_words
from inverselm.report.drawing import INK
from inverselm.report.study_drawing import WIDTH, Box, chart_svg, charts_png, fit, looks, place_labels, text_width
from inverselm.report.study_forest import Difference, Forest
from inverselm.report.study_panels import Dot, Line, Panel, aligned

pytest.importorskip("matplotlib")

LOOKS = looks("sft", ["a", "b"])
HOSTILE = "</text><script>alert(1)</script>\"' $\\frac{$"


def panel(**more):
    lines = [
        Line("SFT", LOOKS["sft"], [Dot(10, 0.5, 9, 11, 0.4, 0.6, "greedy"), Dot(20, 0.7, label="T=1")]),
        Line("A", LOOKS["a"], [Dot(12, 0.3, label="greedy"), Dot(math.nan, 0.1)]),
    ]
    return Panel(**{"title": "group", "xlabel": "x", "ylabel": "y", "lines": lines, **more})


def texts(svg):
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("text")]


def test_examples_in_docstrings():
    for module in (study_drawing, study_figures, study_forest, study_panels, study_tables, study_words):
        assert doctest.testmod(module).failed == 0


def test_an_svg_has_its_texts_and_its_size():
    chart = panel()
    svg = chart_svg(chart)
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == f"0 0 {WIDTH:.0f} {chart.height:.0f}"
    assert {"group", "x", "y", "SFT", "A", "greedy", "T=1"} <= set(texts(svg))
    assert root.get("aria-label") == "group: y over x, for SFT, A."
    assert INK not in svg
    assert chart_svg(chart) == svg


def test_hostile_texts_are_texts():
    svg = chart_svg(panel(title=HOSTILE, xlabel=HOSTILE, ylabel=HOSTILE))
    assert not [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("script")]


def test_a_png_holds_all_charts(tmp_path):
    one = charts_png([panel()], tmp_path / "one.png", title="title", note="note")
    many = charts_png([panel()] * 5, tmp_path / "many.png", columns=2)
    assert one.read_bytes()[:8] == many.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(one.read_bytes()[k : k + 4], "big") for k in (16, 20))
    more = [int.from_bytes(many.read_bytes()[k : k + 4], "big") for k in (16, 20)]
    assert more[0] > 1.9 * width
    assert more[1] > 2.5 * height
    with pytest.raises(UserError, match="at least one chart"):
        charts_png([], tmp_path / "none.png")


def test_limits_hold_bars_and_levels():
    chart = panel(levels={"control": (LOOKS["b"], 0.9)})
    assert chart.xs == [10, 9, 11, 20, 12]
    assert sorted(chart.ys) == [0.3, 0.4, 0.5, 0.6, 0.7, 0.9]


def test_panels_side_by_side_have_the_same_limits_and_legends():
    other = Panel("b", "x", "y", [Line(f"a long name of {n}", LOOKS["b"], [Dot(100, 9)]) for n in range(4)])
    one, two = aligned([panel(), other])
    assert one.xlim == two.xlim
    assert one.ylim == two.ylim
    assert one.xlim[0] < 9
    assert one.xlim[1] > 100
    assert one.height == two.height > panel().height
    assert aligned([]) == []


def test_log_axis_has_its_ticks():
    svg = chart_svg(panel(logx=True, ticks={10.0: "10 rows", 20.0: "20 rows"}))
    assert {"10 rows", "20 rows"} <= set(texts(svg))
    assert not any("times" in text or "×" in text for text in texts(svg))


def test_twenty_methods_look_different():
    found = looks("sft", [str(n) for n in range(20)])
    assert len({(look.color, look.marker, str(look.dash)) for look in found.values()}) == 21
    assert [name for name, look in found.items() if look.color == INK] == ["sft"]


def test_labels_touch_neither_each_other_nor_points():
    rng = random.Random(0)
    points = [(rng.uniform(0, 300), rng.uniform(0, 180)) for _ in range(40)]
    names = ["T=1 p=.9"] * 40
    inside = Box(0, 0, 300, 180)
    found = place_labels(points, names, inside, points)
    width = text_width("T=1 p=.9", 7.5)
    boxes = [Box(p.x, p.y - 3.5, p.x + width, p.y + 3.5) for p in found if p is not None]
    assert 10 < len(boxes) < 40
    for one, two in itertools.combinations(boxes, 2):
        assert not one.overlaps(two)
    for box in boxes:
        assert box.within(inside)
        assert not any(box.overlaps(Box(x - 3, y - 3, x + 3, y + 3)) for x, y in points)


def test_labels_keep_clear_of_lines_where_they_can():
    [place] = place_labels([(50, 50)], ["greedy"], Box(0, 0, 200, 100), [(50, 50)], lines=[(x, 50) for x in range(200)])
    assert abs(place.y - 50) > 3
    every = [(x, y) for x in range(0, 200, 2) for y in range(0, 100, 2)]
    [place] = place_labels([(50, 50)], ["greedy"], Box(0, 0, 200, 100), [(50, 50)], lines=every)
    assert place is not None, "rather on a line than not at all"


def test_long_labels_are_cut():
    assert fit("a" * 200, 100.0, 8.0).endswith("…")
    assert text_width(fit("a" * 200, 100.0, 8.0), 8.0) <= 100
    assert fit("two\nlines", 100.0, 8.0) == "two lines"


def test_a_forest_says_which_side_is_better():
    rows = ["Methods", Difference("A", -0.1, -0.2, -0.05, LOOKS["a"], True, "better")]
    low = texts(chart_svg(Forest("title", "difference in wer", rows, lower=True)))
    high = texts(chart_svg(Forest("title", "difference in accuracy", rows, lower=False)))
    assert {"← better", "worse →", "Methods", "A", "better"} <= set(low)
    assert {"← worse", "better →"} <= set(high)
    with pytest.raises(UserError, match="no difference to draw"):
        Forest("title", "x", ["Methods"], lower=True)


def test_a_forest_always_holds_zero():
    assert min(Forest("t", "x", [Difference("A", 3.0, 2.0, math.nan, LOOKS["a"], True)], lower=True).xs) == 0.0
