"""Dynamic batching: rows of many callers are scored together by one worker thread, and each caller gets its own back.

Threads and a lock, nothing of HTTP, models or tokenizers: what a batch is worth is said by lengths and groups alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .choice import choose

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """There is no room for more rows.

    Attributes:
        seconds: when there may be, as an estimate.
    """

    def __init__(self, waiting: int, limit: int, seconds: float) -> None:
        super().__init__(f"{waiting} of {limit} rows wait")
        self.waiting, self.limit, self.seconds = waiting, limit, seconds


class ClosedError(Exception):
    """The batcher takes no more rows."""


@dataclass(frozen=True)
class Batch:
    """What was scored in one go, for statistics.

    Attributes:
        rows: how many.
        tokens: sum of their lengths.
        seconds: how long it took.
    """

    rows: int
    tokens: int
    seconds: float


@dataclass
class _Ticket(Generic[Answer]):
    """One call of `submit`: its answers so far, and how many are missing."""

    future: Future[list[Answer]]
    answers: list[Answer | None]
    missing: int


@dataclass
class _Waiting(Generic[Item, Answer]):
    """A row in the queue."""

    item: Item
    length: int
    group: Hashable
    arrived: float
    ticket: _Ticket[Answer] = field(repr=False)
    place: int = 0


class Batcher(Generic[Item, Answer]):
    """One worker thread that scores the rows of all callers in batches of like length.

    A row waits at most `max_wait` seconds for company while the worker is idle, and not at all once enough rows wait.
    A batch that fails is scored again in halves, so that a row that cannot be scored fails alone, and a batch that does
    not fit into memory is made smaller. No answer is lost or given to another: a batch that returns another number of
    answers than it has rows is an error.

    Args:
        work: scores rows: as many answers as rows, in order. Called by the worker thread alone.
        length: tokens of a row.
        group: rows of equal groups are put together where possible.
        max_rows: rows of a batch, at most.
        max_tokens: rows times longest row of a batch, at most.
        max_padding: share of a batch that may be padding, at most.
        max_wait: seconds.
        max_queue: rows that wait, at most.
        observe: is told of every batch (by the worker thread).

    Example:
        >>> batcher = Batcher(lambda rows: [len(row) for row in rows], length=len)
        >>> batcher.submit(["ab", "c"]).result()
        [2, 1]
        >>> batcher.close()
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Answer]],
        *,
        length: Callable[[Item], int],
        group: Callable[[Item], Hashable] | None = None,
        max_rows: int = 16,
        max_tokens: int = 16384,
        max_padding: float = 1.0,
        max_wait: float = 0.005,
        max_queue: int = 4096,
        observe: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._work, self._length, self._group, self._observe = work, length, group, observe
        self.max_rows, self.max_tokens, self.max_padding = max_rows, max_tokens, max_padding
        self.max_wait, self.max_queue = max_wait, max_queue
        self._waiting: list[_Waiting[Item, Answer]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._seconds_per_token = 0.0
        self._thread = threading.Thread(target=self._run, name="inverselm-batcher", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Rows that wait (those being scored are not among them)."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the worker thread runs."""
        return self._thread.is_alive()

    def submit(self, items: Sequence[Item]) -> Future[list[Answer]]:
        """Queue rows; the future gets their answers in order, or the error of a row that cannot be scored.

        A future that is cancelled takes its waiting rows out of the queue.

        Raises:
            QueueFullError: more rows would wait than `max_queue`; none of these is queued.
            ClosedError: after `close`.
        """
        future: Future[list[Answer]] = Future()
        ticket = _Ticket(future, [None] * len(items), len(items))
        now = time.monotonic()
        group = self._group or (lambda item: None)
        rows = [_Waiting(item, self._length(item), group(item), now, ticket, i) for i, item in enumerate(items)]
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._waiting) + len(rows) > self.max_queue:
                tokens = sum(row.length for row in self._waiting)
                raise QueueFullError(len(self._waiting), self.max_queue, tokens * self._seconds_per_token)
            self._waiting += rows
            self._changed.notify()
        if not rows:
            future.set_result([])
        future.add_done_callback(self._forget)
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Take no more rows, score those that wait, and end the thread.

        Returns:
            Whether it ended within `timeout` seconds (None: however long it takes).
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _forget(self, future: Future[list[Answer]]) -> None:
        """Rows nobody waits for any more need not be scored."""
        if future.cancelled() or future.exception() is not None:
            with self._changed:
                self._waiting = [row for row in self._waiting if row.ticket.future is not future]
                self._changed.notify()

    # ---- the worker thread -------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while rows := self._next():
            self._score(rows)

    def _next(self) -> list[_Waiting[Item, Answer]]:
        """The next batch, taken out of the queue; empty when it is closed and empty."""
        with self._changed:
            while True:
                if not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._waiting[0].arrived + self.max_wait - time.monotonic()
                if left <= 0 or self._closed or self._enough():
                    break
                self._changed.wait(left)
            chosen = choose(
                [row.length for row in self._waiting],
                [row.group for row in self._waiting] if self._group else None,
                max_rows=self.max_rows,
                max_tokens=self.max_tokens,
                max_padding=self.max_padding,
            )
            batch = [self._waiting[i] for i in chosen]
            taken = set(chosen)
            self._waiting = [row for i, row in enumerate(self._waiting) if i not in taken]
            return batch

    def _enough(self) -> bool:
        waiting = self._waiting
        return len(waiting) >= self.max_rows or sum(row.length for row in waiting) >= self.max_tokens

    def _score(self, rows: list[_Waiting[Item, Answer]]) -> None:
        begin = time.perf_counter()
        answers: list[Answer] | None = None
        try:
            answers = list(self._work([row.item for row in rows]))
            if len(answers) != len(rows):
                raise RuntimeError(f"{len(rows)} rows were scored, but {len(answers)} answers came back")
        except Exception as error:
            answers = None
            if len(rows) == 1:
                _fail(rows[0].ticket, error)
                return
        if answers is None:  # here the error, and what its frames held in memory, is gone
            half = len(rows) // 2
            self._score(rows[:half])
            self._score(rows[half:])
            return
        seconds, tokens = time.perf_counter() - begin, sum(row.length for row in rows)
        latest = seconds / max(1, tokens)
        self._seconds_per_token = 0.8 * self._seconds_per_token + 0.2 * latest if self._seconds_per_token else latest
        self._observe(Batch(len(rows), tokens, seconds))
        for row, answer in zip(rows, answers, strict=True):
            _deliver(row.ticket, row.place, answer)


def _deliver(ticket: _Ticket[Answer], place: int, answer: Answer) -> None:
    ticket.answers[place] = answer
    ticket.missing -= 1
    if ticket.missing == 0:
        with suppress(InvalidStateError):  # cancelled, or failed by another row
            ticket.future.set_result(ticket.answers)  # type: ignore[arg-type]  # none of them is None now


def _fail(ticket: _Ticket[Answer], error: Exception) -> None:
    with suppress(InvalidStateError):
        ticket.future.set_exception(error)
