"""Models with a chat template, and characters of several tokens."""

import pytest

from helpers.data import chat_tokenizer
from helpers.models import tiny_llama
from inverselm.inspection import Inspector, RowFile, create_app
from inverselm.scorers import FrozenLM, QFunctionReward

from .conftest import request, served, write_jsonl
from .pages import holds, settle, texts, tokens

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
ROWS = [
    {"prompt": TALK, "completion": [{"role": "assistant", "content": "It is 4."}]},
    {"prompt": "plain", "completion": " text"},
]


@pytest.fixture(scope="module")
def scorer():
    tokenizer = chat_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return QFunctionReward(tokenizer, FrozenLM(tiny_llama(vocab_size=len(tokenizer), **ends)), kind="log_prob")


@pytest.fixture(scope="module")
def url(scorer, tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("chat") / "rows.jsonl", ROWS)
    with served(create_app(Inspector.from_scorers(scorer), RowFile(path))) as address:
        yield address


def test_conversations_go_through_the_template(url, scorer):
    assert request(url, "GET", "/api/meta").json["chat"] is True
    answer = request(url, "POST", "/api/score", {"prompt": TALK, "completion": "It is 4."}).json
    wanted = scorer.score([TALK], [ROWS[0]["completion"]])[0]
    assert answer["texts"] == [token.text for token in wanted.tokens]
    assert answer["rewards"]["log_prob"] == pytest.approx(wanted.rewards, abs=1e-4)
    assert answer["terminated"] is True
    plain = request(url, "POST", "/api/score", {"prompt": "2+2?", "completion": "It is 4."}).json
    assert plain["rewards"]["log_prob"] != answer["rewards"]["log_prob"]


def test_a_template_that_refuses_is_the_users_to_fix(scorer, monkeypatch):
    refusing = "{{ raise_exception('only users may speak') }}"
    monkeypatch.setattr(scorer.tokenizer, "chat_template", refusing)
    with served(create_app(Inspector.from_scorers(scorer))) as url:
        answer = request(url, "POST", "/api/score", {"prompt": TALK, "completion": "It is 4."})
    assert answer.status == 422
    assert "only users may speak" in answer.json["error"]


def test_a_pasted_prompt_may_be_a_chat_message(browser, open_page, url, scorer):
    page = open_page(url)
    page.locator("#pane-a .tokens [data-i]").first.wait_for()
    settle(page)
    assert page.input_value("#prompt-a") == "system: Be brief.\n\nuser: 2+2?"
    assert page.locator("#prompt-a").get_attribute("readonly") is not None
    wanted = scorer.score([TALK], [ROWS[0]["completion"]])[0]
    sum_of = lambda scored: f"{scored.total:+.3f}".replace("-", "−")
    assert sum_of(wanted) in page.locator("#pane-a .numbers").inner_text()
    page.locator("#row-1").click()
    holds(page, "#answer-a", " text")
    assert not page.is_checked("#chat")
    assert sum_of(scorer.score(["plain"], [" text"])[0]) in page.locator("#pane-a .numbers").inner_text()
    page.check("#chat")
    settle(page)
    as_chat = scorer.score([[{"role": "user", "content": "plain"}]], [[{"role": "assistant", "content": " text"}]])[0]
    assert sum_of(as_chat) in page.locator("#pane-a .numbers").inner_text()


def test_characters_of_several_tokens(browser, open_page, url, scorer):
    page = open_page(url)
    page.locator("#pane-a .tokens [data-i]").first.wait_for()
    settle(page)
    page.fill("#answer-a", "a🙂b\tc")
    settle(page)
    wanted = [token.text for token in scorer.score([TALK], [[{"role": "assistant", "content": "a🙂b\tc"}]])[0].tokens]
    assert wanted.count("") == 3
    assert texts(page) == wanted
    assert tokens(page).nth(wanted.index("")).inner_text() == "∅"
    at = wanted.index("b")
    tokens(page).nth(at).dblclick()
    page.fill("#replacement", "漢")
    page.keyboard.press("Enter")
    settle(page)
    assert page.input_value("#answer-a") == "a🙂漢\tc"
    tokens(page).nth(1).dblclick()  # a part of a character cannot be replaced
    assert page.locator("#replace").is_hidden()
