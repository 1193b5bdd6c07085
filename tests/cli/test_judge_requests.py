"""What `inverselm judge` sends, pays for and keeps: cache, kills, estimates, keys, errors of the endpoint."""

import os
import signal
import socket
import time

import pytest

from helpers.judge_runs import PROMPTS, command, fails, prepare, results
from helpers.judge_server import prefers_longer, serving
from helpers.processes import kill, start
from inverselm.cli.main import main


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


def test_nothing_is_paid_for_twice(capsys):
    with serving(prefers_longer) as server:
        assert main(command(server)) == 0
        first = results()
        assert "holds judge.json; pass --overwrite" in fails(capsys, command(server))
        assert main(command(server, "--overwrite")) == 0
        assert len(server.paid) == 2 * PROMPTS
        out = capsys.readouterr().out
        assert (
            f"{2 * PROMPTS} requests ({2 * PROMPTS} of them known from judged/cache.jsonl). Nothing is to be sent"
            in out
        )
        assert results()["comparisons"] == first["comparisons"]
        assert (first["usage"]["requests_sent"], results()["usage"]["requests_sent"]) == (2 * PROMPTS, 0)
        other = command(server, "--temperature", "0.5", "--output_dir", "other", "--cache_file", "judged/cache.jsonl")
        assert main(other) == 0
        assert len(server.paid) == 4 * PROMPTS, "another temperature is another question"
        prompted = command(server, "--criteria", "Is it short?", "--overwrite")
        assert main(prompted) == 0
        assert len(server.paid) == 6 * PROMPTS
    assert main(command(server, "--overwrite")) == 0, "no server is needed"


def test_killed_and_started_again(files):
    """SIGKILL in the middle: the next run asks for what had not come, and for nothing else."""
    served = []

    def rule(request, number):
        if number >= 15 and not served:
            time.sleep(300)
        return prefers_longer(request, number)

    with serving(rule) as server:
        argv = ["-m", "inverselm", *command(server, "--concurrency", "3")]
        process = start(*argv, log=files / "log")
        cache = files / "judged/cache.jsonl"
        end = time.monotonic() + 300
        while not cache.exists() or cache.read_bytes().count(b"\n") < 15:
            assert process.poll() is None, (files / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        kill(process)
        assert len(server.paid) == 15
        assert sorted(os.listdir("judged")) == ["cache.jsonl"], "no results by half"
        with cache.open("ab") as stream:
            stream.write(b'{"key": "abc", "mod')  # as a kill in the middle of a write leaves it
        served.append(True)
        asked = len(server.requests)
        assert main(command(server)) == 0
        assert len(server.requests) - asked == 2 * PROMPTS - 15
        assert len(server.paid) == len(set(server.paid)) == 2 * PROMPTS
    assert results()["usage"] == {
        "requests": 2 * PROMPTS, "requests_sent": 2 * PROMPTS - 15, "prompt_tokens": 50 * (2 * PROMPTS - 15),
        "completion_tokens": 10 * (2 * PROMPTS - 15), "cost": None,
    }  # fmt: skip
    with serving(prefers_longer) as fresh:
        whole = command(fresh, "--output_dir", "whole")
        assert main(whole) == 0
    assert results("whole")["comparisons"] == results()["comparisons"]


def test_ctrl_c_keeps_what_came(files):
    rule = lambda request, number: time.sleep(300) if number >= 6 else "[[A]]"
    with serving(rule) as server:
        process = start("-m", "inverselm", *command(server, "--concurrency", "2"), log=files / "log")
        cache = files / "judged/cache.jsonl"
        end = time.monotonic() + 300
        while not cache.exists() or cache.read_bytes().count(b"\n") < 6:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=200) == 130
        finally:
            kill(process)
    text = (files / "log").read_text()
    assert "stopped. 6 replies are kept in judged/cache.jsonl; the same command goes on from there." in text
    assert "Traceback" not in text


def test_the_key_is_in_no_file_and_no_line(capsys, monkeypatch, files):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-0")
    with serving(prefers_longer) as server:
        assert main(command(server, "--api_key_env", "JUDGE_KEY")) == 0
        assert {h["authorization"] for h in server.headers} == {"Bearer sk-very-secret-0"}
    out = "".join(capsys.readouterr())
    assert "sk-very" not in out
    written = [path for path in files.rglob("*") if path.is_file()]
    assert len(written) == 6
    assert not [path for path in written if b"sk-very" in path.read_bytes()]
    assert results()["settings"]["api_key_env"] == "JUDGE_KEY"
    assert "JUDGE_KEY_2 is not set" in fails(capsys, command(server, "--api_key_env", "JUDGE_KEY_2"))


def test_estimate_dry_run_and_limit(capsys, files):
    with serving(prefers_longer) as server:
        prices = ("--price_prompt", "2.5", "--price_completion", "10", "--max_tokens", "100")
        assert main(command(server, *prices, "--dry_run")) == 0
        out = capsys.readouterr().out
        error = fails(capsys, command(server, "--max_requests", str(2 * PROMPTS - 1)))
        assert server.requests == []
        assert not (files / "judged").exists()
        assert main(command(server, *prices, "--max_requests", str(2 * PROMPTS))) == 0
        after = capsys.readouterr().out
        sent = sum(len(r["messages"][0]["content"].encode()) for r in server.requests)
        assert main(command(server, *prices, "--max_requests", "1", "--overwrite")) == 0, "what is known is no request"
    assert (
        f"{PROMPTS} pairs, both orders: {2 * PROMPTS} requests.\nTo send to m at {server.url}/chat/completions:" in out
    )
    tokens = int(out.split("about ")[1].split(" prompt")[0].replace(",", ""))
    assert tokens == pytest.approx(sent / 4, rel=0.1)
    assert f"at most {200 * PROMPTS:,} completion tokens" in out
    assert (
        f"about {tokens * 2.5 / 1e6:.2f} for prompts, at most {2 * PROMPTS * 100 * 10 / 1e6:.2f} for completions" in out
    )
    assert out.endswith("Nothing was sent.\n")
    assert "48 requests are needed, and --max_requests is 47" in error
    cost = 2 * PROMPTS * (50 * 2.5 + 10 * 10) / 1e6
    assert f"48 replies, 2,400 prompt tokens, 480 completion tokens, cost {cost:.2f}." in after


def test_requests_leave_this_machine_only_after_a_yes(capsys, monkeypatch, files):
    """0.0.0.0 leads to this machine, yet is not one of its own addresses by name."""
    with serving(prefers_longer) as server:
        far = server.url.replace("127.0.0.1", "0.0.0.0")
        assert "48 requests would leave this machine: pass --yes" in fails(capsys, command(far))
        for stream in ("stdin", "stdout"):
            monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
        for answer in ("n", "", "what"):
            monkeypatch.setattr("builtins.input", lambda text, answer=answer: answer)
            assert main(command(far)) == 0
            assert capsys.readouterr().out.endswith("Nothing was sent.\n")
        assert server.requests == []
        monkeypatch.setattr("builtins.input", lambda text: "y")
        assert main(command(far, "--num_prompts", "4")) == 0
        assert len(server.requests) == 8
        monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked"))
        assert main(command(far, "--yes", "--overwrite")) == 0
        assert main(command(far, "--overwrite")) == 0, "nothing leaves"
    assert len(server.paid) == 48


def test_unanswered_requests_are_asked_again(capsys):
    bad = [True]

    def rule(request, number):
        if bad and "What is 7?" in request["messages"][0]["content"]:
            return 400, {"error": {"message": "too long for me"}}
        return prefers_longer(request, number)

    with serving(rule) as server:
        assert main(command(server, "--concurrency", "1")) == 0
        out = capsys.readouterr().out
        assert "2 requests got no answer (400: too long for me); the same command asks again." in out
        assert results()["comparisons"][0]["unanswered"] == 1
        bad.clear()
        assert main(command(server, "--overwrite")) == 0
        assert results()["comparisons"][0]["unanswered"] == 0
        assert len(server.paid) == len(set(server.paid)) == 2 * PROMPTS


def test_errors_of_the_endpoint_are_one_line(capsys, files):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = fails(capsys, command(f"http://127.0.0.1:{port}/v1"))
    assert "no connection to" in error
    assert "is the server running?" in error
    assert "0 replies are kept in judged/cache.jsonl" in error
    with serving(lambda request, number: (404, {"error": {"message": "The model `m` does not exist"}})) as server:
        error = fails(capsys, command(server))
    assert "404 (The model `m` does not exist)" in error
    with serving(lambda request, number: (400, {"error": {"message": "no such field"}})) as server:
        assert "to 5 requests in a row; to the last one: 400: no such field" in fails(capsys, command(server))
    with serving(lambda request, number: (401, {})) as server:
        assert "put its API key into the environment variable OPENAI_API_KEY" in fails(capsys, command(server))
