"""The style sheet of all colours of the page, in light and dark; the tokens have the ramp that all heatmaps share."""

from __future__ import annotations

from ..report.colors import DARK, LEVELS, LIGHT, Theme, ramp_color

_PAGE = {  # what the heatmaps alone do not need: surfaces, links, and lines of curves (Okabe-Ito, darker or lighter)
    "light": {
        "page": "#f7f8fa",
        "field": "#ffffff",
        "line": "#e8ebef",
        "link": "#0b5cad",
        "chosen": "#e3effb",
        "shadow": "0 6px 24px rgb(20 23 28 / .16)",
        "line-1": "#0b6cb3",
        "line-2": "#b3541e",
        "line-3": "#007a5a",
    },
    "dark": {
        "page": "#0f1115",
        "field": "#101318",
        "line": "#262b33",
        "link": "#82bcf7",
        "chosen": "#153453",
        "shadow": "0 6px 24px rgb(0 0 0 / .6)",
        "line-1": "#6db3f2",
        "line-2": "#f29b52",
        "line-3": "#4cc9a0",
    },
}


def palette_css() -> str:
    """`.p1` .. `.p20` (positive) and `.n1` .. `.n20` (negative) of both themes; `data-theme` on the root wins.

    >>> ".p20{background:var(--p20)}" in palette_css()
    True
    """
    light, dark = _variables(LIGHT, "light"), _variables(DARK, "dark")
    steps = "".join(f".{sign}{n}{{background:var(--{sign}{n})}}" for sign in "pn" for n in range(1, LEVELS + 1))
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n{steps}\n"
    )


def _variables(theme: Theme, name: str) -> str:
    fixed = {part: getattr(theme, part) for part in ("surface", "text", "muted", "border", "positive", "negative")}
    fixed |= {f"p{n}": ramp_color(n, theme) for n in range(1, LEVELS + 1)}
    fixed |= {f"n{n}": ramp_color(-n, theme) for n in range(1, LEVELS + 1)} | _PAGE[name]
    return "".join(f"--{key}:{value};" for key, value in fixed.items())
