"""What a study is: methods x training-set sizes x seeds, and how each is evaluated; read from YAML and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.samplers import Sampler, parse_samplers

__all__ = ["Method", "StudySpec", "parse_spec", "read_spec"]

FINETUNE = ("sft", "iqlearn")
IMPROVE = ("dpr", "gail", "selfplay")
COMMANDS = (*FINETUNE, *IMPROVE, "extrapolate", "none")
ROLES = ("reference", "method", "control")
SPLITS = ("train", "valid", "test")
EVALUATED = ("valid", "test")
_TRAINING = ("finetune", *FINETUNE, *IMPROVE)
_OWN = ("command", "from", "role", "group", "label", "sizes", "guided")


@dataclass(frozen=True)
class Method:
    """One line of the grid.

    Attributes:
        name: in tables and folders.
        command: `sft`, `iqlearn`, `dpr`, `gail`, `selfplay` or `extrapolate`; `none` evaluates the model of `origin`
            in another way.
        origin: the method whose model (of the same size and seed) it starts from; None is from `training`'s model.
        role: `reference`, `method` or `control`.
        group: variants of one idea share it; the verdict takes a group's best variant on validation data.
        label: for people.
        guided: weight of guided decoding (`inference.guided`), 0 for none.
        flags: of the command.
        sizes: size -> further flags; None for all sizes.
    """

    name: str
    command: str
    origin: str | None = None
    role: str = "method"
    group: str = ""
    label: str = ""
    guided: float = 0.0
    flags: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] | None = None

    def runs_at(self, size: str) -> bool:
        """Whether the method is part of the grid at this size."""
        return self.sizes is None or size in self.sizes


@dataclass(frozen=True)
class StudySpec:
    """A study, as its YAML file says it; see `read_spec`.

    Attributes:
        name: of the study.
        task: as `inverselm evaluate --task`.
        data: `train`, `valid` and `test`: files, or hub names.
        sizes: label -> flags of the fine-tuning commands at that size; the label is a count of rows, or `all`.
        seeds: of training and of sampling.
        reference: the method that all others are compared with.
        methods: by name.
        training: `finetune`, or one of these commands: flags of it (`finetune`: of `sft` and `iqlearn`).
        samplers: that every method is evaluated with.
        evaluation: further flags of `inverselm evaluate`.
        rewards: flags of `inverselm rewards` for a rewards stage at each size and seed; None for none. Its own keys:
            `sampler` (whose answers of the reference are scored) and `metric` (the task's, default the main one).
        title, notes: for the report.
    """

    name: str
    task: str
    data: Mapping[str, str]
    sizes: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    reference: str
    methods: Mapping[str, Method]
    training: Mapping[str, Mapping[str, Any]]
    samplers: tuple[Sampler, ...]
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Any] | None = None
    title: str = ""
    notes: str = ""

    def flags(self, method: Method, size: str) -> dict[str, Any]:
        """The flags of a method's command at a size: `training`, then the size's, then the method's own."""
        found: dict[str, Any] = {}
        if method.command in FINETUNE:
            found |= self.training.get("finetune", {})
        found |= self.training.get(method.command, {})
        if method.command in FINETUNE:
            found |= self.sizes[size]
        if method.origin:
            found.pop("scratch_config", None)
        return found | dict(method.flags) | dict((method.sizes or {}).get(size, {}))


def read_spec(path: str | Path) -> StudySpec:
    """The study of a YAML file.

    Raises:
        UserError: not readable, or something in it is unknown, missing or contradictory; the message names it.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    try:
        return parse_spec(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def parse_spec(content: Any) -> StudySpec:
    """The study of a mapping such as a YAML file holds.

    Raises:
        UserError: as `read_spec`.

    Example:
        >>> spec = parse_spec({"name": "toy", "task": "exact_match", "data": {"train": "t", "valid": "v", "test": "e"},
        ...                    "methods": {"sft": {"command": "sft"}}, "reference": "sft"})
        >>> spec.methods["sft"].role, list(spec.sizes), spec.seeds
        ('reference', ['all'], (0, 1, 2))
    """
    given = _mapping(content, "a study")
    known = [f.name for f in fields(StudySpec) if f.name != "samplers"]
    _check_keys(given, known, "")
    for name in ("name", "task", "data", "methods", "reference"):
        if not given.get(name):
            raise UserError(f"'{name}' is missing")
    data = {key: str(value) for key, value in _mapping(given["data"], "data").items()}
    _check_keys(data, SPLITS, "data: ")
    for split in SPLITS:
        if split not in data:
            raise UserError(f"data: '{split}' is missing; name a file or hub dataset")
    sizes = _sizes(given.get("sizes", ["all"]))
    training = {key: _mapping(value, f"training: {key}") for key, value in _mapping(given.get("training", {})).items()}
    _check_keys(training, _TRAINING, "training: ")
    evaluation = dict(_mapping(given.get("evaluation", {}), "evaluation"))
    samplers = evaluation.pop("samplers", ["greedy", "T=0.5", "T=1.0"])
    methods = {
        str(name): _method(str(name), _mapping(value, f"methods: {name}"), sizes)
        for name, value in _mapping(given["methods"], "methods").items()
    }
    reference = str(given["reference"])
    methods = _check_methods(methods, reference)
    rewards = given.get("rewards")
    return StudySpec(
        name=str(given["name"]),
        task=str(given["task"]),
        data=data,
        sizes=sizes,
        seeds=_seeds(given.get("seeds", [0, 1, 2])),
        reference=reference,
        methods=methods,
        training=training,
        samplers=tuple(parse_samplers(samplers if isinstance(samplers, list) else str(samplers).split())),
        evaluation=evaluation,
        rewards=None if rewards is None else _mapping(rewards, "rewards"),
        title=str(given.get("title") or given["name"]),
        notes=str(given.get("notes", "")),
    )


def _method(name: str, given: Mapping[str, Any], sizes: Mapping[str, Any]) -> Method:
    where = f"methods: {name}: "
    _check_name(name, where)
    own = {key: value for key, value in given.items() if key in _OWN}
    flags = {key: value for key, value in given.items() if key not in _OWN}
    command = str(own.get("command", ""))
    if command not in COMMANDS:
        raise UserError(f"{where}command is {command!r}; choose {', '.join(COMMANDS)}")
    origin, guided = own.get("from"), float(own.get("guided", 0.0))
    if command not in FINETUNE and not origin:
        raise UserError(f"{where}{command} needs the method it starts from; add from: <method>")
    if (command == "none") != bool(guided):
        raise UserError(f"{where}guided belongs to command: none, and command: none to guided; write both")
    if command == "none" and flags:
        raise UserError(f"{where}{next(iter(flags))} belongs to a command, and there is none")
    role = str(own.get("role", "method"))
    if role not in ROLES:
        raise UserError(f"{where}role is {role!r}; choose {', '.join(ROLES)}")
    for flag in ("output_dir", "seed", "resume_from_checkpoint", "overwrite_output_dir"):
        if flag in flags:
            raise UserError(f"{where}{flag} is set by the study; leave it out")
    limited = own.get("sizes")
    if limited is not None:
        limited = _sizes(limited)
        for size in limited:
            if size not in sizes:
                raise UserError(f"{where}size {size} is not one of the study's ({', '.join(sizes)})")
    label, group = str(own.get("label") or name), str(own.get("group") or name)
    return Method(name, command, str(origin) if origin else None, role, group, label, guided, flags, limited)


def _check_methods(methods: dict[str, Method], reference: str) -> dict[str, Method]:
    if reference not in methods:
        raise UserError(f"reference: {reference!r} is not one of the methods ({', '.join(methods)})")
    for method in methods.values():
        where = f"methods: {method.name}: "
        origin = methods.get(method.origin or "")
        if method.origin and origin is None:
            raise UserError(f"{where}from: {method.origin!r} is not one of the methods")
        if method.role == "reference" and method.name != reference:
            raise UserError(f"{where}role is reference, but the reference is {reference}")
        if origin is not None and origin.sizes is not None and set(method.sizes or ()) - set(origin.sizes):
            raise UserError(f"{where}runs at a size at which {origin.name} does not")
        if origin is not None and origin.command == "none":
            raise UserError(f"{where}from: {origin.name} has no model of its own")
        seen, at = set(), method
        while at.origin:
            if at.name in seen:
                raise UserError(f"{where}from: goes in a circle")
            seen.add(at.name)
            at = methods.get(at.origin, Method("", "sft"))
    first = methods[reference]
    if first.sizes is not None:
        raise UserError(f"methods: {reference}: the reference runs at every size; leave out its sizes")
    named = Method(**{**_as_dict(first), "role": "reference"})
    return {name: named if name == reference else method for name, method in methods.items()}


def _as_dict(method: Method) -> dict[str, Any]:
    return {f.name: getattr(method, f.name) for f in fields(Method)}


def _sizes(given: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(given, Mapping | list) or not given:
        raise UserError("sizes: a list of row counts (or 'all'), or a mapping of them to flags")
    items = given.items() if isinstance(given, Mapping) else ((size, {}) for size in given)
    found: dict[str, Mapping[str, Any]] = {}
    for size, flags in items:
        label = str(size)
        if label != "all" and not (label.isdigit() and int(label) > 0):
            raise UserError(f"sizes: {label!r} is neither a number of rows nor 'all'")
        found[label] = _mapping(flags, f"sizes: {label}")
    return found


def _seeds(given: Any) -> tuple[int, ...]:
    seeds = given if isinstance(given, list) else [given]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise UserError(f"seeds: {given!r} is no list of whole numbers")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: {given!r} names a seed twice")
    return tuple(seeds)


def _mapping(value: Any, name: str = "training") -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: must be a mapping, not {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def _check_keys(given: Mapping[str, Any], known: Any, where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise UserError(f"{where}{key!r} is unknown{hint}")


def _check_name(name: str, where: str) -> None:
    from ..cli.evaluation.evaluation_folder import safe_name

    if safe_name(name) != name:
        raise UserError(f"{where}a method's name is the name of a folder: use letters, digits, '.', '_' and '-'")
