"""A service on a free port of this machine, with a tiny model, and clients of the standard library."""

import http.client
import json
import socket
import threading
import time
from contextlib import closing, contextmanager
from typing import NamedTuple

import pytest
import uvicorn

from helpers.data import chat_tokenizer, text_tokenizer, tiny_for
from inverselm.integrations.rows import RowReader
from inverselm.integrations.server import RewardService, Settings
from inverselm.scorers import QFunctionReward, TokenReward, encode_pair


class Reply(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        assert set(self.json) == {"error"}
        return self.json["error"]


class Client:
    """One connection after another to a port of this machine."""

    def __init__(self, port):
        self.port = port

    def send(self, method, path, body=None, headers=None):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            chunked = "transfer-encoding" in (headers or {})
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())

    def get(self, path, **kwargs):
        return self.send("GET", path, **kwargs)

    def post(self, path, content, **kwargs):
        body = content if isinstance(content, (bytes, str)) else json.dumps(content)
        return self.send("POST", path, body, **kwargs)

    def score(self, content, **kwargs):
        return self.post("/v1/token_rewards", content, **kwargs)


class Held:
    """A gate in front of a scorer: closed, its worker waits at it."""

    def __init__(self, scorer):
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()
        self.calls = []
        score_ids = scorer.score_ids

        def held(prompts, completions, *args, **kwargs):
            self.calls.append([tuple(ids) for ids in completions])
            self.reached.set()
            assert self.open.wait(120)
            return score_ids(prompts, completions, *args, **kwargs)

        scorer.score_ids = held


@contextmanager
def running(scorer, reader=None, *, limits=None, **settings):
    """A client of a service that runs in a thread; `client.service` is the service."""
    reader = reader or RowReader(scorer.tokenizer, encode_pair, vocab_size=len(scorer.tokenizer), **(limits or {}))
    service = RewardService(scorer, reader, Settings(**settings))
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        config = uvicorn.Config(service.app, log_level="warning", access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        client = Client(listener.getsockname()[1])
        client.service = service
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.005)


def dense(tokenizer=None, **options):
    """A new scorer: log pi_SFT - log pi_baseline of two tiny models."""
    tokenizer = tokenizer or text_tokenizer()
    models = [tiny_for(tokenizer, seed, max_position_embeddings=256) for seed in (0, 1)]
    return TokenReward.from_checkpoints(models[0], models[1], tokenizer=tokenizer, **options)


def q_function(**options):
    """A new scorer of one tiny model."""
    tokenizer = text_tokenizer()
    model = tiny_for(tokenizer, 0, max_position_embeddings=256)
    return QFunctionReward.from_checkpoint(model, tokenizer=tokenizer, **options)


@pytest.fixture(scope="module")
def served():
    """A client of a dense reward, with the defaults."""
    with running(dense()) as client:
        yield client


@pytest.fixture(scope="module")
def chatting():
    """The same of a chat model."""
    with running(dense(chat_tokenizer())) as client:
        yield client
