"""What a study's page is made of, and how its sections are begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .page import Page, figure_fragment
from .study_drawing import chart_svg, charts_png
from .study_figures import Figure, Figures, size_title
from .study_words import safe

if TYPE_CHECKING:
    from ..study.contents import Study
    from ..study.verdicts import Verdict

ERROR_BARS = "Points are means over seeds; bars reach from the lowest seed to the highest."


@dataclass
class Made:
    """What the page is made of.

    Attributes:
        study: from `load_study`.
        verdicts: the study's.
        against_each: Dense-Path REINFORCE against the reference and every control.
        figures: the charts' source.
        heatmaps: per answer, one for each reward; None if they were not asked for.
        heatmap_note: what could not be scored.
        settings: of the tests.
        png_dir: where PNGs go.
        left_out: sections without data, and why.
        written: names of the PNGs that were written.
    """

    study: Study
    verdicts: Sequence[Verdict]
    against_each: Sequence[Verdict]
    figures: Figures
    heatmaps: Sequence[Sequence[Any]] | None
    heatmap_note: str
    settings: dict[str, Any]
    png_dir: Path
    left_out: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def png(self, name: str) -> Path:
        """Where to write a figure, which is noted."""
        self.written.append(f"{name}.png")
        return self.png_dir / f"{name}.png"

    def skip(self, section: str, why: str) -> bool:
        """Say that a section is left out; False, for the section to return."""
        self.left_out.append(f"{section}: {why}.")
        return False


def heading(page: Page, anchor: str, title: str) -> None:
    """A section's heading, with the id that the page's contents link to."""
    page.html(f'<h2 id="{safe(anchor)}">{safe(title)}</h2>')


def size_heading(page: Page, study: Study, size: str) -> None:
    """A size's heading within a section, if there is more than one size."""
    if len(study.sizes) > 1:
        page.html(f"<h3>{safe(size_title(study, size)).capitalize()}</h3>")


def say(page: Page, text: str) -> None:
    """A paragraph of plain text."""
    page.html(f"<p>{safe(text)}</p>")


def show(made: Made, page: Page, figure: Figure, *, fold: str = "") -> None:
    """A figure's charts side by side, those of controls folded (or all, under `fold`); and its PNG."""
    charts_png(figure.charts, made.png(figure.name), title=figure.title, note=figure.caption, columns=figure.columns)
    if fold:
        page.details(fold, _side_by_side(figure.charts))
        return
    controls = [chart for chart in figure.charts if getattr(chart, "control", False)]
    others = [chart for chart in figure.charts if not getattr(chart, "control", False)]
    page.html(_side_by_side(others or controls))
    if others and controls:
        page.details(f"Controls ({len(controls)})", _side_by_side(controls))


def _side_by_side(charts: Sequence[Any]) -> str:
    cells = "".join(f"<div>{figure_fragment(chart_svg(chart))}</div>" for chart in charts)
    return f'<div class="columns">{cells}</div>'
