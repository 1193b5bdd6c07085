"""One stage in a process of its own: its output goes to the cell's log, its record appears when it is done."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import threading
import time
from datetime import UTC, datetime
from multiprocessing import connection
from pathlib import Path
from typing import Any

from .plan import REWARDS, Stage, samplers_of

LOG = "log.txt"


def work(stage: Stage, code: str, device: str | None, keep_checkpoints: bool) -> None:
    """Run a stage, and leave the process: 0 done, 130 stopped, else failed (the log says why).

    Args:
        stage: what to run.
        code: hash of the code, for the record.
        device: CUDA_VISIBLE_DEVICES of this process; None leaves it.
        keep_checkpoints: of training.
    """
    _die_with_parent()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    stage.folder.mkdir(parents=True, exist_ok=True)
    log = open(stage.folder / LOG, "a", encoding="utf-8")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    sys.exit(_run(stage, code, keep_checkpoints))


def _run(stage: Stage, code: str, keep_checkpoints: bool) -> int:
    from ..cli.main import main

    argv = stage.argv(can_resume(stage))
    print(
        f"\n=== {datetime.now(UTC).isoformat(timespec='seconds')} {stage.key}\ninverselm {' '.join(argv)}", flush=True
    )
    start = time.perf_counter()
    if stage.kind == REWARDS:
        write_scores(**stage.scores)
    status = main(argv)
    if status == 0:
        _write_record(stage, code, argv, time.perf_counter() - start)
        if stage.kind == "train" and not keep_checkpoints:
            for old in (*stage.output.glob("checkpoint-*"), *stage.output.glob("iteration_*")):
                shutil.rmtree(old, ignore_errors=True)
    return status


def can_resume(stage: Stage) -> bool:
    """Whether a stage was begun so far that its command can go on."""
    from ..training.checkpoints import last_complete_checkpoint

    if stage.kind == "train":
        if stage.command == "extrapolate":
            return False
        if stage.command == "selfplay":
            from ..training.self_play import can_resume as self_play_can_resume

            return self_play_can_resume(stage.output)
        multiple = int(stage.flags.get("rollout_every", 1))  # online methods resume where they sample anew
        if stage.command == "dpr":  # whole rollouts only, as the command itself asks for
            accumulation = int(stage.flags.get("gradient_accumulation_steps", 1))
            per_generation = int(stage.flags.get("steps_per_generation") or accumulation)
            multiple = max(1, per_generation * int(stage.flags.get("num_iterations", 1)) // accumulation)
        return last_complete_checkpoint(stage.output, multiple_of=multiple) is not None
    if stage.kind == REWARDS:
        return (Path(str(stage.flags["output_dir"])) / "scores" / "settings.json").is_file()
    return (stage.output / "run.json").is_file()


def write_scores(answers: str, metric: str, target: str) -> None:
    """The answers of an evaluation with one number each, `score`: its metric, the larger the better.

    Args:
        answers: samples file of `inverselm evaluate`.
        metric: name of a measured number; `-name` turns it around; empty takes the first one.
        target: file to write.
    """
    sign = -1.0 if metric.startswith("-") else 1.0
    with open(answers, encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    temporary = Path(f"{target}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        for record in records:
            measured = record.pop("metrics")
            name = metric.lstrip("-") or next(iter(measured))
            kept = {key: record[key] for key in ("prompt", "completion", "finished", "token_ids")}
            stream.write(json.dumps(kept | {"score": sign * measured[name]}, ensure_ascii=False) + "\n")
    os.replace(temporary, target)


def _write_record(stage: Stage, code: str, argv: list[str], seconds: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    record: dict[str, Any] = {
        "stage": stage.key,
        "identity": stage.identity,
        "code": code,
        "data": dict(stage.data),
        "argv": argv,
        "seconds": round(seconds, 2),
        "peak_rss": peak,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if stage.kind not in ("train", REWARDS):
        record["samplers"] = samplers_of(stage)
    stage.record.parent.mkdir(parents=True, exist_ok=True)
    temporary = stage.record.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, stage.record)


def _die_with_parent() -> None:
    """A study that is killed takes its workers along, so that no two ever write into one cell."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
