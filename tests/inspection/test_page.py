"""The page in a real browser: what it shows of an answer, of an edit, of two answers and of two rewards."""

import re

import pytest

from inverselm.inspection import create_app

from .conftest import ANSWER, PROMPT, served
from .pages import eventually, opened, reads, settle, shown, tip, tokens

NAMES = {"model": "runs/sft", "baseline": "runs/sft/baseline", "q_function": "runs/iq"}


@pytest.fixture(scope="module")
def url(inspector, browser):
    with served(create_app(inspector, names=NAMES, start={"prompt": PROMPT, "completion": ANSWER})) as address:
        yield address


@pytest.fixture(scope="module")
def reading(inspector):
    return inspector.read([PROMPT], [ANSWER])[0]


def test_tokens_are_coloured_by_reward(open_page, url, reading):
    page = opened(open_page, url)
    reads(page, reading.texts)
    rewards = reading.rewards["dense"]
    sizes = sorted(map(abs, rewards))
    place = 0.98 * (len(sizes) - 1)
    scale = sizes[int(place)] + (sizes[int(place) + 1] - sizes[int(place)]) * (place - int(place))
    steps = [round(20 * max(-1, min(1, r / scale))) for r in rewards]
    wanted = ["" if s == 0 else f"p{s}" if s > 0 else f"n{-s}" for s in steps]
    classes = tokens(page).evaluate_all("nodes => nodes.map(n => n.className)")
    assert [c.replace("at", "").strip() for c in classes] == wanted
    numbers = page.locator("#pane-a .numbers").inner_text()
    assert shown(sum(rewards)) in numbers
    assert shown(sum(rewards) / len(rewards)) in numbers
    assert shown(min(rewards)) in numbers
    colours = tokens(page).evaluate_all("nodes => nodes.map(n => getComputedStyle(n).backgroundColor)")
    assert len(set(colours)) > 3
    assert "runs/sft/baseline" in page.locator("#models").inner_text()


def test_values_on_hover_and_focus(open_page, url, reading):
    page = opened(open_page, url)
    tokens(page).nth(3).hover()
    dense = reading.rewards["dense"]
    found = tip(page)
    assert found["log π − log π_baseline"] == shown(dense[3])
    assert found["sum so far"] == shown(sum(dense[:4]))
    assert found["log π"] == shown(reading.rewards["log_prob"][3])
    assert found["entropy"] == shown(reading.entropy["model"][3]).lstrip("+")
    first = [r for r, n in zip(dense, reading.sentences, strict=True) if n == 0]
    assert found["sentence 1: sum, mean"] == f"{shown(sum(first))}, {shown(sum(first) / len(first))}"
    assert max(reading.sentences) == 1
    page.mouse.move(5, 5)
    page.locator("#tip").wait_for(state="hidden")
    tokens(page).nth(3).focus()
    assert tip(page) == found
    assert tokens(page).nth(3).get_attribute("aria-label").startswith("“")
    page.select_option("#pane-a select", "q_function")
    tokens(page).nth(2).hover()
    assert tip(page)["V(s)"] == shown(reading.values["q_function"][2])
    assert tip(page)["Q − 0.9 V′ (Q-function)"] == shown(reading.rewards["q_function"][2])


def test_curves_end_where_the_numbers_end(open_page, url, reading):
    page = opened(open_page, url)
    labels = lambda: page.locator("#pane-a .curve svg").evaluate_all("n => n.map(x => x.getAttribute('aria-label'))")
    assert [label.partition(":")[0] for label in labels()] == ["Reward so far", "Entropy"]
    total = shown(sum(reading.rewards["dense"])).replace("+", "")
    assert f"to {total}," in labels()[0]
    page.select_option("#pane-a select", "q_function")
    assert [label.partition(":")[0] for label in labels()] == ["Reward so far", "Value V(s)", "Entropy"]
    values = reading.values["q_function"]
    assert f"from {shown(values[0])} to {shown(values[-1])},".replace("+", "") in labels()[1]
    box = page.locator("#pane-a .curve svg").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 9, box["y"] + 40)
    assert page.evaluate("document.activeElement.dataset.i") == str(len(reading.texts) - 1)


def test_colours_by_sum_and_sentence(open_page, url, reading):
    page = opened(open_page, url)
    page.get_by_label("Sentence", exact=True).check(force=True)
    classes = tokens(page).evaluate_all("nodes => nodes.map(n => n.className)")
    of = {n: {c for c, m in zip(classes, reading.sentences, strict=True) if m == n} for n in set(reading.sentences)}
    assert all(len(found) == 1 for found in of.values())
    assert "mean of the sentence" in page.locator("#pane-a .legend").inner_text()
    page.get_by_label("Sum so far", exact=True).check(force=True)
    total, largest = 0.0, 0.0
    sums = [total := total + r for r in reading.rewards["dense"]]
    largest = max(map(abs, sums))
    assert f"+{largest:.3f}" in page.locator("#pane-a .legend").inner_text()
    page.fill("#scale", "0.5")
    assert "+0.500" in page.locator("#pane-a .legend").inner_text()
    page.fill("#scale", "-1")
    assert f"+{largest:.3f}" in page.locator("#pane-a .legend").inner_text()


def test_an_edit_is_scored_and_set_against_the_unedited_answer(open_page, url, inspector, reading):
    page = opened(open_page, url)
    edited = ANSWER.replace("It is", "It was")
    page.fill("#answer-a", edited)
    page.locator("#pane-a .changed").wait_for()
    settle(page)
    after = inspector.read([PROMPT], [edited])[0]
    reads(page, after.texts)
    old, new = sum(reading.rewards["dense"]), sum(after.rewards["dense"])
    changed = page.locator("#pane-a .changed").inner_text()
    assert f"sum {shown(old)} → {shown(new)} ({shown(new - old)})" in changed
    fresh = page.locator("#pane-a .tokens .new").evaluate_all("n => n.map(x => Number(x.dataset.i))")
    keys = lambda r: list(zip(r.ids, r.texts, strict=True))
    head = next(i for i, (a, b) in enumerate(zip(keys(reading), keys(after), strict=False)) if a != b)
    assert fresh
    assert min(fresh) == head
    last = len(after.texts) - 1
    tokens(page).nth(last).hover()
    delta = after.rewards["dense"][-1] - reading.rewards["dense"][-1]
    assert tip(page)["unedited"] == shown(reading.rewards["dense"][-1])
    assert tip(page)["change"] == shown(delta)
    assert page.locator("#pane-a .line.old").count() == 2
    page.get_by_label("Change", exact=True).check(force=True)
    assert "change against the unedited answer" in page.locator("#pane-a .legend").inner_text()
    sign = "n" if delta < 0 else "p"
    assert re.search(rf"\b{sign}\d+", tokens(page).nth(last).get_attribute("class") or f"{sign}0")
    page.click("#revert-a")
    eventually(lambda: page.input_value("#answer-a"), ANSWER)
    reads(page, reading.texts)
    page.locator("#pane-a .changed").wait_for(state="hidden")
    assert page.locator("#colour input[value=change]").is_disabled()


def test_keys_are_gathered_before_the_model_is_asked(open_page, url):
    page = opened(open_page, url)
    asked = []
    page.on("request", lambda r: asked.append(r.post_data) if r.url.endswith("/api/score") else None)
    page.locator("#answer-a").press("End")
    page.locator("#answer-a").press_sequentially(" and so on", delay=20)
    settle(page)
    assert 1 <= len(asked) <= 4  # for ten keys
    assert asked[-1].endswith('that is all. and so on","add_eos":true}'.replace("that", "That"))
    page.click("#pin-a")
    page.locator("#pane-a .changed").wait_for(state="hidden")
    page.fill("#answer-a", ANSWER)
    page.locator("#pane-a .changed").wait_for()


def test_one_token_is_replaced_where_it_stands(open_page, url, reading):
    page = opened(open_page, url)
    at = reading.texts.index(" is")
    tokens(page).nth(at).focus()
    page.keyboard.press("Enter")
    eventually(lambda: page.input_value("#replacement"), " is")
    page.fill("#replacement", " was")
    page.keyboard.press("Enter")
    settle(page)
    eventually(lambda: page.input_value("#answer-a"), ANSWER.replace(" is", " was", 1))
    page.locator("#replace").wait_for(state="hidden")
    page.locator("#pane-a .tokens .new").first.dblclick()
    page.locator("#replace").wait_for()
    page.keyboard.press("Escape")
    page.locator("#replace").wait_for(state="hidden")
    eventually(lambda: page.input_value("#answer-a"), ANSWER.replace(" is", " was", 1))


def test_what_cannot_be_scored_is_said_and_the_last_reading_stays(open_page, url, reading):
    page = opened(open_page, url)
    page.fill("#prompt-a", "")
    page.locator("#message").wait_for()
    assert (
        page.locator("#message").inner_text()
        == "the prompt is empty: the first token would have no state to be chosen in"
    )
    reads(page, reading.texts)
    page.fill("#prompt-a", PROMPT)
    settle(page)
    page.locator("#message").wait_for(state="hidden")
    page.fill("#answer-a", "")
    page.locator("#pane-a .empty").wait_for()
    assert tokens(page).first.is_hidden()


def test_two_answers_share_their_colours(open_page, url, inspector):
    page = opened(open_page, url)
    page.get_by_label("Two answers").check(force=True)
    page.fill("#answer-b", " It is 9.")
    settle(page)
    other = inspector.read([PROMPT], [" It is 9."])[0]
    reads(page, other.texts, "b")
    legends = [page.locator(f"#pane-{name} .scale-key").inner_text() for name in "ab"]
    assert legends[0] == legends[1]
    page.select_option("#pane-a select", "log_prob")
    assert shown(sum(other.rewards["log_prob"])) in page.locator("#pane-b .numbers").inner_text()
    page.fill("#prompt-a", "Question:")
    settle(page)
    again = inspector.read(["Question:"], [" It is 9."])[0]
    assert shown(sum(again.rewards["log_prob"])) in page.locator("#pane-b .numbers").inner_text()
    tops = [page.locator(f"#pane-{name} .tokens").bounding_box()["y"] for name in "ab"]
    assert tops[0] == pytest.approx(tops[1], abs=1)


def test_two_rewards_of_one_answer(open_page, url, reading):
    page = opened(open_page, url)
    page.get_by_label("Two rewards").check(force=True)
    page.select_option("#pane-b select", "bellman")
    reads(page, reading.texts, "b")
    assert shown(sum(reading.rewards["dense"])) in page.locator("#pane-a .numbers").inner_text()
    assert shown(sum(reading.rewards["bellman"])) in page.locator("#pane-b .numbers").inner_text()
    tokens(page).nth(4).hover()
    assert "at" in tokens(page, "b").nth(4).get_attribute("class").split()
    page.mouse.move(5, 5)
    assert page.locator(".tokens .at").count() == 0
