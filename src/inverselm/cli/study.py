"""`inverselm study`: a grid of training runs and evaluations from one YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .arguments import Help, parse


@dataclass
class StudyArguments:
    """Flags of `inverselm study`."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the study; what is done there is kept. Default: runs/<its name>."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder that the files under `data:` lie in. Default: the current one."}
    )
    workers: int | None = field(
        default=None, metadata={"help": "Stages at a time. Default: one per GPU; without one, one per core."}
    )
    threads: int | None = field(
        default=None, metadata={"help": "CPU threads of each worker. Default: the cores divided by the workers."}
    )
    only: list[str] = field(
        default_factory=list, metadata={"help": "Run these methods now (and what they start from)."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Check everything, list what would run, and stop."})
    redo: bool = field(default=False, metadata={"help": "Run again what was made with other settings, data or code."})
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep the checkpoints of finished training runs (they take room)."}
    )


GUIDE = Help(
    "Run a study: methods x training-set sizes x seeds, each trained and evaluated with every sampler on validation "
    "and test data. What is missing is run, several stages at a time; a study that was stopped or killed goes on with "
    "the same command, to the same results. Results of other code, data or settings are refused, never mixed.\n"
    "`inverselm report` makes a page of it, also while it runs. The YAML is explained in docs/how-to/study.md.",
    (
        "inverselm study study.yaml --dry_run True",
        "inverselm study study.yaml --output_dir runs/study --workers 2",
        "inverselm report --study_dir runs/study",
    ),
)


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, run, say where the results are."""
    named = [*argv[:1]] if argv and not argv[0].startswith("-") else []
    (args,) = parse(command, (StudyArguments,), argv[len(named) :], GUIDE)
    if not named:
        raise UserError("no study: `inverselm study <file.yaml>`")
    from ..study.spec import read_spec

    spec = read_spec(named[0])
    if args.data_dir:
        data = {split: _below(args.data_dir, name) for split, name in spec.data.items()}
        spec = dataclasses.replace(spec, data=data)
    for name in ("workers", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; set it to 1 or more")
    folder = args.output_dir or f"runs/{spec.name}"
    check_flags(spec)
    _check_data(spec)
    if args.dry_run:
        _list(spec, folder)
        return
    from ..study.runner import run_study

    run_study(
        spec,
        folder,
        workers=args.workers,
        threads=args.threads,
        redo=args.redo,
        only=args.only,
        keep_checkpoints=args.keep_checkpoints,
    )
    print(f"Every stage is done: {folder}/runs/<size>/<method>/seed<k>.")
    print(f"Next:\n  inverselm report --study_dir {folder}")


def check_flags(spec: Any) -> None:
    """Names of flags, before hours of running end at a typing error.

    Raises:
        UserError: a command of the study has no such flag.
    """
    from trl import ModelConfig, SFTConfig

    from ..training.dense_path import DensePathConfig
    from ..training.gail import GAILConfig
    from ..training.online import OnlineIQLearnConfig
    from ..training.self_play_config import SelfPlayConfig
    from .arguments import DataArguments
    from .evaluation.evaluate import EvaluateArguments
    from .extrapolate import ExtrapolateArguments
    from .training.baselines import BaselineArguments
    from .training.dpr import RewardArguments

    kinds = {
        "sft": (BaselineArguments, SFTConfig, ModelConfig),
        "iqlearn": (BaselineArguments, OnlineIQLearnConfig, ModelConfig),
        "dpr": (RewardArguments, DensePathConfig, ModelConfig),
        "gail": (DataArguments, GAILConfig, ModelConfig),
        "selfplay": (DataArguments, SelfPlayConfig, ModelConfig),
        "extrapolate": (ExtrapolateArguments,),
    }
    for method in spec.methods.values():
        if method.command in kinds:
            for size in spec.sizes:
                _check_names(spec.flags(method, size), kinds[method.command], f"methods: {method.name}: ")
    _check_names(spec.evaluation, (EvaluateArguments,), "evaluation: ")


def _check_names(flags: Mapping[str, Any], kinds: Sequence[type], where: str) -> None:
    from .arguments import nearest

    known = {f.name for kind in kinds for f in dataclasses.fields(kind)}
    for name in flags:
        if name not in known:
            raise UserError(f"{where}unknown flag {name!r}{nearest(name, known)}")


def _check_data(spec: Any) -> None:
    from ..inputs.data import load_rows

    for split, name in spec.data.items():
        rows = load_rows(name, split="train")
        for size in spec.sizes if split == "train" else ():
            if size != "all" and len(rows) < int(size):
                raise UserError(f"sizes: {size} rows, but {name} has {len(rows):,}; write all, or less")


def _below(folder: str, name: str) -> str:
    path = Path(folder).expanduser() / name
    if not path.exists():
        raise UserError(f"--data_dir {folder}: there is no {name} in it")
    return str(path)


def _list(spec: Any, folder: str) -> None:
    from ..study.identity import data_hash, environment
    from ..study.plan import plan_stages, stage_record
    from ..study.spec import SPLITS

    identity = {**environment(), "data": {split: data_hash(spec.data[split]) for split in SPLITS}}
    stages = plan_stages(spec, folder, environment=identity)
    done = 0
    for stage in stages:
        try:
            state = "done" if stage_record(stage) else "to do"
        except UserError:
            state = "other settings, data or code: --redo"
        done += state == "done"
        print(f"{stage.key:<48} {state:<8} {stage.command}")
    runs = len({(stage.size, stage.method, stage.seed) for stage in stages})
    print(f"{len(stages)} stages of {runs} runs, {done} done.")
