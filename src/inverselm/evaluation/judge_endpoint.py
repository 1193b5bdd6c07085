"""Where a judge is, how it is asked, and which API key goes there."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError

DEFAULT_KEY = "OPENAI_API_KEY"
OPTIONS: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 1024}
_OURS = ("messages", "model", "n", "stream")


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint, and how to ask it.

    Attributes:
        url: base of the API, such as http://127.0.0.1:8000/v1; `/chat/completions` is appended.
        model: its name there.
        options: what else a request says: temperature, max_tokens and so on; None leaves one out.
        key_env: environment variable with the API key. None: OPENAI_API_KEY if it is set, over https or to this
            machine; a key goes to another machine over plain http only if its variable is named.
        timeout: seconds until a request counts as lost.
        retries: further tries of a request.
        wait: seconds before the second try, at most; doubled with every further one, up to 60.
        concurrency: requests under way at a time.

    Raises:
        UserError: a setting that cannot be used, or a named variable that is not set.

    Example:
        >>> Endpoint("http://127.0.0.1:8000/v1", "judge").address
        'http://127.0.0.1:8000/v1/chat/completions'
    """

    url: str
    model: str
    options: Mapping[str, Any] = field(default_factory=lambda: dict(OPTIONS))
    key_env: str | None = None
    timeout: float = 120.0
    retries: int = 6
    wait: float = 1.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        _check_url(self.url or "")
        if not str(self.model or "").strip():
            raise UserError("no judge: pass judge_model, the model's name at the endpoint")
        ours = next((name for name in _OURS if name in self.options), None)
        if ours:
            raise UserError(f"{ours!r} cannot be among the request's options: it is set here")
        for name, least in (("wait", 0), ("retries", 0), ("concurrency", 1)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise UserError(f"{name} is {value}; set it to {least} or more")
        if not math.isfinite(self.timeout) or self.timeout <= 0:
            raise UserError(f"timeout is {self.timeout}; set it to a number of seconds above 0")
        self.key()

    @property
    def address(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def body(self) -> dict[str, Any]:
        """What all requests have in common."""
        return {"model": self.model, **{name: value for name, value in self.options.items() if value is not None}}

    @property
    def key_name(self) -> str:
        """The environment variable that holds the key."""
        return self.key_env or DEFAULT_KEY

    def key(self) -> str | None:
        """The API key, from the environment; None if none is to be sent.

        Raises:
            UserError: a variable that was named is not set, or holds something else.
        """
        key = os.environ.get(self.key_name, "").strip()
        if not key and self.key_env:
            raise UserError(f"the environment variable {self.key_env} is not set; put the endpoint's API key into it")
        if key and not (key.isascii() and key.isprintable()):
            raise UserError(f"the environment variable {self.key_name} holds something that is no API key")
        secure = self.local or urlsplit(self.url).scheme == "https"
        return key if key and (self.key_env or secure) else None


def _check_url(url: str) -> None:
    example = "write the API's base, such as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # a port that is none raises
    except ValueError as error:
        raise UserError(f"judge_url: is no URL ({error}); {example}") from error
    if parts.username or parts.password or parts.query or parts.fragment:  # not shown: it may be a secret
        raise UserError(f"judge_url: leave out user names, passwords and queries; {example}")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"judge_url {url!r}: is no http address; {example}")
