"""`inverselm judge` against `transformers serve`: a server that others wrote, with a model that has learned nothing."""

import json
import socket
import time
import urllib.error
import urllib.request

import pytest
from transformers.utils.import_utils import is_serve_available

from helpers.data import chat_tokenizer, tiny_for
from helpers.processes import kill, start
from inverselm.cli.main import main

from .conftest import write_jsonl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_serve_available(), reason="transformers serve is missing: pip install transformers[serving]"
    ),
]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """URL and name of a model of a few thousand random weights."""
    folder = tmp_path_factory.mktemp("serve")
    tokenizer = chat_tokenizer()
    tiny_for(tokenizer, max_position_embeddings=4096).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    options = ("--host", "127.0.0.1", "--port", str(port), "--device", "cpu")
    process = start("-c", serve, "serve", *options, log=folder / "log")
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1", str(folder / "model")
    finally:
        kill(process)


def _wait(url, process, log, seconds=180):
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                assert response.status == 200
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)


def test_random_weights_give_no_verdict(endpoint, tmp_path, monkeypatch, capsys):
    url, model = endpoint
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"Q{i}", "completion": f"{name}{i}"} for i in range(3)])
    argv = ["judge", "--runs", "a=a.jsonl", "b=b.jsonl", "--judge_url", url, "--judge_model", model]
    argv += ["--max_tokens", "8", "--concurrency", "2"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "b against a: not judged: too few pairs have a verdict" in out
    assert "6 of 6 replies hold no verdict" in out
    cache = [json.loads(line) for line in (tmp_path / "judged/cache.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(cache) == 6
    assert all(0 < line["completion_tokens"] <= 8 for line in cache)
    assert all(line["prompt_tokens"] > 100 for line in cache), "through the chat template"
    content = json.loads((tmp_path / "judged/judge.json").read_text(encoding="utf-8"))
    assert content["comparisons"][0]["unread"] == 3
    assert content["usage"]["prompt_tokens"] == sum(line["prompt_tokens"] for line in cache)
    assert main([*argv, "--overwrite"]) == 0
    assert "Nothing is to be sent" in capsys.readouterr().out


def test_what_the_server_refuses_is_said(endpoint, tmp_path, monkeypatch, capsys):
    url, model = endpoint
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"Q{i}", "completion": f"{name}{i}"} for i in range(3)])
    argv = ["judge", "--runs", "a=a.jsonl", "b=b.jsonl", "--judge_model", model, "--max_tokens", "8"]
    assert main([*argv, "--judge_url", url.removesuffix("/v1")]) == 2
    assert "answers 404 (Not Found): judge_url must be the API's base" in capsys.readouterr().err
    assert main([*argv, "--judge_url", url, "--extra_body", '{"no_such_field": 1}']) == 2
    assert "no answer to 5 requests in a row; to the last one: 422:" in capsys.readouterr().err
