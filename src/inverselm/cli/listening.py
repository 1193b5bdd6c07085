"""An address to listen on."""

from __future__ import annotations

import ipaddress
import socket

from ..errors import UserError


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address but does not listen yet: taken before the models are loaded.

    Raises:
        UserError: the address is not this machine's, or taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: is no address of this machine ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where browsers find it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return ipaddress.ip_address(host.split("%")[0]).is_loopback
