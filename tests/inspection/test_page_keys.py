"""The page in a real browser: keys, themes, a phone, long answers, and its pure functions."""

import pytest

from inverselm.inspection import create_app

from .conftest import ANSWER, PROMPT, served
from .pages import Work, opened, settle, tokens


@pytest.fixture(scope="module")
def url(inspector, browser):
    with served(create_app(inspector, start={"prompt": PROMPT, "completion": ANSWER})) as address:
        yield address


@pytest.fixture(scope="module")
def reading(inspector):
    return inspector.read([PROMPT], [ANSWER])[0]


def test_the_keyboard_alone_is_enough(open_page, url, reading):
    page = opened(open_page, url)
    active = lambda: page.evaluate("document.activeElement.dataset.i ?? document.activeElement.id")
    page.keyboard.press("t")
    assert active() == "0"
    for key, place in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", len(reading.texts) - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert active() == str(place)
    page.keyboard.press("l")
    dense = reading.rewards["dense"]
    order = sorted(range(len(dense)), key=dense.__getitem__)
    assert active() == str(order[0])
    page.keyboard.press("l")
    assert active() == str(order[1])
    page.keyboard.press("Home")
    page.keyboard.press("l")
    assert active() == str(order[0])
    page.keyboard.press("e")
    assert active() == "answer-a"
    page.keyboard.type("dcl?")
    assert "dcl?" in page.input_value("#answer-a")  # no shortcut while one types
    assert not page.evaluate("document.getElementById('shortcuts').open")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    assert page.input_value("#answer-a") == ANSWER
    page.keyboard.press("d")
    assert page.input_value("#pane-a select") == "q_function"
    page.keyboard.press("c")
    assert page.locator("#colour input:checked").get_attribute("value") == "cumulative"
    page.keyboard.press("3")
    assert page.locator("#pane-b").is_visible()
    page.keyboard.press("1")
    assert page.locator("#pane-b").is_hidden()
    page.keyboard.press("?")
    assert page.evaluate("document.getElementById('shortcuts').open")
    listed = page.locator("#shortcut-list").inner_text()
    assert "to the lowest token" in listed
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('shortcuts').open")


def test_tab_reaches_the_tokens_once_and_arrows_keep_the_line(open_page, url):
    page = opened(open_page, url, width=390, height=844)
    page.fill("#answer-a", ANSWER + " And so it goes on, and on, and on until the end of it all.")
    settle(page)
    stops = tokens(page).evaluate_all("nodes => nodes.filter(n => n.tabIndex === 0).length")
    assert stops == 1
    page.locator("#prompt-a").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.tokens [data-i]')"):
            break
    place = lambda: page.evaluate("[document.activeElement.offsetLeft, document.activeElement.offsetTop]")
    first = place()
    page.keyboard.press("ArrowDown")
    below = place()
    assert below[1] > first[1] + 10
    assert abs(below[0] - first[0]) < 60
    page.keyboard.press("ArrowUp")
    assert place() == first


def test_light_and_dark(open_page, url):
    back = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(247, 248, 250)", "rgb(15, 17, 21)"
    page = opened(open_page, url, color_scheme="light")
    assert page.evaluate(back) == light
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(back) == dark
    page.click("#theme")
    assert page.evaluate(back) == light
    page.reload()
    assert page.evaluate(back) == light  # it is remembered
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(back) == dark
    colour = lambda: page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--p20')").strip()
    assert colour() == "#1f6db8"
    page.click("#theme")
    assert page.evaluate(back) == light
    assert colour() == "#57a0e5"


def test_a_phone_needs_no_sideways_scrolling(open_page, url):
    page = opened(open_page, url, width=390, height=844)
    for mode in ("Two answers", "Two rewards", "One answer"):
        page.get_by_label(mode).check(force=True)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 390, "height": 640})
    page.keyboard.press("t")
    box = page.locator("#tip").bounding_box()
    focused = page.evaluate("document.activeElement.getBoundingClientRect().bottom")
    assert box["width"] > 350
    assert box["y"] + box["height"] <= 640
    assert focused <= box["y"]


def test_pure_functions_of_the_page(open_page, url):
    page = opened(open_page, url)
    script = """async () => {
        const { align, compare } = await import('/static/diff.js');
        const { fullColour, level, place, sentences, cumulative } = await import('/static/series.js');
        const r = (ids, rewards) => ({ ids, texts: ids.map(String), rewards: { d: rewards } });
        const moved = compare(r([1, 2, 3, 4], [1, 2, 4, 1]), r([1, 9, 8, 4, 5], [1, -1, -3, 0, 7]), 'd');
        return {
            same: align(r([1, 2]), r([1, 2])), none: align(r([]), r([1])), gone: align(r([1, 2, 3]), r([1, 3])),
            inner: align(r([1, 5, 2, 6, 3]), r([1, 7, 2, 8, 3])),
            from: moved.from, delta: moved.delta, removed: moved.removed, added: moved.added,
            sums: [moved.before, moved.after],
            full: [[[[1, -3]], 1], [[[0, 0]]], [[[]]], [[[1, 2], [3, NaN]], 0.5]].map((given) => fullColour(...given)),
            levels: [level(1, 1), level(-9, 1), level(0.01, 1), level(NaN, 1), level(0.5, 1)],
            places: [[[' a', 'b'], 1, ' ab'], [['a', 'b'], 1, ' ab'], [['x'], 0, 'ab'], [['🙂', 'b'], 1, '🙂b']].map(
                (given) => place(...given)),
            sentences: sentences([0, 0, 1], [1, 3, -2]), sums2: cumulative([1, null, 2]),
        };
    }"""
    assert page.evaluate(script) == {
        "same": [0, 1],
        "none": [-1],
        "gone": [0, 2],
        "inner": [0, -1, 2, -1, 4],
        "from": [0, -1, -1, 3, -1],
        "delta": [0, -4, -6, -1, 7],
        "removed": 2,
        "added": 3,
        "sums": [8, 4],
        "full": [3, 1, 1, 2],
        "levels": ["p20", "n20", "", "na", "p10"],
        "places": [[2, 3], [2, 3], None, [2, 3]],
        "sentences": [{"sum": 4, "mean": 2, "tokens": 2}, {"sum": -2, "mean": -2, "tokens": 1}],
        "sums2": [1, 1, 3],
    }


def test_four_thousand_tokens(open_page, url, inspector):
    page = opened(open_page, url)
    work = Work(page)
    answer = " It is 146." * 600
    page.fill("#answer-a", answer)
    tokens(page).nth(4000).wait_for(timeout=120_000)
    settle(page)
    count = tokens(page).count()
    assert count == len(inspector.read([PROMPT], [answer])[0].ids)
    frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(frame)
    assert work.lap() < 3.0  # drawn
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.evaluate(frame)
    assert work.lap() < 1.0  # all tokens in other colours
    page.keyboard.press("t")
    page.keyboard.press("End")
    page.evaluate(frame)
    assert work.lap() < 1.0
    assert page.evaluate("document.activeElement.dataset.i") == str(count - 1)
    scrolled = page.locator("#pane-a .tokens").evaluate("n => [n.scrollTop, n.scrollHeight - n.clientHeight]")
    assert scrolled[0] == pytest.approx(scrolled[1], abs=20)
    assert scrolled[0] > 500
