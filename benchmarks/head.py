"""Speed and memory of the soft-Q head beside its peers: forward and backward, to the gradients of hidden and weight.

    iqlearn  head_loss with the IQLearn loss, entropy and accuracy logged, as IQLearnTrainer calls it
    mle      head_loss with plain maximum likelihood
    trl      TRL's fused head doing plain NLL, added to a model as SFTTrainer adds it
    full     all logits, float32 cross-entropy
    liger    Liger's fused linear cross-entropy (CUDA only, if installed)

All see the same hidden states, weight and labels, and their NLL is checked to agree before the clock runs. Memory is
measured in a process of its own for each contestant. Bars: time of iqlearn / trl <= 0.5 without a prompt and <= 0.3
where half of each row is one; iqlearn / full <= 1 and <= 0.55; peak memory of iqlearn / full <= 0.35 at V = 131072.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from common import Bar, Progress, Times, environment, finish, interleaved, parse, parser, peak_memory, size
from common import table as text_table
from heads import CONTESTANTS, Case

SIZES = [(h, v) for v in (8192, 32768) for h in (256, 512, 1024)] + [(512, 131072)]
ALL_SIZES = [(h, v) for v in (8192, 32768, 131072) for h in (256, 512, 1024)]
GPU_SIZES = [(4096, 131072)]
TIME_BARS = {("trl", 0.0): 0.5, ("trl", 0.5): 0.3, ("full", 0.0): 1.0, ("full", 0.5): 0.55}
MEMORY_BAR, MEMORY_BAR_VOCAB = 0.35, 131072


def arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    modes = ("autocast", "bfloat16") if gpu else ("float32", "autocast")
    options = parser(__doc__, repeats=10 if gpu else 3, seconds=20, modes=modes)
    add = options.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu", help="where to run")
    add("--sizes", nargs="+", type=size, metavar="HxV", help="hidden sizes with vocabularies; default: see --all-sizes")
    add(
        "--all-sizes",
        action="store_true",
        help="every H of 256, 512, 1024 with every V of 8192, 32768, 131072; the default takes 131072 with 512 only, "
        "for time (on CUDA the default is 4096x131072)",
    )
    add("--prompt", nargs="+", type=float, default=[0.0, 0.5], help="shares of each row that have no labels")
    add("--rows", type=int, default=16 if gpu else 8, help="sequences")
    add("--length", type=int, default=1024 if gpu else 256, help="tokens of each sequence")
    add("--contestants", nargs="+", choices=list(CONTESTANTS), help="who runs; default: all that can")
    add("--warm-up-rows", type=int, default=16 if gpu else 1, help="sequences of the first, untimed repeat")
    add("--memory-vocab", nargs="*", type=int, default=[131072], help="vocabularies to measure memory at, if any")
    add("--peak-tflops", type=float, help="of the device's matrix products: then the fraction of it is shown")
    add("--tile", type=int, help="columns of a tile of the soft-Q head; default: its own choice")
    add("--chunk-size", type=int, help="states in a chunk of the soft-Q head; default: its own choice")
    args = parse(options)
    on_gpu = args.device == "cuda"
    if on_gpu and not gpu:
        options.error("--device cuda: torch finds none")
    if not all(0.0 <= share < 1.0 for share in args.prompt):
        options.error("--prompt: a share is in [0, 1)")
    args.sizes = args.sizes or (ALL_SIZES if args.all_sizes else GPU_SIZES if on_gpu else SIZES)
    if not args.contestants:
        args.contestants = [n for n in CONTESTANTS if n != "liger" or (on_gpu and find_spec("liger_kernel"))]
    return args


# ---- time ------------------------------------------------------------------------------------------------------------
def warm_up(case: Case, names: list[str], rows: int) -> None:
    """Run everyone once, and check that they compute the same NLL.

    Raises:
        RuntimeError: they do not.
    """
    inputs = case.inputs(rows)
    found = {}
    for name in names:
        inputs.forget()
        found[name] = float(CONTESTANTS[name](inputs))
    apart = max(found.values()) - min(found.values())
    if not apart <= (1e-4 if case.mode == "float32" else 2e-2) * max(found.values()):
        raise RuntimeError(f"{case}: the contestants' NLL differ: {found}")


def measure_time(case: Case, args: argparse.Namespace) -> dict[str, Times]:
    warm_up(case, args.contestants, min(args.warm_up_rows, case.rows))
    inputs = case.inputs()
    runs = {name: partial(CONTESTANTS[name], inputs) for name in args.contestants}
    return interleaved(runs, repeats=args.repeats, seconds=args.seconds, between=inputs.forget, device=case.device)


def time_bars(case: Case, times: dict[str, Times]) -> list[Bar]:
    if "iqlearn" not in times:
        return []
    return [
        Bar.of(f"iqlearn/{name}", times["iqlearn"], theirs, TIME_BARS.get((name, case.prompt)))
        for name, theirs in times.items()
        if name != "iqlearn"
    ]


# ---- memory ----------------------------------------------------------------------------------------------------------
def memory_of(name: str, case: Case) -> int:
    """Bytes that one call takes beyond what the process held before it, inputs included; for a fresh process."""
    CONTESTANTS[name](replace(case, hidden=16, vocab=64).inputs(1))  # imports and the like
    inputs = case.inputs()
    before = torch.cuda.memory_allocated() if case.device == "cuda" else peak_memory()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    CONTESTANTS[name](inputs)
    return peak_memory(case.device) - before


def measure_memory(name: str, case: Case, threads: int) -> int:
    """`memory_of` in a process of its own."""
    order = json.dumps({"name": name, "case": vars(case), "threads": threads})
    command = [sys.executable, __file__, "--memory-of", order]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def answer_memory(order: dict[str, Any]) -> None:
    """The other side of `measure_memory`."""
    torch.set_num_threads(order["threads"])
    print(memory_of(order["name"], Case(**order["case"])))


def memory_bars(case: Case, found: dict[str, int]) -> list[Bar]:
    limit = MEMORY_BAR if case.vocab == MEMORY_BAR_VOCAB else None
    return [
        Bar(f"{name}/full", b / max(found["full"], 1), limit if name == "iqlearn" else None)
        for name, b in found.items()
        if "full" in found and name != "full"
    ]


# ---- the run ---------------------------------------------------------------------------------------------------------
def main() -> None:
    if sys.argv[1:2] == ["--memory-of"]:
        answer_memory(json.loads(sys.argv[2]))
        return
    args, where = arguments(), environment()
    cases = [
        Case(hidden, vocab, prompt, mode, args.rows, args.length, args.device, args.tile, args.chunk_size)
        for (hidden, vocab), mode, prompt in product(args.sizes, args.modes, args.prompt)
    ]
    for_memory = [case for case in cases if case.vocab in args.memory_vocab and case.prompt == args.prompt[0]]
    measured = [name for name in args.contestants if name != "mle"]  # which takes what iqlearn takes
    progress = Progress("head", sum(c.work * args.repeats for c in cases) + sum(c.work for c in for_memory))

    memory_rows: list[dict[str, Any]] = []
    memory_table, ratio_table, time_table, speed_table, bars = [], [], [], [], []
    for case in for_memory:  # first, while this process holds little
        found = {}
        for name in measured:
            progress.at(f"memory of {name}, {case}", case.work / len(measured))
            found[name] = measure_memory(name, case, args.threads)
        ratios = memory_bars(case, found)
        bars += ratios
        memory_rows.append({**vars(case), "bytes": found, "bars": [bar.as_dict() for bar in ratios]})
        megabytes = {f"{name}, MB": f"{b / 1e6:.0f}" for name, b in found.items()}
        memory_table.append({**case.label, **{bar.name: bar for bar in ratios}, **megabytes})

    time_rows: list[dict[str, Any]] = []
    for case in cases:
        progress.at(f"time, {case}", case.work * args.repeats)
        times = measure_time(case, args)
        ratios = time_bars(case, times)
        bars += ratios
        speeds = {name: case.operations / t.median / 1e12 for name, t in times.items()}
        row = {**vars(case), "seconds": {name: t.as_dict() for name, t in times.items()}, "tflops": speeds}
        if args.peak_tflops:
            row["fraction_of_peak"] = {name: speed / args.peak_tflops for name, speed in speeds.items()}
        time_rows.append({**row, "bars": [bar.as_dict() for bar in ratios]})
        ratio_table.append({**case.label, **{bar.name: bar for bar in ratios}})
        time_table.append({**case.label, **{f"{name}, s": t for name, t in times.items()}})
        share = lambda speed: f" ({100 * speed / args.peak_tflops:.0f}%)" if args.peak_tflops else ""
        speed_table.append({**case.label, **{name: f"{x:.3g}{share(x)}" for name, x in speeds.items()}})

    of_peak = " (share of the peak)" if args.peak_tflops else ""
    tables = {
        "Time: ratios of medians (min..max within a repeat), and their bars": text_table(ratio_table),
        "Time: medians (min..max)": text_table(time_table),
        f"Useful TFLOP/s{of_peak}: 6 n H V of the n labelled tokens": text_table(speed_table),
    }
    if memory_table:
        tables["Peak memory of a call, beside its inputs"] = text_table(memory_table)
    finish("head", args, where, tables, bars, time=time_rows, memory=memory_rows)


if __name__ == "__main__":
    main()
