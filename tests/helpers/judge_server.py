"""A judge on a real socket: an OpenAI-compatible chat endpoint that decides by a rule, and fails as it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, Any] | tuple[int, Any, dict[str, str]]
Rule = Callable[[dict[str, Any], int], Answer]
"""(request, its number from 0) -> the judge's text, or status, body (bytes as they are, else JSON) and headers."""


def answers_of(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers in a prompt of the default template."""
    text = request["messages"][-1]["content"]
    one, two = (re.search(rf"<answer_{x}>\n(.*?)\n</answer_{x}>", text, re.DOTALL) for x in "ab")
    assert one
    assert two
    return one[1], two[1]


def prefers_longer(request: dict[str, Any], number: int) -> str:
    one, two = map(len, answers_of(request))
    return "I counted.\n" + ("[[A]]" if one > two else "[[B]]" if two > one else "[[C]]")


def always(text: str) -> Rule:
    return lambda request, number: text


class JudgeServer(ThreadingHTTPServer):
    """What it was asked: `requests`, with `headers` and `paths`; what it answered with 200: `paid`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, rule: Rule, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.rule, self.lock = rule, threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.paid: list[str] = []
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.paths.append(self.path)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        answer = server.rule(request, number)
        with server.lock:
            server.at_once -= 1
        status, content, *more = (200, completion(answer)) if isinstance(answer, str) else answer
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (more[0] if more else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if status == 200:
            with server.lock:
                server.paid.append(json.dumps(request, sort_keys=True))

    def log_message(self, format: str, *args: Any) -> None:
        pass


def completion(text: str | None, finish_reason: str = "stop", usage: bool = True) -> dict[str, Any]:
    """A chat completion as OpenAI's API returns it; 50 prompt tokens and 10 completion tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    found: dict[str, Any] = {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]}
    if usage:
        found["usage"] = {"prompt_tokens": 50, "completion_tokens": 10, "total_tokens": 60}
    return found


@contextmanager
def serving(rule: Rule, port: int = 0) -> Iterator[JudgeServer]:
    """The server, on a port of this machine (0: a free one), in a thread."""
    server = JudgeServer(rule, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
