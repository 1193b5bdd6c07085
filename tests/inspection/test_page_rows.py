"""The page with a file beside it: browsing, sorting, searching, hostile text, and what is saved."""

import json

import pytest

from inverselm.inspection import RowFile, create_app

from .conftest import ANSWER, PROMPT, SUMS, scored_row, served, write_jsonl
from .pages import Work, eventually, holds, listed, reads, row_texts, settle, shown, texts, tip, tokens

EVIL = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"></textarea>&lt;b&gt;\u202e'
HOSTILE = [
    scored_row(
        EVIL, [" ", "<script>window.hacked = 3</script>", "\n", "", EVIL], [0.1, -0.5, 0.2, 0.0, 1.5], topic=EVIL
    ),
    scored_row("plain", [" one", " two"], [-3.0, 1.0], **{EVIL: "column"}),
]


@pytest.fixture(scope="module")
def scored(tmp_path_factory, browser):
    """A scored file without a model: 100,000 rows, the n-th worth n % 1000 - 500."""
    path = tmp_path_factory.mktemp("rows") / "scored.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for n in range(100_000):
            value = n % 1000 - 500.0
            stream.write(json.dumps(scored_row(f"Question {n}?", [f" answer {n}", "."], [value, 0.5])) + "\n")
    rows = RowFile(str(path), need_scores=True)
    with served(create_app(None, rows)) as address:
        yield address


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, inspector, browser):
    path = write_jsonl(tmp_path_factory.mktemp("hostile") / "<img src=x onerror=window.hacked=4>.jsonl", HOSTILE)
    names = {"model": EVIL}
    with served(create_app(inspector, RowFile(path), names=names)) as address:
        yield address


@pytest.fixture(scope="module")
def sums(tmp_path_factory, inspector, browser):
    path = write_jsonl(tmp_path_factory.mktemp("sums") / "sums.jsonl", [{**row, "id": i} for i, row in enumerate(SUMS)])
    with served(create_app(inspector, RowFile(path), batch_size=4)) as address:
        yield address


def test_a_large_file_is_browsed_with_few_rows_in_the_page(open_page, scored):
    page = open_page(scored)
    listed(page, "answer 0")
    eventually(page.locator("#row-count").inner_text, "100,000 rows")
    reads(page, [" answer 0", "."])  # the first row is open
    assert page.locator("#answer-a").get_attribute("readonly") is not None
    work = Work(page)
    for share in (0.25, 0.5, 0.9):
        page.evaluate(f"list => 0, document.getElementById('list').scrollTop = {share} * 100000 * 64")
        page.locator(f"#row-{int(share * 100_000)} .row-answer").wait_for()
        assert page.locator("#list .row").count() < 60
    assert work.lap() < 2.0
    page.locator("#list").focus()
    page.keyboard.press("End")
    page.locator("#row-99999 .row-answer", has_text="answer 99999").wait_for()
    page.keyboard.press("Enter")
    page.locator("#pane-a .tokens", has_text="answer 99999").wait_for()
    page.wait_for_url("**#row=100000")
    page.keyboard.press("ArrowUp")
    assert page.locator("#list").get_attribute("aria-activedescendant") == "row-99998"
    page.reload()
    page.locator("#pane-a .tokens", has_text="answer 99999").wait_for()
    page.locator("#row-99999.opened").wait_for()


def test_rows_are_sorted_and_searched(open_page, scored):
    page = open_page(scored)
    listed(page, "answer 0")
    page.select_option("#sort", "min")
    page.locator("#row-1 .row-answer", has_text="answer 1000").wait_for()
    eventually(lambda: row_texts(page)[:1], [("answer 0.", "−500.000")])
    page.click("#direction")
    page.locator("#row-0 .row-value", has_text="+0.500").wait_for()
    page.select_option("#sort", "sum")
    listed(page, "answer 999.")
    eventually(lambda: row_texts(page)[:1], [("answer 999.", "+499.500")])
    page.fill("#search", "QUESTION 4242?")
    listed(page, "answer 4242.")
    eventually(page.locator("#row-count").inner_text, "1 of 100,000 rows")
    page.fill("#search", "no such words")
    page.locator("#row-count", has_text="0 of 100,000 rows").wait_for()
    eventually(page.locator("#list .row").count, 0)


def test_rows_are_opened_with_keys(open_page, sums, inspector):
    page = open_page(sums)
    listed(page, "It is 5.")
    holds(page, "#answer-a", ANSWER)
    page.keyboard.press("j")
    holds(page, "#answer-a", SUMS[1]["completion"])
    reads(page, inspector.read([SUMS[1]["prompt"]], [SUMS[1]["completion"]])[0].texts)
    assert page.locator("#facts").inner_text().split() == ["id", "1"]
    page.keyboard.press("k")
    holds(page, "#answer-a", ANSWER)
    page.locator("#list").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("b")
    holds(page, "#answer-b", SUMS[3]["completion"])
    eventually(lambda: page.input_value("#prompt-b"), SUMS[3]["prompt"])
    page.locator("#prompt-b").wait_for()  # another question than A's
    reading = inspector.read([SUMS[3]["prompt"]], [SUMS[3]["completion"]])[0]
    assert shown(sum(reading.rewards["dense"])) in page.locator("#pane-b .numbers").inner_text()
    page.keyboard.press("/")
    page.keyboard.type("9+25")
    listed(page, "It is 34.")
    page.click("#same-prompt")
    settle(page)
    page.locator("#prompt-b").wait_for(state="hidden")
    reading = inspector.read([PROMPT], [SUMS[3]["completion"]])[0]
    assert shown(sum(reading.rewards["dense"])) in page.locator("#pane-b .numbers").inner_text()


def test_the_row_asked_for_last_is_shown_when_answers_come_late(open_page, sums):
    page = open_page(sums)
    holds(page, "#answer-a", ANSWER)
    held = []
    page.route("**/api/rows/1", lambda route: held.append(route))
    page.locator("#row-1").click()
    page.locator("#row-2").click()
    holds(page, "#answer-a", SUMS[2]["completion"])
    with page.expect_response("**/api/rows/1"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert page.input_value("#answer-a") == SUMS[2]["completion"]
    page.wait_for_url("**#row=3")


def test_plain_rows_are_scored_on_demand_and_then_sorted(open_page, sums, inspector):
    page = open_page(sums)
    listed(page, "It is 5.")
    settle(page)
    page.locator("#job-button", has_text="Score").click()
    page.locator("#job").wait_for(state="hidden", timeout=60_000)
    page.select_option("#sort", "min")
    readings = inspector.read([row["prompt"] for row in SUMS], [row["completion"] for row in SUMS])
    lowest = [min(reading.rewards["dense"]) for reading in readings]
    best = min(range(len(SUMS)), key=lowest.__getitem__)
    listed(page, SUMS[best]["completion"].strip())
    eventually(lambda: row_texts(page)[:1], [(SUMS[best]["completion"].strip(), shown(lowest[best]))])


def test_text_from_data_is_never_markup(open_page, hostile):
    page = open_page(hostile)
    page.locator("#pane-a .tokens [data-i]").first.wait_for()
    settle(page)
    page.select_option("#pane-a select", "file")  # its tokens are not the model's
    tokens(page).nth(1).hover()
    assert page.locator("#tip p").inner_text().startswith("“<script>window.hacked = 3</script>”")
    assert texts(page)[1] == "<script>window.hacked = 3</script>"
    page.mouse.move(5, 5)
    page.get_by_label("Two answers").check(force=True)
    settle(page)
    eventually(lambda: page.input_value("#answer-a"), HOSTILE[0]["completion"])
    assert page.locator("#facts").inner_text().startswith("topic")
    page.fill("#answer-a", EVIL + " more")
    settle(page)
    page.fill("#answer-a", EVIL)
    page.fill("#prompt-a", "<b>")
    settle(page)
    page.locator("#row-1").click()
    holds(page, "#answer-a", HOSTILE[1]["completion"])
    page.fill("#search", "<script>")
    listed(page, "<script>")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b, main script").count() == 0
    assert "<script>" in page.locator("#models").inner_text()
    assert page.locator("#file-name").inner_text().startswith("<img src=x")
    blocked = "(() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch (e) { return true; } })()"
    assert page.evaluate(blocked)  # trusted types: not even by mistake
    assert len(open_page.problems) == 1
    assert "TrustedHTML" in open_page.problems.pop()


def test_rewards_of_the_file_stand_beside_the_models(open_page, tmp_path, inspector, browser):
    reading = inspector.read([PROMPT], [ANSWER])[0]
    stored = scored_row(PROMPT, reading.texts, [float(i) for i in range(len(reading.texts))])
    stored |= {"completion": ANSWER, "terminated": True}
    path = write_jsonl(tmp_path / "s.jsonl", [stored])
    with served(create_app(inspector, RowFile(path))) as url:
        page = open_page(url)
        page.locator("#pane-a .tokens [data-i]").first.wait_for()
        settle(page)
        page.select_option("#pane-a select", "file")
        tokens(page).nth(3).hover()
        assert tip(page)["as in the file"] == "+3.000"
        assert tip(page)["log π"] == shown(reading.rewards["log_prob"][3])
        page.fill("#answer-a", ANSWER.replace("It", "So"))
        settle(page)
        eventually(lambda: page.input_value("#pane-a select"), "dense")  # the file says nothing of an edit
        page.mouse.move(5, 5)


def test_what_is_shown_can_be_saved(open_page, hostile, tmp_path):
    page = open_page(hostile)
    page.locator("#pane-a .tokens [data-i]").first.wait_for()
    settle(page)
    page.select_option("#pane-a select", "file")
    with page.expect_download() as download:
        page.click("#save-html")
    assert download.value.suggested_filename == "token-rewards.html"
    download.value.save_as(tmp_path / "a.html")
    saved = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script" not in saved
    assert "<img" not in saved
    assert "&lt;script&gt;window.hacked = 3&lt;/script&gt;" in saved
    assert "reward −0.500" in saved
    assert "default-src 'none'" in saved
    with page.expect_download() as download:
        page.click("#save-png")
    download.value.save_as(tmp_path / "a.png")
    one = _size(tmp_path / "a.png")
    page.select_option("#pane-a select", "dense")
    page.fill("#answer-a", " 7")
    settle(page)
    with page.expect_download() as download:
        page.click("#save-png")
    download.value.save_as(tmp_path / "b.png")
    two = _size(tmp_path / "b.png")
    assert one[0] == two[0] == 2200
    with page.expect_download() as download:
        page.click("#save-html")
    download.value.save_as(tmp_path / "b.html")
    saved = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert saved.index("Unedited: log π − log π_baseline") < saved.index("Edited: log π − log π_baseline")
    assert "<mark>" in saved


def _size(path):
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
        return picture.size


def test_the_rows_of_a_phone_open_over_the_answer(open_page, scored):
    page = open_page(scored, width=390, height=844)
    page.locator("#rows").wait_for(state="hidden")
    page.click("#to-rows")
    listed(page, "answer 0")
    page.locator("main").wait_for(state="hidden")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#row-2").click()
    page.locator("#pane-a .tokens", has_text="answer 2").wait_for()
    page.locator("#rows").wait_for(state="hidden")


def test_rows_are_scored_as_they_are_in_the_file(open_page, inspector, tmp_path):
    """A field of the page makes one line break of every kind, and an empty answer is EOS alone."""
    rows = [{"prompt": "a\r\nb", "completion": " 7\r\n8\r9"}, {"prompt": PROMPT, "completion": "", "finished": True}]
    want = inspector.read([row["prompt"] for row in rows], [row["completion"] for row in rows])
    file = RowFile(write_jsonl(tmp_path / "rows.jsonl", rows))
    with served(create_app(inspector, file)) as address:
        page = open_page(address)
        for index, reading in enumerate(want):
            if index:
                page.locator(f"#row-{index}").click()
            page.locator("#pane-a .numbers", has_text=f"Sum{shown(sum(reading.rewards['dense']))}").wait_for()
            settle(page)
            assert tokens(page).count() == len(reading.ids)
            if not index:
                page.fill("#answer-a", "")  # to paste another one: not an answer of EOS
                page.locator("#pane-a .empty").wait_for()
        assert file.summary(0)["stats"]["dense"]["tokens"] == len(want[0].ids)
