"""Flags and YAML as in TRL: dataclasses whose every field is a flag; a short --help that teaches, a long --help_all."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

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
        metadata={"help": "Held-out rows for --eval_strategy; default: the test split of dataset_name."},
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
        hidden: own fields that mean nothing to this command.
    """

    text: str
    examples: Sequence[str]
    common: Sequence[str] = ()
    hidden: Sequence[str] = ()


# what inherited fields mean here, in fewer words than where they come from
_TEXTS = {
    "dataset_train_split": "Split to train on, or a slice such as train[:1000]; a single file is its own split.",
    "dataset_test_split": "Split that --eval_strategy evaluates on.",
    "output_dir": "Folder for the model and its checkpoints; new or empty.",
    "model_name_or_path": "Folder or hub name of the model to start from.",
    "per_device_train_batch_size": "Rows per device and forward pass.",
    "gradient_accumulation_steps": "Forward passes per optimiser step.",
    "num_train_epochs": "Passes over the data.",
    "max_steps": "Optimiser steps; if set, in place of num_train_epochs.",
    "learning_rate": "Peak learning rate.",
    "max_length": "Longest row in tokens: the end of a longer one is cut off, and the rows are counted.",
    "packing": "Put several rows into one sequence of max_length tokens.",
    "completion_only_loss": "Learn the completion alone; default: yes for rows with prompt and completion.",
    "assistant_only_loss": "Learn the assistant's messages alone (its template must mark them).",
    "use_peft": "Train a LoRA adapter in place of all weights.",
    "lora_r": "Rank of the adapter.",
    "eval_strategy": "When to evaluate on held-out rows: no, steps, epoch.",
    "save_steps": "Keep a checkpoint every so many steps.",
    "logging_steps": "Log every so many steps.",
    "bf16": "bfloat16 mixed precision. Default: on with a GPU, off without.",
    "seed": "Seed of the run.",
    "resume_from_checkpoint": "True: continue the run in output_dir from its newest complete checkpoint. Or a folder.",
    "max_completion_length": "Longest sampled answer in tokens.",
    "steps_per_generation": "Forward passes per rollout; default: gradient_accumulation_steps.",
    "use_vllm": "Sample with vLLM.",
}
# where a command lists them: after all that is its own
_LAST = ("batch_size", "dtype", "device", "trust_remote_code", "overwrite", "resume")


def parse(command: str, kinds: Sequence[type], argv: Sequence[str], guide: Help) -> tuple[Any, ...]:
    """Flags and --config into one instance of each dataclass.

    Raises:
        UserError: unknown flags (with the nearest known one), bad values, an unreadable config file.
        SystemExit: 0 after --help.
    """
    parser = TrlParser(list(kinds), prog=f"inverselm {command}", description=guide.text, allow_abbrev=False)
    parser.error = _error  # type: ignore[method-assign]
    if "--help_all" in argv:
        parser.print_help()
        raise SystemExit(0)
    if "-h" in argv or "--help" in argv:
        print(short_help(command, kinds, guide))
        raise SystemExit(0)
    given = [part for argument in argv for part in _split_config(argument)]
    flags = {option for action in parser._actions for option in action.option_strings} | {"--config"}
    for argument in given:
        name = argument.split("=")[0]
        if name.startswith("--") and name not in flags:
            raise UserError(f"unknown flag {name}{nearest(name, flags)}; --help_all lists them")
    rest = _check_config(given, {action.dest for action in parser._actions} - {"help"})
    strays = parser.parse_known_args(rest)[1]
    if strays:
        raise UserError(f"{strays[0]!r} belongs to no flag; quote values with spaces, and begin flags with --")
    _fit_to_machine(parser, kinds)
    # TRL sets the deprecated name itself
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing(_enable|_disable)?. is deprecated.*")
    try:
        return tuple(parser.parse_args_and_config(given, fail_with_unknown_args=True))
    except UserError:
        raise
    except Exception as error:  # the configs of TRL, transformers and accelerate refuse bad values in many ways
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from error


def _error(message: str) -> NoReturn:
    raise UserError(re.sub(r"^argument (--\w+)(/--[\w-]+)*", r"\1", message))


def _split_config(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


def _fit_to_machine(parser: TrlParser, kinds: Sequence[type]) -> None:
    """Without an accelerator the defaults are the CPU and float32; the trainers' own would be an error."""
    if not any("use_cpu" in {f.name for f in dataclasses.fields(kind)} for kind in kinds):
        return
    import torch

    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True, bf16=False)


def nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _check_config(argv: Sequence[str], known: set[str]) -> list[str]:
    """Check the --config file, if there is one; returns the arguments without it."""
    import yaml

    if "--config" not in argv:
        return list(argv)
    if list(argv).count("--config") > 1:
        raise UserError("--config is given twice; put both into one file")
    at = list(argv).index("--config") + 1
    if at >= len(argv) or argv[at].startswith("--"):
        raise UserError("--config needs a YAML file")
    path = argv[at]
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"--config {path}: {where}not valid YAML ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must be a mapping of flags to values, such as 'learning_rate: 1.0e-5'")
    for key in content:
        if key not in known and key != "env":
            raise UserError(f"--config {path}: unknown field {key!r}{nearest(str(key), known)}")
    if not isinstance(content.get("env", {}), dict):
        raise UserError(f"--config {path}: 'env' must be a mapping of environment variables to values")
    return [*argv[: at - 1], *argv[at + 1 :]]


def short_help(command: str, kinds: Sequence[type], guide: Help) -> str:
    """The page of `inverselm <command> --help`."""
    width = min(100, max(72, int(os.environ.get("COLUMNS", "100"))))
    lines = [f"usage: inverselm {command} [--flag value ...] [--config file.yaml]", ""]
    lines += [textwrap.fill(part, width) for part in guide.text.split("\n")] + [""]
    lines += ["examples:"] + [f"  {example}" for example in guide.examples] + [""]
    own = {name for name in _own_fields(kinds) if name not in guide.hidden}
    listed = [f for kind in kinds for f in dataclasses.fields(kind)]
    fields = {f.name: f for f in sorted(listed, key=lambda f: _LAST.index(f.name) if f.name in _LAST else -1)}
    inherited = _bases(kinds)
    for title, chosen in (("its own flags:" if inherited else "flags:", own), ("often used:", set(guide.common) - own)):
        entries = [_entry(f, width, name in own) for name, f in fields.items() if name in chosen]
        if entries:
            lines += [title, *entries, ""]
    lines.append("--config takes the same names from a YAML file (`learning_rate: 1.0e-5`); flags win over it.")
    if inherited:
        lines.append("Every other field of " + ", ".join(inherited) + " is a flag too: --help_all.")
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
    return [f"TRL's {base.__name__}" for base in named if base is not None]


def _entry(f: Any, width: int, own: bool) -> str:
    text = str(f.metadata.get("help", "")) if own else _TEXTS.get(f.name, str(f.metadata.get("help", "")))
    text = re.sub(r"\s+", " ", text)
    shown = f.default not in (None, dataclasses.MISSING, "", False) and "efault:" not in text
    choices = [str(choice) for choice in f.metadata.get("choices") or () if own]
    notes = []
    if any(not re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text) for choice in choices):
        notes.append(" | ".join(choices))
    if shown:
        notes.append(f"default: {f.default}")
    head = f"  --{f.name}"
    first = f"{head:<29}" if len(head) < 29 else f"{head}\n{'':<29}"
    body = textwrap.fill(text + (f" ({'; '.join(notes)})" if notes else ""), width - 29)
    return first + body.replace("\n", "\n" + " " * 29)
