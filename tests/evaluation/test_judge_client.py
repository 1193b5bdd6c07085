"""Requests over real sockets: retries, what stops a run and what does not, keys, concurrency."""

import json
import socket
import sys
import threading
import time
from email.utils import formatdate

import pytest

from helpers.judge_server import always, completion, serving
from inverselm.errors import UserError
from inverselm.evaluation.judge_cache import Reply
from inverselm.evaluation.judge_client import ChatClient, retry_after
from inverselm.evaluation.judge_endpoint import Endpoint

FAST = {"wait": 0.01, "timeout": 60.0}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def requests(count=1):
    return {f"k{i}": {"model": "m", "messages": [{"role": "user", "content": f"{i} é\ud800"}]} for i in range(count)}


def ask(server, count=1, proven=False, advance=lambda: None, **settings):
    """Replies by key, and failures by key."""
    kept = {}
    client = ChatClient(Endpoint(getattr(server, "url", server), "m", **{**FAST, **settings}), proven)
    failed = client.ask_all(requests(count), kept.__setitem__, advance)
    return kept, failed


def in_turn(*answers, then="[[A]]"):
    """One after the other, whoever asks; then always the last."""
    return lambda request, number: answers[number] if number < len(answers) else then


def test_a_reply():
    with serving(lambda request, number: (200, completion("é [[A]]", "length"))) as server:
        kept, failed = ask(server, options={})
    assert kept == {"k0": Reply("é [[A]]", "length", 50, 10)}
    assert failed == {}
    assert server.requests == list(requests().values())
    assert server.paths == ["/v1/chat/completions"]
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (completion(None, usage=False), Reply("", "stop")),
        (completion("\ud800x", usage=False), Reply("?x", "stop")),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]}, Reply("ab")),
        ({"choices": [{"message": {}, "finish_reason": 3}], "usage": {"prompt_tokens": "x"}}, Reply("")),
    ],
)
def test_replies_of_other_shapes(content, expected):
    with serving(lambda request, number: (200, content)) as server:
        assert ask(server)[0]["k0"] == expected


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_what_passes_is_asked_again(status):
    with serving(in_turn((status, {"error": {"message": "busy"}}), (status, b"<html>"))) as server:
        kept, failed = ask(server)
    assert kept == {"k0": Reply("[[A]]", "stop", 50, 10)}
    assert failed == {}
    assert len(server.requests) == 3
    assert len(server.paid) == 1


def test_retry_after_is_respected():
    started = time.monotonic()
    with serving(in_turn((429, {}, {"Retry-After": "0.7"}))) as server:
        assert ask(server)[1] == {}
    assert time.monotonic() - started >= 0.7
    assert retry_after("1.5") == 1.5
    assert retry_after("-3") == retry_after("nan") == retry_after("inf") == retry_after("x, y") == 0.0
    assert retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after(formatdate(time.time() - 30, usegmt=True)) == 0.0


def test_waits_double_up_to_a_minute_with_jitter():
    waits = []
    with serving(always("x")) as server:
        client = ChatClient(Endpoint(server.url, "m", wait=2.0, retries=8))
    client._stop.wait = waits.append  # returns None: not stopped
    client._reached = True
    with pytest.raises(Exception, match="no connection"):
        client._ask(requests()["k0"])
    whole = [2, 4, 8, 16, 32, 60, 60, 60]
    assert len(waits) == 8
    assert all(w / 2 <= wait <= w for wait, w in zip(waits, whole, strict=True))
    assert len({wait / w for wait, w in zip(waits, whole, strict=True)}) == 8


def test_a_server_that_hangs_is_asked_again():
    release = threading.Event()

    def rule(request, number):
        if number == 0:
            release.wait(60)
        return "[[B]]"

    with serving(rule) as server:
        kept, failed = ask(server, timeout=1.0)
        release.set()
    assert kept["k0"].text == "[[B]]"
    assert failed == {}
    assert len(server.requests) >= 2


def test_a_connection_that_breaks_is_tried_again():
    """A server that closes the connection without a word, twice."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve():
        content = json.dumps(completion("ok")).encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(content)
        for number in range(3):
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(65536))
                if number == 1:
                    connection.sendall(answer + content[:10])
                if number == 2:
                    connection.sendall(answer + content)

    threading.Thread(target=serve, daemon=True).start()
    kept, failed = ask(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    listener.close()
    assert kept["k0"].text == "ok"
    assert failed == {}
    assert len(seen) == 3


def test_tries_end_and_a_request_stays_unanswered():
    def rule(request, number):
        return (503, {"error": "overloaded"}) if request["messages"][0]["content"].startswith("1 ") else "[[A]]"

    with serving(rule) as server:
        kept, failed = ask(server, 4, retries=2, concurrency=1)
    assert sorted(kept) == ["k0", "k2", "k3"]
    assert failed == {"k1": "503: overloaded (3 tries)"}
    assert len(server.requests) == 3 + 3


def test_failures_that_are_not_in_a_row_do_not_stop_the_run():
    rule = lambda request, number: "[[A]]" if number % 2 else (500, {})
    with serving(rule) as server:
        kept, failed = ask(server, 14, retries=0, concurrency=1)
    assert (len(kept), len(failed)) == (7, 7)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {"error": {"message": "too long"}}), "400: too long"),
        ((422, {"detail": [{"msg": "x"}]}), '422: [{"msg": "x"}]'),
        ((200, b"<html>hello</html>"), "no chat completion: <html>hello</html>"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, {"error": "x"}), "no chat completion"),
        ((200, b"[1]"), "no chat completion"),
        ((200, b"\xff\xfe{"), "no chat completion"),
        ((413, b""), "413: no text"),
        ((400, b"\x1b[2Jgone\x00\n  home"), "400: [2Jgone home"),
        ((400, {"error": "x" * 300}), "400: " + "x" * 197 + "..."),
    ],
)
def test_a_refused_request_is_not_asked_again_and_others_go_on(answer, words):
    bad = ("1 ", "3 ", "4 ", "5 ", "6 ", "7 ", "8 ")
    rule = lambda request, number: answer if request["messages"][0]["content"].startswith(bad) else "[[A]]"
    with serving(rule) as server:
        kept, failed = ask(server, 10, concurrency=1)
    assert sorted(kept) == ["k0", "k2", "k9"]
    assert len(failed) == 7, "more than five in a row, but the endpoint has shown that it answers"
    assert words in failed["k1"]
    assert len(server.requests) == 10


def test_refusals_from_the_start_stop_the_run():
    with serving(lambda request, number: (400, {"error": {"message": "unknown field"}})) as server:
        with pytest.raises(UserError, match="no answer to 5 requests in a row; to the last one: 400: unknown field"):
            ask(server, 30, concurrency=1)
        assert 5 <= len(server.requests) <= 6
        with pytest.raises(UserError, match="to 2 requests in a row"):
            ask(server, 2)
        kept, failed = ask(server, 2, proven=True)
    assert (kept, len(failed)) == ({}, 2), "an endpoint that answered before: it is about these requests"


def test_an_endpoint_that_dies_stops_the_run():
    rule = lambda request, number: "[[A]]" if number < 3 else (500, {"error": {"message": "gone"}})
    with serving(rule) as server, pytest.raises(UserError, match=r"5 requests in a row.*500: gone \(2 tries\)"):
        ask(server, 30, retries=1, concurrency=1)
    assert len(server.paid) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {"error": {"message": "bad key"}}), ["refuses access (401: bad key)", "OPENAI_API_KEY"]),
        ((403, b"no"), ["refuses access (403: no)"]),
        ((404, {"error": {"message": "no model m"}}), ["answers 404 (no model m)", "judge_url", "judge_model", "'m'"]),
        ((301, b"", {"Location": "/v2"}), ["has moved (301)"]),
        ((429, {"error": {"code": "insufficient_quota", "message": "pay"}}), ["no quota left (pay)"]),
        ((503, {}, {"Retry-After": "86400"}), ["come back in 86,400 seconds"]),
    ],
)
def test_what_stays_stops_at_once(answer, words):
    with serving(lambda request, number: answer) as server:
        with pytest.raises(UserError) as error:
            ask(server, 20, concurrency=1)
        assert len(server.requests) == 1
    for word in words:
        assert word in str(error.value)
    assert server.url in str(error.value)


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"no connection to http://127.0.0.1:{port}/v1/chat/completions .*server runn"):
        ask(f"http://127.0.0.1:{port}/v1", 5, wait=1000.0)
    assert time.monotonic() - started < 25, "no second try"
    with pytest.raises(UserError, match=r"no connection to http://judge\.invalid"):
        ask("http://judge.invalid/v1", wait=1000.0, proven=True)


def test_a_server_that_goes_away_in_between_is_waited_for():
    """It closes its port, gives its first answer, and is back a little later."""
    listener, back, done = socket.create_server(("127.0.0.1", 0)), [], threading.Event()
    port = listener.getsockname()[1]

    def serve():
        connection, _ = listener.accept()
        listener.close()
        with connection:
            connection.recv(65536)
            content = json.dumps(completion("first")).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(content)
            connection.sendall(head + content)
        time.sleep(0.4)
        with serving(always("second"), port) as server:
            done.wait(10)
            back.append(len(server.requests))

    thread = threading.Thread(target=serve)
    thread.start()
    kept, failed = ask(f"http://127.0.0.1:{port}/v1", 3, concurrency=1, wait=0.2)
    done.set()
    thread.join()
    assert [kept[key].text for key in sorted(kept)] == ["first", "second", "second"]
    assert (failed, back) == ({}, [2])


def test_concurrency_is_used_and_not_exceeded():
    together = threading.Barrier(5)

    def rule(request, number):
        if number < 5:
            together.wait(60)  # the first five are under way at once
        return "[[A]]"

    steps = []
    with serving(rule) as server:
        kept, _ = ask(server, 30, concurrency=5, advance=lambda: steps.append(threading.current_thread()))
    assert len(kept) == 30
    assert server.most_at_once == 5
    assert steps == [threading.main_thread()] * 30
    assert len({r["messages"][0]["content"] for r in server.requests}) == 30


def test_without_httpx2_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[judge\]'"):
        ChatClient(Endpoint("http://127.0.0.1:8000/v1", "m"))
