"""Runs what is missing of a study, several stages at a time, and survives being stopped at any point."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

from ..errors import UserError
from .identity import data_hash, environment, machine
from .plan import Stage, clear, plan_stages, stage_record
from .spec import SPLITS, StudySpec
from .worker import LOG, work

__all__ = ["StudyError", "run_study", "time_left"]

STUDY = "study.json"
_FIRST_GUESS = 2 * 2**30  # bytes that a stage may need of which nothing is known yet
_ROOM = 1.25  # of the largest peak seen


class StudyError(UserError):
    """Stages failed; the message names them and their logs."""


def run_study(
    spec: StudySpec,
    output_dir: str | Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    redo: bool = False,
    only: Sequence[str] = (),
    keep_checkpoints: bool = False,
    progress: bool = True,
) -> Path:
    """Run what is missing; returns the study's folder.

    Args:
        spec: the study.
        output_dir: its folder; what is done there is kept.
        workers: stages at a time; default: one per GPU, else one per core.
        threads: of each worker on the CPU; default: the cores divided by `workers`.
        redo: run stages again that were made with other settings, data or code.
        only: names of methods to run now (and what they start from).
        keep_checkpoints: of training runs; else they are removed when a run is done.
        progress: a bar on stderr.

    Raises:
        UserError: another study's folder, or one that is in use; stages of other settings without `redo`.
        StudyError: stages failed; the others ran.

    Example:
        >>> run_study(read_spec("study.yaml"), "runs/study", workers=2)
    """
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = environment()
        identity = {**found, "data": {split: data_hash(spec.data[split]) for split in SPLITS}}
        stages = plan_stages(spec, folder, environment=identity)
        _check_study(folder, spec, identity, redo)
        todo = _to_do(stages, redo, _chosen(spec, only))
        _write_study(folder, spec, identity)
        if todo:
            lanes = _lanes(workers, threads)
            _Scheduler(stages, todo, lanes, found["code"], keep_checkpoints, progress).run()
    return folder


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


def _chosen(spec: StudySpec, only: Sequence[str]) -> set[str] | None:
    if not only:
        return None
    chosen: set[str] = set()
    for name in only:
        if name not in spec.methods:
            raise UserError(f"--only: {name!r} is not one of the methods ({', '.join(spec.methods)})")
        at: str | None = name
        while at:
            chosen.add(at)
            at = spec.methods[at].origin
    return chosen


def _to_do(stages: Sequence[Stage], redo: bool, chosen: set[str] | None) -> list[Stage]:
    todo = []
    for stage in stages:
        if chosen is not None and stage.method not in chosen:
            continue
        try:
            done = stage_record(stage)
        except UserError:
            if not redo:
                raise
            clear(stage)
            done = None
        if done is None:
            todo.append(stage)
    return todo


def _check_study(folder: Path, spec: StudySpec, identity: Mapping[str, Any], redo: bool) -> None:
    path = folder / STUDY
    if not path.is_file():
        if any(name != "study.lock" for name in os.listdir(folder)):
            raise UserError(f"--output_dir {folder}: holds something that is no study; choose another folder")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["name"] != spec.name:
        raise UserError(f"--output_dir {folder}: holds the study {before['name']!r}, not {spec.name!r}; choose another")
    for name, value in identity.items():
        if before["identity"].get(name) != value and not redo:
            what = "the data" if name == "data" else "inverselm's source" if name == "code" else name
            raise UserError(
                f"--output_dir {folder}: {what} changed since the study began; its results are not mixed with new "
                "ones: choose another folder, go back to what it began with, or run everything again with --redo"
            )


def _write_study(folder: Path, spec: StudySpec, identity: Mapping[str, Any]) -> None:
    rows = {size: _rows(spec.data["train"], size) for size in spec.sizes}
    methods = {
        name: {
            "label": method.label,
            "role": method.role,
            "group": method.group,
            "command": method.command,
            "from": method.origin,
            "guided": method.guided,
            "sizes": [size for size in spec.sizes if method.runs_at(size)],
            "flags": {size: spec.flags(method, size) for size in spec.sizes if method.runs_at(size)},
        }
        for name, method in spec.methods.items()
    }
    content = {
        "inverselm": identity["inverselm"],
        "name": spec.name,
        "title": spec.title,
        "notes": spec.notes,
        "task": spec.task,
        "metrics": _metrics(spec),
        "reference": spec.reference,
        "sizes": list(spec.sizes),
        "rows": rows,
        "seeds": list(spec.seeds),
        "samplers": [sampler.name for sampler in spec.samplers],
        "num_samples": spec.evaluation.get("num_samples", 4),
        "data": dict(spec.data),
        "training": {name: dict(flags) for name, flags in spec.training.items()},
        "evaluation": dict(spec.evaluation),
        "rewards": None if spec.rewards is None else dict(spec.rewards),
        "identity": dict(identity),
        "methods": methods,
        "machine": machine(),
    }
    temporary = folder / f"{STUDY}.tmp"
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / STUDY)


def _metrics(spec: StudySpec) -> dict[str, str]:
    """Metric -> "high" or "low", the main one first; the validation data is read as an evaluation would."""
    from ..cli.data import load_rows
    from ..evaluation.examples import read_examples
    from ..evaluation.tasks import load_task

    task, name = load_task(spec.task), spec.data["valid"]
    column = spec.evaluation.get("reference_column")
    examples = read_examples(load_rows(name, split="train"), task, reference_column=column, source=name)
    task.prepare(examples)
    task.measure(next(iter(examples[0].references), ""), examples[0])  # a user's function says its metrics then
    return {metric.name: metric.better for metric in task.metrics(1)}


def _rows(name: str, size: str) -> int:
    from ..cli.data import load_rows

    found = len(load_rows(name, split="train" if size == "all" else f"train[:{size}]"))
    if size != "all" and found < int(size):
        raise UserError(f"sizes: {size} rows, but {name} has {found}; write all, or less")
    return found


def _lanes(workers: int | None, threads: int | None) -> list[str | None]:
    """What each worker gets for CUDA_VISIBLE_DEVICES; sets the threads of processes to come."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = workers or gpus or max(1, cores // (threads or 1))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads or max(1, cores // workers))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return [str(i % gpus) if gpus > 1 else None for i in range(workers)]


class _Scheduler:
    """Starts stages whose inputs are there, as many at a time as there are lanes and memory."""

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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One runner per study; the lock goes with the process that holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / "study.lock", "a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"--output_dir {folder}: another process runs this study; stop it, or wait") from error
        yield
