"""Starts the stages of a study as processes: as many at a time as there are lanes and memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from ..errors import UserError
from .plan import Stage, stage_record
from .worker import LOG, work

__all__ = ["Scheduler", "StudyError", "time_left"]

_FIRST_GUESS = 2 * 2**30  # bytes that a stage may need of which nothing is known yet
_ROOM = 1.25  # of the largest peak seen


class StudyError(UserError):
    """Stages failed; the message names them and their logs."""


class Scheduler:
    """Runs stages whose inputs are there.

    Args:
        stages: all of the study.
        todo: those that are not done, in the order to run them.
        lanes: CUDA_VISIBLE_DEVICES of each process at a time; None leaves it.
        code: hash of the code, for the records.
        keep_checkpoints: of training runs.
        progress: a bar on stderr.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        todo: Sequence[Stage],
        lanes: list[str | None],
        code: str,
        keep_checkpoints: bool,
        progress: bool,
    ) -> None:
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(kind)
        if kind == "forkserver":
            self.context.set_forkserver_preload(["inverselm.study.preload"])
        self.lanes, self.code, self.keep, self.progress = lanes, code, keep_checkpoints, progress
        self.waiting = list(todo)
        self.done = {stage.key for stage in stages} - {stage.key for stage in todo}
        self.total, self.finished = len(todo), 0
        self.failed: dict[str, str] = {}
        self.running: dict[int, tuple[Stage, Any]] = {}
        records = {stage.key: stage_record(stage) for stage in stages if stage.key in self.done}
        self.seconds = {key: record["seconds"] for key, record in records.items() if record}
        self.peaks = {key.split("/")[-1]: record["peak_rss"] for key, record in records.items() if record}

    def run(self) -> None:
        """Until nothing is left that can run.

        Raises:
            StudyError: stages failed.
            KeyboardInterrupt: after the workers have stopped.
        """
        from tqdm.auto import tqdm

        with (
            _terminated_as_interrupted(),
            tqdm(total=self.total, unit="stage", file=sys.stderr, disable=not self.progress) as bar,
        ):
            bar.bar_format = "{desc}{n_fmt}/{total_fmt} stages |{bar}| {elapsed}{postfix}"
            try:
                while self.waiting or self.running:
                    self._start()
                    self._show(bar)
                    self._wait(bar)
            except KeyboardInterrupt:
                self._stop()
                raise KeyboardInterrupt("The same command continues the study.") from None
        if self.failed:
            lines = "\n".join(f"  {key}: {why}" for key, why in self.failed.items())
            raise StudyError(
                f"{len(self.failed)} of {self.total} stages failed; the same command tries again:\n{lines}"
            )

    def _start(self) -> None:
        for lane, device in enumerate(self.lanes):
            if lane in self.running:
                continue
            stage = self._next()
            if stage is None:
                return
            self.waiting.remove(stage)
            process = self.context.Process(target=work, args=(stage, self.code, device, self.keep), daemon=False)
            process.start()
            self.running[lane] = (stage, process)

    def _next(self) -> Stage | None:
        """The first stage whose inputs are there, if there is memory for it."""
        for stage in list(self.waiting):
            lost = next((need for need in stage.needs if need in self.failed), None)
            if lost:
                self.waiting.remove(stage)
                self.failed[stage.key] = f"needs {lost}"
        ready = [stage for stage in self.waiting if self.done.issuperset(stage.needs)]
        if not ready:
            return None
        return ready[0] if not self.running or _free_memory() > self._wanted(ready[0]) else None

    def _wanted(self, stage: Stage) -> float:
        """Bytes that must be free: of the stage, and what the running ones may still take."""
        peak = self.peaks.get(stage.kind, _FIRST_GUESS) * _ROOM
        import psutil

        growing = 0.0
        for other, process in self.running.values():
            try:
                held = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:
                continue
            growing += max(0.0, self.peaks.get(other.kind, _FIRST_GUESS) - held)
        return peak + growing

    def _wait(self, bar: Any) -> None:
        connection.wait([process.sentinel for _, process in self.running.values()], timeout=2.0)
        for lane, (stage, process) in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            del self.running[lane]
            record = stage_record(stage) if process.exitcode == 0 else None
            if record is None:
                self.failed[stage.key] = _reason(stage, process.exitcode)
            else:
                self.done.add(stage.key)
                self.seconds[stage.key] = record["seconds"]
                self.peaks[stage.kind] = max(self.peaks.get(stage.kind, 0), record["peak_rss"])
            self.finished += 1
            bar.update(1)

    def _show(self, bar: Any) -> None:
        left = time_left([*self.waiting, *(s for s, _ in self.running.values())], self.seconds, len(self.lanes))
        running = ", ".join(stage.key for stage, _ in self.running.values())
        bar.set_postfix_str(running if left is None else f"about {_duration(left)} left; {running}")

    def _stop(self) -> None:
        deadline = time.monotonic() + 20.0
        for _, process in self.running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for _, process in self.running.values():
            process.join(max(0.1, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _reason(stage: Stage, code: int | None) -> str:
    log = stage.folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
    ended = "was killed (out of memory?)" if code is not None and code < 0 else f"exit {code}"
    return f"{ended}; {said.strip()[:300]} ({log})"


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_left(todo: Sequence[Stage], seconds: Mapping[str, float], workers: int) -> float | None:
    """Seconds until all of `todo` is done, from those of finished stages; None while nothing like them is known.

    Args:
        todo: stages that are not finished.
        seconds: key of a finished stage -> what it took.
        workers: stages at a time.
    """
    total = 0.0
    for stage in todo:
        like = [s for key, s in seconds.items() if _like(key) == _like(stage.key)]
        like = like or [s for key, s in seconds.items() if key.split("/")[-1] == stage.kind]
        if not like:
            return None
        total += statistics.mean(like)
    return total / max(1, workers)


def _like(key: str) -> tuple[str, str, str]:
    size, method, _, kind = key.split("/")
    return size, method, kind


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM stops a study as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
