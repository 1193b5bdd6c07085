"""The token heatmap: what it shows, what it escapes, and that its text can be read."""

import doctest
import itertools
import math
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from inverselm.errors import UserError
from inverselm.report import colors, heatmap
from inverselm.report.heatmap import ScoredAnswer, ScoredToken, heatmap_page, shared_scale, token_heatmap

HOSTILE = "<script>alert(1)</script>\"'&"
VOID = {"meta", "br", "img", "link", "hr"}


class Tree(HTMLParser):
    """Checks that tags nest, and collects elements, their text and their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.stack: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"repeated attribute in {tag}: {attrs}"
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text))
        if tag not in VOID:
            self.open.append(tag)
            self.stack.append(text)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        self.stack.pop()

    def handle_data(self, data):
        for text in self.stack:
            text.append(data)

    def texts(self, tag: str, cls: str = "") -> list[str]:
        return ["".join(t) for name, a, t in self.elements if name == tag and cls in (a.get("class") or "").split(" ")]

    def tokens(self) -> list[tuple[dict[str, str | None], str]]:
        return [(a, "".join(t)) for name, a, t in self.elements if name == "span" and "title" in a]


def scored(*pairs: tuple[str, float]) -> list[ScoredToken]:
    return [ScoredToken(text, reward) for text, reward in pairs]


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(heatmap).failed == 0
    assert doctest.testmod(colors).failed == 0


def test_colours_follow_sign_and_size() -> None:
    spans = Tree(
        token_heatmap(scored(("a", 1.0), ("b", 0.5), ("c", 0.0), ("d", -1.0), ("e", -7.0)), scale=1.0)
    ).tokens()
    n = colors.LEVELS
    assert [a.get("class") for a, _ in spans] == [f"p{n}", f"p{n // 2}", None, f"n{n}", f"n{n}"]
    red, green, blue = colors._rgb(colors.LIGHT.positive)
    assert blue > max(red, green)
    red, green, blue = colors._rgb(colors.LIGHT.negative)
    assert red > green > blue


def test_the_ramp_is_a_straight_line_and_its_css_has_every_step_in_both_modes() -> None:
    style = colors.heatmap_style()
    light, dark = style.split("@media screen and (prefers-color-scheme:dark)")
    for level in (level for level in range(-colors.LEVELS, colors.LEVELS + 1) if level):
        name = f"{'p' if level > 0 else 'n'}{abs(level)}"
        for css, theme in ((light, colors.LIGHT), (dark, colors.DARK)):
            assert re.findall(rf"\.{name}{{background:(#\w+)}}", css) == [colors.ramp_color(level, theme)]
    assert f"--irl-text:{colors.LIGHT.text}" in light
    assert f"--irl-text:{colors.DARK.text}" in dark


@pytest.mark.parametrize("theme", [colors.LIGHT, colors.DARK], ids=["light", "dark"])
def test_text_is_readable_on_every_colour(theme: colors.Theme) -> None:
    for level in range(-colors.LEVELS, colors.LEVELS + 1):
        assert colors.contrast_ratio(theme.text, colors.ramp_color(level, theme)) >= 4.5
    assert colors.contrast_ratio(theme.muted, theme.surface) >= 4.5


def test_contrast_ratio_against_known_values() -> None:
    assert colors.contrast_ratio("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)
    assert colors.contrast_ratio("#ff0000", "#ffffff") == pytest.approx(3.998, abs=1e-3)
    assert colors.contrast_ratio("#ffffff", "#ff0000") == colors.contrast_ratio("#ff0000", "#ffffff")


def test_tooltip_has_token_reward_and_running_sum() -> None:
    spans = Tree(token_heatmap(scored((" so", 0.25), (" 7", -1.0), ("\n", 0.5)))).tokens()
    assert [a["title"] for a, _ in spans] == [
        "“ so” · reward +0.250 · sum so far +0.250",
        "“ 7” · reward −1.000 · sum so far −0.750",
        "“↵” · reward +0.500 · sum so far −0.250",
    ]
    assert "content: attr(title)" in colors.heatmap_style()


def test_whitespace_and_special_tokens_are_kept() -> None:
    html = token_heatmap(scored(("  two", 0.1), (".\n\n", 0.1), ("\t", 0.1), ("<|endoftext|>", 0.1), ("", 0.1)))
    assert [text for _, text in Tree(html).tokens()] == ["  two", ".↵\n↵\n", "⇥\t", "<|endoftext|>", "∅"]
    assert re.search(r"\.irl-tokens \{[^}]*white-space: pre-wrap", html)


def test_everything_from_data_is_escaped() -> None:
    html = token_heatmap(scored((HOSTILE, 0.1)), title=HOSTILE, prompt=HOSTILE, caption=HOSTILE)
    tree = Tree(html)
    assert "script" not in {name for name, _, _ in tree.elements}
    assert [text for _, text in tree.tokens()] == [HOSTILE]
    assert tree.texts("p", "irl-title") == tree.texts("div", "irl-prompt") == tree.texts("figcaption") == [HOSTILE]
    names = {name for _, attributes, _ in tree.elements for name in attributes}
    assert names <= {"class", "title", "tabindex", "dir", "role", "aria-label", "aria-hidden"}
    page = Tree(heatmap_page([ScoredAnswer(scored((HOSTILE, 1.0)), HOSTILE, HOSTILE, (0, 1), HOSTILE)], HOSTILE))
    assert "script" not in {name for name, _, _ in page.elements}


def test_invisible_and_invalid_characters_are_spelled_out() -> None:
    texts = ["a\x00b", "\u202eevil", "\ud83d", "\x1b[31m"]
    html = token_heatmap([ScoredToken(text, 0.0) for text in texts], title="t\u2066")
    assert [t for _, t in Tree(html).tokens()] == ["a⟨U+0000⟩b", "⟨U+202E⟩evil", "⟨U+D83D⟩", "⟨U+001B⟩[31m"]
    assert not re.search("[\x00\u202e\u2066\ud83d\x1b]", html)


def test_emoji_and_right_to_left_text_are_left_alone() -> None:
    texts = ["👩‍🔬", " مرحبا", "שלום", "é"]
    html = token_heatmap([ScoredToken(text, 0.2) for text in texts])
    assert [text for _, text in Tree(html).tokens()] == texts
    assert '<div class="irl-tokens" dir="auto">' in html


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_neutral_and_do_not_spoil_the_rest(bad: float) -> None:
    html = token_heatmap(scored(("a", 2.0), ("b", bad), ("c", -2.0)))
    tree = Tree(html)
    (first, _), (middle, _), (last, _) = tree.tokens()
    assert (first["class"], middle["class"], last["class"]) == (f"p{colors.LEVELS}", "na", f"n{colors.LEVELS}")
    assert middle["title"] == "“b” · reward n/a · sum so far +2.000"
    assert last["title"].endswith("sum so far 0.000")
    assert "1 without a finite reward" in tree.texts("div", "irl-legend")[0]
    assert "mean 0.000" in tree.texts("div", "irl-legend")[0]


def test_marked_tokens_are_underlined_and_named_in_the_legend() -> None:
    tokens = scored(("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4))
    assert Tree(token_heatmap(tokens, marked=(1, 3))).texts("mark") == ["bc", "marked span"]
    assert Tree(token_heatmap(tokens, marked=(1, 3))).texts("div", "irl-tokens") == ["abcd"]
    assert Tree(token_heatmap(tokens, marked=(2, 2))).texts("mark") == []
    assert Tree(token_heatmap(tokens, marked=(0, 4))).texts("mark")[0] == "abcd"


@pytest.mark.parametrize("marked", [(-1, 2), (2, 1), (0, 5)])
def test_a_marked_range_outside_the_answer_is_refused(marked: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"marked=.*4 tokens"):
        token_heatmap(scored(*[("a", 0.1)] * 4), marked=marked)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_useless_scale_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="scale must be a positive number"):
        token_heatmap(scored(("a", 0.1)), scale=scale)


def test_shared_scale_is_a_quantile_over_all_answers() -> None:
    first, second = scored(*[("a", 0.01 * n) for n in range(50)]), scored(*[("b", -0.01 * n) for n in range(50, 101)])
    assert shared_scale([first, second], quantile=0.5) == pytest.approx(0.5)
    assert shared_scale([first, second]) == pytest.approx(0.98)
    assert shared_scale(iter([first]), quantile=1.0) == pytest.approx(0.49)


def test_shared_scale_of_odd_answers() -> None:
    assert shared_scale([]) == shared_scale([[]]) == shared_scale([scored(("a", 0.0), ("b", math.nan))]) == 1.0
    assert shared_scale([scored(("a", math.inf), ("b", -3.0))]) == 3.0
    sparse = scored(*[("z", 0.0)] * 999, ("x", -2.0))
    assert shared_scale([sparse]) == 2.0  # the quantile is zero: fall back to the largest
    with pytest.raises(UserError, match="quantile"):
        shared_scale([], quantile=0.0)


def test_one_outlier_does_not_bleach_a_long_answer() -> None:
    tokens = scored(*[("a", 0.5)] * 199, ("b", -100.0))
    assert Tree(token_heatmap(tokens)).tokens()[0][0]["class"] == f"p{colors.LEVELS}"


def test_legend_states_the_scale_and_the_totals() -> None:
    legend = Tree(token_heatmap(scored(("a", 0.5), ("b", -0.25)), scale=0.8)).texts("div", "irl-legend")[0]
    for part in ("reward −0.800", "+0.800", "2 tokens", "sum +0.250", "mean +0.125"):
        assert part in legend


def test_short_answers_can_be_walked_with_the_keyboard_and_long_ones_do_not_trap_it() -> None:
    for count, expected in ((heatmap.FOCUSABLE_TOKENS, "0"), (heatmap.FOCUSABLE_TOKENS + 1, None)):
        spans = Tree(token_heatmap(scored(*[("a", 0.1)] * count))).tokens()
        assert {a.get("tabindex") for a, _ in spans} == {expected}


def test_a_long_answer_is_fast() -> None:
    tokens = [ScoredToken(f" word{n}", math.sin(n)) for n in range(4000)]
    begin = time.process_time()  # not the clock on the wall: others work on this machine
    html = token_heatmap(tokens)
    assert time.process_time() - begin < 1.0
    assert html.count("reward ") >= 4000
    assert len(html) < 1_000_000


def test_an_empty_answer_still_renders() -> None:
    assert "0 tokens" in Tree(token_heatmap([])).texts("div", "irl-legend")[0]


def test_page_has_one_style_one_scale_and_all_answers() -> None:
    answers = [
        ScoredAnswer(scored(("a", 1.0)), title="one"),
        ScoredAnswer(scored(("b", 0.5)), title="two", caption="cap"),
    ]
    page = heatmap_page(answers, "Mine", subtitle="below")
    tree = Tree(page)
    assert page.count(colors.heatmap_style()) == 1
    assert page.index(colors.heatmap_style()) < page.index("</head>")
    assert tree.texts("title") == tree.texts("h1") == ["Mine"]
    assert tree.texts("p", "irl-title") == ["one", "two"]
    top, low = (int(a["class"][1:]) for a, _ in tree.tokens())
    assert top == colors.LEVELS
    assert low < top
    fixed = Tree(heatmap_page(answers, "Mine", scale=0.5)).tokens()
    assert {a["class"] for a, _ in fixed} == {f"p{colors.LEVELS}"}


def test_format_reward() -> None:
    values = [0.0, -0.0, 1234.5678, -0.00001, 3e9, math.nan]
    assert [heatmap.format_reward(v) for v in values] == [
        "0.000",
        "0.000",
        "+1234.568",
        "−1.00e−05",
        "+3.00e+09",
        "n/a",
    ]


def test_import_is_light() -> None:
    code = (
        "import sys, inverselm.report as r; r.Page, r.line_chart, r.heatmap_png; "
        "print([m for m in ('torch', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_levels_grow_with_the_reward() -> None:
    levels = [heatmap.reward_level(0.01 * n, 1.0) for n in range(-120, 121)]
    assert all(b - a in (0, 1) for a, b in itertools.pairwise(levels))
    assert (levels[0], levels[120], levels[-1]) == (-colors.LEVELS, 0, colors.LEVELS)
