"""What the page shows, as a file to keep: a self-contained HTML page, or a PNG."""

from __future__ import annotations

import io
import math
import tempfile
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..report.heatmap import ScoredAnswer, ScoredToken, heatmap_page, shared_scale
from ..report.png import heatmap_png

FORMATS = {"html": "text/html; charset=utf-8", "png": "image/png"}
"""Content type of every format."""

_ANSWERS, _TOKENS = 4, 50_000  # at most, of an export


def export(request: Any) -> tuple[bytes, str]:
    """The file and its content type.

    Args:
        request: `format` ("html" or "png"), `title`, `subtitle`, `scale` (reward in full colour, or None), and
            `answers`: `title`, `prompt`, `caption`, `tokens` as [text, reward or None], `marked` as [start, end] or
            None.

    Raises:
        UserError: something of another type, too much, or no matplotlib for a PNG.

    Example:
        >>> page, kind = export({"format": "html", "answers": [{"tokens": [["4", 0.2]]}]})
    """
    if not isinstance(request, dict) or request.get("format") not in list(FORMATS):
        raise UserError(f"'format' must be one of {', '.join(FORMATS)}")
    items = request.get("answers")
    if not isinstance(items, list) or not 1 <= len(items) <= _ANSWERS:
        raise UserError(f"'answers' must be a list of 1 to {_ANSWERS} answers")
    answers = [_answer(item) for item in items]
    if sum(len(answer.tokens) for answer in answers) > _TOKENS:
        raise UserError(f"an export takes up to {_TOKENS:,} tokens")
    scale = _scale(request.get("scale"))
    kind = FORMATS[request["format"]]
    if request["format"] == "html":
        page = heatmap_page(
            answers, _text(request, "title", "Token rewards"), subtitle=_text(request, "subtitle"), scale=scale
        )
        return page.encode("utf-8", "replace"), kind
    return _png(answers, scale), kind


def _answer(item: Any) -> ScoredAnswer:
    if not isinstance(item, dict) or not isinstance(item.get("tokens"), list):
        raise UserError("every answer needs its 'tokens' as a list")
    tokens = []
    for entry in item["tokens"]:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_number(entry[1])):
            raise UserError("a token is [text, reward], the reward a number or null")
        tokens.append(ScoredToken(entry[0], math.nan if entry[1] is None else float(entry[1])))
    marked = item.get("marked")
    if marked is not None and not (
        isinstance(marked, list) and len(marked) == 2 and all(isinstance(place, int) for place in marked)
    ):
        raise UserError("'marked' is [start, end], in tokens, or null")
    texts = {name: _text(item, name) for name in ("title", "prompt", "caption")}
    return ScoredAnswer(tokens, **texts, marked=None if marked is None else (marked[0], marked[1]))


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**300  # more than that is no float
    return value is None or isinstance(value, float)


def _text(item: dict[str, Any], name: str, default: str = "") -> str:
    value = item.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"'{name}' must be text")
    return value


def _scale(value: Any) -> float | None:
    if not _is_number(value):
        raise UserError("'scale' must be a number, or null")
    return None if value is None else float(value)


def _png(answers: list[ScoredAnswer], scale: float | None) -> bytes:
    """The answers one below the other, in the same colours."""
    full = shared_scale([answer.tokens for answer in answers]) if scale is None else scale
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            heatmap_png(
                answer.tokens,
                Path(folder) / f"{n}.png",
                title=answer.title,
                scale=full,
                marked=answer.marked,
                pixel_ratio=2,
            )
            for n, answer in enumerate(answers)
        ]
        if len(paths) == 1:
            return paths[0].read_bytes()
        return _stacked(paths)


def _stacked(paths: list[Path]) -> bytes:
    from PIL import Image  # matplotlib needs it, too

    pictures = [Image.open(path).convert("RGB") for path in paths]
    size = max(p.width for p in pictures), sum(p.height for p in pictures)
    whole = Image.new("RGB", size, "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    buffer = io.BytesIO()
    whole.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
