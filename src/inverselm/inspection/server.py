"""A port of one's own, and the server on it."""

from __future__ import annotations

import socket
from typing import Any

from ..errors import UserError

TRIED = 20
"""How many ports are tried from the wanted one on."""


def listen(host: str, port: int, tried: int = TRIED) -> socket.socket:
    """A listening socket at `port`, or at the next free one; 0 takes any.

    Raises:
        UserError: no such address on this machine, no permission, or all ports taken.

    Example:
        >>> with listen("127.0.0.1", 0) as found: port = found.getsockname()[1]
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = min(port + tried, 65_536)
    for number in range(port, last) if port else (0,):
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, number))
            found.listen(128)
        except OSError as error:
            found.close()
            if isinstance(error, PermissionError):
                raise UserError(f"--port {number}: no permission to use it; take one above 1023") from error
            if not _is_taken(error):
                raise UserError(f"--host {host}: not an address of this machine ({error.strerror or error})") from error
        else:
            return found
    raise UserError(f"--port {port}: the ports from {port} to {last - 1} are taken; choose another one")


def _is_taken(error: OSError) -> bool:
    import errno

    return error.errno == errno.EADDRINUSE


def address(host: str, found: socket.socket) -> str:
    """The address to open.

    >>> with listen("127.0.0.1", 0) as found: address("127.0.0.1", found).startswith("http://127.0.0.1:")
    True
    """
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{found.getsockname()[1]}/"


def serve(app: Any, found: socket.socket) -> None:
    """Serve until Ctrl-C, which ends it quietly."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[found])
    except KeyboardInterrupt:
        pass
    finally:
        found.close()
