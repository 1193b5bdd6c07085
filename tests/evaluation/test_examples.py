"""Rows as examples: where references come from, repeated prompts, and rows that cannot be used."""

import pytest

from inverselm.errors import UserError
from inverselm.evaluation.examples import content_hash, read_examples
from inverselm.evaluation.tasks import load_task
from inverselm.evaluation.tasks.custom import FunctionTask

MATCH = load_task("exact_match")


def references(row, task=MATCH, **kwargs):
    return read_examples([{"prompt": "p", **row}], task, **kwargs)[0].references


def test_where_a_reference_comes_from():
    row = {"references": ["a", "b", "a"], "reference": "c", "answer": "d", "completion": "e", "mine": "f"}
    order = [("a", "b"), ("c",), ("d",), ("e",)]
    for expected in order:
        assert references(row) == expected
        row.pop(next(iter(row)))
    row = {"answer": None, "completion": "e", "mine": "f"}
    assert references(row) == ("e",), "null is no reference"
    assert references(row, reference_column="mine") == ("f",)
    assert references({"answer": 17}) == ("17",)
    assert references({"answer": 0.5}) == ("0.5",)
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]
    assert references({"completion": talk}) == ("yes",)
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert references({"completion": parts}) == ("ab",)


def test_texts_for_lengths_are_whole_answers_only():
    texts = lambda row: read_examples([{"prompt": "p", **row}], MATCH)[0].texts
    assert texts({"answer": "7", "completion": "so 7"}) == ("so 7",)
    assert texts({"answer": "7"}) == ()
    assert texts({"references": ["a", "b"]}) == ("a", "b")
    assert texts({"reference": "a"}) == ("a",)


def test_repeated_prompts_are_one_example():
    rows = [
        {"prompt": "x", "completion": "1", "numbers": "3"},
        {"prompt": "y", "completion": "2", "numbers": "3"},
        {"prompt": "x", "completion": "3", "numbers": "4"},
        {"prompt": "x", "completion": "1", "numbers": "3"},
        {"prompt": [{"role": "user", "content": "x"}], "completion": "4", "numbers": "3"},
    ]
    found = read_examples(rows, MATCH)
    assert [(e.prompt, e.references, e.texts) for e in found[:2]] == [
        ("x", ("1", "3"), ("1", "3")),
        ("y", ("2",), ("2",)),
    ]
    assert len(found) == 3
    assert found[0].where == "rows: row 1"
    assert found[0].row == {"prompt": "x", "completion": "1", "numbers": "3"}
    kept_apart = read_examples(rows, load_task("equations"))
    assert [e.references for e in kept_apart] == [("1",), ("2",), ("3",), ("4",)], "the task reads `numbers`"
    of_function = read_examples(rows, FunctionTask(lambda *_: 1.0, "f"))
    assert len(of_function) == 4, "a function may read any column but the references"
    [one] = read_examples([{"prompt": "x", "completion": c} for c in "ab"], FunctionTask(lambda *_: 1.0, "f"))
    assert one.references == ("a", "b")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows: has no rows"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": " ", "completion": "b"}], "rows: row 2: 'prompt' is missing"),
        ([{"completion": "b"}], "'prompt' is missing or empty"),
        ([{"prompt": "a", "ref": "b"}], "needs 'references' or 'reference' or 'answer' or 'completion', but has 'ref'"),
        ([{"prompt": "a", "references": []}], "'references' is an empty list"),
        ([{"prompt": "a", "references": ["x", None]}], "the reference in 'references' is NoneType, not text"),
        ([{"prompt": "a", "completion": "  "}], "the reference in 'completion' is empty"),
        ([{"prompt": "a", "answer": True}], "the reference in 'answer' is bool, not text"),
        (
            [{"prompt": "a", "answer": "b", "__line__": "d.jsonl: line 9"}, {"prompt": "", "__line__": "x"}],
            "x: 'prompt'",
        ),
    ],
)
def test_rows_that_cannot_be_used(rows, message):
    with pytest.raises(UserError) as error:
        read_examples(rows, MATCH)
    assert message in str(error.value)


def test_content_hash_follows_what_is_asked_and_expected():
    rows = [
        {"prompt": "a", "completion": "b", "numbers": "1", "id": 1},
        {"prompt": "c", "completion": "d", "numbers": "2"},
    ]
    of = lambda rows: content_hash(read_examples(rows, load_task("equations")))
    assert of(rows) == of([{**rows[0], "id": 2, "__line__": "z"}, rows[1]])
    others = [
        rows[::-1],
        rows[:1],
        [{**rows[0], "completion": "B"}, rows[1]],
        [{**rows[0], "prompt": "A"}, rows[1]],
        [{**rows[0], "answer": "b"}, {**rows[1], "answer": "D"}],
    ]
    assert len({of(r) for r in [rows, *others]}) == 6
