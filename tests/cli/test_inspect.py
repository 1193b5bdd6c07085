"""`inverselm inspect`: what it refuses before it loads anything, what it says, and how it ends."""

import json
import re
import signal
import socket
import time
import urllib.request

import pytest

from helpers.loops import run
from helpers.processes import kill, start
from inverselm.cli.main import main

from .conftest import write_jsonl

pytest.importorskip("starlette", reason="the page needs starlette: pip install 'inverselm[serve]'")
pytest.importorskip("uvicorn", reason="the page needs uvicorn: pip install 'inverselm[serve]'")

SCORED = {
    "prompt": "a",
    "completion": " b",
    "tokens": [{"token_id": 1, "text": " b", "start": 0, "end": 2, "reward": 0.5}],
    "terminated": False,
}


@pytest.fixture
def ended(monkeypatch):
    """The server ends at once; what it would have served is kept."""
    from inverselm.inspection import server

    kept = {}
    monkeypatch.setattr(server, "serve", lambda app, found: kept.update(app=app, port=found.getsockname()[1]))
    return kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to look at"),
        (["--dataset_name", "scored.jsonl", "--baseline", "sft"], "--baseline needs --model_name_or_path"),
        (["--dataset_name", "sums.jsonl"], "line 1: has no token rewards; name the model"),
        (["--dataset_name", "missing.jsonl"], "no such file"),
        (["--model_name_or_path", "missing"], "--model_name_or_path missing: "),
        (["--model_name_or_path", "sft", "--baseline", "sft"], "are the same"),
        (["--model_name_or_path", "sft", "--q_function", "missing"], "--q_function missing: "),
        (["--model_name_or_path", "sft", "--q_function", "othertok/baseline"], "different tokenizers"),
        (["--model_name_or_path", "sft", "--gamma", "2"], "--gamma is 2.0; set it between 0 and 1"),
        (["--model_name_or_path", "sft", "--port", "70000"], "--port is 70000"),
        (["--model_name_or_path", "sft", "--dataset_name", "columns.jsonl"], "needs 'prompt' and 'completion'"),
        (["--model_name_or_path", "sft", "--host", "203.0.113.7"], "--host 203.0.113.7: not an address of this"),
    ],
)
def test_bad_input_ends_in_one_line(desk, capsys, ended, flags, message):
    write_jsonl(desk / "scored.jsonl", [SCORED])
    assert main(["inspect", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not ended


def test_what_is_shown_follows_from_the_folder(desk, capsys, ended):
    import shutil

    from inverselm.scorers.markers import write_marker

    shutil.copytree(desk / "nobase", desk / "iq")
    write_marker(desk / "iq", "iqlearn", gamma=0.5)
    argv = ["inspect", "--port", "0", "--device", "cpu", "--model_name_or_path"]
    ids = lambda: [d["id"] for d in meta(ended["app"])["definitions"]]
    assert main([*argv, "sft", "--q_function", "iq", "--dataset_name", "sums.jsonl", "--prompt", "a"]) == 0
    out = capsys.readouterr().out
    assert "sums.jsonl: 24 rows." in out
    assert f"Open http://127.0.0.1:{ended['port']}/ in a browser. Ctrl-C ends it." in out
    assert out.endswith("Stopped.\n")
    assert ids() == ["dense", "q_function", "log_prob", "bellman"]
    found = meta(ended["app"])
    assert found["models"] == {"model": "sft", "baseline": "sft/baseline", "q_function": "iq"}
    assert found["definitions"][1]["name"] == "Q − 0.5 V′ (Q-function)"
    assert found["start"] == {"prompt": "a"}
    assert main([*argv, "nobase"]) == 0
    assert "No baseline in nobase: no dense reward" in capsys.readouterr().out
    assert ids() == ["log_prob", "bellman"]
    assert main([*argv, "iq"]) == 0
    assert "No baseline" not in capsys.readouterr().out
    assert [d["name"] for d in meta(ended["app"])["definitions"]] == ["Q − 0.5 V′ (model)", "log π"]
    assert main([*argv, "iq", "--gamma", "0.0"]) == 0
    assert meta(ended["app"])["definitions"][0]["name"] == "Q − 0 V′ (model)"


def meta(app):
    """What the page is told, without a server."""

    sent = []

    async def ask() -> None:
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/api/meta", "raw_path": b"/api/meta", "root_path": ""}
        scope |= {"headers": [(b"host", b"localhost")], "query_string": b"", "http_version": "1.1", "scheme": "http"}
        await app(scope, receive, send)

    run(ask())
    return json.loads(b"".join(m.get("body", b"") for m in sent))


def test_a_port_that_is_taken(desk, capsys, ended):
    write_jsonl(desk / "scored.jsonl", [SCORED])
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["inspect", "--dataset_name", "scored.jsonl", "--port", str(port)]) == 0
    out = capsys.readouterr().out
    assert ended["port"] > port
    assert f"Port {port} is taken: it is {ended['port']}." in out
    assert f"http://127.0.0.1:{ended['port']}/" in out


def test_all_ports_taken_and_other_addresses(desk, capsys, ended, monkeypatch):
    from inverselm.errors import UserError
    from inverselm.inspection.server import listen

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"the ports from {port} to {port} are taken"):
            listen("127.0.0.1", port, tried=1)
    write_jsonl(desk / "scored.jsonl", [SCORED])
    assert main(["inspect", "--dataset_name", "scored.jsonl", "--host", "0.0.0.0", "--port", "0"]) == 0
    assert "Warning: whoever reaches 0.0.0.0 can read the rows and use the model." in capsys.readouterr().err


def test_without_the_packages_it_says_what_to_install(desk, capsys, monkeypatch):
    from inverselm.cli import inspection

    monkeypatch.setattr(inspection, "find_spec", lambda name: None)
    assert main(["inspect", "--model_name_or_path", "sft"]) == 2
    assert "the page needs starlette: pip install 'inverselm[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(desk):
    write_jsonl(desk / "scored.jsonl", [SCORED])
    log = desk / "log.txt"
    process = start("-u", "-m", "inverselm", "inspect", "--dataset_name", "scored.jsonl", "--port", "0", log=log)
    try:
        end, found = time.monotonic() + 120, None
        while not found:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
            found = re.search(r"Open (http://127\.0\.0\.1:\d+/) in a browser", log.read_text())
        with urllib.request.urlopen(found[1] + "api/meta", timeout=30) as answer:
            assert json.load(answer)["file"]["rows"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 0
    finally:
        kill(process)
    assert log.read_text().endswith("Stopped.\n")
    assert "Traceback" not in log.read_text()
