"""What the charts share: matplotlib on demand, a series' look, labels at line ends, and clean inline SVG."""

import hashlib
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from inverselm.errors import UserError

INK = "#010203"
"""Drawn in this colour, written as `currentColor`: axes and text follow the page's text colour, light or dark."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", INK, "#e69f00", "#56b4e9")
"""Okabe-Ito, strongest first; black follows the text colour, and yellow is left out (invisible on white)."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH, HEIGHT = 400, 262  # points
_LABEL_SIZE, _LABEL_CHARS = 10.5, 15
_LEFT = 0.012  # where titles begin, as a part of the width
_XML_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Look:
    """How one series is drawn: colour, marker and dash differ, so that colour is never the only cue."""

    color: str
    marker: str
    dash: Any


def look(slot: int) -> Look:
    """The look of the series with this number; series beyond the palette repeat colours with another dash.

    >>> look(0).color
    '#0072b2'
    """
    turn = slot // len(COLORS)
    return Look(COLORS[slot % len(COLORS)], MARKERS[slot % len(MARKERS)], DASHES[turn % len(DASHES)])


def slots(names: Sequence[str], chosen: Mapping[str, int] | None) -> dict[str, int]:
    """A look's number per series: the one in `chosen`, else the first numbers that are free, in order.

    >>> slots(["SFT", "IQLearn"], {"IQLearn": 0})
    {'SFT': 1, 'IQLearn': 0}
    """
    taken = dict(chosen or {})
    free = (n for n in range(len(names) + len(taken)) if n not in taken.values())
    return {name: taken[name] if name in taken else next(free) for name in names}


def matplotlib() -> Any:
    """The matplotlib module, or a `UserError` that says how to install it."""
    try:
        import matplotlib as module
    except ImportError as error:
        raise UserError("charts and PNG files need matplotlib: pip install 'inverselm[report]'") from error
    return module


def style() -> AbstractContextManager[None]:
    """Settings for one chart; the caller's own matplotlib settings stay as they are."""
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "inverselm",
        "text.parse_math": False,
        "text.hinting": "none",  # hinted advances are whole pixels: text would drift from what is placed under it
        "font.family": ["DejaVu Sans"],
        "font.size": _LABEL_SIZE,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    matplotlib()
    from matplotlib import style as styles

    return styles.context(["default", settings])


def new_axes(*, xlabel: str, ylabel: str, title: str) -> tuple[Any, Any]:
    """A figure and its axes: light grid, no box, the y label on top where it is easy to read."""
    matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_alpha(0.45)
    axes.grid(axis="y", color=INK, alpha=0.13, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=10, pad=5)
    axes.tick_params(axis="x", length=3, width=0.8)
    axes.locator_params(axis="x", nbins=6)
    axes.locator_params(axis="y", nbins=8)
    axes.set_xlabel(_plain(xlabel), fontsize=_LABEL_SIZE)
    axes.set_title(_plain(ylabel), loc="left", fontsize=_LABEL_SIZE, pad=8)
    if title:
        figure.suptitle(_wrapped(title, 48), x=_LEFT, ha="left", fontsize=12, fontweight="bold")
    return figure, axes


def label_ends(figure: Any, axes: Any, ends: Mapping[str, tuple[float, Look]]) -> None:
    """Lay the chart out and name every series beside its last value; labels that would collide move apart."""
    names = sorted(ends, key=lambda name: ends[name][0])
    texts = [_end_label(axes, name, ends[name][0]) for name in names]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = axes.get_window_extent()
    axes.set_title(
        axes.get_title("left"),
        loc="left",
        fontsize=_LABEL_SIZE,
        pad=8,
        x=(_LEFT * figure.bbox.width - box.x0) / box.width,
    )
    wanted = [axes.transData.transform((0, ends[name][0]))[1] for name in names]
    heights = [text.get_window_extent().height * 1.2 for text in texts]
    for name, text, y in zip(names, texts, spread(wanted, heights, box.y0, box.y1), strict=True):
        place = (y - box.y0) / box.height
        text.xy, text.xycoords = (1, place), "axes fraction"
        _swatch(figure, axes, ends[name][1], place)


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centres near `wanted` (sorted) whose boxes do not overlap, within [low, high] if there is room.

    >>> spread([5.0, 5.0], [2.0, 2.0], 0.0, 10.0)
    [4.0, 6.0]
    """
    groups: list[tuple[float, list[int]]] = []  # (bottom edge, members), from low to high
    for index in range(len(wanted)):
        members = [index]
        bottom = _bottom(members, wanted, heights, low, high)
        while groups and groups[-1][0] + sum(heights[i] for i in groups[-1][1]) > bottom:
            members = groups.pop()[1] + members
            bottom = _bottom(members, wanted, heights, low, high)
        groups.append((bottom, members))
    centres = []
    for bottom, members in groups:
        for index in members:
            centres.append(bottom + heights[index] / 2)
            bottom += heights[index]
    return centres


def to_svg(figure: Any, label: str, *, max_width: int = 640) -> str:
    """The figure as one `<svg>` element for inline use: no style sheet, and ids that other charts do not have.

    It is as wide as its place, and at most `max_width` pixels.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    for element in root.iter():
        _simplify(element)
    _rename_ids(root, f"irl-{hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:10]}")
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-label": _plain(label),
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
        "style": f"display:block;width:100%;height:auto;max-width:{max_width}px",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _simplify(element: ElementTree.Element) -> None:
    """Without namespaces, layout whitespace and fixed text colours or fonts."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {name.rpartition("}")[2]: value for name, value in element.items()}
    for name, value in attributes.items():
        value = re.sub(r"(font-family:|font: [^;']*px) [^;]*", rf"\1 {FONTS}", value.replace(INK, "currentColor"))
        attributes[name] = re.sub(r"\s+", " ", value).strip()
    element.attrib = attributes
    element.tail = None
    if element.tag not in ("text", "tspan"):
        element.text = None


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Give the ids in use a prefix of this chart's own and drop the others."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = set(re.findall(r"(?:^|\(|\s)#(\w+)", "\n".join(values)))
    for element in root.iter():
        if element.attrib.get("id", "") not in used:
            element.attrib.pop("id", None)
        for name, value in element.items():
            if name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name in ("href", "clip-path"):
                element.set(name, value.replace("#", f"#{prefix}-"))


def _bottom(members: list[int], wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> float:
    total, above, ideal = sum(heights[i] for i in members), 0.0, 0.0
    for index in members:
        ideal += wanted[index] - (above + heights[index] / 2)
        above += heights[index]
    return max(low, min(ideal / len(members), high - total))


def _end_label(axes: Any, name: str, y: float) -> Any:
    place = axes.get_yaxis_transform()
    return axes.annotate(
        _wrapped(name, _LABEL_CHARS), (1, y), (25, 0), place, "offset points", va="center", fontsize=_LABEL_SIZE,
        annotation_clip=False, linespacing=1.05,
    )  # fmt: skip


def _swatch(figure: Any, axes: Any, series: Look, place: float) -> None:
    from matplotlib.lines import Line2D

    points = axes.get_window_extent().width / figure.dpi * 72
    xs = [1 + offset / points for offset in (5, 13, 21)]
    line = Line2D(
        xs, [place] * 3, color=series.color, linestyle=series.dash, linewidth=1.8, marker=series.marker, markevery=[1],
        markersize=5, transform=axes.transAxes, clip_on=False,
    )  # fmt: skip
    axes.add_artist(line)


def _plain(text: str) -> str:
    return _XML_INVALID.sub("\ufffd", str(text))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(_plain(text), width, max_lines=3, placeholder="…")) or " "
