"""What the tests of the page do in a browser, in their own words."""

from __future__ import annotations


def shown(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def tokens(page, pane="a"):
    return page.locator(f"#pane-{pane} .tokens [data-i]")


def texts(page, pane="a"):
    """The tokens' texts without the glyphs for what cannot be seen."""
    script = "nodes => nodes.map(n => [...n.childNodes].filter(c => c.nodeType === 3).map(c => c.data).join(''))"
    return tokens(page, pane).evaluate_all(script)


def tip(page):
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
    for _ in range(600):
        if page.input_value(selector) == value:
            break
        page.wait_for_timeout(100)
    settle(page)
    assert page.input_value(selector) == value


def listed(page, first: str):
    """Wait until the list begins with this answer."""
    page.locator("#row-0 .row-answer", has_text=first).wait_for()
