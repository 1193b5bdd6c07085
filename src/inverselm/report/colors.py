"""Colours of the token heatmaps: a diverging, colour-blind-safe ramp; text is readable (WCAG AA) at every step."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

LEVELS = 20
"""Steps of the ramp on each side of zero."""


@dataclass(frozen=True)
class Theme:
    """Colours of one mode. `positive` and `negative` are the ends of the ramp, `surface` is its middle (zero)."""

    surface: str
    text: str
    muted: str
    border: str
    positive: str
    negative: str


LIGHT = Theme("#ffffff", "#14171c", "#586070", "#d5d9e0", positive="#57a0e5", negative="#f0913a")
DARK = Theme("#171a20", "#f4f5f7", "#a6aebb", "#3a404b", positive="#1f6db8", negative="#b35106")


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def mix(start: str, end: str, weight: float) -> str:
    """Straight line in sRGB from `start` (weight 0) to `end` (weight 1).

    >>> mix("#000000", "#ffffff", 0.5)
    '#808080'
    """
    parts = (round(a + (b - a) * weight) for a, b in zip(_rgb(start), _rgb(end), strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def ramp_color(level: int, theme: Theme = LIGHT) -> str:
    """Background colour of one step, from -LEVELS (most negative) over 0 (neutral) to LEVELS (most positive).

    >>> ramp_color(0), ramp_color(LEVELS) == LIGHT.positive
    ('#ffffff', True)
    """
    end = theme.positive if level > 0 else theme.negative
    return mix(theme.surface, end, abs(level) / LEVELS)


def contrast_ratio(first: str, second: str) -> float:
    """Contrast of two colours after WCAG 2: 1 (the same) to 21 (black on white); body text needs 4.5.

    >>> round(contrast_ratio("#000000", "#ffffff"))
    21
    """
    dark, light = sorted((_luminance(first), _luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    channels = [part / 255 for part in _rgb(color)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _rules(theme: Theme) -> str:
    names = ("surface", "text", "muted", "border", "positive", "negative")
    variables = "".join(f"--irl-{name}:{getattr(theme, name)};" for name in names)
    steps = [(f"p{n}", n) for n in range(1, LEVELS + 1)] + [(f"n{n}", -n) for n in range(1, LEVELS + 1)]
    colors = "".join(f".irl-heat .{name}{{background:{ramp_color(level, theme)}}}" for name, level in steps)
    return f".irl-heat{{{variables}}}{colors}"


@cache
def heatmap_style() -> str:
    """The `<style>` element that every heatmap fragment carries; a page keeps one copy of it in its head.

    >>> heatmap_style().startswith("<style>")
    True
    """
    static = resources.files(__package__).joinpath("heatmap.css").read_text(encoding="utf-8")
    dark = f"@media screen and (prefers-color-scheme:dark){{{_rules(DARK)}}}"
    return f"<style>{_rules(LIGHT)}{dark}\n{static}</style>"
