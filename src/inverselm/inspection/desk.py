"""One model, asked by a page: one answer at a time, the person before the file, and nothing read twice."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from ..errors import UserError
from .inspector import Inspector, Reading
from .rows import RowFile

Answer = tuple[Any, str, bool]
"""Prompt (text or messages), answer, whether it ends with EOS."""

KEPT_TOKENS = 400_000
"""Readings are kept up to so many tokens, together; eight characters of their texts count as one more."""

logger = logging.getLogger(__name__)


class GoneError(Exception):
    """The page that asked does not wait any longer."""


class Desk:
    """Readings of answers, one batch of the models at a time.

    Args:
        inspector: the models.
    """

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self._lock = asyncio.Lock()
        self._kept: OrderedDict[str, Reading] = OrderedDict()
        self._tokens = 0

    async def reading(self, answer: Answer, gone: Callable[[], Awaitable[bool]]) -> Reading:
        """The reading of one answer, from memory or from the models.

        Raises:
            UserError: the answer cannot be scored.
            GoneError: whoever asked has gone while others were served.
        """
        key = json.dumps(answer)
        if key not in self._kept:
            async with self._lock:
                if await gone():
                    raise GoneError
                if key not in self._kept:
                    self._keep(key, (await run_in_threadpool(self._read, [answer]))[0])
        self._kept.move_to_end(key)
        return self._kept[key]

    async def readings(self, answers: Sequence[Answer]) -> list[Reading | None]:
        """The readings of a batch, None for answers that cannot be scored; they are not kept."""
        async with self._lock:
            return await run_in_threadpool(self._read_all, answers)

    def _read(self, answers: Sequence[Answer]) -> list[Reading]:
        prompts, completions, ends = zip(*answers, strict=True)
        return self.inspector.read(prompts, completions, list(ends))

    def _read_all(self, answers: Sequence[Answer]) -> list[Reading | None]:
        try:
            return list(self._read(answers))
        except UserError:
            if len(answers) == 1:
                return [None]
            return [reading for answer in answers for reading in self._read_all([answer])]

    def _keep(self, key: str, reading: Reading) -> None:
        self._kept[key] = reading
        self._tokens += _size(key, reading)
        while self._tokens > KEPT_TOKENS and len(self._kept) > 1:
            self._tokens -= _size(*self._kept.popitem(last=False))


def _size(key: str, reading: Reading) -> int:
    return len(reading.ids) + len(key) // 8


class Job:
    """Scores the rows of a file that have no rewards yet, so that they can be sorted.

    Args:
        desk: gives the readings.
        rows: the file; its numbers are filled in.
        batch_size: rows per forward pass.
    """

    def __init__(self, desk: Desk, rows: RowFile, batch_size: int = 16) -> None:
        self.desk, self.rows, self.batch_size = desk, rows, batch_size
        self.done, self.skipped, self.error = 0, 0, ""
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._skip: set[int] = set()

    def state(self) -> dict[str, Any]:
        """How far it is: `running`, `done` and `total` rows, `skipped` (those that cannot be scored), `error`."""
        running = self._task is not None and not self._task.done()
        return {
            "running": running,
            "done": self.done,
            "total": len(self.rows),
            "skipped": self.skipped,
            "error": self.error,
        }

    def start(self) -> None:
        """Begin, or go on."""
        if self._task is None or self._task.done():
            self.error, self._stopping = "", False
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End after the batch that is being read; what is known stays."""
        if self._task is not None:
            self._stopping = True  # not cancelled: its thread would read on, beside whoever is next
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        by = self.desk.inspector.definitions[0].id
        todo = [i for i in range(len(self.rows)) if not self.rows.has_stats(by, i) and i not in self._skip]
        self.done = len(self.rows) - len(todo)
        try:
            for start in range(0, len(todo), self.batch_size):
                if self._stopping:
                    break
                some = todo[start : start + self.batch_size]
                items = [self.rows.row(i) for i in some]
                answers = [(item["prompt"], item["completion"], item["add_eos"]) for item in items]
                for i, reading in zip(some, await self.desk.readings(answers), strict=True):
                    self.keep(i, reading)
                self.done += len(some)
        except UserError as error:
            self.error = str(error)
        except Exception as error:
            logger.exception("Rows could not be scored")
            self.error = f"{type(error).__name__}: the terminal shows where"

    def keep(self, index: int, reading: Reading | None) -> None:
        """Take the numbers of a row."""
        if reading is None:
            self._skip.add(index)
            self.skipped = len(self._skip)
            return
        for by, rewards in reading.rewards.items():
            self.rows.set_stats(by, index, rewards)
