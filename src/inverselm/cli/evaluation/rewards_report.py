"""What `inverselm rewards` prints and writes: tables, verdicts, JSON, CSV and a chart."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rewards_models import LOG_PI

if TYPE_CHECKING:
    from ...evaluation.results import RewardReport

Reports = Mapping[str, "tuple[RewardReport, str]"]
"""Part ("correlation", "pairs", "localisation") -> its report and a heading."""

FILES = ("rewards.json", "rewards.csv", "rewards.png", "planted.jsonl")


def columns(part: str, report: RewardReport) -> dict[str, str]:
    """Measures to print, with their titles."""
    if part == "correlation":
        return {"overall": "overall", "within": "within a prompt"}
    if part == "pairs":
        return {"accuracy": "accuracy"}
    precision = [name for name in report.values if name.startswith("precision@") and "_" not in name]
    titles = {"auroc": "AUROC", "auroc_until": "AUROC, up to it", "rank": "rank (0 best)", "top1": "top-1"}
    return titles | {"top1_until": "top-1, up to it"} | {name: name for name in precision}


def verdicts(part: str, report: RewardReport) -> list[str]:
    """One line per reward that is no control: is it better than log-likelihood (or log pi)?

    Of correlations the one within prompts, if it is defined, and the accumulated reward (the sum).
    """
    measure, prefix = {
        "correlation": ("within", "Within prompts"),
        "pairs": ("accuracy", "Pairs"),
        "localisation": ("auroc_until", "Localisation up to the error"),
    }[part]
    if part == "correlation" and not report.counts["prompts_within"]:
        measure, prefix = "overall", "Overall"
    names = [name for name in report.controls if part == "localisation" or name.endswith(", sum")]
    lines = [f"{prefix}: {report.verdict(measure, name)}." for name in names]
    length = report.values[measure].get("length")
    if length is not None and not math.isnan(length.value):
        lines.append(f"{prefix}: length alone reaches {length}.")
    return lines


def print_parts(reports: Reports) -> None:
    """Every part: heading, table, verdicts."""
    for part, (report, heading) in reports.items():
        print(f"\n{heading}")
        print("\n".join(f"  {line}" for line in report.table(columns(part, report)).splitlines()))
        for line in verdicts(part, report):
            print(line)


def write_results(folder: Path, reports: Reports, settings: dict[str, Any], chart: bool) -> list[str]:
    """rewards.json, rewards.csv and, if asked for, rewards.png; returns their names."""
    content: dict[str, Any] = {"settings": settings}
    for part, (report, heading) in reports.items():
        content[part] = {"heading": heading, **report.as_dict(), "verdicts": verdicts(part, report)}
    (folder / "rewards.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_csv(folder / "rewards.csv", reports)
    if chart:
        from ...report.bars import interval_bars

        interval_bars([_panel(part, *of) for part, of in reports.items()], folder / "rewards.png")
    return ["rewards.json", "rewards.csv", *(["rewards.png"] if chart else [])]


def _write_csv(path: Path, reports: Reports) -> None:
    rows = []
    for part, (report, _) in reports.items():
        counts = {name: report.counts.get(name) for name in ("prompts", "answers", "pairs")}
        rows += [{"part": part, **row, **counts} for row in report.records()]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _panel(part: str, report: RewardReport, heading: str) -> Any:
    from ...report.bars import Panel

    titles = columns(part, report)
    chosen = {"localisation": ("auroc", "auroc_until")}.get(part, tuple(titles))
    label = {
        "correlation": "Spearman's rank correlation (higher is better)",
        "pairs": "pairwise accuracy (0.5 is chance)",
        "localisation": "AUROC of -reward at the planted token (0.5 is chance)",
    }[part]
    names = {"auroc": "all tokens", "auroc_until": "tokens up to the error"}
    series = {
        ("" if len(chosen) == 1 else names.get(m, titles[m])): report.values[m]
        for m in chosen
        if any(not math.isnan(e.value) for e in report.values[m].values())
    }
    controls = [name for name in next(iter(report.values.values())) if name not in report.controls]
    return Panel(heading, label, series, controls, report.chance[chosen[0]])


def headings(part: str, report: RewardReport, source: str) -> str:
    """What was measured, of how much."""
    count = {name: f"{number:,}" for name, number in report.counts.items()}
    if part == "correlation":
        within = f"; within: the mean over {count['prompts_within']} whose scores vary"
        return f"Spearman with {source}: {count['answers']} answers to {count['prompts']} prompts{within}"
    if part == "pairs":
        return f"Better before worse ({source}): {count['pairs']} pairs of {count['prompts']} prompts"
    return f"Localisation of planted errors ({source}): {count['answers']} answers, {count['tokens']} tokens"


def localisation_controls(names: Any) -> dict[str, str]:
    """Every token reward against log pi."""
    return {name: LOG_PI for name in names if name != LOG_PI}
