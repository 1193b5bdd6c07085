"""Everything on the page can be read in both themes (WCAG AA); the style sheets name only colours that there are."""

import re
from pathlib import Path

import pytest

from inverselm.inspection import app
from inverselm.inspection.palette import palette_css
from inverselm.report.colors import contrast_ratio

THEMES = [dict(re.findall(r"--([\w-]+):(#\w+);", part)) for part in palette_css().split("\n")[:3]]


@pytest.mark.parametrize("theme", THEMES)
def test_contrast(theme):
    for surface in ("page", "surface", "field", "chosen"):
        assert contrast_ratio(theme["text"], theme[surface]) >= 4.5
    for surface in ("page", "surface"):
        assert contrast_ratio(theme["muted"], theme[surface]) >= 4.5
        assert contrast_ratio(theme["link"], theme[surface]) >= 4.5
        for line in ("line-1", "line-2", "line-3"):
            assert contrast_ratio(theme[line], theme[surface]) >= 3.0
    for step in range(1, 21):
        for sign in "pn":
            assert contrast_ratio(theme["text"], theme[f"{sign}{step}"]) >= 4.5


def test_the_dark_theme_is_the_same_by_choice_and_by_the_system():
    assert THEMES[1] == THEMES[2] != THEMES[0]


def test_the_style_sheets_use_colours_that_exist():
    for name in ("page.css", "parts.css"):
        text = (Path(app.STATIC) / name).read_text(encoding="utf-8")
        used = set(re.findall(r"var\(--([\w-]+)\)", text))
        assert used
        assert used <= set(THEMES[0]) | {"shadow"}
        assert "http" not in text
        assert "@import" not in text
