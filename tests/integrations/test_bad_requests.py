"""Bodies that cannot be read: each is refused with what is wrong, and nobody else notices."""

import pytest

from .conftest import dense, running

OK = {"prompt": "a", "completion": "b"}
IDS = {"prompt_ids": [5, 6], "completion_ids": [7, 8]}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

MALFORMED = [
    (b"", 400, "not JSON: Expecting value at line 1, column 1"),
    (b"{", 400, "line 1, column 2"),
    (b'{"prompt": "a",\n "completion" "b"}', 400, "line 2, column 15"),
    (b'{"prompt": "\xff"}', 400, "not UTF-8 (byte 12)"),
    (b"[]", 400, "must be a JSON object, not an empty list"),
    (b"[1]", 400, "not a list"),
    (b'"a"', 400, "not text"),
    (b"3", 400, "not a number"),
    (b"null", 400, "not null"),
    (b'{"prompt_ids": [NaN]}', 400, "NaN is no number of JSON"),
    (b'{"prompt_ids": [Infinity]}', 400, "Infinity"),
    (b"[" * 200_000, 400, "the body is not JSON"),
    (b'{"prompt_ids": [' + b"9" * 5000 + b"]}", 400, "the body is not JSON"),
    ({}, 422, "'prompt' is missing"),
    ({"promt": "a", "completion": "b"}, 422, "'prompt' is missing: a row has prompt and completion, or messages"),
    ({"prompt": "a"}, 422, "'completion' is missing"),
    ({"rows": []}, 422, "at least one row"),
    ({"rows": OK}, 422, "'rows' must be a list"),
    ({"rows": [OK], "return_txt": False}, 422, "unknown field 'return_txt' beside 'rows'"),
    ({**OK, "return_text": 0}, 422, "'return_text' must be true or false"),
    ({**OK, "finished": "yes"}, 422, "'finished' must be true or false"),
    ({"rows": [OK, 3]}, 422, "row 1: a row must be an object, not a number"),
    ({"rows": [OK, None]}, 422, "row 1: a row must be an object, not null"),
    ({"rows": [OK, OK, {"prompt": 3, "completion": "b"}]}, 422, "row 2: 'prompt' must be text or a list of messages"),
    ({"prompt": "a", "completion": ["b"]}, 422, "each message of 'completion' must have a 'role'"),
    ({"prompt": "a", "completion": TALK[1:]}, 422, "'prompt' is text, but 'completion' is messages"),
    ({"prompt": [], "completion": "b"}, 422, "not an empty list"),
    ({"prompt": "", "completion": "b"}, 422, "the prompt has no token"),
    ({"prompt": "a", "completion": "", "finished": False}, 422, "the completion has no token"),
    (b'{"prompt": "a", "completion": "\\ud800"}', 422, "cannot be tokenised"),
    ({"messages": TALK}, 422, "the tokenizer has no chat template"),
    ({"messages": TALK[:1]}, 422, "at its end, the assistant's"),
    ({"messages": TALK[1:]}, 422, "a prompt of at least one message"),
    ({"messages": "a"}, 422, "not text"),
    ({"messages": [{"role": 1, "content": "a"}]}, 422, "must have a 'role' and a 'content'"),
    ({**IDS, "completion_ids": []}, 422, "the completion has no token"),
    ({**IDS, "prompt_ids": []}, 422, "the prompt has no token"),
    ({"prompt_ids": [5]}, 422, "'completion_ids' is missing"),
    ({"completion_ids": [5]}, 422, "'prompt_ids' is missing"),
    ({**IDS, "prompt_ids": "5"}, 422, "'prompt_ids' must be a list of whole numbers"),
    ({**IDS, "prompt_ids": [5.0]}, 422, "whole numbers"),
    ({**IDS, "prompt_ids": [True]}, 422, "whole numbers"),
    ({**IDS, "prompt_ids": [-1]}, 422, "'prompt_ids' holds -1; the vocabulary has the ids 0 to"),
    ({**IDS, "completion_ids": [7, 100_000]}, 422, "'completion_ids' holds 100000"),
    ({**IDS, "action_mask": [1]}, 422, "'action_mask' must hold 0 or 1 for each"),
    ({**IDS, "action_mask": [1, 2]}, 422, "'action_mask' must hold 0 or 1"),
    ({**IDS, "action_mask": "11"}, 422, "'action_mask' must be a list"),
    ({**IDS, "completion_ids": [7] * 255}, 422, "2 + 255 tokens of prompt and completion, but the model has 256"),
]


@pytest.mark.parametrize(("body", "status", "words"), MALFORMED, ids=[str(b)[:60] for b, _, _ in MALFORMED])
def test_a_malformed_body_is_refused_with_what_is_wrong(served_256, body, status, words):
    reply = served_256.score(body)
    error = reply.error
    assert reply.status == status
    assert set(error) <= {"code", "message", "row"}
    shown = (f"row {error['row']}: " if "row" in error else "") + error["message"]
    assert words in shown
    assert served_256.score(OK).status == 200


@pytest.fixture(scope="module")
def served_256():
    with running(dense(), limits={"fits": lambda p, c: p + c <= 256, "positions": 256}) as client:
        yield client
