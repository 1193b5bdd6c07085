"""The HTTP service: limits, the queue, errors, metrics. ASGI (Starlette); what a reward is, the scorer says."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._version import __version__
from ..scorers import TokenScorer
from ..scorers.seq2seq import encode_seq2seq_pair
from . import openrlhf
from .batching import Batch, Batcher, ClosedError, QueueFullError
from .bodies import RequestError, to_json
from .connections import check_no_stranger, read_body, unless_gone
from .metrics import CONTENT_TYPE, ROWS, SECONDS, Counter, Gauge, Histogram, exposition
from .openapi import docs_page, specification
from .rows import Asked, Row, RowReader, RowScores, answer
from .scoring import worker
from .spans import quick_spans

_PAGE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Settings:
    """Of a service.

    Attributes:
        model: its name, for clients.
        reward_kind: "log_ratio", "bellman" or "log_prob".
        baselines: names of the earlier checkpoints.
        batch_size: rows of a forward pass, at most.
        max_batch_tokens: rows times longest row of a batch, at most.
        max_padding: share of a batch that may be padding.
        max_wait: seconds that a row waits for company while nothing is scored.
        max_queue: rows that wait, at most.
        max_body: bytes of a request, at most.
        timeout: seconds of a request, at most.
        mean: OpenRLHF is given means of token rewards, not sums.
        api_key: bearer token that requests must bring; None: none.
        local: only this machine is meant to reach it; requests to other host names are refused.
    """

    model: str = "model"
    reward_kind: str = "log_ratio"
    baselines: Sequence[str] = ()
    batch_size: int = 16
    max_batch_tokens: int = 16384
    max_padding: float = 0.1
    max_wait: float = 0.005
    max_queue: int = 4096
    max_body: int = 16 * 2**20
    timeout: float = 120.0
    mean: bool = False
    api_key: str | None = None
    local: bool = False


class _Protocol(NamedTuple):
    """How a body becomes rows, and rows with scores an answer's body. Both run in the text thread."""

    read: Callable[[bytes], Asked]
    write: Callable[[Asked, Sequence[RowScores]], bytes]


class RewardService:
    """A scorer with its queue, and the app that serves it.

    Two threads work for it: one scores, one reads and writes JSON and tokenises, so that the event loop is always free
    to accept, refuse and tell its health.

    Args:
        scorer: used by this service alone from now on.
        reader: of rows; its tokenizer is the scorer's.
        settings: limits and names.

    Example:
        >>> service = RewardService(scorer, RowReader(scorer.tokenizer, encode_pair), Settings())
        >>> uvicorn.run(service.app)
    """

    def __init__(self, scorer: TokenScorer, reader: RowReader, settings: Settings) -> None:
        self.reader, self.settings = reader, settings
        self.tokenizer, self.eos_ids = scorer.tokenizer, list(scorer.eos_token_ids)
        self._apart = reader.encode is encode_seq2seq_pair
        self.batcher: Batcher[Row, RowScores] = Batcher(
            worker(scorer, settings.batch_size),
            length=lambda row: row.tokens,
            group=(lambda row: row.prompt_ids) if scorer.shares_prompts else None,
            max_rows=settings.batch_size,
            max_tokens=settings.max_batch_tokens,
            max_padding=settings.max_padding,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
            observe=self._count_batch,
        )
        self._text = ThreadPoolExecutor(1, thread_name_prefix="inverselm-text")
        self._stopping = False
        self._running = 0
        self.requests = Counter("inverselm_requests_total", "Requests, by path and status.")
        self.rows = Counter("inverselm_rows_total", "Rows scored.")
        self.tokens = Counter("inverselm_tokens_total", "Tokens of the rows scored, prompts included.")
        self.latency = Histogram("inverselm_request_seconds", "Seconds from a request to its answer.", SECONDS)
        self.batch_rows = Histogram("inverselm_batch_rows", "Rows of a batch.", ROWS)
        self.batch_seconds = Histogram("inverselm_batch_seconds", "Seconds of scoring a batch.", SECONDS)
        self.metrics = (
            self.requests, self.rows, self.tokens, self.latency, self.batch_rows, self.batch_seconds,
            Gauge("inverselm_queue_rows", "Rows that wait to be scored.", lambda: self.batcher.depth),
            Gauge("inverselm_running_requests", "Requests that are being answered.", lambda: self._running),
        )  # fmt: skip
        token_rewards = _Protocol(reader.read, self._token_rewards)
        get_reward = _Protocol(self._read_queries, self._get_reward)
        routes = [
            Route("/v1/token_rewards", self._scoring("/v1/token_rewards", token_rewards), methods=["POST"]),
            Route("/get_reward", self._scoring("/get_reward", get_reward), methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/openapi.json", lambda request: JSONResponse(specification())),
            Route("/docs", self._docs),
        ]
        self.app = Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _http_error, Exception: _failure}
        )

    def close(self) -> None:
        """Score what waits, then end the threads. Requests that come now are refused."""
        self._stopping = True
        self.batcher.close()
        self._text.shutdown()

    # ---- endpoints ---------------------------------------------------------------------------------------------------
    def _scoring(self, path: str, protocol: _Protocol) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            begin, status = time.perf_counter(), 500
            self._running += 1
            try:
                self._check(request)
                response = Response(await self._answered(request, protocol), media_type="application/json")
                status = 200
            except RequestError as error:
                response, status = _refusal(error), error.status
            except ClientDisconnect:
                response, status = Response(status_code=499), 499  # nobody reads it
            finally:
                self._running -= 1
                self.requests.add(path=path, status=str(status))
                self.latency.observe(time.perf_counter() - begin, path=path)
            return response

        return endpoint

    async def _answered(self, request: Request, protocol: _Protocol) -> bytes:
        """The body of the answer.

        Raises:
            RequestError: anything but an answer.
            ClientDisconnect: the client has gone; its rows are taken out of the queue.
        """
        loop, arrived = asyncio.get_running_loop(), False
        if self._stopping:
            raise RequestError(503, "stopping", "the server is stopping", headers={"retry-after": "10"})
        try:
            async with asyncio.timeout(self.settings.timeout):
                body = await read_body(request, self.settings.max_body)
                arrived = True
                asked = await loop.run_in_executor(self._text, protocol.read, body)
                scores = await unless_gone(request, asyncio.wrap_future(self._submit(asked.rows)))
                return await loop.run_in_executor(self._text, protocol.write, asked, scores)
        except TimeoutError as error:
            if not arrived:
                message = f"the body did not arrive within {self.settings.timeout:g} s"
                raise RequestError(408, "body_timeout", message, headers={"connection": "close"}) from error
            message = f"not scored within {self.settings.timeout:g} s; send fewer rows, or raise --request_timeout"
            raise RequestError(504, "timeout", message) from error

    def _submit(self, rows: list[Row]) -> Any:
        try:
            return self.batcher.submit(rows)
        except QueueFullError as full:
            seconds = min(600, max(1, math.ceil(full.seconds)))
            message = f"{full.waiting:,} rows wait, of at most {full.limit:,}; try again in {seconds} s"
            raise RequestError(503, "queue_full", message, headers={"retry-after": str(seconds)}) from full
        except ClosedError as closed:
            raise RequestError(503, "stopping", "the server is stopping", headers={"retry-after": "10"}) from closed

    def _token_rewards(self, asked: Asked, scores: Sequence[RowScores]) -> bytes:
        spans = (lambda ids: quick_spans(self.tokenizer, ids)) if asked.return_text else None
        rows = [answer(row, s, spans=spans, eos_ids=self.eos_ids) for row, s in zip(asked.rows, scores, strict=True)]
        return to_json({"model": self.settings.model, "reward_kind": self.settings.reward_kind, "rows": rows})

    def _read_queries(self, body: bytes) -> Asked:
        return openrlhf.read(self.reader, body, apart=self._apart, eos_ids=self.eos_ids)

    def _get_reward(self, asked: Asked, scores: Sequence[RowScores]) -> bytes:
        return to_json(openrlhf.answer(asked.rows, scores, mean=self.settings.mean))

    async def _health(self, request: Request) -> Response:
        well = self.batcher.alive and not self._stopping
        content = {
            "status": "ok" if well else "stopping",
            "version": __version__,
            "model": self.settings.model,
            "reward_kind": self.settings.reward_kind,
            "baselines": list(self.settings.baselines),
            "queued_rows": self.batcher.depth,
        }
        return JSONResponse(content, 200 if well else 503)

    async def _metrics(self, request: Request) -> Response:
        try:
            self._check(request)
        except RequestError as error:
            return _refusal(error)
        return Response(exposition(self.metrics), headers={"content-type": CONTENT_TYPE})

    async def _docs(self, request: Request) -> Response:
        page = docs_page(f"{request.url.scheme}://{request.url.netloc}")
        return Response(page, headers=_PAGE, media_type="text/html")

    # ---- what they share ---------------------------------------------------------------------------------------------
    def _check(self, request: Request) -> None:
        """Raises RequestError for requests that may not be answered."""
        check_no_stranger(request, local=self.settings.local)
        if self.settings.api_key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.settings.api_key.encode()):
            message = "send the header 'Authorization: Bearer <key>' with the key that the server was started with"
            raise RequestError(401, "unauthorized", message, headers={"www-authenticate": "Bearer"})

    def _count_batch(self, batch: Batch) -> None:
        self.rows.add(batch.rows)
        self.tokens.add(batch.tokens)
        self.batch_rows.observe(batch.rows)
        self.batch_seconds.observe(batch.seconds)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.close)


def _refusal(error: RequestError) -> Response:
    return JSONResponse(error.content(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405, in the words of the other errors."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "bad_request"
    known = "POST /v1/token_rewards, POST /get_reward, GET /health, /metrics, /docs, /openapi.json"
    return _refusal(RequestError(error.status_code, code, f"{error.detail}; there are {known}", headers=error.headers))


async def _failure(request: Request, error: Exception) -> Response:
    """A bug; its traceback goes to the log."""
    return _refusal(RequestError(500, "internal", f"the server failed: {type(error).__name__}"))
