"""What a person looks at: token heatmaps, charts and self-contained HTML pages. matplotlib loads only to draw."""

from .charts import interval_chart, line_chart
from .heatmap import ScoredAnswer, ScoredToken, heatmap_page, shared_scale, token_heatmap
from .page import Page, figure_fragment, render_text, table_fragment
from .png import heatmap_png
from .study_report import study_page

__all__ = [
    "Page",
    "ScoredAnswer",
    "ScoredToken",
    "figure_fragment",
    "heatmap_page",
    "heatmap_png",
    "interval_chart",
    "line_chart",
    "render_text",
    "shared_scale",
    "study_page",
    "table_fragment",
    "token_heatmap",
]
