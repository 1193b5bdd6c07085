"""The charts: well-formed, deterministic inline SVG that shows the data it was given."""

import doctest
import itertools
import math
import re
import sys
from xml.etree import ElementTree

import pytest

from inverselm.errors import UserError
from inverselm.report import charts, colors, drawing

pytest.importorskip("matplotlib")

HOSTILE = '</text><script>alert(1)</script>"\' $\\frac{$ font-family: x; id="y"'
STEPS = list(range(50))
LABELS = {"xlabel": "step", "ylabel": "loss (nats)"}
ROWS = {
    "SFT": [(0.2, 61.0, 58.0, 64.0), (1.0, 50.0, 47.0, 53.0)],
    "IQLearn": [(0.2, 63.0, 60.0, 66.0), (1.0, 60.0, 57.0, 63.0)],
}


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", svg))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in parse(svg).iter("text")]


def ids(svg: str) -> list[str]:
    return [element.attrib["id"] for element in parse(svg).iter() if "id" in element.attrib]


def two_lines(**more) -> str:
    return charts.line_chart({"SFT": (STEPS, [2.0 - 0.01 * n for n in STEPS]), "DPR": (STEPS, STEPS)}, **LABELS, **more)


def stroked(svg: str, color: str) -> list[list[tuple[float, float]]]:
    """The corner points of every open path in this colour."""
    found = []
    for path in parse(svg).iter("path"):
        if f"stroke: {color}" in path.get("style", "") and "fill: none" in path.get("style", ""):
            numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(charts).failed == 0
    assert doctest.testmod(drawing).failed == 0


@pytest.mark.parametrize("kind", ["line", "interval"])
def test_a_chart_is_one_labelled_svg(kind: str) -> None:
    svg = two_lines(title="Loss") if kind == "line" else charts.interval_chart(ROWS, **LABELS, title="Loss")
    root = parse(svg)
    assert svg.startswith("<svg ")
    assert svg.rstrip().endswith("</svg>")
    assert root.get("role") == "img"
    for word in ("Loss", "loss (nats)", "step", "SFT"):
        assert word in root.get("aria-label", "")
    assert {"Loss", "loss (nats)", "step", "SFT"} <= set(texts(svg))
    assert root.get("viewBox") == f"0 0 {drawing.WIDTH} {drawing.HEIGHT}"
    assert not list(root.iter("style"))  # matplotlib's own style sheet would apply to the whole page
    assert not list(root.iter("metadata"))


def test_series_are_named_directly_in_the_order_of_their_ends() -> None:
    svg = charts.line_chart({"low": ([0, 1], [0.0, 1.0]), "high": ([0, 1], [0.0, 9.0])}, **LABELS)
    place = {"".join(t.itertext()): float(t.get("y")) for t in parse(svg).iter("text") if t.get("y")}
    assert place["high"] < place["low"] - 50


def test_labels_of_series_that_end_together_do_not_overlap() -> None:
    svg = charts.line_chart({f"method {n}": ([0, 1], [0.0, 1.0]) for n in range(5)}, **LABELS)
    places = sorted(float(t.get("y")) for t in parse(svg).iter("text") if "method" in "".join(t.itertext()))
    assert len(places) == 5
    assert all(after - before >= 10 for before, after in itertools.pairwise(places))
    assert places[0] > 0
    assert places[-1] < drawing.HEIGHT


def test_spread_keeps_labels_that_have_room() -> None:
    assert drawing.spread([1.0, 5.0, 9.0], [2.0, 2.0, 2.0], 0.0, 10.0) == [1.0, 5.0, 9.0]
    assert drawing.spread([9.5, 9.6], [2.0, 2.0], 0.0, 10.0) == [7.0, 9.0]
    assert drawing.spread([0.0, 0.1, 0.2], [2.0, 2.0, 2.0], 0.0, 10.0) == [1.0, 3.0, 5.0]


def test_charts_are_deterministic_and_do_not_depend_on_the_users_settings() -> None:
    import matplotlib

    first = two_lines()
    with matplotlib.rc_context({"font.size": 30, "axes.titlecolor": "red", "svg.fonttype": "path"}):
        assert two_lines() == first
        assert matplotlib.rcParams["font.size"] == 30
    assert not re.search(r"\b20\d\d-\d\d-\d\d", first)


def test_ids_of_two_charts_do_not_collide_and_references_resolve() -> None:
    first, second = two_lines(), charts.interval_chart(ROWS, **LABELS)
    assert ids(first)
    assert len(set(ids(first) + ids(second))) == len(ids(first)) + len(ids(second))
    for svg in (first, second):
        references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert references == set(ids(svg))


def test_axes_and_text_follow_the_pages_colour() -> None:
    svg = two_lines()
    for text in parse(svg).iter("text"):
        assert "fill: currentColor" in text.get("style", "")
        assert "system-ui" in text.get("style", "")
        assert "DejaVu" not in text.get("style", "")
    assert drawing.INK not in svg
    assert "#000000" not in svg
    assert "#ffffff" not in svg


def test_the_first_four_colours_stand_out_in_both_modes() -> None:
    for color in drawing.COLORS[:4]:
        for theme in (colors.LIGHT, colors.DARK):
            assert colors.contrast_ratio(color, theme.surface) >= 2.9, color
    assert len(set(drawing.COLORS)) == len(drawing.COLORS)
    assert len({(drawing.look(n).color, drawing.look(n).dash) for n in range(14)}) == 14


def test_a_method_keeps_its_look() -> None:
    assert drawing.slots(["a", "b", "c"], {"c": 0, "x": 1}) == {"a": 2, "b": 3, "c": 0}
    svg = charts.line_chart({"b": ([0, 1], [0.0, 1.0])}, **LABELS, slot={"b": 3})
    assert stroked(svg, drawing.COLORS[3])
    assert not stroked(svg, drawing.COLORS[0])


def test_hostile_labels_stay_text() -> None:
    for svg in (
        charts.line_chart({HOSTILE: ([0, 1], [0.0, 1.0])}, xlabel=HOSTILE, ylabel=HOSTILE, title=HOSTILE),
        charts.interval_chart({HOSTILE: [(0, 1, 0, 2)]}, xlabel=HOSTILE, ylabel=HOSTILE, title=HOSTILE),
    ):
        root = parse(svg)
        assert "script" not in {element.tag for element in root.iter()}
        assert texts(svg).count(HOSTILE) == 2  # x and y label, word for word
        assert HOSTILE in root.get("aria-label", "")
        assert "<script" not in svg


def test_labels_with_emoji_right_to_left_and_control_characters() -> None:
    svg = charts.line_chart({"👩‍🔬 مرحبا": ([0, 1], [0.0, 1.0]), "_x\x00\x0b": ([0, 1], [1.0, 0.0])}, **LABELS)
    assert "👩‍🔬 مرحبا" in texts(svg)
    assert "_x\ufffd\ufffd" in texts(svg)


def test_gaps_do_not_become_values() -> None:
    ys = [1.0, 2.0, math.nan, math.inf, 3.0, 4.0]
    svg = charts.line_chart({"a": (list(range(6)), ys)}, **LABELS)
    (line,) = stroked(svg, drawing.COLORS[0])[:1]
    assert len(line) == 4
    assert "nan" not in svg.lower()
    assert "inf" not in svg.lower()


@pytest.mark.parametrize("series", [{}, {"a": ([], [])}, {"a": ([0.0], [math.nan])}])
def test_a_chart_of_nothing_is_refused(series: dict) -> None:
    with pytest.raises(UserError, match="needs at least one finite value"):
        charts.line_chart(series, **LABELS)
    rows = {name: [(x, y, y, y) for x, y in zip(*values, strict=True)] for name, values in series.items()}
    with pytest.raises(UserError, match="needs at least one finite value"):
        charts.interval_chart(rows, **LABELS)


def test_bad_series_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="series 'a' has 2 x values and 1 y values"):
        charts.line_chart({"a": ([0, 1], [0.0])}, **LABELS)
    with pytest.raises(UserError, match="smooth must be at least 1"):
        charts.line_chart({"a": ([0], [0.0])}, **LABELS, smooth=0)
    with pytest.raises(UserError, match=r"series 'a' has an interval from 3\.0 to 2\.0"):
        charts.interval_chart({"a": [(0, 2.5, 3, 2)]}, **LABELS)
    with pytest.raises(UserError, match="3 numbers"):
        charts.interval_chart({"a": [(0, 1, 2)]}, **LABELS)
    with pytest.raises(UserError, match="positive finite value"):
        charts.line_chart({"a": ([0], [-1.0])}, **LABELS, logy=True)


def test_log_axis_spaces_powers_of_ten_evenly() -> None:
    svg = charts.line_chart({"a": ([0, 1, 2, 3], [1.0, 10.0, 100.0, -5.0])}, **LABELS, logy=True)
    (line,) = stroked(svg, drawing.COLORS[0])[:1]
    (_, one), (_, ten), (_, hundred) = line
    assert one - ten == pytest.approx(ten - hundred, rel=1e-3)


def test_moving_mean() -> None:
    assert charts.moving_mean([1.0, 2.0, 6.0, 3.0], 1) == [1.0, 2.0, 6.0, 3.0]
    assert charts.moving_mean([0.0, 2.0, 4.0, 6.0, 8.0], 3) == [1.0, 2.0, 4.0, 6.0, 7.0]
    gap = charts.moving_mean([1.0, math.nan, 3.0, 5.0], 3)
    assert math.isnan(gap[1])
    assert gap[2:] == [4.0, 4.0]


def test_smoothing_draws_the_mean_over_a_faint_raw_line() -> None:
    raw = {"a": (STEPS, [float(n % 2) for n in STEPS])}
    plain, smooth = charts.line_chart(raw, **LABELS), charts.line_chart(raw, **LABELS, smooth=10)
    assert "stroke-opacity: 0.3" not in plain
    assert "stroke-opacity: 0.3" in smooth
    faint, line = stroked(smooth, drawing.COLORS[0])[:2]
    height = lambda points: max(y for _, y in points) - min(y for _, y in points)
    assert height(line[10:-10]) < 0.05 * height(faint)


def test_thinning_keeps_spikes_ends_and_gaps() -> None:
    points = [(float(n), math.sin(n)) for n in range(50_000)]
    points[31_234], points[40_000] = (31_234.0, 77.0), (40_000.0, math.nan)
    kept = charts.thin(points)
    assert len(kept) <= charts.MAX_POINTS + 3
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert points[31_234] in kept
    assert any(math.isnan(y) for _, y in kept)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert charts.thin(points[:100]) == points[:100]


def test_intervals_are_drawn_to_scale_and_beside_each_other() -> None:
    svg = charts.interval_chart(ROWS, **LABELS)
    bars = {name: [b for b in stroked(svg, color) if len(b) == 2 and b[0][0] == b[1][0]] for name, color in _colors()}
    assert {name: len(found) for name, found in bars.items()} == {"SFT": 2, "IQLearn": 2}
    lengths = [abs(a[1] - b[1]) for found in bars.values() for a, b in found]
    assert max(lengths) == pytest.approx(min(lengths), rel=1e-3)
    assert bars["SFT"][0][0][0] < bars["IQLearn"][0][0][0]
    (x, low), (_, high) = bars["SFT"][0]
    line = stroked(svg, drawing.COLORS[0])[0]
    assert line[0] == pytest.approx((x, (low + high) / 2), abs=1e-3)


def _colors() -> list[tuple[str, str]]:
    return list(zip(ROWS, drawing.COLORS, strict=False))


def test_points_without_bounds_or_value() -> None:
    rows = [(0.0, 1.0, math.nan, math.nan), (1.0, math.nan, 0.0, 1.0), (2.0, 3.0, 2.0, 4.0)]
    svg = charts.interval_chart({"a": rows}, **LABELS)
    assert len(stroked(svg, drawing.COLORS[0])[0]) == 2
    assert {"0", "2"} <= set(texts(svg))
    assert "1" not in texts(svg)  # no tick for the point that is left out
    assert "nan" not in svg.lower()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[report\]'"):
        two_lines()
