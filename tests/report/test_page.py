"""The page: self-contained, well-formed, escaped, and written whole or not at all."""

import doctest
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from inverselm.errors import UserError
from inverselm.report import colors, page
from inverselm.report.heatmap import ScoredToken, token_heatmap
from inverselm.report.page import Page, figure_fragment, render_text, table_fragment

HOSTILE = "<script>alert(1)</script>\"'&"
SVG = (
    '<svg role="img"><defs><path id="irl-0123456789-m1"/></defs>'
    '<use href="#irl-0123456789-m1" clip-path="url(#irl-0123456789-m1)"/></svg>'
)


class Elements(HTMLParser):
    """All elements as (tag, attributes); fails when tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def full_page() -> Page:
    heat = token_heatmap([ScoredToken("a", 1.0)])
    built = Page("Title", "subtitle").heading("One").text("words").heading("One").heading("Two", level=3)
    built.table(["m", "x"], [["a", 1.5]], caption="numbers", highlight=[(0, 1)]).figure(SVG, "chart").html(heat)
    return built.columns([figure_fragment(SVG), figure_fragment(SVG)]).details("more", table_fragment(["a"], [[1]]))


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(page).failed == 0


def test_document_is_well_formed_and_self_contained() -> None:
    html = full_page().render()
    elements = Elements(html)
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert {"charset": "utf-8"} in elements.named("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in elements.named("meta")
    assert len(elements.named("h1")) == len(elements.named("title")) == len(elements.named("main")) == 1
    assert not {name for name, _ in elements.found} & {"script", "link", "iframe", "img"}
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    policy = next(a["content"] for a in elements.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_style_covers_dark_mode_phones_and_print() -> None:
    css = resources.files("inverselm.report").joinpath("style.css").read_text(encoding="utf-8")
    assert css.strip() in full_page().render()
    for needed in ("prefers-color-scheme: dark", "@media print", "max-width: 640px", "overflow-x: auto"):
        assert needed in css
    assert "<" not in css
    assert css.count("{") == css.count("}")


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_page_text_is_readable(mode: int) -> None:
    css = resources.files("inverselm.report").joinpath("style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[mode]
    values = dict(re.findall(r"--(\w+): (#\w{6})", block))
    pairs = [("text", back) for back in ("page", "card", "best", "code")]
    pairs += [(ink, back) for ink in ("muted", "link") for back in ("page", "card")]
    for ink, back in pairs:
        assert colors.contrast_ratio(values[ink], values[back]) >= 4.5, (ink, back)


def test_the_heatmap_style_is_kept_once_and_only_when_needed() -> None:
    heat = token_heatmap([ScoredToken("a", 1.0)])
    assert Page("t").html(heat).columns([heat, heat]).render().count(colors.heatmap_style()) == 1
    assert colors.heatmap_style() not in Page("t").text("x").render()


def test_ids_are_unique_even_when_a_chart_appears_three_times() -> None:
    html = full_page().render()
    ids = [attributes["id"] for _, attributes in Elements(html).found if "id" in attributes]
    assert len(ids) == len(set(ids)) == 6  # three headings and three charts
    assert ids[:3] == ["s-one", "s-one-2", "s-two"]
    for svg in re.findall(r"<svg.*?</svg>", html):
        assert len(set(re.findall(r"irl-\d-0123456789-m1", svg))) == 1
        assert len(re.findall(r"irl-\d-0123456789-m1", svg)) == 3


def test_text_from_outside_is_escaped_everywhere() -> None:
    built = Page(HOSTILE, HOSTILE).heading(HOSTILE).text(f"{HOSTILE} **{HOSTILE}** `{HOSTILE}`\n\n- {HOSTILE}")
    built.table([HOSTILE], [[HOSTILE]], caption=HOSTILE).figure("<svg></svg>", HOSTILE).details(HOSTILE, "<p>fine</p>")
    html = built.render()
    elements = Elements(html)
    assert not elements.named("script")
    assert html.count("&lt;script&gt;") >= 11
    names = {name for _, attributes in elements.found for name in attributes}
    assert not [name for name in names if name.startswith("on") or "'" in name or '"' in name]


def test_html_is_trusted_as_it_is() -> None:
    assert '<b class="x">1 & 2</b>' in Page("t").html('<b class="x">1 & 2</b>').render()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("one\ntwo\n\nthree", "<p>one two</p>\n<p>three</p>"),
        ("- a\n- *b*", "<ul><li>a</li><li><em>b</em></li></ul>"),
        ("**bold *and* more**", "<p><strong>bold <em>and</em> more</strong></p>"),
        ("2 * 3 * 4", "<p>2 * 3 * 4</p>"),
        ("`**raw** <b>`", "<p><code>**raw** &lt;b&gt;</code></p>"),
        (
            "[a *b*](https://x.org/?q=1&r=2)",
            '<p><a href="https://x.org/?q=1&amp;r=2" rel="noreferrer">a <em>b</em></a></p>',
        ),
        ("[here](#s-one)", '<p><a href="#s-one" rel="noreferrer">here</a></p>'),
        ("[x](javascript:alert)", "<p>[x](javascript:alert)</p>"),
        ("[x](data:text/html,y)", "<p>[x](data:text/html,y)</p>"),
        ('[x](https://a"onclick=b)', '<p><a href="https://a&quot;onclick=b" rel="noreferrer">x</a></p>'),
        ("a\x00 \u202eb", "<p>a⟨U+0000⟩ ⟨U+202E⟩b</p>"),
        ("", ""),
    ],
)
def test_small_markdown(source: str, expected: str) -> None:
    assert render_text(source) == expected


def test_table_aligns_numbers_and_stresses_cells() -> None:
    rows = [["SFT", "61.0 ± 2.4", 1234.5, None], ["DPR", "64.5 (62–67)", -0.25, 3]]
    html = table_fragment(["method", "acc", "x", "n"], rows, highlight=[(1, 1)])
    assert '<th scope="row">SFT</th><td class="right">61.0 ± 2.4</td><td class="right">1,234</td>' in html
    assert '<td class="right best">64.5 (62–67)</td><td class="right">−0.25</td><td class="right">3</td>' in html
    assert '<td class="right">–</td>' in html
    assert html.count("best") == 1
    assert '<th scope="col">method</th><th scope="col" class="right">acc</th>' in html


def test_table_align_can_be_given() -> None:
    html = table_fragment(["a", "b", "c"], [["1", "2", "x"]], align="lcr")
    assert '<th scope="row">1</th><td class="center">2</td><td class="right">x</td>' in html
    assert html == table_fragment(["a", "b", "c"], [["1", "2", "x"]], align=["left", "center", "right"])


def test_table_shows_missing_numbers_and_can_be_scrolled_with_the_keyboard() -> None:
    html = table_fragment(["a"], [[float("nan")], [float("inf")], [0.123456], [-5]], caption="cap")
    assert [re.sub("<.*?>", "", cell) for cell in re.findall(r"<tr>(.*?)</tr>", html)[1:]] == [
        "n/a",
        "inf",
        "0.1235",
        "-5",
    ]
    assert '<div class="scroll" tabindex="0" role="region" aria-label="cap">' in html


def test_bad_tables_and_headings_are_refused() -> None:
    with pytest.raises(UserError, match="row 1 has 1 cells, its header 2"):
        table_fragment(["a", "b"], [[1, 2], [1]])
    for align in ("l", "lx"):
        with pytest.raises(UserError, match="one of l, c, r for each of the 2 columns"):
            table_fragment(["a", "b"], [[1, 2]], align=align)
    with pytest.raises(UserError, match="level"):
        Page("t").heading("x", level=1)


def test_write_makes_folders_and_replaces_the_old_page(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    assert Page("Größe 👩‍🔬 \ud83d").write(target) == target
    assert "Größe 👩‍🔬" in target.read_text(encoding="utf-8")
    Page("second").write(str(target))
    assert "second" in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_page_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Page("first").write(tmp_path / "report.html")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.os, "replace", broken)
    with pytest.raises(UserError, match="No space left on device"):
        Page("second").write(target)
    assert "first" in target.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path, tmp_path / "file" / "report.html"):
        with pytest.raises(UserError, match=r"cannot write .*choose another path"):
            Page("t").write(target)
