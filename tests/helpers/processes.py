"""Start helpers.jobs as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """This one's, with the tests' helpers importable, one thread, and no network."""
    path = os.pathsep.join([str(TESTS), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])])
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": path}


def start(*command: str, log: Path) -> subprocess.Popen:
    """`python COMMAND` in a process group of its own, its output in the file `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=file, env=environment(), start_new_session=True
        )


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def wait_for(path: Path, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    """Until the path exists; fails with the log if the process ends before."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, f"{path} did not appear: {log.read_text()[-3000:]}"
        time.sleep(0.05)
