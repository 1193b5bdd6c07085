"""Bodies of requests and answers: JSON, and the errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn


class RequestError(Exception):
    """A request that is not answered as asked.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        message: a sentence for people: what is wrong, and what to change.
        row: number of the row that it is about, from 0; None if it is about none.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, *, row: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.row = status, code, message, row
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        row = {} if self.row is None else {"row": self.row}
        return {"error": {"code": self.code, "message": self.message, **row}}


def read_json(body: bytes) -> dict[str, Any]:
    """A request's body, which must be one JSON object.

    Raises:
        RequestError: it is none; says where it stops being JSON.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise RequestError(400, "bad_json", f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError(400, "bad_json", f"the body is not JSON: {error.msg} at {where}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "bad_json", f"the body is not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(400, "bad_json", f"the body must be a JSON object, not {kind_of(content)}")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def to_json(content: Any) -> bytes:
    """JSON as compact UTF-8.

    Raises:
        RequestError: a number that is not finite (a damaged model): JSON has none.
    """
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise RequestError(500, "not_finite", "the model gave a reward that is no finite number") from error


def kind_of(value: Any) -> str:
    """What a value of JSON is, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    kind = names.get(type(value), "a number")
    return "an empty list" if value == [] else kind
