"""What the tests of the page do in a browser, in their own words."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def shown(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def tokens(page, pane="a"):
    return page.locator(f"#pane-{pane} .tokens [data-i]")


def texts(page, pane="a"):
    """The tokens' texts without the glyphs for what cannot be seen."""
    script = "nodes => nodes.map(n => [...n.childNodes].filter(c => c.nodeType === 3).map(c => c.data).join(''))"
    return tokens(page, pane).evaluate_all(script)


def eventually(get: Callable[[], Any], want: Any, *, seconds: float = 60.0) -> None:
    """`get() == want`, when the page has had the time to know: what it shows of a request comes when it comes."""
    end = time.monotonic() + seconds
    while (found := get()) != want and time.monotonic() < end:
        time.sleep(0.05)
    assert found == want


def reads(page, want: list[str], pane="a"):
    """Wait until a pane shows these tokens."""
    eventually(lambda: texts(page, pane), want)


def tip(page):
    page.locator("#tip").wait_for()
    rows = page.locator("#tip dl > div").evaluate_all(
        "nodes => nodes.map(n => [n.children[0].textContent, n.children[1].textContent])"
    )
    return dict(rows)


def settle(page):
    """Until every reading is that of its texts."""
    page.locator("[aria-busy=true]").first.wait_for(state="detached")


class Work:
    """Seconds of processor time that a page has worked, whatever else the machine does."""

    def __init__(self, page):
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.start = self._now()

    def _now(self):
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    def lap(self):
        """Since the last call."""
        before, self.start = self.start, self._now()
        return self.start - before


def opened(open_page, url, **options):
    page = open_page(url, **options)
    tokens(page).first.wait_for()
    settle(page)
    return page


def row_texts(page):
    script = """nodes => nodes.map(n => [n.querySelector('.row-answer')?.textContent ?? '',
        n.querySelector('.row-value')?.textContent ?? ''])"""
    return [tuple(pair) for pair in page.locator("#list .row").evaluate_all(script)]


def holds(page, selector: str, value: str):
    """Wait until a field has this value, and its answer is scored."""
    eventually(lambda: page.input_value(selector), value)
    settle(page)
    assert page.input_value(selector) == value


def listed(page, first: str):
    """Wait until the list begins with this answer."""
    page.locator("#row-0 .row-answer", has_text=first).wait_for()
