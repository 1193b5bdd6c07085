"""The server behind the page, without a browser: numbers, errors, limits, and who may ask."""

import json
import time

import pytest

from inverselm.inspection import RowFile, create_app
from inverselm.inspection.guard import is_address, name_of

from .conftest import ANSWER, PROMPT, SUMS, request, scored_row, served, write_jsonl

QUESTION = {"prompt": PROMPT, "completion": ANSWER}


@pytest.fixture(scope="module")
def url(inspector, tmp_path_factory):
    rows = [*SUMS, {"prompt": "x", "completion": " 7" * 6000}, {"prompt": "", "completion": "y"}]
    path = write_jsonl(tmp_path_factory.mktemp("api") / "rows.jsonl", rows)
    with served(create_app(inspector, RowFile(path), batch_size=8, allowed_hosts=["lab.example"])) as address:
        yield address


def test_an_answer_is_scored(url, inspector):
    answer = request(url, "POST", "/api/score", QUESTION)
    assert answer.status == 200
    assert answer.json == inspector.read([PROMPT], [ANSWER])[0].as_dict()
    cut = request(url, "POST", "/api/score", QUESTION | {"add_eos": False}).json
    assert cut["terminated"] is False
    assert cut["ids"] == answer.json["ids"][:-1]


def test_meta_says_what_is_there(url, inspector):
    meta = request(url, "GET", "/api/meta").json
    assert [d["id"] for d in meta["definitions"]] == [d.id for d in inspector.definitions]
    assert meta["can_score"] is True
    assert meta["file"]["rows"] == len(SUMS) + 2
    assert meta["file"]["scored"] == 0
    assert meta["chat"] is False


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "not valid JSON"),
        ("[]", 400, "must be a JSON object"),
        ("[" * 100_000, 400, "not valid JSON"),
        ({"prompt": PROMPT}, 422, "'completion' must be text"),
        ({"prompt": 3, "completion": "a"}, 422, "'prompt' text or a list of messages"),
        ({"prompt": [{"role": "user"}], "completion": "a"}, 422, "messages with role and content"),
        ({"prompt": [{"role": "user", "content": "hi"}], "completion": "a"}, 422, "no chat template"),
        ({"prompt": "", "completion": "a"}, 422, "the prompt is empty"),
        ({"prompt": "a", "completion": "", "add_eos": False}, 422, "the answer is empty"),
        ({"prompt": PROMPT, "completion": " 7" * 6000}, 422, "the page takes up to 5,000"),
        ({"prompt": PROMPT, "completion": "a" * 500_000}, 422, "more than 400,000 characters"),
        ('{"prompt": "a", "completion": "\\ud800"}', 422, "half of a surrogate pair"),
        ({"prompt": "a", "completion": "b" * (9 * 2**20)}, 413, "larger than 8 MiB"),
    ],
)
def test_what_cannot_be_scored_is_an_error_with_a_reason(url, body, status, message):
    answer = request(url, "POST", "/api/score", body)
    assert answer.status == status
    assert message in answer.json["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:80"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:1234"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "192.168.1.5:7860"}, 200),
        ({"host": "lab.example:7860"}, 200),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_type": "application/json-not"}, 415),
        ({"content_type": "application/json; charset=utf-8"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
    ],
)
def test_other_sites_may_not_ask(url, headers, status):
    answer = request(url, "POST", "/api/score", json.dumps(QUESTION), **headers)
    assert answer.status == status
    assert ("error" in answer.json) is (status != 200)
    if "host" in headers and "origin" not in headers:
        for path in ("/", "/api/meta", "/api/rows", "/static/main.js"):
            assert request(url, "GET", path, **headers).status == status


def test_every_answer_has_the_headers_that_keep_the_page_closed(url):
    for path in ("/", "/static/main.js", "/static/palette.css", "/api/meta", "/api/nothing", "/nothing"):
        headers = request(url, "GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/", "/x"]
)
def test_nothing_else_is_served(url, path):
    assert request(url, "GET", path).status in (404, 405)


def test_methods(url):
    assert request(url, "GET", "/api/score").status == 405
    assert request(url, "POST", "/api/rows", {}).status == 405
    assert request(url, "OPTIONS", "/api/score", origin="http://evil.example").status == 403


def test_rows_in_pages(url):
    first = request(url, "GET", "/api/rows?start=0&count=3").json
    assert (first["total"], [row["index"] for row in first["rows"]]) == (len(SUMS) + 2, [0, 1, 2])
    assert [r["index"] for r in request(url, "GET", "/api/rows?start=24&count=9").json["rows"]] == [24, 25]
    assert request(url, "GET", "/api/rows?start=999").json["rows"] == []
    found = request(url, "GET", "/api/rows?q=4%2B14").json
    assert [row["index"] for row in found["rows"]] == [7]
    row = request(url, "GET", "/api/rows/7").json
    assert (row["prompt"], row["completion"], row["stored"]) == (SUMS[7]["prompt"], SUMS[7]["completion"], None)
    for path, status in (("/api/rows/999", 422), ("/api/rows/x", 404), ("/api/rows?start=-1", 422)):
        assert request(url, "GET", path).status == status
    assert request(url, "GET", "/api/rows?sort=colour").status == 422


def test_nobody_gets_all_rows_at_once(tmp_path):
    path = write_jsonl(tmp_path / "many.jsonl", [scored_row(str(n), [" a"], [1.0]) for n in range(250)])
    with served(create_app(None, RowFile(path))) as url:
        assert len(request(url, "GET", "/api/rows?count=100000").json["rows"]) == 200
        assert len(request(url, "GET", "/api/rows").json["rows"]) == 50


def test_a_file_is_scored_so_that_it_can_be_sorted(url, inspector):
    assert request(url, "POST", "/api/job", {"action": "rest"}).status == 422
    state = request(url, "POST", "/api/job", {"action": "start"}).json
    end = time.monotonic() + 60
    while state["running"]:
        assert time.monotonic() < end
        assert request(url, "POST", "/api/score", QUESTION).status == 200  # the person comes between
        state = request(url, "GET", "/api/job").json
    assert state == {"running": False, "done": len(SUMS) + 2, "total": len(SUMS) + 2, "skipped": 2, "error": ""}
    readings = inspector.read([row["prompt"] for row in SUMS], [row["completion"] for row in SUMS])
    for by in ("dense", "q_function"):
        lowest = [min(reading.rewards[by]) for reading in readings]
        rows = request(url, "GET", f"/api/rows?sort=min&by={by}&count=100").json["rows"]
        assert [row["stats"][by]["min"] for row in rows[:-2]] == pytest.approx(sorted(lowest), abs=1e-4)
        assert {row["index"] for row in rows[-2:]} == {24, 25}  # unknown: last
        assert all(row["stats"] == {} for row in rows[-2:])
    assert request(url, "POST", "/api/job", {"action": "start"}).json["total"] == len(SUMS) + 2


def test_a_scored_file_needs_no_model(tmp_path):
    path = write_jsonl(tmp_path / "s.jsonl", [scored_row("a", [" b", "\ud800"], [1.0, -2.0])])
    with served(create_app(None, RowFile(path, need_scores=True))) as url:
        meta = request(url, "GET", "/api/meta").json
        assert [d["id"] for d in meta["definitions"]] == ["file"]
        assert meta["can_score"] is False
        assert request(url, "GET", "/api/rows/0").json["stored"]["rewards"] == {"file": [1.0, -2.0]}
        assert request(url, "POST", "/api/score", QUESTION).status == 422
        assert request(url, "GET", "/api/job").status == 404
    with served(create_app(None)) as url:
        assert request(url, "GET", "/api/rows").status == 404


def test_a_row_that_is_looked_at_is_counted_once_and_only_unedited(inspector, tmp_path):
    rows = RowFile(write_jsonl(tmp_path / "r.jsonl", SUMS[:2]))
    with served(create_app(inspector, rows)) as url:
        request(url, "POST", "/api/score", {"prompt": PROMPT, "completion": " 9", "row": 0})
        assert not rows.has_stats("dense", 0)
        reading = request(url, "POST", "/api/score", {**QUESTION, "row": 0}).json
        assert rows.summary(0)["stats"]["dense"]["sum"] == pytest.approx(sum(reading["rewards"]["dense"]), abs=1e-4)
        assert request(url, "POST", "/api/score", {**QUESTION, "row": 99}).status == 422


def test_names_in_host_headers():
    assert [name_of(h) for h in ("a:1", "A.", "[::1]", "[::1]:5", "")] == ["a", "a", "::1", "::1", ""]
    assert is_address("10.0.0.1")
    assert is_address("::1")
    assert not is_address("10.0.0.1.example")
    assert not is_address("")
