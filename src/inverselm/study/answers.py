"""The test answers of a study as tables of numbers by seed and prompt, for paired tests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .contents import Study, value_of

if TYPE_CHECKING:
    from ..evaluation.tasks import Metric

_CLOSE = 1e-6  # relative: the same sums in another order


class Answers:
    """Reads samples files when they are asked for, and keeps what was made of them.

    Args:
        study: from `load_study`.
        task: `file.py:name` of a task of one's own whose metrics are no means of what is measured of each answer; the
            code in that file is run. Else None: tasks by name are known, and means need no task.

    Raises:
        UserError: the task cannot be loaded.
    """

    def __init__(self, study: Study, task: str | None = None) -> None:
        self.study = study
        self._task = _task_of(study, task)
        self._metrics: dict[int, Metric] = {}
        self._tables: dict[tuple[str, str, int, str], tuple[Any, Any]] = {}
        self._prompts: tuple[str, str] | None = None

    def metric(self, samples: int) -> Metric:
        """The main metric, of so many answers to each prompt."""
        if samples not in self._metrics:
            self._metrics[samples] = self._find(samples)
        return self._metrics[samples]

    def _find(self, samples: int) -> Metric:
        from ..evaluation.tasks import mean_of

        name = self.study.main
        found = self._task.metrics(samples) if self._task is not None else (mean_of(name, self.study.metrics[name]),)
        chosen = next((metric for metric in found if metric.name == name), None)
        if chosen is None:
            raise UserError(f"--task: has no metric '{name}', but {', '.join(metric.name for metric in found)}")
        return chosen

    def tables(self, size: str, method: str, sampler: str, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Numbers that are summed over prompts, (seeds, prompts, K), and mean lengths in tokens, (seeds, prompts).

        Raises:
            UserError: a samples file that is missing, broken, of other prompts, or not what results.json was made of.
        """
        import numpy as np

        read = [self._read(size, method, seed, sampler) for seed in seeds]
        return np.stack([table for table, _ in read]), np.stack([lengths for _, lengths in read])

    def _read(self, size: str, method: str, seed: int, sampler: str) -> tuple[Any, Any]:
        import numpy as np

        from ..evaluation.tasks.base import ratio

        key = (size, method, seed, sampler)
        if key in self._tables:
            return self._tables[key]
        row = self.study.row(size, method, seed, "test", sampler)
        records = self.records(size, method, seed, sampler)
        path = self.path(size, method, seed, sampler)
        groups: list[list[Mapping[str, Any]]] = [[] for _ in range(int(row["prompts"]))]
        digest = hashlib.sha256()
        try:
            for record in records:
                if record.get("chosen", True):  # of best-of-n
                    if not groups[record["example"]]:
                        digest.update(json.dumps([record["example"], record["prompt"]], sort_keys=True).encode())
                    groups[record["example"]].append(record)
            lengths = np.array([sum(r["length"] for r in group) / len(group) for group in groups], dtype=float)
            metric = self.metric(len(groups[0]))
            table = metric.table([[r["metrics"] for r in group] for group in groups])
            if metric.score is ratio:  # prompts count alike in both runs, however often each answers; BLEU pools
                table = table / np.array([[len(group)] for group in groups])
        except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
            raise UserError(
                f"{path}: is not what results.json was made of ({error!r}); evaluate the cell anew"
            ) from error
        self._check_prompts(digest.hexdigest(), str(path))
        value = float(metric.score(table.sum(axis=0)))
        wanted = value_of(row, self.study.main)
        if not math.isclose(value, wanted, rel_tol=_CLOSE, abs_tol=_CLOSE):
            raise UserError(
                f"{path}: has a {self.study.main} of {value:.6g}, results.json says {wanted:.6g}; evaluate the cell "
                "anew, or name the task that measured it with --task file.py:name"
            )
        self._tables[key] = table, lengths
        return table, lengths

    def path(self, size: str, method: str, seed: int, sampler: str) -> Any:
        """The samples file."""
        from ..cli.evaluation.evaluation_folder import SAMPLES, samples_name

        row = self.study.row(size, method, seed, "test", sampler)
        folder = self.study.cells[size, method, seed].folder / "test" / SAMPLES
        return folder / samples_name(str(row.get("model") or method), str(row["sampler"]))

    def records(self, size: str, method: str, seed: int, sampler: str) -> list[dict[str, Any]]:
        """The answers, as `inverselm evaluate` wrote them.

        Raises:
            UserError: the file cannot be read.
        """
        path = self.path(size, method, seed, sampler)
        try:
            with open(path, encoding="utf-8") as stream:
                return [json.loads(line) for line in stream]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); evaluate the cell anew") from error

    def _check_prompts(self, digest: str, path: str) -> None:
        if self._prompts is None:
            self._prompts = digest, path
        if self._prompts[0] != digest:
            raise UserError(f"{path}: has other prompts than {self._prompts[1]}; runs are paired by prompt")


def _task_of(study: Study, given: str | None) -> Any:
    from ..evaluation.tasks import TASKS, load_task

    name = given or (study.facts["task"] if study.facts["task"] in TASKS else None)
    if name is None:
        return None
    task = load_task(name)
    if name in TASKS:
        task.prepare([])  # packages; there is nothing to check against
    return task
