"""`inverselm demo`: the whole job on generated arithmetic word problems."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..inputs.data import check_output_dir
from .arguments import Help, parse


@dataclass
class DemoArguments:
    """Flags of `inverselm demo`."""

    output_dir: str = field(default="demo-out", metadata={"help": "Where everything is written."})
    seed: int = field(default=0, metadata={"help": "Seed of data, weights and sampling."})
    quick: bool = field(
        default=False, metadata={"help": "A minute-long run to see the stages; its numbers say nothing."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})


GUIDE = Help(
    "Generates arithmetic word problems in GSM8K's format (some demonstrations wrong or sloppy, as real data is), "
    "trains a small model from scratch with SFT, recovers its dense token reward, improves it with Dense-Path "
    "REINFORCE, trains IQLearn beside it, and measures all three on held-out problems with and without the "
    "calculator at several temperatures. Ends with one table and one self-contained HTML page. Needs no hub and no "
    "data files.",
    ("inverselm demo", "inverselm demo --output_dir demo-seed1 --seed 1"),
    (),
)
QUICK = {"demonstrations": 300, "held_out": 16, "steps": 8, "dpr_steps": 2, "samples": 2}


def run(command: str, argv: Sequence[str]) -> None:
    """Run all stages and write the page.

    Raises:
        KeyboardInterrupt: Ctrl-C, with what to type to start again.
    """
    (args,) = parse(command, (DemoArguments,), argv, GUIDE)
    try:
        _run(args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Start again: inverselm demo --output_dir {args.output_dir} --overwrite True"
        ) from None


def _run(args: DemoArguments) -> None:
    check_output_dir(args.output_dir, overwrite=args.overwrite)
    from ..demo import pipeline
    from ..demo.page import build_page, text_table, verdicts

    started, folder = time.monotonic(), Path(args.output_dir)
    size = pipeline.Size(**QUICK) if args.quick else pipeline.Size()
    problems = pipeline.write_data(folder / "data", size, args.seed)
    print(f"Wrote {folder / 'data'}: {size.demonstrations:,} demonstrations, {size.held_out:,} held-out problems.")
    for argv_of_stage in pipeline.commands(folder, size, args.seed).values():
        pipeline.run_command([*argv_of_stage, *(["--overwrite_output_dir", "True"] if args.overwrite else [])])
    results, planted, measures = _measure(folder, problems, size, args.seed)
    print(f"\n{text_table(results)}\n")
    for line in verdicts(results):
        print(line)
    for name, values in measures.items():
        print(f"{name}: AUROC {values['auroc']:.3f} at planted wrong digits; lowest token in {values['first']:.1%}.")
    curves = {name: pipeline.curves(folder / stage) for name, stage in _STAGES.items()}
    page = build_page(results, curves, planted, measures, size, args.seed, folder / "report.html")
    print(f"\nWrote {page} in {(time.monotonic() - started) / 60:.1f} minutes: open it in a browser.")
    print(f"Next: inverselm score --model_name_or_path {folder / 'sft'} --prompt 'Question: ...' --completion ' ...'")


_STAGES = {"SFT": "sft", "IQLearn": "iqlearn", "DPR": "dpr"}


def _measure(folder: Path, problems: list[dict[str, Any]], size: Any, seed: int) -> tuple[Any, Any, Any]:
    import torch
    from tqdm.auto import tqdm
    from transformers import AutoTokenizer

    from ..demo.evaluate import evaluate, localisation, planted_errors
    from ..demo.pipeline import TEMPERATURES
    from ..scorers import QFunctionReward, TokenReward, load_model

    tokenizer = AutoTokenizer.from_pretrained(folder / "sft")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("\nMeasuring on held-out problems.", flush=True)
    cells = [(name, t, c) for c in (False, True) for name in _STAGES for t in TEMPERATURES]
    models: dict[str, Any] = {name: load_model(folder / stage).to(device) for name, stage in _STAGES.items()}
    results = [
        evaluate(name, models[name], tokenizer, problems, temperature=t, calculator=c, samples=size.samples, seed=seed)
        for name, t, c in tqdm(cells, desc="Evaluating", unit="sampler")
    ]
    scorers = {
        "log π_SFT − log π_baseline": TokenReward.from_checkpoints(folder / "sft"),
        "log π_SFT alone": QFunctionReward.from_checkpoint(folder / "sft", kind="log_prob"),
        "IQLearn, Q − γV′": QFunctionReward.from_checkpoint(folder / "iqlearn"),
    }
    planted = {name: planted_errors(scorer, problems, seed=seed) for name, scorer in scorers.items()}
    if not all(planted.values()):
        raise UserError("no held-out answer could take a planted error; use another --seed")
    return results, planted, {name: localisation(items) for name, items in planted.items()}
