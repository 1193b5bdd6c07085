"""Checking rows: the format is found, and the first unusable row is named."""

import pytest
from datasets import Dataset

from inverselm.errors import UserError
from inverselm.inputs.data import LINE_COLUMN, check_demonstrations, training_columns


def fails(call, *parts):
    """`call` raises one line that contains every part."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "need", "found"),
    [
        ({"prompt": "a", "completion": "b", "id": 1}, "demonstrations", "prompt-completion"),
        (
            {"prompt": [user("a")], "completion": [assistant("b")]},
            "demonstrations",
            "conversational-prompt-completion",
        ),
        ({"messages": [user("a"), assistant("b")], "prompt": "a"}, "demonstrations", "messages"),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
            "answers",
            "messages",
        ),
        ({"text": "a"}, "demonstrations", "text"),
        ({"prompt": "a", "completion": None}, "prompts", "prompt"),
        ({"prompt": [user("a")]}, "prompts", "conversational-prompt"),
    ],
)
def test_formats_are_found_and_reduced_to_their_columns(row, need, found):
    dataset = Dataset.from_list([{**row, LINE_COLUMN: "x"}] * 3)
    assert check_demonstrations(dataset, "x", need=need) == found
    names = {
        "messages": ["messages"],
        "text": ["text"],
        "prompt": ["prompt"],
        "conversational-prompt": ["prompt"],
    }
    reduced = training_columns(dataset, found)
    assert reduced.column_names == names.get(found, ["prompt", "completion"])
    if found == "messages":
        assert reduced[0]["messages"] == [user("a"), assistant("b")]


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": "a", "completion": None}, "'completion' is null"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ({"prompt": None, "completion": "b"}, "'prompt' is null"),
        ({"prompt": "a", "completion": " <eos> "}, "only the end-of-sequence token <eos>"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_plain_rows_are_named(bad, part, place):
    rows = [{"prompt": "a", "completion": "b"}] * 3
    rows.insert(place, bad)
    check = lambda: check_demonstrations(Dataset.from_list(rows), "d.jsonl", eos_token="<eos>")
    fails(check, f"d.jsonl: row {place + 1}: ", part)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (None, "'messages' is null"),
        ([], "empty list"),
        ([user("a")], "no message of the assistant"),
        ([user("a"), {"role": "gpt", "content": "b"}], "rename the role 'gpt' to 'assistant'"),
        ([assistant("a"), user("b")], "last message of 'messages' is from 'user'"),
        ([user("a"), {"role": "assistant", "content": None}], "a message of 'assistant' in 'messages' has no content"),
        ([user("a"), {"role": None, "content": "b"}], "has no role"),
        ([user("a"), assistant(" ")], "the assistant in 'messages' is empty"),
        ([user("a"), assistant("<eos>")], "only the end-of-sequence token"),
    ],
)
def test_bad_dialogues_are_named(messages, part):
    rows = [{"messages": [user("a"), assistant("b")]}, {"messages": messages}]
    dataset = Dataset.from_list(rows)
    fails(lambda: check_demonstrations(dataset, "d", eos_token="<eos>"), "d: row 2: ", part)
    rows = [{"prompt": [user("a")], "completion": row["messages"]} for row in rows]
    dataset = Dataset.from_list(rows)
    fails(
        lambda: check_demonstrations(dataset, "d", eos_token="<eos>"),
        "d: row 2: ",
        part.replace("messages", "completion"),
    )


def test_every_row_is_checked_and_the_rest_counted():
    rows = [{"prompt": "a", "completion": "" if i in (1500, 1700, 2500) else "b"} for i in range(3000)]
    dataset = Dataset.from_list(rows)
    fails(lambda: check_demonstrations(dataset, "d"), "d: row 1501: ", "(and 2 more rows with problems)")
    assert check_demonstrations(dataset, "d", allow_empty=True) == "prompt-completion"
    named = dataset.add_column(LINE_COLUMN, [f"d.jsonl: line {2 * i}" for i in range(3000)])
    fails(lambda: check_demonstrations(named.select(range(1700, 3000)), "d"), "d.jsonl: line 3400: ", "and 1 more row ")
    fails(lambda: check_demonstrations(named.to_iterable_dataset(), "d"), "d.jsonl: line 3000: ", "and 2 more")


def test_mixed_and_other_types_are_refused():
    mixed = Dataset.from_list([{"prompt": "a", "completion": [assistant("b")]}])
    fails(lambda: check_demonstrations(mixed, "d"), "row 1", "must both be text, or both be lists")
    mixed = Dataset.from_list([{"prompt": [user("a")], "completion": "b"}])
    fails(lambda: check_demonstrations(mixed, "d"), "row 1", "'completion' is not a list of messages")
    numbers = Dataset.from_list([{"prompt": "a", "completion": 2}])
    fails(lambda: check_demonstrations(numbers, "d"), "row 1", "'completion' is int, not text")


@pytest.mark.parametrize(
    ("columns", "need", "parts"),
    [
        (("question", "answer"), "demonstrations", ("rename 'question' to 'prompt' and 'answer' to 'completion'",)),
        (("instruction", "output"), "answers", ("rename 'instruction' to 'prompt' and 'output' to 'completion'",)),
        (("Prompt", "completion"), "demonstrations", ("rename 'Prompt' to 'prompt'",)),
        (("prompt", "target"), "answers", ("has 'prompt', 'target'; rename 'target' to 'completion'",)),
        (("id", "dialogue"), "demonstrations", ("rename 'dialogue' to 'messages'",)),
        (("question",), "prompts", ("needs the column 'prompt', but has 'question'; rename 'question' to 'prompt'",)),
        (("a", "b"), "demonstrations", ("'prompt' and 'completion', or 'messages', or 'text', but has 'a', 'b'",)),
        (("text",), "answers", ("'prompt' and 'completion', or 'messages', but has 'text'",)),
    ],
)
def test_missing_columns_are_named_with_a_rename(columns, need, parts):
    dataset = Dataset.from_list([dict.fromkeys(columns, "x")])
    fails(lambda: check_demonstrations(dataset, "d.csv", need=need), "d.csv: ", *parts)


def test_text_field_and_empty_dataset():
    dataset = Dataset.from_list([{"body": "x"}, {"body": " "}])
    fails(lambda: check_demonstrations(dataset, "d", text_field="body"), "row 2: 'body' is empty")
    assert check_demonstrations(dataset.select([0]), "d", text_field="body") == "text"
    fails(lambda: check_demonstrations(dataset.select([]), "d", text_field="body"), "has no rows")
