"""The page and its small JSON API, as an ASGI application."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .._version import __version__
from ..errors import UserError
from .desk import Answer, Desk, GoneError, Job
from .export import export
from .guard import Guard
from .inspector import FILE, Inspector
from .palette import palette_css
from .rows import RowFile

STATIC = Path(__file__).parent / "static"
mimetypes.add_type("text/javascript", ".js")  # a registry may say otherwise, and browsers insist
MAX_BODY = 8 * 2**20
MAX_CHARACTERS = 400_000
"""Longest prompt and answer together."""

_PAGE = 200  # rows of a list in one answer


def create_app(
    inspector: Inspector | None,
    rows: RowFile | None = None,
    *,
    names: dict[str, str] | None = None,
    start: dict[str, str] | None = None,
    batch_size: int = 16,
    allowed_hosts: Sequence[str] = (),
) -> Starlette:
    """The application behind `inverselm inspect`.

    Args:
        inspector: the models; None shows the rewards that a scored file holds.
        rows: a file to browse.
        names: what the models are called on the page, such as {"model": "runs/sft", "baseline": "runs/sft/baseline"}.
        start: prompt and completion that the page begins with.
        batch_size: rows per forward pass when a file is scored.
        allowed_hosts: names beside localhost and IP addresses by which the page may be opened.

    Example:
        >>> app = create_app(Inspector.from_scorers(TokenReward.from_checkpoints("runs/sft")))
        >>> uvicorn.run(app, port=7860)
    """
    api = _Api(inspector, rows, names or {}, start or {}, batch_size)
    routes = [
        Route("/", api.page),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
        Route("/static/palette.css", api.palette),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/meta", api.meta),
        Route("/api/score", api.score, methods=["POST"]),
        Route("/api/rows", api.list_rows),
        Route("/api/rows/{index:int}", api.row),
        Route("/api/job", api.job),
        Route("/api/job", api.control_job, methods=["POST"]),
        Route("/api/export", api.export, methods=["POST"]),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if api.work is not None:
            await api.work.stop()

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, allowed_hosts=allowed_hosts)],
        exception_handlers={
            UserError: _user_error,
            HTTPException: _http_error,
            GoneError: _gone,
            Exception: _our_error,
        },
    )


class _Api:
    def __init__(
        self,
        inspector: Inspector | None,
        rows: RowFile | None,
        names: dict[str, str],
        start: dict[str, str],
        batch_size: int,
    ) -> None:
        self.rows, self.names, self.start = rows, names, start
        self.desk = None if inspector is None else Desk(inspector)
        self.work = Job(self.desk, rows, batch_size) if self.desk is not None and rows is not None else None

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html")

    async def palette(self, request: Request) -> Response:
        return Response(palette_css(), media_type="text/css")

    async def meta(self, request: Request) -> Response:
        definitions = [] if self.desk is None else list(self.desk.inspector.definitions)
        if self.rows is not None and self.rows.scored:
            definitions.append(FILE)
        tokenizer = None if self.desk is None else self.desk.inspector.tokenizer
        file = (
            None if self.rows is None else {"name": self.rows.name, "rows": len(self.rows), "scored": self.rows.scored}
        )
        return _json(
            {
                "version": __version__,
                "models": self.names,
                "definitions": [vars(definition) for definition in definitions],
                "can_score": self.desk is not None,
                "chat": bool(getattr(tokenizer, "chat_template", None)),
                "file": file,
                "start": self.start,
                "png": find_spec("matplotlib") is not None,
                "max_characters": MAX_CHARACTERS,
            }
        )

    async def score(self, request: Request) -> Response:
        if self.desk is None:
            raise UserError("there is no model to score with; start with --model_name_or_path")
        body = await _body(request)
        answer = _answer(body)
        reading = await self.desk.reading(answer, request.is_disconnected)
        index = body.get("row")
        if self.work is not None and isinstance(index, int) and await run_in_threadpool(self._is_row, index, answer):
            self.work.keep(index, reading)
        return _json(reading.as_dict())

    def _is_row(self, index: int, answer: Answer) -> bool:
        row = self.rows.row(index) if self.rows is not None else {}
        return answer == (row.get("prompt"), row.get("completion"), row.get("add_eos"))

    async def list_rows(self, request: Request) -> Response:
        rows, query = self._rows(), request.query_params
        start, count = _whole(query, "start", 0, 10**9), _whole(query, "count", 50, _PAGE)

        def some() -> dict[str, Any]:
            descending = query.get("order") == "desc"
            order = rows.order(query.get("q", ""), query.get("sort", ""), query.get("by", FILE.id), descending)
            return {
                "total": len(order),
                "start": start,
                "rows": [rows.summary(int(index)) for index in order[start : start + count]],
            }

        return _json(await run_in_threadpool(some))

    async def row(self, request: Request) -> Response:
        row = await run_in_threadpool(self._rows().row, request.path_params["index"])
        stored = row["stored"]
        return _json(row | {"stored": None if stored is None else stored.as_dict()})

    async def job(self, request: Request) -> Response:
        return _json(self._job().state())

    async def control_job(self, request: Request) -> Response:
        job, action = self._job(), (await _body(request)).get("action")
        if action == "start":
            job.start()
        elif action == "stop":
            await job.stop()
        else:
            raise UserError("'action' is start or stop")
        return _json(job.state())

    async def export(self, request: Request) -> Response:
        content, kind = await run_in_threadpool(export, await _body(request))
        return Response(content, media_type=kind, headers={"Content-Disposition": "attachment"})

    def _rows(self) -> RowFile:
        if self.rows is None:
            raise HTTPException(404, "there is no file; start with --dataset_name")
        return self.rows

    def _job(self) -> Job:
        if self.work is None:
            raise HTTPException(404, "scoring a file takes --model_name_or_path and --dataset_name")
        return self.work


def _answer(body: dict[str, Any]) -> Answer:
    prompt, completion = body.get("prompt"), body.get("completion")
    texts = [completion, prompt]
    if isinstance(prompt, list):
        texts = [completion, *(m.get("content") if isinstance(m, dict) else None for m in prompt)]
    size = 0
    for text in texts:
        if not isinstance(text, str):
            raise UserError("'completion' must be text, 'prompt' text or a list of messages with role and content")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("the text holds half of a surrogate pair, which is no character")
        size += len(text)
    if size > MAX_CHARACTERS:
        raise UserError(f"prompt and answer have more than {MAX_CHARACTERS:,} characters")
    return prompt, str(completion), body.get("add_eos", True) is not False


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise HTTPException(413, f"the request is larger than {MAX_BODY // 2**20} MiB")
        parts.append(part)
    try:
        body = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the request is not valid JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the request must be a JSON object")
    return body


def _whole(query: Any, name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UserError(f"'{name}' must be a whole number")
    return min(int(text), most)


def _json(content: Any, status: int = 200) -> Response:
    # ASCII: half of a surrogate pair, which a file may hold, has no UTF-8
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


async def _user_error(request: Request, error: Exception) -> Response:
    return _json({"error": str(error)}, 422)


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    return _json({"error": getattr(error, "detail", "error")}, status)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _our_error(request: Request, error: Exception) -> Response:
    return _json({"error": f"{type(error).__name__}: the terminal shows where"}, 500)
