"""Runs what is missing of a study, several stages at a time, and survives being stopped at any point."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from .identity import data_hash, environment, machine
from .plan import Stage, clear, plan_stages, stage_record
from .scheduler import Scheduler, StudyError, time_left
from .spec import SPLITS, StudySpec

__all__ = ["StudyError", "run_study", "time_left"]

STUDY = "study.json"


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
            Scheduler(stages, todo, lanes, found["code"], keep_checkpoints, progress).run()
    return folder


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
    from ..evaluation.examples import read_examples
    from ..evaluation.tasks import load_task
    from ..inputs.data import load_rows

    task, name = load_task(spec.task), spec.data["valid"]
    column = spec.evaluation.get("reference_column")
    examples = read_examples(load_rows(name, split="train"), task, reference_column=column, source=name)
    task.prepare(examples)
    task.measure(next(iter(examples[0].references), ""), examples[0])  # a user's function says its metrics then
    return {metric.name: metric.better for metric in task.metrics(1)}


def _rows(name: str, size: str) -> int:
    from ..inputs.data import load_rows

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
