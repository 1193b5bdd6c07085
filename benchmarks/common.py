"""What the benchmarks share: options, interleaved timing, peak memory, progress, tables and JSON."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("inverselm", "torch", "transformers", "trl", "accelerate", "liger_kernel")
MODES = {  # dtype of the weights, and whether autocast to bfloat16 is on
    "float32": (torch.float32, False),
    "autocast": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}


# ---- options ---------------------------------------------------------------------------------------------------------
class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parser(description: str, *, repeats: int, seconds: float, modes: Sequence[str]) -> argparse.ArgumentParser:
    """The options all benchmarks have."""
    options = argparse.ArgumentParser(
        description=description,
        formatter_class=_Formatter,
    )
    options.add_argument("--repeats", type=int, default=repeats, help="timed repeats, after one of warm-up")
    options.add_argument(
        "--seconds", type=float, default=seconds, help="start no further repeat of a row after so long"
    )
    options.add_argument(
        "--modes",
        nargs="+",
        default=list(modes),
        choices=list(MODES),
        help="float32; autocast: weights in float32, torch.autocast to bfloat16; bfloat16: weights in bfloat16",
    )
    options.add_argument("--threads", type=int, default=2, help="of torch, on the processor")
    options.add_argument("--json", type=Path, metavar="FILE", help="write settings, versions and all numbers there")
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, checked, and torch set up."""
    args = options.parse_args()
    if args.repeats < 1:
        options.error("--repeats must be at least 1")
    if args.json and not args.json.parent.is_dir():
        options.error(f"--json: there is no folder {args.json.parent}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def size(text: str) -> tuple[int, int]:
    """HxV, as in 512x32768."""
    try:
        hidden, vocab = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form HIDDENxVOCAB, as in 512x32768") from None
    return hidden, vocab


def autocast(mode: str, device: str = "cpu") -> AbstractContextManager[Any]:
    """The context contestants run in."""
    return torch.autocast(device, torch.bfloat16) if MODES[mode][1] else nullcontext()


# ---- progress --------------------------------------------------------------------------------------------------------
class Progress:
    """Lines on stderr that say what is done and about how long the rest will take.

    Args:
        name: of the benchmark.
        total: work of the whole run, in any unit.
    """

    def __init__(self, name: str, total: float) -> None:
        self.name, self.total, self.start = name, total, time.monotonic()
        self.done = self.current = 0.0

    def at(self, label: str, work: float) -> None:
        """`label`, so much of the total, is being measured now; what was announced before is done."""
        self.done, self.current = self.done + self.current, work
        spent = time.monotonic() - self.start
        left = "" if not self.done else f", {_duration(spent * max(self.total - self.done, 0.0) / self.done)} left"
        line = f"{self.name}: {100 * self.done / self.total:3.0f}% after {_duration(spent)}{left}: {label}"
        end = "\r\033[K" if sys.stderr.isatty() else "\n"
        print(line, end=end, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# ---- time ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Times:
    """Seconds of one contestant, one entry for each timed repeat."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({min(self.seconds):.3g}..{max(self.seconds):.3g})"

    def as_dict(self) -> dict[str, Any]:
        return {
            "median": self.median, "min": min(self.seconds), "max": max(self.seconds), "repeats": len(self.seconds)
        }  # fmt: skip


def rotations(names: Sequence[str], repeats: int) -> list[list[str]]:
    """The order of each repeat: everyone once, and everyone at every place if there are repeats enough."""
    return [[*names[r % len(names) :], *names[: r % len(names)]] for r in range(repeats)]


def interleaved(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    seconds: float = float("inf"),
    between: Callable[[], None] | None = None,
    device: str = "cpu",
    own_clock: bool = False,
) -> dict[str, Times]:
    """Time every contestant once in each repeat, in rotating order. A warm-up is the caller's.

    Args:
        contestants: what to run.
        repeats: at most so many; no new one begins `seconds` after the first.
        seconds: see `repeats`.
        between: called before each run, outside the clock.
        device: "cuda" waits for the device before and after.
        own_clock: contestants return the seconds they measured themselves, a list each.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    gc.freeze()  # what lives now need not be looked through again before every run
    start = time.monotonic()
    for order in rotations(list(contestants), repeats):
        if time.monotonic() - start > seconds:
            break
        for name in order:
            if between is not None:
                between()
            gc.collect()
            _wait(device)
            begin = time.perf_counter()
            result = contestants[name]()
            _wait(device)
            spent = time.perf_counter() - begin
            found[name] += result if own_clock else [spent]
    gc.unfreeze()
    return {name: Times(tuple(times)) for name, times in found.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ---- memory ----------------------------------------------------------------------------------------------------------
def peak_memory(device: str = "cpu") -> int:
    """Most bytes this process has held at once: resident on the processor, allocated by torch on CUDA.

    Linux's ru_maxrss survives exec, so that a child's begins at its parent's; VmHWM is the same mark without that.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- results ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bar:
    """A ratio that is meant to stay at or below a limit (None: it has none here)."""

    name: str
    value: float
    limit: float | None = None
    spread: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, ours: Times, theirs: Times, limit: float | None = None) -> Bar:
        """The ratio of the medians, with the smallest and largest ratio within a repeat."""
        within = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
        return cls(name, ours.median / theirs.median, limit, (min(within), max(within)))

    @property
    def met(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        spread = f" ({self.spread[0]:.2f}..{self.spread[1]:.2f})" if self.spread else ""
        bar = "" if self.limit is None else f" <= {self.limit:.2f} {'ok' if self.met else 'MISSED'}"
        return f"{self.value:.2f}{spread}{bar}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "value": self.value, "limit": self.limit, "met": self.met, "spread": self.spread
        }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as aligned columns."""
    if not rows:
        return "(nothing measured)"
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(names))]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def environment() -> dict[str, Any]:
    """Where and when."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(where: Mapping[str, Any]) -> str:
    """One line on the machine and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    device = where["gpu"] or f"{where['cpu']}, {where['threads']} of {where['cores']} cores"
    load = "" if where["load"] is None else f", load at the start {where['load']:.1f}"
    return f"{where['date'][:10]}, {device}{load}, {versions}"


def finish(
    name: str,
    args: argparse.Namespace,
    where: Mapping[str, Any],
    tables: Mapping[str, str],
    bars: Sequence[Bar] = (),
    **rows: Any,
) -> None:
    """Print the tables (title: text) and how many bars were met, and write the JSON."""
    if sys.stderr.isatty():
        print("\033[K", end="", file=sys.stderr)
    print(describe(where))
    for title, body in tables.items():
        print(f"\n{title}\n{body}")
    bounded = [bar for bar in bars if bar.limit is not None]
    if bounded:
        print(f"\n{sum(bar.met for bar in bounded)} of {len(bounded)} bars met.")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        report = {"benchmark": name, "environment": where, "settings": settings, **rows}
        args.json.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
