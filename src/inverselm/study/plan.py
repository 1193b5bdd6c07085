"""From a study to stages: what has to run, in which order, with which flags, and what is done already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.samplers import Sampler
from .identity import digest
from .spec import EVALUATED, FINETUNE, IMPROVE, Method, StudySpec

__all__ = ["Stage", "plan_stages", "samplers_of", "stage_record"]

RUNS = "runs"
REWARDS = "rewards"


@dataclass(frozen=True)
class Stage:
    """One command to run, in the folder of its cell.

    Attributes:
        kind: `train`, `valid`, `test` or `rewards`.
        method, size, seed: the cell.
        folder: of the cell.
        command: of inverselm.
        flags: of the command, in full.
        needs: keys of the stages that it reads from.
        identity: of everything its result depends on.
        scores: of a rewards stage: the samples file, the metric, and the file to write.
        data: hashes of the study's data, for the record.
    """

    kind: str
    method: str
    size: str
    seed: int
    folder: Path
    command: str
    flags: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    identity: str = ""
    scores: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique name, for people too."""
        return f"{self.size}/{self.method}/seed{self.seed}/{self.kind}"

    @property
    def record(self) -> Path:
        """The file that says that it is done."""
        return self.folder / "stages" / f"{self.kind}.json"

    @property
    def output(self) -> Path:
        """The folder that it writes."""
        return self.folder / {"train": "model", REWARDS: "."}.get(self.kind, self.kind)

    def argv(self, resume: bool) -> list[str]:
        """The command line, to begin or to go on."""
        if self.command in (*FINETUNE, *IMPROVE):
            end = ["--resume_from_checkpoint", "True"] if resume else ["--overwrite_output_dir", "True"]
        elif self.command == "extrapolate":
            end = ["--overwrite", "True"]
        else:
            end = ["--resume", "True"] if resume else ["--overwrite", "True"]
        return [self.command, *to_argv(self.flags), *end]


def plan_stages(spec: StudySpec, folder: str | Path, *, environment: Mapping[str, Any]) -> list[Stage]:
    """All stages of a study, each after those it needs.

    Args:
        spec: the study.
        folder: of the study.
        environment: versions, code and data hashes: part of every stage's identity.
    """
    found: dict[str, Stage] = {}
    for size in spec.sizes:
        for seed in spec.seeds:
            for method in _in_order(spec):
                if method.runs_at(size):
                    for stage in _cell(spec, Path(folder), method, size, seed, found, environment):
                        found[stage.key] = stage
            if spec.rewards is not None:
                stage = _rewards(spec, Path(folder), size, seed, found)
                found[stage.key] = stage
    data = dict(environment.get("data", {}))
    return [replace(stage, data=data) for stage in found.values()]


def stage_record(stage: Stage) -> dict[str, Any] | None:
    """What a finished stage left; None if it is not finished.

    Raises:
        UserError: it was made with something else than the study says now.
    """
    try:
        record: dict[str, Any] = json.loads(stage.record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{stage.record} is not readable ({error}); delete it to run the stage again") from error
    if record.get("identity") != stage.identity:
        raise UserError(
            f"{stage.key} was made with other settings, data or code than the study has now; nothing is mixed: "
            f"--redo runs such stages again, another --output_dir keeps both"
        )
    if stage.kind in EVALUATED and not set(samplers_of(stage)) <= set(record.get("samplers", [])):
        return None  # further samplers: the evaluation goes on
    return record


def samplers_of(stage: Stage) -> list[str]:
    """The samplers of an evaluation, by their names."""
    return [str(name) for name in stage.flags.get("samplers", ())]


def clear(stage: Stage) -> None:
    """Remove what a stage of another identity left."""
    if stage.kind == REWARDS:
        shutil.rmtree(stage.folder, ignore_errors=True)
        return
    stage.record.unlink(missing_ok=True)
    if stage.output != stage.folder:
        shutil.rmtree(stage.output, ignore_errors=True)


def cell_folder(folder: Path, size: str, method: str, seed: int) -> Path:
    """Where one run of a method lies."""
    return folder / RUNS / size / method / f"seed{seed}"


def to_argv(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line.

    >>> to_argv({"learning_rate": 0.001, "bf16": True, "samplers": ["greedy", "T=1.0"], "dtype": None, "labels": []})
    ['--learning_rate', '0.001', '--bf16', 'True', '--samplers', 'greedy', 'T=1.0']
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value == [] or value == ():  # an empty list is what a flag has when it is not there
            continue
        if isinstance(value, Mapping):
            words += [f"--{name}", json.dumps(value)]
        else:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return words


def _in_order(spec: StudySpec) -> Iterator[Method]:
    """Methods, each after the one it starts from; the reference first."""
    done: set[str] = set()

    def visit(method: Method) -> Iterator[Method]:
        if method.name in done:
            return
        if method.origin:
            yield from visit(spec.methods[method.origin])
        done.add(method.name)
        yield method

    for method in (spec.methods[spec.reference], *spec.methods.values()):
        yield from visit(method)


def _cell(
    spec: StudySpec,
    folder: Path,
    method: Method,
    size: str,
    seed: int,
    found: Mapping[str, Stage],
    environment: Mapping[str, Any],
) -> Iterator[Stage]:
    cell = cell_folder(folder, size, method.name, seed)
    origin = cell_folder(folder, size, method.origin, seed) / "model" if method.origin else None
    upstream = found.get(f"{size}/{method.origin}/seed{seed}/train")
    base = {"environment": dict(environment), "origin": upstream.identity if upstream else None, "seed": seed}
    trained: tuple[Stage, ...] = ()
    if method.command == "none":
        assert upstream is not None
        assert origin is not None
        model, model_identity, needs = origin, digest(base), (upstream.key,)
    else:
        flags = _training_flags(spec, method, size, seed, origin)
        identity = digest({**base, "command": method.command, "flags": _relative(flags, folder)})
        output = {"output_dir": str(cell / "model")}
        stage = Stage("train", method.name, size, seed, cell, method.command, flags | output)
        trained = (replace(stage, identity=identity, needs=(upstream.key,) if upstream else ()),)
        yield from trained
        model, model_identity, needs = cell / "model", identity, (stage.key,)
    for split in EVALUATED:
        flags = _evaluation_flags(spec, method, split, seed)
        fixed = {name: value for name, value in flags.items() if name != "samplers"}
        identity = digest({"model": model_identity, "guided": method.guided, "flags": fixed})
        paths = {"model_name_or_path": str(model), "labels": method.name, "output_dir": str(cell / split)}
        stage = Stage(split, method.name, size, seed, cell, "evaluate", flags | paths, needs, identity)
        yield stage


def _training_flags(spec: StudySpec, method: Method, size: str, seed: int, origin: Path | None) -> dict[str, Any]:
    flags = spec.flags(method, size)
    if origin is not None:
        flags = {"model_name_or_path": str(origin)} | flags
        flags = {k: v.replace("{from}", str(origin)) if isinstance(v, str) else v for k, v in flags.items()}
    if method.command == "extrapolate":
        return flags
    rows = {"dataset_name": spec.data["train"]}
    if size != "all":
        rows["dataset_train_split"] = f"train[:{size}]"
    if str(flags.get("eval_strategy", "no")) != "no":
        rows["eval_dataset_name"] = spec.data["valid"]
    return rows | flags | {"seed": seed}


def _evaluation_flags(spec: StudySpec, method: Method, split: str, seed: int) -> dict[str, Any]:
    guided = (replace(s, guidance_weight=method.guided) for s in spec.samplers if _can_guide(s))
    samplers = [s.name for s in (guided if method.guided else spec.samplers)]
    given = dict(spec.evaluation)
    start = int(given.pop("seed", 0))
    return {"dataset_name": spec.data[split], "task": spec.task, "samplers": samplers, **given, "seed": start + seed}


def _can_guide(sampler: Sampler) -> bool:
    return sampler.best_of == 1 and not sampler.calculator


def _rewards(spec: StudySpec, folder: Path, size: str, seed: int, found: Mapping[str, Stage]) -> Stage:
    """Rank correlation of every reward of this size and seed with the metric, over the reference's answers."""
    assert spec.rewards is not None
    cell = cell_folder(folder, size, REWARDS, seed)
    judged = [m for m in spec.methods.values() if m.command == "iqlearn" and m.runs_at(size)]
    paths = {m.name: cell_folder(folder, size, m.name, seed) / "model" for m in judged}
    reference = cell_folder(folder, size, spec.reference, seed)
    given = dict(spec.rewards)
    sampler = str(given.pop("sampler", "T=1.0"))
    if sampler not in {s.name for s in spec.samplers}:
        raise UserError(f"rewards: sampler {sampler} is not one of the study's; add it to evaluation: samplers")
    metric = str(given.pop("metric", ""))
    answers = reference / "valid" / "samples" / spec.reference / f"{sampler.replace(',', '+')}.jsonl"
    flags = {
        "model_name_or_path": str(reference / "model"),
        "dataset_name": str(cell / "answers.jsonl"),
        "score_column": "score",
        "q_function": [f"{name}={path}" for name, path in paths.items()],
        "output_dir": str(cell / REWARDS),
        **given,
    }
    needs = [f"{size}/{name}/seed{seed}/train" for name in (spec.reference, *paths)]
    needs.append(f"{size}/{spec.reference}/seed{seed}/valid")
    read = [found[key].identity for key in needs]
    identity = digest({"needs": read, "flags": given, "metric": metric, "of": sampler})
    scores = {"answers": str(answers), "metric": metric, "target": str(cell / "answers.jsonl")}
    return Stage(REWARDS, REWARDS, size, seed, cell, "rewards", flags, tuple(needs), identity, scores)


def _relative(flags: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Flags without the study's own folder, which may be moved."""
    return {k: v.replace(str(folder), "{study}") if isinstance(v, str) else v for k, v in flags.items()}


def unfinished(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that have to run."""
    return [stage for stage in stages if stage_record(stage) is None]
