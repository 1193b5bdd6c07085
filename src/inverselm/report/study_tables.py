"""A study's tables: for the page, and as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .page import write_whole
from .study_figures import over_seeds, reward_table, size_title
from .study_words import decimals, fixed, interval, number, p_value

if TYPE_CHECKING:
    from ..study.contents import Cell, Study
    from ..study.verdicts import Verdict

Table = tuple[list[str], list[list[Any]]]
OTHERS = (
    *("self_bleu", "self_bleu_n", "distinct_1", "distinct_2", "distinct_3", "length", "length_ratio", "entropy"),
    *("truncated", "prompts", "samples_per_prompt"),
)
_NBSP = "\u00a0"
_SHOWN = {
    "self_bleu": "Self-BLEU",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "length": "length",
    "length_ratio": "ratio",
    "entropy": "entropy",
    "truncated": "truncated",
}


def result_records(study: Study) -> list[dict[str, Any]]:
    """One record per cell, split and sampler: who, where, and every number; None for what is not defined."""
    names = list(dict.fromkeys(name for cell in study.cells.values() for name in _metric_names(study, cell)))
    found = []
    for cell in study.cells.values():
        method = study.methods[cell.method]
        for split, results in cell.results.items():
            for sampler, row in results.items():
                who = {"method": method.name, "label": method.label, "group": method.group, "role": method.role}
                where = {"size": cell.size, "rows": study.rows_of(cell.size), "seed": cell.seed, "split": split}
                metrics = {name: row["metrics"].get(name, {}).get("value") for name in names}
                others = {name: row.get(name) for name in OTHERS}
                found.append({**who, **where, "sampler": sampler, **metrics, **others})
    return found


def _metric_names(study: Study, cell: Cell) -> list[str]:
    found = [name for results in cell.results.values() for row in results.values() for name in row["metrics"]]
    return [*study.metrics, *found]


def write_csv(path: Path, records: Sequence[Mapping[str, Any]], header: Sequence[str] = ()) -> None:
    """Records as CSV, whole or not at all; `header` is for no records."""
    names = list(records[0]) if records else list(header)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_whole(path, buffer.getvalue().encode("utf-8", "replace"))


def verdict_table(study: Study, verdicts: Sequence[Verdict]) -> Table:
    """A line per comparison."""
    header = ["group", "rows", "verdict", study.main, "difference", "p (Holm)", "length", "length difference"]
    header += ["chosen on valid", "against"]
    rows = []
    for verdict in verdicts:
        duel, found = verdict.duel, verdict.comparison
        name = duel.group + (" (control)" if duel.role == "control" else "")
        sides = [f"{study.methods[pick.method].label}, {pick.sampler}" for pick in (duel.pick, duel.other)]
        if duel.against == "best control":
            sides[1] += " (best control)"
        row: list[Any] = [
            name,
            _rows(study, duel.size),
            verdict.outcome.replace(" ", _NBSP),
            fixed(found.value, decimals(found.difference)),
        ]
        row += [interval(found.difference), p_value(found.p_adjusted).removeprefix("p = ")]
        row += [fixed(verdict.length, 1), interval(found.length)]
        rows.append([*row, *(side.replace(" ", _NBSP) for side in sides)])
    return header, rows


VERDICT_ALIGN = "lrlrrrrrll"


def _rows(study: Study, size: str) -> str:
    rows = study.rows_of(size)
    return size if rows is None else f"{rows:,}"


def full_table(study: Study, size: str, split: str = "test") -> Table:
    """Every method with every sampler: mean ± standard deviation over seeds."""
    names = list(dict.fromkeys([*study.metrics, *(n for c in study.cells.values() for n in _metric_names(study, c))]))
    rows = []
    for method in study.methods.values():
        seeds = study.seeds_of(size, method.name) if size in method.sizes else ()
        count = f"{len(seeds)}" + (f" of {len(study.seeds)} *" if len(seeds) < len(study.seeds) else "")
        for sampler in study.samplers_of(method.name) if seeds else ():
            cells = [spread(study.values(size, method.name, split, sampler, name)) for name in (*names, *_SHOWN)]
            rows.append([method.label, sampler, count, *cells])
    header = ["method", "sampler", "seeds", *names, *_SHOWN.values()]
    empty = {n for n in range(3, len(header)) if all(row[n] == "–" for row in rows)}
    return [h for n, h in enumerate(header) if n not in empty], [
        [cell for n, cell in enumerate(row) if n not in empty] for row in rows
    ]


def spread(values: Sequence[float]) -> str:
    """`0.52 ± 0.01`: mean and standard deviation; a dash where one is not defined.

    >>> spread([1.0, 3.0]), spread([2.0])
    ('2 ± 1.4', '2')
    """
    if not values or not all(map(math.isfinite, values)):
        return "–"
    mean = number(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def timing_table(study: Study, size: str) -> Table | None:
    """Seconds per training step and in all, against the reference's, and peak memory: means over seeds."""
    measured = {}
    for method in study.methods.values():
        cells = [
            study.cells[size, method.name, seed] for seed in study.seeds if (size, method.name, seed) in study.cells
        ]
        cells = [cell for cell in cells if "train" in cell.stages]
        if cells:
            steps = [step_seconds(cell) for cell in cells]
            total = [float(cell.stages["train"].get("seconds") or math.nan) for cell in cells]
            peak = [float(cell.stages["train"].get("peak_rss") or math.nan) / 2**20 for cell in cells]
            measured[method.name] = (_mean(steps), _mean(total), _mean(peak), len(cells), cells[0].steps)
    if not measured:
        return None
    header = [
        "method",
        "starts from",
        "steps",
        "s/step",
        "ratio",
        "training (s)",
        "ratio",
        "peak memory (MiB)",
        "seeds",
    ]
    base = measured.get(study.reference, (math.nan, math.nan, math.nan, 0, None))
    rows: list[list[Any]] = []
    for name, (step, seconds, memory, count, taken) in measured.items():
        method = study.methods[name]
        origin = study.methods[method.origin].label if method.origin else None
        row: list[Any] = [method.label, origin, taken, _or_dash(step, ".3g"), _or_dash(_ratio(step, base[0]), ".2f")]
        row += [_or_dash(seconds, f",.{0 if seconds >= 10 else 1}f"), _or_dash(_ratio(seconds, base[1]), ".2f")]
        rows.append([*row, _or_dash(memory, ",.0f"), count])
    return header, rows


def _ratio(value: float, of: float) -> float:
    return value / of if of > 0 else math.nan


def _or_dash(value: float, kind: str) -> str:
    return f"{value:{kind}}" if math.isfinite(value) else "–"


def _mean(values: Sequence[float]) -> float:
    return over_seeds(values)[0]


def step_seconds(cell: Cell) -> float:
    """Seconds per optimiser step: of the training loop if the trainer logged it, else of the whole stage."""
    if not cell.steps:
        return math.nan
    logged = next((entry["train_runtime"] for entry in reversed(cell.history) if "train_runtime" in entry), None)
    seconds = logged if logged is not None else cell.stages.get("train", {}).get("seconds", math.nan)
    return float(seconds) / cell.steps


def shared_machine(study: Study) -> bool:
    """Whether a training run overlapped with another stage, by the records' times (rounded to seconds)."""
    spans = []
    for cell in study.cells.values():
        for stage, record in cell.stages.items():
            try:
                end = datetime.fromisoformat(str(record["finished"])).timestamp()
                spans.append((end - float(record["seconds"]), end, stage))
            except (KeyError, TypeError, ValueError):
                continue
    spans.sort()
    latest: dict[bool, float] = {}  # training or not -> latest end so far
    for start, end, stage in spans:
        training = stage == "train"
        before = max([latest.get(True, -math.inf), latest.get(False, -math.inf) if training else -math.inf])
        if start < before - 2:
            return True
        latest[training] = max(latest.get(training, -math.inf), end)
    return False


def rewards_table(study: Study, size: str) -> Table | None:
    """Rank correlations of all rewards: mean over seeds, with the smallest and the largest."""
    found = reward_table(study, size)
    names = list(dict.fromkeys(name for rewards in found.values() for name in rewards))
    if not names:
        return None
    rows = []
    for name in names:
        head, _, how = name.rpartition(", ")
        shown = f"{study.methods[head].label}, {how}" if head in study.methods else name
        values = [over_seeds(found.get(measure, {}).get(name, [])) for measure in ("overall", "within")]
        rows.append([shown, *(_with_range(value) for value in values)])
    return ["reward", "overall", "within a prompt"], rows


def _with_range(value: tuple[float, float, float]) -> str:
    mean, low, _ = value
    if not math.isfinite(mean):
        return "–"
    shown = [f"{part:+.3f}".replace("-", "−") for part in value]
    return shown[0] if not math.isfinite(low) else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def identity_table(study: Study) -> Table:
    """What the study was made with."""
    identity, machine = study.facts["identity"], study.facts.get("machine") or {}
    rows: list[list[Any]] = [[name, value] for name, value in identity.items() if name != "data"]
    data = identity.get("data")
    rows += [[f"data: {name}", value] for name, value in (data if isinstance(data, Mapping) else {}).items()]
    for name, value in machine.items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        rows.append([f"machine: {name.replace('_', ' ')}", text])
    rows += [["task", study.facts["task"]], ["seeds", ", ".join(map(str, study.seeds))]]
    rows += [["samplers", ", ".join(study.samplers)], ["answers per prompt", study.facts.get("num_samples")]]
    rows += [[f"rows of size {size}", size_title(study, size)] for size in study.sizes if not size.isdigit()]
    return ["", "value"], rows
