"""A study's folder as it stands: what was planned, what is done, what is missing; never two versions together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .contents import ROLES, SPLITS, Cell, Key, Study, StudyMethod

__all__ = ["Cell", "Study", "StudyMethod", "load_study", "read_json"]

_GUIDED = re.compile(r",guided=[^,]*$")
_NEEDED = ("name", "task", "reference", "sizes", "seeds", "samplers", "methods", "identity")
_ONE_VERSION = "; a report is of one version: run the study again, or in another folder"


def load_study(folder: str | Path) -> Study:
    """Read the folder of `inverselm study`; what is not done yet is listed, not an error.

    Args:
        folder: with study.json in it.

    Raises:
        UserError: no study there, a broken file, a cell that was made by other code or on other data than study.json
            says, or evaluated on other prompts or with other settings than the rest: one table is of one version.

    Example:
        >>> study = load_study("runs/cmudict")  # doctest: +SKIP
        >>> study.values("3000", "sft", "test", "greedy", "wer")  # doctest: +SKIP
        [0.661, 0.655, 0.664]
    """
    root = Path(folder).expanduser()
    path = root / "study.json"
    if not path.is_file():
        raise UserError(f"{folder}: holds no study (no study.json); name the folder that `inverselm study` wrote")
    facts = read_json(path)
    absent = [name for name in _NEEDED if not facts.get(name)]
    if absent:
        raise UserError(f"{path}: has no '{absent[0]}'; it is not what `inverselm study` writes")
    sizes, seeds = tuple(map(str, facts["sizes"])), tuple(map(int, facts["seeds"]))
    methods = {str(name): _method(str(name), entry, sizes, path) for name, entry in facts["methods"].items()}
    if facts["reference"] not in methods:
        raise UserError(f"{path}: the reference {facts['reference']!r} is none of its methods")
    for name in (*sizes, *methods):
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{path}: {name!r} cannot be the name of a folder")
    keys = [(size, name, seed) for size in sizes for name in methods for seed in seeds if size in methods[name].sizes]
    cells = {key: cell for key in keys if (cell := _cell(root, key, facts)) is not None}
    _check_same_evaluation(cells)
    study = Study(
        folder=root,
        facts=facts,
        methods=methods,
        sizes=sizes,
        seeds=seeds,
        samplers=_samplers([str(name) for name in facts["samplers"]], methods, cells),
        metrics=_metrics(facts, cells, path),
        reference=str(facts["reference"]),
        cells=cells,
        missing=(),
        rewards=_rewards(root, sizes, seeds, facts),
    )
    missing = tuple(line for key in keys if (line := _missing(study, key)))
    return Study(**{**vars(study), "missing": missing})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or is no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run the study again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object; delete it and run the study again")
    return found


def _method(name: str, entry: Mapping[str, Any], sizes: tuple[str, ...], path: Path) -> StudyMethod:
    role = str(entry.get("role") or "method")
    if role not in ROLES:
        raise UserError(f"{path}: method {name!r} has the role {role!r}; it is one of {', '.join(ROLES)}")
    flags = dict(entry.get("flags") or {})
    if not set(flags) <= set(sizes):
        flags = dict.fromkeys(sizes, flags)
    return StudyMethod(
        name=name,
        label=str(entry.get("label") or name),
        role=role,
        group=str(entry.get("group") or name),
        command=str(entry.get("command") or "none"),
        origin=entry.get("from"),
        guided=float(entry.get("guided") or 0.0),
        sizes=tuple(map(str, entry.get("sizes") or sizes)),
        flags=flags,
    )


def _cell(root: Path, key: Key, facts: Mapping[str, Any]) -> Cell | None:
    size, method, seed = key
    folder = root / "runs" / size / method / f"seed{seed}"
    if not folder.is_dir():
        return None
    stages = {}
    for stage in ("train", *SPLITS):
        path = folder / "stages" / f"{stage}.json"
        if path.is_file():
            stages[stage] = read_json(path)
            _check_identity(path, stages[stage], facts["identity"])
    results = {split: _results(folder / split / "results.json", facts) for split in SPLITS if split in stages}
    state = folder / "model" / "trainer_state.json"
    trainer = read_json(state) if state.is_file() else {}
    return Cell(
        size, method, seed, folder, results, stages, tuple(trainer.get("log_history") or ()), trainer.get("global_step")
    )


def _check_identity(path: Path, stage: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """The stage's code, and its data where the record says so, are those of study.json."""
    nested = stage["identity"] if isinstance(stage.get("identity"), Mapping) else {}
    code, data = (stage.get(name, nested.get(name)) for name in ("code", "data"))
    if code != identity.get("code"):
        shown, wanted = (str(value)[:12] for value in (code, identity.get("code")))
        raise UserError(f"{path}: was made by other code ({shown}) than study.json says ({wanted}){_ONE_VERSION}")
    known = identity.get("data") or {}
    for name, digest in data.items() if isinstance(data, Mapping) else ():
        if known.get(name, digest) != digest:
            raise UserError(f"{path}: was made on other data ('{name}') than study.json says{_ONE_VERSION}")


def _results(path: Path, facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """sampler -> row; a method's own guidance is taken off the sampler's name."""
    content = read_json(path)
    version = facts["identity"].get("inverselm")
    if version is not None and content.get("inverselm") != version:
        raise UserError(f"{path}: was made by inverselm {content.get('inverselm')}, not by {version}{_ONE_VERSION}")
    shared = {"run_settings": content.get("settings") or {}, "run_data": content.get("data") or {}}
    found = {}
    for row in content.get("rows") or ():
        if any(not isinstance(row.get(name), kind) for name, kind in (("sampler", str), ("metrics", dict))):
            raise UserError(f"{path}: has a row without sampler or metrics; delete it and run the study again")
        found[_GUIDED.sub("", row["sampler"])] = {**row, **shared}
    return found


def _metrics(facts: Mapping[str, Any], cells: Mapping[Key, Cell], path: Path) -> dict[str, str]:
    """Name -> which is better; of a task that is a function, as its first results say."""
    rows = [row for cell in cells.values() for results in cell.results.values() for row in results.values()]
    found = dict(facts.get("metrics") or (rows[0].get("better") if rows else None) or {})
    if not found or set(found.values()) - {"high", "low"}:
        raise UserError(f"{path}: names no metric yet; run the study until a first evaluation is done")
    main = next(iter(found))
    for cell in cells.values():
        for split, results in cell.results.items():
            if any(main not in row["metrics"] for row in results.values()):
                raise UserError(f"{cell.folder / split}: results.json lacks '{main}', the study's main metric")
    return found


def _check_same_evaluation(cells: Mapping[Key, Cell]) -> None:
    """One split is the same prompts, answered equally often and at the same length, in every cell."""
    first: dict[tuple[str, str], tuple[Any, Path]] = {}
    for cell in cells.values():
        for split, rows in cell.results.items():
            for row in list(rows.values())[:1]:
                facts = {name: row["run_settings"].get(name) for name in ("num_samples", "max_new_tokens")}
                for name, value in {"prompts": row["run_data"].get("content"), **facts}.items():
                    other, where = first.setdefault((split, name), (value, cell.folder))
                    if value != other:
                        raise UserError(
                            f"{cell.folder}: its {split} has other {name} than that of {where}; a report is of one "
                            "evaluation: run the study again"
                        )


def _samplers(listed: Sequence[str], methods: Mapping[str, StudyMethod], cells: Mapping[Key, Cell]) -> tuple[str, ...]:
    """The listed ones, and those that every unguided evaluation has beside them (with a calculator, for example)."""
    unguided = [cell for cell in cells.values() if not methods[cell.method].guided]
    evaluated = [rows for cell in unguided for rows in cell.results.values()]
    more = [name for name in (evaluated[0] if evaluated else ()) if all(name in rows for rows in evaluated)]
    return tuple(dict.fromkeys([*(_GUIDED.sub("", name) for name in listed), *more]))


def _rewards(
    root: Path, sizes: Sequence[str], seeds: Sequence[int], facts: Mapping[str, Any]
) -> dict[tuple[str, int], dict[str, Any]]:
    found = {}
    for size in sizes:
        for seed in seeds:
            folder = root / "runs" / size / "rewards" / f"seed{seed}"
            record = folder / "stages" / "rewards.json"
            if record.is_file():
                _check_identity(record, read_json(record), facts["identity"])
            for file in (folder / "rewards" / "rewards.json", folder / "rewards.json"):
                if file.is_file():
                    found[size, seed] = read_json(file)
                    break
    return found


def _missing(study: Study, key: Key) -> str | None:
    """What a cell lacks, in words; None if it is whole."""
    size, name, seed = key
    where, cell = f"runs/{size}/{name}/seed{seed}", study.cells.get(key)
    if cell is None:
        return f"{where}: not begun"
    undone = ["train"] if study.methods[name].command != "none" and "train" not in cell.stages else []
    undone += [split for split in SPLITS if split not in cell.results]
    if undone:
        return f"{where}: {', '.join(undone)}"
    needed = study.samplers_of(name)
    lacking = [sampler for sampler in needed if any(sampler not in cell.results[split] for split in SPLITS)]
    return f"{where}: sampler {lacking[0]}" if lacking else None
