"""Offline against online IQLearn over sizes and options of the chains: a table and a picture.

    python -m inverselm.report.chains --out docs/img/chains.png

Minutes; `--results` keeps every finished line in a JSON file, and a run that finds one there does not do it again.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors import UserError
from ..tabular import Chain, compare_on_chain, mean_interval
from .drawing import look, matplotlib, style
from .page import write_whole

Interval = tuple[float, float, float]
Line = dict[str, Any]

PROBLEMS: dict[str, dict[str, Any]] = {
    "recoverable": {},
    "recoverable, waiting is free": {"side_ends": False},
    "not recoverable": {"recoverable": False},
}
"""The three chains of the page."""

SWEEP = (1, 2, 3, 4)
"""Numbers of good actions."""

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"{good} good": ({"num_good": good}, {}) for good in SWEEP},
    "1 good, 3000 steps": ({"num_good": 1}, {"steps": 3000}),
    "gamma 0.9": ({}, {"gamma": 0.9}),
    "lambda 1": ({}, {"td_coef": 1.0}),
    "alpha 0.5": ({}, {"mix_in": 0.5}),
    "lambda 1, alpha 0.5": ({}, {"td_coef": 1.0, "mix_in": 0.5}),
    "2 demonstrations": ({}, {"num_demonstrations": 2}),
    "9 actions": ({"num_actions": 9}, {}),
    "slip 0.02": ({"slip": 0.02}, {}),
}
"""Name -> options of the chain, and of `compare_on_chain`; all else as the defaults."""


def measure(problem: str, setting: str, **options: Any) -> Line:
    """One line: success offline and online, the gap, sampled and greedy, and the way back's probability."""
    sizes, learning = SETTINGS[setting]
    chain = Chain(**{**sizes, **PROBLEMS[problem]})
    runs = compare_on_chain(chain, **{**learning, **options})
    offline, online = runs.success()
    back = [float(q.softmax(dim=-1)[:, chain.length :, 0].mean()) for q in (runs.offline, runs.online)]
    return {
        "offline": mean_interval(offline),
        "online": mean_interval(online),
        "gap": mean_interval(online - offline),
        "greedy_gap": mean_interval(runs.gap(greedy=True)),
        "back": back,
    }


def run(results: Path | None = None, settings: Sequence[str] = tuple(SETTINGS), **options: Any) -> dict[str, Line]:
    """All lines, by "problem / setting"; `options` go to `compare_on_chain`.

    Raises:
        UserError: the kept file was made with other options.
    """
    kept: dict[str, Any] = {"options": options, "lines": {}}
    if results is not None and results.exists():
        kept = json.loads(results.read_text(encoding="utf-8"))
        if kept["options"] != options:
            raise UserError(f"{results} was made with other options, {kept['options']}; remove it.")
    todo = [(p, s) for s in settings for p in PROBLEMS if f"{p} / {s}" not in kept["lines"]]
    for problem, setting in tqdm(todo, desc="Chains", unit="line"):
        kept["lines"][f"{problem} / {setting}"] = measure(problem, setting, **options)
        if results is not None:
            write_whole(results, json.dumps(kept, indent=1).encode())
    lines: dict[str, Line] = kept["lines"]
    return lines


def table(lines: Mapping[str, Line], settings: Sequence[str] = tuple(SETTINGS)) -> str:
    """Markdown: a row per setting, a column per problem, success in percent: offline, online, gap with its interval."""
    rows = ["| | " + " | ".join(PROBLEMS) + " |", "|---|" + "---|" * len(PROBLEMS)]
    for setting in settings:
        cells = []
        for problem in PROBLEMS:
            line = lines[f"{problem} / {setting}"]
            gap, low, high = (round(100 * number, 1) + 0.0 for number in line["gap"])  # no -0.0
            before, after = (100 * line[name][0] for name in ("offline", "online"))
            cells.append(f"{before:.1f} → {after:.1f}: {gap:+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def picture(lines: Mapping[str, Line], path: Path) -> Path:
    """Success over the number of good actions, offline and online, a panel per problem, with 95% intervals.

    A dotted line shows the policy that is perfect at places and uniform in side states.

    Raises:
        UserError: matplotlib is missing.
    """
    matplotlib()
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(9.6, 3.5), dpi=120, layout="constrained", facecolor="white")
        panels = figure.subplots(1, len(PROBLEMS), sharey=True)
        for axes, problem in zip(panels, PROBLEMS, strict=True):
            for slot, (name, key) in enumerate({"offline IQLearn": "offline", "online IQLearn": "online"}.items()):
                rows = [lines[f"{problem} / {good} good"][key] for good in SWEEP]
                mean, low, high = ([100 * row[i] for row in rows] for i in range(3))
                series = look(slot)
                errors = [
                    [m - x for m, x in zip(mean, low, strict=True)],
                    [x - m for m, x in zip(mean, high, strict=True)],
                ]
                axes.errorbar(
                    SWEEP, mean, yerr=errors, color=series.color, marker=series.marker, linestyle=series.dash,
                    capsize=3, linewidth=3.0 - 1.4 * slot, markersize=9 - 4 * slot, label=name,
                )  # fmt: skip
            axes.axhline(100 * uniform_success(problem), color="#586070", linestyle=":", linewidth=1.2)
            axes.set_title(problem[0].upper() + problem[1:], fontsize=11)
            axes.set_xticks(SWEEP)
            axes.set_ylim(0, 100)
            axes.set_xlabel("good actions per place, of 5")
            axes.grid(axis="y", alpha=0.15)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        panels[0].set_ylabel("success, %")
        panels[0].legend(loc="lower right", frameon=False, fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def uniform_success(problem: str) -> float:
    """Of the policy that takes good actions at places, and any action in side states."""
    chain = Chain(**PROBLEMS[problem])
    policy = torch.full((chain.num_states, chain.num_actions), 1.0 / chain.num_actions, dtype=torch.float64)
    policy[: chain.length] = torch.arange(chain.num_actions) < chain.num_good
    policy = policy / policy.sum(dim=1, keepdim=True)
    return float(chain.success(policy))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m inverselm.report.chains", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG")
    parser.add_argument("--results", type=Path, help="a JSON file that keeps finished lines")
    parser.add_argument("--num_seeds", type=int, default=20, help="seeds per line")
    chosen = parser.parse_args(arguments)
    lines = run(chosen.results, num_seeds=chosen.num_seeds)
    picture(lines, chosen.out)
    print(table(lines))


if __name__ == "__main__":
    main()
