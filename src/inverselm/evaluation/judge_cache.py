"""A judge's replies on disk, so that nothing is paid for twice: a JSON line each, by the SHA-256 of what was sent."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

_START = b'{"key": "'


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered.

    Attributes:
        text: of the answer; empty if there was none.
        finish_reason: why it ended: `stop`, `length`, ...
        prompt_tokens: as the endpoint counts them, if it does.
        completion_tokens: likewise.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def request_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request: the model's name, the messages, the sampling parameters.

    >>> request_key({"model": "m", "temperature": 0}) == request_key({"temperature": 0, "model": "m"})
    True
    """
    text = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by the key of their request. Each is written as it comes; a kill loses at most the one being written.

    Several threads may add, and several processes may share a file. It holds no prompts and no keys of an API.

    Args:
        path: JSONL file, new or a cache; None keeps replies in memory alone.

    Raises:
        UserError: a file that is not readable, or is something else.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._torn = False
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: the judge's cache is not readable ({error.strerror})") from error
        self._torn = bool(content) and not content.endswith(b"\n")
        lines = [line for line in content.split(b"\n") if line.strip()]
        for line in lines:
            try:
                found = json.loads(line)
                reply = Reply(**{name: found[name] for name in Reply.__dataclass_fields__})
                self._replies[found["key"]] = reply
            except (ValueError, KeyError, TypeError) as error:
                if not (line.startswith(_START) or _START.startswith(line)):  # else a kill broke it off
                    raise UserError(f"{path}: is no cache of a judge's replies; name another file") from error

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply to a request, if it is known."""
        return self._replies.get(key)

    def add(self, key: str, model: str, reply: Reply) -> None:
        """Keep a reply, on disk before this returns.

        Raises:
            UserError: the file cannot be written.
        """
        line = json.dumps({"key": key, "model": model, **asdict(reply)}).encode() + b"\n"
        with self._lock:
            self._replies[key] = reply
            if self.path is not None:
                self._append((b"\n" if self._torn else b"") + line)
                self._torn = False

    def _append(self, line: bytes) -> None:
        assert self.path is not None
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                written = os.write(descriptor, line)  # at once, so that lines of two processes do not mix
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(f"{self.path}: the judge's cache cannot be written ({error.strerror})") from error
        if written < len(line):
            raise UserError(f"{self.path}: the judge's cache cannot be written (no room on the disk)")
