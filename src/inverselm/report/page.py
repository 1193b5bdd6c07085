"""One self-contained HTML page: no script, no network, light and dark, phone to print."""

import math
import os
import re
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from html import escape
from importlib import resources
from pathlib import Path

from inverselm.errors import UserError

from .colors import heatmap_style
from .heatmap import visible_text

_ALIGN = {"l": "left", "c": "center", "r": "right"}
_NUMBER = re.compile(r"[+−-]?[\d,]*\.?\d+(e[+-]?\d+)?\s*%?(\s*(±|\[|\().*)?|n/a|–|inf|-inf", re.IGNORECASE)
_INLINE = re.compile(r"(?<!\*)(\*\*|\*)(?=[^\s*])(.+?)(?<=[^\s*])\1(?!\*)")
_LINK = re.compile(r"\[([^\]\[]+)\]\((https?://[^\s()]+|#[\w.-]+)\)")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

Cell = str | int | float | None


class Page:
    """A report, built from top to bottom. Every text is escaped; only `html` and fragments are taken as they are.

    >>> page = Page("Results", "three methods").heading("Accuracy").text("IQLearn is **best**.")
    >>> html = page.table(["method", "accuracy"], [["SFT", 0.55], ["IQLearn", 0.61]], highlight={(1, 1)}).render()
    >>> "<strong>best</strong>" in html and html.startswith("<!doctype html>")
    True
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []
        self._anchors: set[str] = set()

    def text(self, source: str) -> "Page":
        """Paragraphs (blank lines between) and `- ` lists, with **bold**, *emphasis*, `code` and [links](https://..)."""
        return self.html(render_text(source))

    def heading(self, text: str, level: int = 2) -> "Page":
        """A heading of level 2 or 3, with an id made from its words."""
        if level not in (2, 3):
            raise UserError(f"heading level must be 2 or 3 (1 is the page's title), not {level}")
        base = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
        anchor = next(name for n in range(1, 10**6) if (name := base if n == 1 else f"{base}-{n}") not in self._anchors)
        self._anchors.add(anchor)
        return self.html(f'<h{level} id="s-{anchor}">{_safe(text)}</h{level}>')

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        caption: str = "",
        align: str | Sequence[str] | None = None,
        highlight: Collection[tuple[int, int]] | None = None,
    ) -> "Page":
        """A table; see `table_fragment`."""
        return self.html(table_fragment(header, rows, caption, align, highlight))

    def html(self, fragment: str) -> "Page":
        """A trusted piece of HTML, such as a heatmap: it is not escaped."""
        self._parts.append(fragment)
        return self

    def figure(self, svg: str, caption: str = "") -> "Page":
        """A chart with its caption; see `figure_fragment`."""
        return self.html(figure_fragment(svg, caption))

    def columns(self, fragments: Sequence[str]) -> "Page":
        """Trusted fragments side by side where there is room, below each other on a phone."""
        cells = "".join(f"<div>{fragment}</div>" for fragment in fragments)
        return self.html(f'<div class="columns">{cells}</div>')

    def details(self, summary: str, fragment: str) -> "Page":
        """A trusted fragment that opens when its summary line is clicked."""
        return self.html(f'<details><summary>{_safe(summary)}</summary><div class="detail">{fragment}</div></details>')

    @property
    def body(self) -> str:
        """What was added so far, as HTML, for another page's `html`."""
        return "\n".join(self._parts)

    def render(self) -> str:
        """The whole document."""
        style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
        body = self.body
        heat = heatmap_style() if heatmap_style() in body else ""
        body = _distinct_ids(body.replace(heatmap_style(), ""))
        subtitle = f'<p class="subtitle">{_safe(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f"<title>{_safe(self.title)}</title>\n<style>\n{style}</style>\n{heat}\n</head>\n<body>\n<main>\n"
            f"<header><h1>{_safe(self.title)}</h1>{subtitle}</header>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return its path; missing folders are made."""
        target = Path(path)
        write_whole(target, self.render().encode("utf-8", "replace"))
        return target


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another path") from error
    finally:
        with suppress(OSError):  # gone already, or its folder is no folder
            part.unlink()


def render_text(source: str) -> str:
    """The small Markdown of `Page.text` as HTML.

    >>> render_text("2 < 3, *really*")
    '<p>2 &lt; 3, <em>really</em></p>'
    """
    blocks = [block for block in re.split(r"\n\s*\n", visible_text(source).strip()) if block.strip()]
    return "\n".join(_block(block) for block in blocks)


def table_fragment(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    caption: str = "",
    align: str | Sequence[str] | None = None,
    highlight: Collection[tuple[int, int]] | None = None,
) -> str:
    """A table that scrolls within itself when it is too wide.

    `align` has one of l, c, r per column, as in "lrr" (default: columns of numbers to the right). `highlight` names
    cells to stress as (row, column), counted from 0. Floats are shown with four digits or as whole
    thousands, None as a dash, NaN as "n/a".

    >>> "<td" in table_fragment(["method", "accuracy"], [["SFT", 55.1]])
    True
    """
    texts = [[_cell(value) for value in row] for row in rows]
    for number, row in enumerate(texts):
        if len(row) != len(header):
            raise UserError(f"table row {number} has {len(row)} cells, its header {len(header)}; make them equal")
    sides = _sides(align, texts, len(header))
    stressed = set(highlight or ())
    head = "".join(f'<th scope="col"{_classes(side)}>{_safe(h)}</th>' for h, side in zip(header, sides, strict=True))
    lines = []
    for number, row in enumerate(texts):
        names = [_classes(side, (number, column) in stressed) for column, side in enumerate(sides)]
        cells = [f"<td{name}>{_safe(text)}</td>" for text, name in zip(row, names, strict=True)]
        if cells:
            cells[0] = f'<th scope="row"{names[0]}>{_safe(row[0])}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
    scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{_safe(caption or "Table")}">'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<figure class="table">{title}{scroll}{table}</div></figure>'


def figure_fragment(svg: str, caption: str = "") -> str:
    """A trusted `<svg>` (from `charts`) with its caption below; the caption is escaped and may use the small Markdown.

    >>> figure_fragment("<svg></svg>", "loss & *reward*")
    '<figure class="figure"><svg></svg><figcaption>loss &amp; <em>reward</em></figcaption></figure>'
    """
    return f'<figure class="figure">{svg}{f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""}</figure>'


def _safe(text: str) -> str:
    return escape(visible_text(str(text)), quote=True)


def _block(block: str) -> str:
    lines = [line.strip() for line in block.splitlines()]
    if all(line.startswith("- ") for line in lines):
        return f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _inline(source: str) -> str:
    parts = re.split(r"`([^`]+)`", visible_text(source))
    return "".join(f"<code>{_safe(p)}</code>" if n % 2 else _emphasis(p) for n, p in enumerate(parts))


def _emphasis(source: str) -> str:
    def tag(match: re.Match[str]) -> str:
        name = "strong" if match[1] == "**" else "em"
        return f"<{name}>{_INLINE.sub(tag, match[2])}</{name}>"

    parts = _LINK.split(source)  # text, link text, address, text, ..
    shown = [_INLINE.sub(tag, _safe(part)) for part in parts]
    for n in range(1, len(parts), 3):
        shown[n], shown[n + 1] = f'<a href="{_safe(parts[n + 1])}" rel="noreferrer">{shown[n]}</a>', ""
    return "".join(shown)


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        wide = 1e3 <= abs(value) < 1e9
        return ("n/a" if math.isnan(value) else f"{value:,.0f}" if wide else f"{value:.4g}").replace("-", "−")
    return str(value)


def _sides(align: str | Sequence[str] | None, rows: Sequence[Sequence[str]], count: int) -> list[str]:
    if align is None:
        numeric = [bool(rows) and all(_NUMBER.fullmatch(row[n].strip()) for row in rows) for n in range(count)]
        return ["right" if is_number else "left" for is_number in numeric]
    sides = [_ALIGN.get(str(side)[:1].lower(), "") for side in align]
    if len(sides) != count or not all(sides):
        raise UserError(f"align={align!r} must give one of l, c, r for each of the {count} columns")
    return sides


def _classes(side: str, best: bool = False) -> str:
    names = [name for name in (side if side != "left" else "", "best" if best else "") if name]
    return f' class="{" ".join(names)}"' if names else ""


def _distinct_ids(body: str) -> str:
    """The same chart twice would repeat its ids: number the charts of the page."""
    numbers = iter(range(1, body.count("<svg") + 1))
    return re.sub(r"<svg\b.*?</svg>", lambda m: _number_ids(m[0], next(numbers)), body, flags=re.DOTALL)


def _number_ids(svg: str, number: int) -> str:
    return re.sub(r'((?: id="|="#|="url\(#)irl-)(?=[0-9a-f]{10}-)', rf"\g<1>{number}-", svg)
