"""Tiny models, the page served in a thread, and a real Chromium in front of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from inverselm.scorers import QFunctionReward, TokenReward

pytest.importorskip("starlette", reason="the page needs starlette: pip install 'inverselm[serve]'")
pytest.importorskip("uvicorn", reason="the page needs uvicorn: pip install 'inverselm[serve]'")

TINY = """
model: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 6000, tie_word_embeddings: true, initializer_range: 0.3}
tokenizer: {type: bpe, vocab_size: 300}
"""
SUMS = [
    {"prompt": f"Question: what is {a}+{b}?\nAnswer:", "completion": f" It is {a + b}. That is all."}
    for a in range(2, 10)
    for b in (3, 14, 25)
]
PROMPT, ANSWER = SUMS[0]["prompt"], SUMS[0]["completion"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SLOW = bool(os.environ.get("INVERSELM_SLOW_PAGE"))  # to find tests that ask before the page can know


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def scored_row(prompt: str, texts: list[str], rewards: list[float], **columns: Any) -> dict[str, Any]:
    """A row as `inverselm score` writes it."""
    text, tokens = "".join(texts), []
    for number, (piece, reward) in enumerate(zip(texts, rewards, strict=True)):
        start = sum(map(len, texts[:number]))
        tokens.append({"token_id": number, "text": piece, "start": start, "end": start + len(piece), "reward": reward})
    scores = {"scored_text": text, "tokens": tokens, "reward": sum(rewards), "terminated": False}
    return {"prompt": prompt, "completion": text, **columns, **scores}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Random models of one architecture and tokenizer: `sft`, `baseline`, `iq`."""
    from inverselm.training.scratch import build_from_scratch, texts_of

    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    for seed, name in enumerate(("sft", "baseline", "iq")):
        model, tokenizer = build_from_scratch(folder / "tiny.yaml", texts_of(SUMS), seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def dense(folder) -> TokenReward:
    return TokenReward.from_checkpoints(str(folder / "sft"), str(folder / "baseline"), device="cpu")


@pytest.fixture(scope="session")
def q_function(folder) -> QFunctionReward:
    return QFunctionReward.from_checkpoint(str(folder / "iq"), gamma=0.9, device="cpu")


@pytest.fixture(scope="session")
def inspector(dense, q_function):
    from inverselm.inspection import Inspector

    return Inspector.from_scorers(dense, q_function, max_tokens=5000)


def _late(app: Any) -> Any:
    """The same app with answers that come late and in another order."""

    async def late(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(random.uniform(0.0, 0.8))
        await app(scope, receive, send)

    return late


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an app that runs in a thread."""
    import uvicorn

    from inverselm.inspection.server import address, listen

    with listen("127.0.0.1", 0) as socket:
        app = _late(app) if SLOW else app
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield address("127.0.0.1", socket)
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


class Answer:
    """What a request brought back."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.content = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def request(url: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request; a dict as body is sent as JSON. Headers are written host=.., content_type=.."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    names = {name.replace("_", "-").title(): value for name, value in headers.items()}
    if isinstance(body, dict):
        body = json.dumps(body)
    if body is not None and "Content-Type" not in names:
        names["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body, names)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of the system, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open an address; at the end nothing may have failed, and nothing may have been asked of another host."""
    contexts, problems, hosts = [], [], set()

    def opened(url: str, *, width: int = 1280, height: int = 860, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        if SLOW:
            context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" and "(Unproc" not in m.text else None)
        page.on("request", lambda r: hosts.add(urlsplit(r.url).netloc if not r.url.startswith("blob:") else ""))
        hosts.add(urlsplit(url).netloc)
        page.goto(url)
        page.locator("#pane-a h2").wait_for(state="attached")
        return page

    opened.problems = problems
    yield opened
    for context in contexts:
        context.close()
    assert problems == []
    assert len(hosts - {""}) <= 1
