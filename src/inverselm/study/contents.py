"""What a study holds: its methods, its cells, and the numbers asked of them. `collect.load_study` fills it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPLITS = ("valid", "test")
ROLES = ("reference", "method", "control")

Key = tuple[str, str, int]
"""(size, method, seed)."""


@dataclass(frozen=True)
class StudyMethod:
    """One method of a study, as study.json has it.

    Attributes:
        name: its key in study.yaml, and its folder.
        label: its name for people.
        role: "reference", "method" or "control".
        group: methods of one group are variants of one idea.
        command: that trained it; "none" for decoding alone.
        origin: the method it starts from, if any.
        guided: weight of guided decoding; 0 for none.
        sizes: that it is part of.
        flags: size -> resolved flags of its training.
    """

    name: str
    label: str
    role: str
    group: str
    command: str = "none"
    origin: str | None = None
    guided: float = 0.0
    sizes: tuple[str, ...] = ()
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One method on one size with one seed, as far as it is done.

    Attributes:
        size: as in study.yaml, as text.
        method: name.
        seed: of the training.
        folder: where it lies.
        results: split -> sampler -> the row of results.json; only splits whose stage is done.
        stages: stage -> its record: code, seconds, peak memory.
        history: what the trainer logged; empty if it is not there.
        steps: optimiser steps that were taken; None if it is not known.
    """

    size: str
    method: str
    seed: int
    folder: Path
    results: Mapping[str, Mapping[str, Mapping[str, Any]]]
    stages: Mapping[str, Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]] = ()
    steps: int | None = None


@dataclass(frozen=True)
class Study:
    """Everything of a study but its answers and its models; from `load_study`.

    Attributes:
        folder: where it lies.
        facts: study.json.
        methods: name -> method, in the order of study.yaml; the reference is one of them.
        sizes: as text, in order.
        seeds: planned.
        samplers: names without a method's own guidance.
        metrics: name -> "high" or "low" (which is better); the first is the main one.
        reference: name of the method that the others are compared with.
        cells: (size, method, seed) -> cell, whole or not.
        missing: what is not done, in words, one entry per cell.
        rewards: (size, seed) -> rewards.json, where it is.
    """

    folder: Path
    facts: Mapping[str, Any]
    methods: Mapping[str, StudyMethod]
    sizes: tuple[str, ...]
    seeds: tuple[int, ...]
    samplers: tuple[str, ...]
    metrics: Mapping[str, str]
    reference: str
    cells: Mapping[Key, Cell]
    missing: tuple[str, ...]
    rewards: Mapping[tuple[str, int], Mapping[str, Any]]

    @property
    def main(self) -> str:
        """The main metric."""
        return next(iter(self.metrics))

    @property
    def lower_is_better(self) -> bool:
        """Of the main metric."""
        return self.metrics[self.main] == "low"

    @property
    def groups(self) -> dict[tuple[str, str], list[str]]:
        """(group, role) -> its methods, without the reference."""
        found: dict[tuple[str, str], list[str]] = {}
        for method in self.methods.values():
            if method.name != self.reference:
                found.setdefault((method.group, method.role), []).append(method.name)
        return found

    def rows_of(self, size: str) -> int | None:
        """Training rows of a size; None if study.json does not say."""
        rows = (self.facts.get("rows") or {}).get(size)
        return int(rows) if rows is not None else int(size) if size.isdigit() else None

    def samplers_of(self, method: str) -> tuple[str, ...]:
        """The samplers that a method is evaluated with: guided decoding goes without best-of-n and the calculator."""
        if not self.methods[method].guided:
            return self.samplers
        return tuple(s for s in self.samplers if "best_of=" not in s and not s.endswith("calculator"))

    def is_whole(self, size: str, method: str, seed: int) -> bool:
        """Whether a cell is evaluated on both splits with every sampler."""
        cell = self.cells.get((size, method, seed))
        return cell is not None and all(
            sampler in cell.results.get(split, {}) for split in SPLITS for sampler in self.samplers_of(method)
        )

    def seeds_of(self, size: str, method: str | None = None) -> tuple[int, ...]:
        """Seeds for which a method (default: the reference) is whole."""
        name = self.reference if method is None else method
        return tuple(seed for seed in self.seeds if self.is_whole(size, name, seed))

    def comparable(self, size: str, method: str) -> bool:
        """Whether a method is whole for every seed that the reference is whole for, so that they can be paired."""
        needed = self.seeds_of(size)
        return bool(needed) and set(needed) <= set(self.seeds_of(size, method))

    def row(self, size: str, method: str, seed: int, split: str, sampler: str) -> Mapping[str, Any]:
        """A row of results.json."""
        return self.cells[size, method, seed].results[split][sampler]

    def values(self, size: str, method: str, split: str, sampler: str, name: str) -> list[float]:
        """A metric, or another number of results.json (`self_bleu`, `length`, ..), per whole seed; NaN if undefined."""
        if sampler not in self.samplers_of(method):
            return []
        seeds = self.seeds_of(size, method)
        return [value_of(self.row(size, method, seed, split, sampler), name) for seed in seeds]

    def valid_means(self, size: str) -> dict[tuple[str, str], float]:
        """(method, sampler) -> main metric on valid, mean over the reference's seeds, of what can be paired with it."""
        found = {}
        for name in self.methods:
            for sampler in self.samplers_of(name) if self.comparable(size, name) else ():
                seeds = self.seeds_of(size)
                values = [value_of(self.row(size, name, seed, "valid", sampler), self.main) for seed in seeds]
                if all(map(math.isfinite, values)):
                    found[name, sampler] = sum(values) / len(values)
        return found


def value_of(row: Mapping[str, Any], name: str) -> float:
    """A metric of a row, or another of its numbers; NaN if it is not there.

    >>> value_of({"metrics": {"wer": {"value": 0.5}}, "length": 3.0, "self_bleu": None}, "self_bleu")
    nan
    """
    found = row["metrics"][name]["value"] if name in row["metrics"] else row.get(name)
    return math.nan if found is None else float(found)
