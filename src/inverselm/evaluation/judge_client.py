"""Ask a chat endpoint many things: several at a time, again after what passes, not after what stays.

What passes: 408, 409, 429, 5xx, time-outs, broken connections. What stays and stops everything: a refused key, an
unknown model or path, no server. Another refusal concerns one request, which stays without an answer.
"""

from __future__ import annotations

import json
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import UserError
from .judge_cache import Reply
from .judge_endpoint import Endpoint

IN_A_ROW = 5
"""So many requests without an answer, one after another, stop the run."""
CONNECT = 10.0
LONGEST_WAIT = 60.0
LONGEST_ASKED = 600.0
PATIENCE = 5.0
"""Seconds that requests under way have when the run stops."""
_PASSING = (408, 409, 425, 429)
_WHERE = "judge_url is the API's base, such as http://127.0.0.1:8000/v1"


class _NoAnswer(Exception):  # noqa: N818 - a request's fate, not an error of the program
    """This request gets no answer: it was refused for what it is, or every try of it failed."""

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class _Passing(Exception):  # noqa: N818
    """Worth another try, not before `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Stopped(Exception):  # noqa: N818
    """The run ended before this request was answered."""


class ChatClient:
    """Asks an endpoint, with retries, several requests at a time.

    Args:
        endpoint: where, and how.
        proven: it has answered before: a refusal is then about the request, not about how the endpoint is called.

    Raises:
        UserError: httpx2 is missing.
    """

    def __init__(self, endpoint: Endpoint, proven: bool = False) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise UserError("asking a judge needs httpx2: pip install 'inverselm[judge]'") from error
        self.endpoint, self._httpx, self._key = endpoint, httpx2, endpoint.key()
        headers = {"Content-Type": "application/json", "User-Agent": "inverselm"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(endpoint.timeout, connect=min(CONNECT, endpoint.timeout)),
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
            trust_env=not endpoint.local,  # proxies of the environment are not for this machine
        )
        self._stop, self._random = threading.Event(), random.Random()
        self._reached, self._answered = False, proven

    def ask_all(
        self,
        requests: Mapping[str, Mapping[str, Any]],
        keep: Callable[[str, Reply], None],
        advance: Callable[[], Any] = lambda: None,
    ) -> dict[str, str]:
        """Send every request, in their order; once per client.

        Args:
            requests: by key.
            keep: called with each key and reply as it comes, from several threads.
            advance: called after each request, answered or not, from this thread.

        Returns:
            Why, by key, for those without an answer.

        Raises:
            UserError: the endpoint refuses the key, knows no such model, or is not there; `IN_A_ROW` requests in a
                row, or all of them, get no answer.
            KeyboardInterrupt: requests under way had `PATIENCE` seconds to come back and be kept.
        """
        todo: queue.SimpleQueue[tuple[str, Mapping[str, Any]]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
        for item in requests.items():
            todo.put(item)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    key, request = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    keep(key, self._ask(request))
                    done.put((key, None))
                except BaseException as error:  # for the thread that waits
                    done.put((key, error))
                    if not isinstance(error, _NoAnswer):
                        self._stop.set()

        count = min(self.endpoint.concurrency, len(requests))
        threads = [threading.Thread(target=work, name=f"judge-{i}", daemon=True) for i in range(count)]
        try:
            for thread in threads:
                thread.start()
            return self._collect(len(requests), done, advance)
        finally:
            self._stop.set()
            end = time.monotonic() + PATIENCE
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                self._http.close()

    def _collect(self, count: int, done: Any, advance: Callable[[], Any]) -> dict[str, str]:
        failed: dict[str, str] = {}
        row = 0
        for _ in range(count):
            key, error = done.get()
            if error is None:
                row = 0
            elif not isinstance(error, _NoAnswer):
                raise error
            else:
                failed[key] = str(error)
                row += not (error.refused and self._answered)
                if row == IN_A_ROW or (row == count and not self._answered):
                    raise UserError(f"the judge gave no answer to {row} requests in a row; to the last one: {error}")
            advance()
        return failed

    def _ask(self, request: Mapping[str, Any]) -> Reply:
        """One request, with its retries."""
        content = json.dumps(request, allow_nan=False).encode()
        tries = self.endpoint.retries + 1
        for number in range(tries):
            try:
                reply = self._send(content)
                self._answered = True
                return reply
            except _Passing as passing:
                if number + 1 == tries:
                    count = f"{tries} {'try' if tries == 1 else 'tries'}"
                    raise _NoAnswer(f"{passing} ({count})", refused=False) from passing
                delay = min(LONGEST_WAIT, self.endpoint.wait * 2**number) * self._random.uniform(0.5, 1.0)
                if self._stop.wait(max(delay, passing.wait)):
                    raise _Stopped from passing
        raise AssertionError("unreachable")

    def _send(self, content: bytes) -> Reply:
        httpx, url = self._httpx, self.endpoint.address
        try:
            response = self._http.post(url, content=content)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = str(error) or type(error).__name__
            if not self._reached:
                raise UserError(f"no connection to {url} ({reason}); is the server running? {_WHERE}") from error
            raise _Passing(f"no connection ({reason})") from error
        except httpx.TimeoutException as error:
            raise _Passing(f"no answer within {self.endpoint.timeout:g} seconds") from error
        except httpx.RequestError as error:
            raise _Passing(f"the connection broke ({str(error) or type(error).__name__})") from error
        except httpx.InvalidURL as error:
            raise UserError(f"judge_url {self.endpoint.url}: is no URL ({error}); {_WHERE}") from error
        self._reached = True
        if response.status_code != 200:
            self._refuse(response)
        return self._reply(response)

    def _reply(self, response: Any) -> Reply:
        try:
            found = response.json()
            choice = found["choices"][0]
            text = choice["message"].get("content")
            if isinstance(text, list):
                text = "".join(part.get("text") or "" for part in text)
            text = "" if text is None else text.encode("utf-8", "replace").decode()
            usage = found.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            said = self._shown(response.text)
            raise _NoAnswer(f"what came is no chat completion: {said}", refused=True) from error
        prompt, completion = (n if isinstance(n, int) else None for n in counts)
        ended = choice.get("finish_reason")
        return Reply(text, ended if isinstance(ended, str) else None, prompt, completion)

    def _refuse(self, response: Any) -> None:
        """Raise what a status other than 200 means."""
        status, endpoint = response.status_code, self.endpoint
        url, said = endpoint.address, self._shown(_message(response))
        if status in (401, 403):
            put = f"put its API key into the environment variable {endpoint.key_name}, and pass api_key_env"
            how = f"check the key in {endpoint.key_name}" if self._key else f"{put} {endpoint.key_name}"
            raise UserError(f"{url} refuses access ({status}: {said}); {how}")
        if status == 404:
            raise UserError(
                f"{url} answers 404 ({said}): judge_url must be the API's base, which mostly ends in /v1, and "
                f"judge_model a model that it serves; now it is {endpoint.model!r}"
            )
        if status == 429 and "insufficient_quota" in response.text:
            raise UserError(f"{url}: the account has no quota left ({said})")
        if 300 <= status < 400:
            raise UserError(f"{url} has moved ({status}): set judge_url to where it is now")
        if status in _PASSING or status >= 500:
            wait = retry_after(response.headers.get("retry-after"))
            if wait > LONGEST_ASKED:
                raise UserError(f"{url} asks to come back in {wait:,.0f} seconds ({status}: {said})")
            raise _Passing(f"{status}: {said}", wait)
        raise _NoAnswer(f"{status}: {said}", refused=True)

    def _shown(self, text: str) -> str:
        """A server's words in a message: one short line, without the key."""
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "no text"
        if self._key and len(self._key) > 5:
            line = line.replace(self._key, "***")
        return line if len(line) <= 200 else line[:197] + "..."


def _message(response: Any) -> str:
    """What an error response says, whatever its shape."""
    try:
        found = response.json()
        error = found.get("error", found.get("detail", found))
        text = error.get("message", error) if isinstance(error, dict) else error
        return text if isinstance(text, str) else json.dumps(text)
    except (ValueError, AttributeError):
        return str(response.text)


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, section 10.2.3); 0 for anything else.

    >>> retry_after("2"), retry_after("soon"), retry_after(None)
    (2.0, 0.0, 0.0)
    """
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
