"""What a judge is asked, how its answer is read, and what two orders say together."""

import doctest
import hashlib
import itertools
import json
import threading

import pytest

from inverselm.errors import UserError
from inverselm.evaluation import (
    judge_cache,
    judge_client,
    judge_endpoint,
    judge_run,
    judging,
    length_control,
    win_rate,
)
from inverselm.evaluation.judge_cache import Reply, ReplyCache, request_key
from inverselm.evaluation.judging import CRITERIA, TEMPLATE, Judged, Pair, Prompting, as_text, judged, parse_verdict

MODULES = (judging, judge_cache, judge_client, judge_endpoint, judge_run, length_control, win_rate)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "A"),
        ("Both are fine, yet the second is right.\n\n[[B]]\n", "B"),
        ("I like A.\n  **[[C]]**  \n\n", "C"),
        ("My verdict: [[A]].", "A"),
        ("### Final decision: **[[B]]**", "B"),
        ("`[[A]]`", "A"),
        ("[[B]] was my first thought, but no.\n[[A]]", "A"),
        ("<think>[[B]]?</think>\r\n[[C]]\r\n", "C"),
        ("", None),
        (None, None),
        ("   \n", None),
        ("A", None),
        ("[A]", None),
        ("[[a]]", None),
        ("[[D]]", None),
        ("[[A]]\nI hope this helps!", None),
        ("I think [[A]]", None),
        ("[[A]] is better", None),
        ("[[A]] or [[B]]", None),
        ("Either [[A]]: [[B]]", None),
        ("[[A]][[A]]", None),
        ("[[A]]: no", None),
        ("***", None),
    ],
)
def test_a_verdict_is_the_last_line_and_nothing_else(text, verdict):
    assert parse_verdict(text) == verdict


def test_other_marks():
    marks = ("Winner: 1", "Winner: 2", "Draw")
    prompting = Prompting("{prompt} {answer_a} {answer_b} Winner: 1, Winner: 2 or Draw", marks=marks)
    verdicts = [prompting.verdict(text) for text in ("x\nWinner: 1", "Winner: 2.", "**Draw**", "[[A]]", "Winner: 12")]
    assert verdicts == ["A", "B", "C", None, None]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"template": "{prompt} {answer_a} [[A]] [[B]] [[C]]"}, "{answer_b}"),
        ({"template": "{answer_a} {answer_b} [[A]] [[B]] [[C]]"}, "{prompt}"),
        ({"template": "{prompt} {answer_a} {answer_b} [[A]] [[B]]"}, "never names [[C]]"),
        ({"marks": ("[[A]]", "[[B]]")}, "three texts"),
        ({"marks": ("[[A]]", "[[B]]", " ")}, "three texts"),
        ({"marks": ("A", "B", "AB"), "template": TEMPLATE}, "part of another"),
        ({"marks": ("A", "A", "C")}, "part of another"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(given, words):
    with pytest.raises(UserError) as error:
        Prompting(**given)
    assert words in str(error.value)


def test_texts_are_filled_in_once_and_stay_as_they_are():
    prompting = Prompting()
    nasty = r"{answer_b} {x} \1 \g<0> [[A]] {"
    [message] = prompting.messages(nasty, "first {prompt}", "second", "third")
    assert message["role"] == "user"
    text = message["content"]
    assert f"<request>\n{nasty}\n</request>" in text
    assert "<answer_a>\nfirst {prompt}\n</answer_a>" in text
    assert "<answer_b>\nsecond\n</answer_b>" in text
    assert "<reference_answer>\nthird\n</reference_answer>" in text
    assert CRITERIA in text
    assert "reference" not in prompting.messages("p", "a", "b")[0]["content"]
    assert text.index("first {prompt}") < text.index("\nsecond\n")
    own = Prompting(criteria="Is it polite?").messages("p", "a", "b")[0]["content"]
    assert "Is it polite?" in own
    assert CRITERIA not in own


def test_a_pair_is_asked_about_in_both_orders():
    body = {"model": "m", "temperature": 0.0}
    one, two = Pair("p", ("mine", "theirs"), "ref").requests(Prompting(), body)
    assert one["messages"] == Prompting().messages("p", "mine", "theirs", "ref")
    assert two["messages"] == Prompting().messages("p", "theirs", "mine", "ref")
    assert {name: one[name] for name in body} == body
    assert Pair("p", ("same ", "same\n")).requests(Prompting(), body) == []


def test_the_two_orders_together():
    """All 16 cases: with the run shown first and second, both must say the same of it."""
    pair = Pair("p", ("run", "other"))
    won, lost = {("A", "B")}, {("B", "A")}
    for verdicts in itertools.product("ABC", repeat=2):
        expected = 1.0 if verdicts in won else 0.0 if verdicts in lost else 0.5
        assert Judged(pair, verdicts).score == expected, verdicts
    for verdicts in itertools.product(("A", "B", "C", None), repeat=2):
        assert (Judged(pair, verdicts).score is None) == (None in verdicts)
    assert Judged(pair, ("C", "B")).scores == (0.5, 1.0)
    assert Judged(Pair("p", ("same", "same")), (None, None)).score == 0.5


def test_answers_are_read_in_their_order():
    found = judged(Pair("p", ("run", "other")), ["good\n[[A]]", "bad"], [True, True], Prompting())
    assert (found.verdicts, found.answered, found.score) == (("A", None), (True, True), None)
    assert found.texts == ("good\n[[A]]", "bad")
    lost = judged(Pair("p", ("run", "other")), ["[[A]]", None], [True, False], Prompting())
    assert (lost.verdicts, lost.answered) == (("A", None), (True, False))


def test_conversations_as_text():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert as_text(talk) == "user: a\n\nassistant: b\n\nuser: c"
    assert as_text([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]) == "a\n"
    assert as_text([{"role": "user", "content": None}]) == ""


def test_the_key_is_the_hash_of_what_is_sent():
    request = {"model": "m", "temperature": 0.0, "messages": [{"role": "user", "content": "é"}]}
    text = '{"messages":[{"content":"\\u00e9","role":"user"}],"model":"m","temperature":0.0}'
    assert request_key(request) == hashlib.sha256(text.encode()).hexdigest()
    keys = {request_key({**request, **change}) for change in ({}, {"model": "n"}, {"temperature": 1.0}, {"top_p": 1})}
    assert len(keys) == 4


def test_cache_keeps_what_it_is_given(tmp_path):
    file = tmp_path / "cache.jsonl"
    cache = ReplyCache(file)
    assert not file.exists()
    cache.add("k1", "m", Reply("é\n[[A]]\u2028\ud800", "stop", 5, 6))
    cache.add("k2", "m", Reply(""))
    again = ReplyCache(file)
    assert len(again) == 2
    assert again.get("k1") == Reply("é\n[[A]]\u2028\ud800", "stop", 5, 6)
    assert again.get("k2") == Reply("")
    assert again.get("k3") is None
    assert [json.loads(line)["model"] for line in file.read_text().splitlines()] == ["m", "m"]


@pytest.mark.parametrize("left", [3, 9, 40, -2])
def test_cache_survives_a_line_that_a_kill_broke(tmp_path, left):
    file = tmp_path / "cache.jsonl"
    cache = ReplyCache(file)
    cache.add("k1", "m", Reply("one"))
    whole = file.read_bytes()
    cache.add("k2", "m", Reply("two"))
    second = file.read_bytes()[len(whole) :]
    file.write_bytes(whole + second[:left])
    again = ReplyCache(file)
    assert (again.get("k1"), again.get("k2")) == (Reply("one"), None)
    again.add("k2", "m", Reply("new"))
    again.add("k3", "m", Reply("three"))
    last = ReplyCache(file)
    assert [last.get(key) for key in ("k1", "k2", "k3")] == [Reply("one"), Reply("new"), Reply("three")]


@pytest.mark.parametrize("content", ['{"prompt": "a"}\n', "text", '{"prompt": "a"}', "[1]\n", '{"a": 1}\n{"b": 2}\n'])
def test_another_file_is_no_cache(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match="no cache of a judge's replies"):
        ReplyCache(file)
    assert file.read_text() == content


def test_cache_in_memory_and_unwritable(tmp_path):
    cache = ReplyCache(None)
    cache.add("k", "m", Reply("x"))
    assert cache.get("k") == Reply("x")
    with pytest.raises(UserError, match="cannot be written"):
        ReplyCache(tmp_path / "no" / "folder.jsonl").add("k", "m", Reply("x"))


def test_threads_may_share_a_cache(tmp_path):
    cache = ReplyCache(tmp_path / "cache.jsonl")
    other = ReplyCache(tmp_path / "cache.jsonl")
    work = lambda c, t: [c.add(f"{t}-{i}", "m", Reply("x" * 500)) for i in range(50)]
    threads = [threading.Thread(target=work, args=(c, f"{k}{t}")) for k, c in enumerate((cache, other)) for t in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ReplyCache(tmp_path / "cache.jsonl")) == 400
