"""Flags and YAML as in TRL: dataclasses whose every field is a flag; a short --help that teaches, a long --help_all."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl import ScriptArguments
from trl.scripts.utils import TrlParser

from ..errors import UserError


@dataclass
class DataArguments(ScriptArguments):
    """Where the data comes from and where a new model would; TRL's script arguments and ours."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A local file (.jsonl, .json, .csv, .tsv, .parquet, also .gz), a folder, or a hub dataset."},
    )
    eval_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Held-out rows for --eval_strategy; default: dataset_test_split of dataset_name."},
    )
    scratch_config: str | None = field(
        default=None,
        metadata={"help": "YAML of a small model to build from scratch, its tokenizer trained on the data."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into an output folder that is not empty; its old checkpoints go."}
    )


@dataclass(frozen=True)
class Help:
    """What the short --help of a command says.

    Attributes:
        text: what the command does, in two or three sentences.
        examples: command lines.
        common: names of inherited fields worth listing.
    """

    text: str
    examples: Sequence[str]
    common: Sequence[str]


def parse(command: str, kinds: Sequence[type], argv: Sequence[str], guide: Help) -> tuple[Any, ...]:
    """Flags and --config into one instance of each dataclass.

    Raises:
        UserError: unknown flags (with the nearest known one), bad values, an unreadable config file.
        SystemExit: 0 after --help, 2 from argparse.
    """
    parser = TrlParser(list(kinds), prog=f"inverselm {command}", description=guide.text, allow_abbrev=False)
    if "--help_all" in argv:
        parser.print_help()
        raise SystemExit(0)
    if "-h" in argv or "--help" in argv:
        print(_short_help(command, kinds, guide))
        raise SystemExit(0)
    flags = {option for action in parser._actions for option in action.option_strings} | {"--config"}
    for argument in argv:
        name = argument.split("=")[0]
        if name.startswith("--") and name not in flags:
            raise UserError(f"unknown flag {name}{_nearest(name, flags)}; --help_all lists them")
    if "--config" in argv:
        _check_config(argv, {flag.removeprefix("--") for flag in flags})
    try:
        return tuple(parser.parse_args_and_config(list(argv), fail_with_unknown_args=True))
    except UserError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _check_config(argv: Sequence[str], known: set[str]) -> None:
    import yaml

    at = list(argv).index("--config") + 1
    if at >= len(argv):
        raise UserError("--config needs a YAML file")
    path = argv[at]
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must be a mapping of flags to values")
    for key in content:
        if key not in known and key != "env":
            raise UserError(f"--config {path}: unknown field {key!r}{_nearest(key, known)}")


def _short_help(command: str, kinds: Sequence[type], guide: Help) -> str:
    width = min(100, max(72, int(os.environ.get("COLUMNS", "100"))))
    lines = [f"usage: inverselm {command} [flags] [--config file.yaml]", ""]
    lines += [textwrap.fill(part, width) for part in guide.text.split("\n")] + [""]
    lines += ["examples:"] + [f"  {example}" for example in guide.examples] + [""]
    own, common = _own_fields(kinds), dict.fromkeys(guide.common)
    for title, chosen in (("its own flags:", own), ("often used:", common)):
        entries = [_entry(f, width) for kind in kinds for f in dataclasses.fields(kind) if f.name in chosen]
        if entries:
            lines += [title, *dict.fromkeys(entries), ""]
    lines.append("Every other field of " + ", ".join(_bases(kinds)) + " is a flag as well: --help_all lists them.")
    return "\n".join(lines)


def _own_fields(kinds: Sequence[type]) -> dict[str, None]:
    """Fields that this package declares, as opposed to those of TRL and transformers."""
    own: dict[str, None] = {}
    for kind in kinds:
        for base in kind.__mro__:
            if base.__module__.startswith("inverselm"):
                own.update(dict.fromkeys(inspect.get_annotations(base)))
    return own


def _bases(kinds: Sequence[type]) -> list[str]:
    named = [next((b for b in k.__mro__ if b.__module__.startswith("trl")), None) for k in kinds]
    return [f"TRL's {base.__name__}" for base in named if base is not None] or ["the command"]


def _entry(f: Any, width: int) -> str:
    text = re.sub(r"\s+", " ", str(f.metadata.get("help", "")))
    default = "" if f.default in (None, dataclasses.MISSING, "") else f" (default: {f.default})"
    return textwrap.fill(text + default, width, initial_indent=f"  --{f.name:<24} ", subsequent_indent=" " * 29)
