"""`inverselm <command>`: one command line, one module per command, loaded when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import UserError

COMMANDS = {
    "sft": ("training.finetune", "fine-tune on demonstrations (TRL's SFT) and keep the baseline checkpoint"),
    "iqlearn": ("training.finetune", "fine-tune on demonstrations by inverse soft-Q-learning"),
    "dpr": ("training.dpr", "improve an SFT model with its own dense reward (Dense-Path REINFORCE)"),
    "gail": ("training.gail", "train against a discriminator between demonstrations and own answers (GAIL)"),
    "selfplay": ("training.selfplay", "improve an SFT model against its own answers (SPIN, GSIL)"),
    "score": ("scoring.score", "token rewards of answers, as JSONL, in the terminal or as a heatmap"),
    "generate": ("generate", "sample answers to prompts, and measure them"),
    "rerank": ("scoring.rerank", "of several answers to each prompt, the best by a token reward"),
    "filter": (
        "scoring.filtering",
        "demonstrations ranked by a token reward: what is probably wrong, and what to keep",
    ),
    "rewards": ("evaluation.rewards", "how good a token reward is: correlation, right before wrong, planted errors"),
    "compare": ("evaluation.compare", "paired tests between runs, over prompts and seeds"),
    "extrapolate": ("extrapolate", "a checkpoint beyond the SFT model, away from its baseline, without training"),
    "evaluate": ("evaluation.evaluate", "models x samplers on a task: one row each, with intervals and diversity"),
    "judge": ("evaluation.judge", "pairwise win rates between runs, from a judge behind a chat API"),
    "study": ("study", "a grid of training runs and evaluations from one YAML file; `report` makes a page of it"),
    "serve": ("serve", "token rewards over HTTP, for other programs and OpenRLHF"),
    "report": ("report", "the page of a study: verdict, fronts, curves, rewards, cost, tables, PNGs and CSV"),
    "inspect": ("inspection", "a page in the browser: tokens coloured by reward, to edit, compare and browse"),
    "demo": ("demo", "all of it on generated arithmetic word problems, in a few minutes on a CPU"),
}


def usage() -> str:
    """The text of `inverselm --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"inverselm {__version__}: inverse reinforcement learning for language models",
            "",
            "usage: inverselm <command> [flags] [--config file.yaml]",
            "",
            *lines,
            "",
            "`inverselm <command> --help` explains a command. From demonstrations to a better policy:",
            "  inverselm sft   --model_name_or_path MODEL --dataset_name train.jsonl --output_dir runs/sft",
            "  inverselm score --model_name_or_path runs/sft --dataset_name answers.jsonl --html heatmap.html",
            "  inverselm dpr   --model_name_or_path runs/sft --dataset_name train.jsonl --output_dir runs/dpr",
            "On several GPUs: accelerate launch -m inverselm <command> ...",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for the user's errors, 130 for Ctrl-C."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, not at exit: a reader that has gone (`| head`) is no error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        print(__version__)
        return 0
    command, *rest = args
    if command not in COMMANDS:
        print(f"inverselm: unknown command {command!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f".{COMMANDS[command][0]}", __package__)
        module.run(command, rest)
    except UserError as error:
        print(f"inverselm {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\ninverselm {command}: stopped. {stop}".rstrip(), file=sys.stderr)
        return 130
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
