"""What results were made with: code, versions, data. Results of two identities never stand in one table."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__

_PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "datasets", "sacrebleu", "rouge-score")
# rooms and commands that no number of a study comes from
_ASIDE = (
    *("report/", "demo/", "tabular/", "integrations/", "inspection/", "scoring/", "study/"),
    *(f"cli/{name}" for name in ("demo", "inspection", "listening", "report", "serve", "study")),
    *("cli/evaluation/compare", "cli/evaluation/judge", "cli/scoring/filter", "cli/scoring/rerank"),
)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, the same for mappings of another order.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def code_hash() -> str:
    """SHA-256 of the package's source that numbers come from: not of its reports, servers or the study runner."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".py", ".yaml") and not name.startswith(_ASIDE):
            found.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def data_hash(name: str) -> str:
    """SHA-256 of a file's, or of all of a folder's content; of a hub name, the name."""
    path = Path(name).expanduser()
    if not path.exists():
        return f"hub:{name}"
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        found.update(file.relative_to(path).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while block := stream.read(2**22):
                found.update(block)
    return found.hexdigest()


def environment() -> dict[str, str]:
    """Versions that numbers depend on."""
    found = {"inverselm": __version__, "code": code_hash(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def machine() -> dict[str, Any]:
    """What it ran on, for the timing table: processor, cores, memory, GPUs."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_gib": memory, "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
