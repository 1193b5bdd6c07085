"""What a connection brings: whom it is addressed to, a body that may be too large, an end that may come too early."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from .bodies import RequestError
from .rows import RowScores

logger = logging.getLogger(__name__)
_DISCARDED = 16
"""Of a body that is too large, so many times the limit is read and thrown away: who is still sending reads no error."""


def check_no_stranger(request: Request, *, local: bool) -> None:
    """Refuse what other web sites ask for through a browser on this machine.

    Args:
        request: of anybody.
        local: the server is for this machine alone. Then the Host header must be an IP address or `localhost`: a site
            whose name was made to point here (DNS rebinding) sends its own name.

    Raises:
        RequestError: the request is addressed to another name, or comes from a page of another site.
    """
    host = request.headers.get("host", "")
    if local and not _is_plain(host):
        message = (
            "the Host header must be an IP address or localhost, as this server is for its own machine (see --host)"
        )
        raise RequestError(403, "wrong_host", message)
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise RequestError(403, "wrong_origin", "pages of other web sites may not use this server")


def _is_plain(host: str) -> bool:
    """Whether a Host header names an IP address or `localhost`."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of at most `limit` bytes.

    Raises:
        RequestError: it is larger.
        ClientDisconnect: the client has gone.
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit * _DISCARDED:
            break
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
    if size > limit:
        message = (
            f"the body is larger than {limit / 2**20:g} MiB; send fewer rows, or start with a larger --max_body_mb"
        )
        raise RequestError(413, "body_too_large", message, headers={"connection": "close"})
    return b"".join(parts)


async def unless_gone(request: Request, answers: asyncio.Future[list[RowScores]]) -> list[RowScores]:
    """The answers, unless the client goes away first.

    Raises:
        ClientDisconnect: it has; the answers are cancelled.
        RequestError: a row could not be scored.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answers, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientDisconnect
        try:
            return answers.result()
        except Exception as error:
            logger.error("A row could not be scored", exc_info=error)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RequestError(500, "not_scored", f"the model failed on a row: {reason}") from error
    finally:
        watch.cancel()
        answers.cancel()
