"""What is refused, how, and that nobody else notices; clients that go; a full queue; an end that loses nothing."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch

from .conftest import Held, dense, running, wait_until

OK = {"prompt": "a", "completion": "b"}
IDS = {"prompt_ids": [5, 6], "completion_ids": [7, 8]}


@pytest.fixture(scope="module")
def limited():
    """Of a model with 256 positions, at most 3 rows of 40 KiB."""
    with running(
        dense(), limits={"fits": lambda p, c: p + c <= 256, "positions": 256, "max_rows": 3}, max_body=40 * 1024
    ) as client:
        yield client


def test_the_row_that_is_wrong_is_named(limited):
    error = limited.score({"rows": [OK, OK, {"prompt": "a"}]}).error
    assert (error["row"], error["code"]) == (2, "bad_row")
    assert "row" not in limited.score({"prompt": "a"}).error


def test_too_many_rows(limited):
    reply = limited.score({"rows": [OK] * 4})
    assert (reply.status, reply.error["code"]) == (422, "too_many_rows")
    assert "4 rows in one request, but this server takes 3" in reply.error["message"]
    assert "--max_rows" in reply.error["message"]
    assert limited.score({"rows": [OK] * 3}).status == 200
    assert limited.post("/get_reward", {"query": ["ab"] * 4, "prompts": ["a"] * 4}).status == 422


def test_a_long_row(limited):
    fits = {"prompt_ids": [5] * 56, "completion_ids": [6] * 200}
    assert limited.score(fits).status == 200
    reply = limited.score({**fits, "prompt_ids": [5] * 57})
    assert (reply.status, reply.error["code"]) == (422, "row_too_long")
    assert "57 + 200 tokens" in reply.error["message"]
    with running(dense(), limits={"max_row_tokens": 10}) as client:
        assert client.score({"prompt_ids": [5] * 4, "completion_ids": [6] * 6}).status == 200
        reply = client.score({"prompt_ids": [5] * 5, "completion_ids": [6] * 6})
        assert (reply.status, reply.error["code"]) == (422, "row_too_long")
        assert "this server takes 10; shorten it, or start it with a larger --max_row_tokens" in reply.error["message"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [40 * 1024, 40 * 1024 + 1, 300 * 1024])
def test_a_large_body(limited, size, chunked):
    body = json.dumps(OK).encode()
    body += b" " * (size - len(body))
    parts = (body[i : i + 10_000] for i in range(0, size, 10_000)) if chunked else body
    headers = {"transfer-encoding": "chunked"} if chunked else None
    reply = limited.send("POST", "/v1/token_rewards", parts, headers)
    if size <= 40 * 1024:
        assert reply.status == 200
    else:
        assert (reply.status, reply.error["code"]) == (413, "body_too_large")
        assert "--max_body_mb" in reply.error["message"]


def test_a_body_without_end_is_cut_off(limited):
    with socket.create_connection(("127.0.0.1", limited.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/token_rewards HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n")
        sent = 0
        with suppress(OSError):  # reset, or a broken pipe
            while sent < 50 * 2**20:
                sent += connection.send(b" " * 65536)
                time.sleep(0.001)
    assert sent < 20 * 2**20
    assert limited.score(OK).status == 200


def test_unknown_pages_and_methods(limited):
    reply = limited.get("/v1/rewards")
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert "POST /v1/token_rewards" in reply.error["message"]
    reply = limited.get("/v1/token_rewards")
    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert "error" in reply.json


# ---- queue and time --------------------------------------------------------------------------------------------------
def test_a_full_queue_sends_clients_away_for_a_while():
    scorer = dense()
    held = Held(scorer)
    with running(scorer, max_queue=5, max_wait=0, batch_size=2) as client, ThreadPoolExecutor(4) as pool:
        held.open.clear()
        running_now = pool.submit(client.score, OK)
        assert held.reached.wait(60)
        waiting = pool.submit(client.score, {"rows": [OK] * 4})
        wait_until(lambda: client.service.batcher.depth == 4)
        reply = client.score({"rows": [OK, OK]})
        assert (reply.status, reply.error["code"]) == (503, "queue_full")
        assert int(reply.headers["retry-after"]) >= 1
        assert "4 rows wait, of at most 5" in reply.error["message"]
        assert client.get("/health").json["queued_rows"] == 4
        last = pool.submit(client.score, OK)
        wait_until(lambda: client.service.batcher.depth == 5)
        held.open.set()
        assert [f.result(60).status for f in (running_now, waiting, last)] == [200, 200, 200]


def test_a_request_that_takes_too_long_is_given_up():
    scorer = dense()
    held = Held(scorer)
    with running(scorer, timeout=2.0, max_wait=0, batch_size=1) as client, ThreadPoolExecutor(2) as pool:
        held.open.clear()
        first = pool.submit(client.score, OK)
        assert held.reached.wait(60)
        reply = client.score({"rows": [IDS] * 3})
        assert (reply.status, reply.error["code"]) == (504, "timeout")
        assert "--request_timeout" in reply.error["message"]
        wait_until(lambda: client.service.batcher.depth == 0)  # its rows do not wait any more
        assert first.result(60).status == 504
        held.open.set()
        assert client.score(OK).status == 200
        assert len(held.calls) == 2


def test_a_body_that_does_not_come_is_not_waited_for():
    with running(dense(), timeout=2.0) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
            connection.sendall(b"POST /v1/token_rewards HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body_timeout" in answer
        assert client.score(OK).status == 200


def test_rows_of_clients_that_left_are_not_scored():
    scorer = dense()
    held = Held(scorer)
    with running(scorer, max_wait=0, batch_size=1) as client, ThreadPoolExecutor(1) as pool:
        held.open.clear()
        first = pool.submit(client.score, OK)
        assert held.reached.wait(60)
        body = json.dumps({"rows": [IDS] * 5}).encode()
        head = f"POST /v1/token_rewards HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head + body)
            wait_until(lambda: client.service.batcher.depth == 5)
        wait_until(lambda: client.service.batcher.depth == 0)
        held.open.set()
        assert first.result(60).status == 200
        assert client.score(OK).status == 200
        assert len(held.calls) == 2
        assert 'status="499"} 1\n' in client.get("/metrics").body.decode()


# ---- failures --------------------------------------------------------------------------------------------------------
def test_a_row_the_model_fails_on_fails_alone(caplog):
    scorer = dense()
    score_ids = scorer.score_ids

    def failing(prompts, completions, *args, **kwargs):
        if any(13 in ids for ids in completions):
            raise RuntimeError("unlucky")
        return score_ids(prompts, completions, *args, **kwargs)

    scorer.score_ids = failing
    with running(scorer, max_wait=0.2) as client, ThreadPoolExecutor(8) as pool:
        rows = [{"prompt_ids": [5], "completion_ids": [10 + i]} for i in range(8)]
        replies = list(pool.map(client.score, rows))
        assert [reply.status for reply in replies] == [200, 200, 200, 500, 200, 200, 200, 200]
        assert (replies[3].error["code"], "unlucky" in replies[3].error["message"]) == ("not_scored", True)
    assert "A row could not be scored" in caplog.text


def test_a_reward_that_is_no_number_is_an_error():
    scorer = dense()
    with torch.no_grad():
        scorer.sft.model.model.embed_tokens.weight[40] = float("nan")
    with running(scorer) as client:
        reply = client.score({"prompt_ids": [5], "completion_ids": [40, 6]})
        assert (reply.status, reply.error["code"]) == (500, "not_finite")
        assert client.score(IDS).status == 200


def test_a_key():
    with running(dense(), api_key="sësame") as client:
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "sësame".encode()}):
            reply = client.score(OK, headers=headers)
            assert (reply.status, reply.error["code"]) == (401, "unauthorized")
            assert reply.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status == 401
        assert client.post("/get_reward", {"query": ["ab"], "prompts": ["a"]}).status == 401
        assert client.get("/health").status == client.get("/docs").status == 200
        assert client.get("/openapi.json").status == 200
    with running(dense(), api_key="sesame") as client:
        good = {"authorization": "bearer sesame"}
        assert client.score(OK, headers=good).status == client.get("/metrics", headers=good).status == 200


def test_other_web_sites_are_refused():
    with running(dense(), local=True) as client:
        port = client.port
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "10.0.0.1"):
            assert client.score(OK, headers={"host": host}).status == 200
            assert client.score(OK, headers={"host": host, "origin": f"http://{host}"}).status == 200
            for origin in ("http://evil.example", "null", f"http://{host}.evil.example"):
                reply = client.score(OK, headers={"host": host, "origin": origin})
                assert (reply.status, reply.error["code"]) == (403, "wrong_origin")
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "", "[x"):
            reply = client.score(OK, headers={"host": host})
            assert reply.status in (400, 403)
            assert client.get("/metrics", headers={"host": host}).status in (400, 403)
    with running(dense()) as client:
        assert client.score(OK, headers={"host": "rewards.example"}).status == 200
        assert client.score(OK, headers={"host": "rewards.example", "origin": "http://evil.example"}).status == 403


# ---- the end ---------------------------------------------------------------------------------------------------------
def test_what_was_accepted_is_answered_before_the_end():
    scorer = dense()
    held = Held(scorer)
    with ThreadPoolExecutor(12) as pool:
        with running(scorer, batch_size=2, max_wait=0) as client:
            held.open.clear()
            futures = [pool.submit(client.score, {"rows": [IDS] * 3}) for _ in range(12)]
            wait_until(lambda: client.service.batcher.depth >= 34)
            threading.Timer(0.5, held.open.set).start()
        replies = [future.result(60) for future in futures]
    assert [reply.status for reply in replies] == [200] * 12
    assert len({reply.body for reply in replies}) == 1
    assert not client.service.batcher.alive
    with pytest.raises(OSError):  # noqa: PT011  # refused
        client.score(OK)


def test_a_service_that_stops_takes_no_more():
    with running(dense()) as client:
        client.service.close()
        reply = client.score(OK)
        assert reply.status == 503
        assert reply.error["code"] == "stopping"
        assert reply.headers["retry-after"]
        assert client.get("/health").status == 503
        assert client.get("/health").json["status"] == "stopping"
