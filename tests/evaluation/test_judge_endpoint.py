"""Where requests go, and which key goes with them."""

import json

import pytest

from helpers.judge_server import always, serving
from inverselm.errors import UserError
from inverselm.evaluation.judge_client import ChatClient
from inverselm.evaluation.judge_endpoint import Endpoint


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def ask(server):
    """The text of one reply."""
    kept = {}
    client = ChatClient(Endpoint(server.url, "m", retries=0, timeout=60.0))
    client.ask_all({"k": {"model": "m", "messages": []}}, kept.__setitem__)
    return kept["k"].text


@pytest.mark.parametrize("end", ["/v1", "/v1/", "/v1/chat/completions"])
def test_the_address(end):
    base = "http://127.0.0.1:9"
    assert Endpoint(base + end, "m").address == f"{base}/v1/chat/completions"


def test_the_key_goes_into_the_header_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret-123 ")
    echo = lambda request, number: (401, {"error": {"message": "Incorrect API key: sk-secret-123"}})
    with serving(echo) as server, pytest.raises(UserError) as error:
        ask(server)
    assert server.headers[0]["authorization"] == "Bearer sk-secret-123"
    assert "sk-secret" not in str(error.value)
    assert "Incorrect API key: ***" in str(error.value)
    assert "check the key in OPENAI_API_KEY" in str(error.value)
    assert "sk-secret" not in json.dumps(server.requests)
    assert "sk-secret" not in repr(Endpoint(server.url, "m"))


def test_which_key_goes_where(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-default")
    monkeypatch.setenv("MINE", "mine")
    assert Endpoint("https://judge.example/v1", "m").key() == "sk-default"
    assert Endpoint("http://localhost:8000/v1", "m").key() == "sk-default"
    assert Endpoint("http://[::1]:8000/v1", "m").key() == "sk-default"
    for url in ("http://judge.example/v1", "http://127.judge.example/v1", "http://10.0.0.7:8000/v1"):
        assert Endpoint(url, "m").key() is None, "in the clear, and nobody asked for it"
        assert Endpoint(url, "m", key_env="MINE").key() == "mine"
        assert not Endpoint(url, "m").local
    with pytest.raises(UserError, match="NOT_THERE is not set"):
        Endpoint("https://judge.example/v1", "m", key_env="NOT_THERE")
    monkeypatch.setenv("MINE", "two\nlines")
    with pytest.raises(UserError, match="MINE holds something that is no API key") as error:
        Endpoint("https://judge.example/v1", "m", key_env="MINE")
    assert "lines" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": ""}, "judge_url"),
        ({"url": "127.0.0.1:8000/v1"}, "judge_url"),
        ({"url": "ftp://x/v1"}, "no http address"),
        ({"url": "http://x:port/v1"}, "no URL"),
        ({"url": "http://[x/v1"}, "no URL"),
        ({"url": "https://me:secret@x/v1"}, "leave out user names"),
        ({"url": "https://x/v1?key=secret"}, "leave out user names"),
        ({"model": " "}, "judge_model"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"concurrency": 0}, "concurrency"),
        ({"options": {"messages": []}}, "'messages'"),
        ({"options": {"stream": True}}, "'stream'"),
    ],
)
def test_settings_that_cannot_be_used(settings, words):
    with pytest.raises(UserError) as error:
        Endpoint(**{"url": "http://127.0.0.1:8000/v1", "model": "m", **settings})
    assert words in str(error.value)
    assert "secret" not in str(error.value)


def test_none_leaves_an_option_out():
    body = Endpoint("http://127.0.0.1:1/v1", "m", {"temperature": None, "max_tokens": 5, "top_p": 0.9}).body
    assert body == {"model": "m", "max_tokens": 5, "top_p": 0.9}


def test_proxies_are_not_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(always("[[A]]")) as server:
        assert ask(server) == "[[A]]"
