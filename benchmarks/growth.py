"""How the soft-Q head's cost grows with the tokens and with the vocabulary: head_loss of IQLearn, forward and backward.

Each axis is doubled four times, the other held. Straight means the same time per token (or per entry of the
vocabulary) all along; the table shows that time relative to the first row's, and the largest deviation from 1. What a
call costs whatever its size makes the first rows dear, so look at the last doublings (x 2.00 is linear) as well.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from common import Progress, Times, environment, finish, interleaved, parse, parser, table
from heads import CONTESTANTS, Case


def arguments() -> argparse.Namespace:
    options = parser(__doc__, repeats=5, seconds=30, modes=("float32", "autocast"))
    add = options.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    add("--hidden", type=int, default=256, help="hidden size")
    add("--first-tokens", type=int, default=512, help="where the growth in tokens begins")
    add("--first-vocab", type=int, default=8192, help="where the growth in V begins")
    add("--held-tokens", type=int, default=1024, help="tokens while V grows")
    add("--held-vocab", type=int, default=16384, help="V while tokens grow")
    add("--doublings", type=int, default=4, help="of each axis")
    add("--prompt", type=float, default=0.0, help="share of each row that has no labels")
    add("--length", type=int, default=256, help="tokens of each sequence")
    args = parse(options)
    for name in ("first_tokens", "held_tokens"):
        if getattr(args, name) % args.length:
            options.error(f"--{name.replace('_', '-')} must be a multiple of --length")
    return args


def axis(name: str, mode: str, args: argparse.Namespace) -> list[Case]:
    """The cases of one axis."""
    factors = [2**k for k in range(args.doublings + 1)]
    if name == "tokens":
        sizes = [(args.first_tokens * factor, args.held_vocab) for factor in factors]
    else:
        sizes = [(args.held_tokens, args.first_vocab * factor) for factor in factors]
    make = lambda tokens, vocab: Case(
        args.hidden, vocab, args.prompt, mode, tokens // args.length, args.length, args.device
    )
    return [make(tokens, vocab) for tokens, vocab in sizes]


def measure(cases: list[Case], args: argparse.Namespace) -> list[Times]:
    run = CONTESTANTS["iqlearn"]
    inputs = [case.inputs() for case in cases]
    for x in inputs:
        run(x)  # the warm-up

    def forget() -> None:
        for x in inputs:
            x.forget()

    runs = {str(k): partial(run, x) for k, x in enumerate(inputs)}
    times = interleaved(runs, repeats=args.repeats, seconds=args.seconds, between=forget, device=args.device)
    return list(times.values())


def main() -> None:
    args, where = arguments(), environment()
    plan = [(name, mode, axis(name, mode, args)) for mode in args.modes for name in ("tokens", "vocab")]
    progress = Progress("growth", sum(case.work for _, _, cases in plan for case in cases))
    rows: list[dict[str, Any]] = []
    tables = {}
    for name, mode, cases in plan:
        progress.at(f"{name}, {mode}", sum(case.work for case in cases))
        times = measure(cases, args)
        lines = []
        for k, (case, t) in enumerate(zip(cases, times, strict=True)):
            x = case.rows * case.length if name == "tokens" else case.vocab
            relative = t.median / times[0].median
            doubling = f"x {t.median / times[k - 1].median:.2f}" if k else ""
            lines.append(
                {name: x, "s": t, "time": f"{relative:.2f}", "per unit": f"{relative / 2**k:.2f}", "doubling": doubling}
            )
            rows.append(
                {
                    "axis": name,
                    **vars(case),
                    "x": x,
                    "seconds": {"iqlearn": t.as_dict()},
                    "relative_per_unit": relative / 2**k,
                }
            )
        per_unit = [row["relative_per_unit"] for row in rows[-len(cases) :]]
        worst = max(per_unit, key=lambda ratio: abs(ratio - 1))
        held = f"V = {args.held_vocab}" if name == "tokens" else f"{args.held_tokens} tokens"
        title = f"Growth with {name}, {mode}, H = {args.hidden}, {held}; relative to the first"
        tables[title] = f"{table(lines)}\nLargest deviation from linear: {100 * (worst - 1):+.0f}%"
    finish("growth", args, where, tables, rows=rows)


if __name__ == "__main__":
    main()
