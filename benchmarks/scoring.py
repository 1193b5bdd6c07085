"""Token rewards of answers with two models beside one bare forward pass of one model over the same tokens.

    bare     model(input_ids), all logits as the model returns them, one call for rows of one length (so: no padding)
    reward   TokenReward.from_checkpoints(sft, baseline).score_ids: log pi_SFT - log pi_baseline of all answer tokens

Answers are of mixed lengths, each with a prompt of its own or several to a prompt. Both contestants are given whole
rows, prompt and answer, at most --batch-size at a time. The rewards are checked against bare passes of both models.
Two models take two passes: bar reward / bare <= 2.1.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import groupby, product
from typing import Any

import torch
from common import MODES, Bar, Progress, autocast, environment, finish, interleaved, parse, parser, size, table
from step import SPECIAL, Shape, tokenizer
from torch import Tensor

BAR = 2.1
Rows = list[tuple[list[int], list[int]]]


def arguments() -> argparse.Namespace:
    options = parser(__doc__, repeats=5, seconds=30, modes=("float32", "bfloat16"))
    add = options.add_argument
    add("--size", type=size, default=(256, 32768), metavar="HxV", help="hidden size and vocabulary of the two models")
    add("--layers", type=int, default=4, help="of each model")
    add("--answers", type=int, default=32, help="how many")
    add("--per-prompt", nargs="+", type=int, default=[1, 8], help="answers to a prompt")
    add("--prompt-length", nargs=2, type=int, default=[32, 96], metavar=("MIN", "MAX"), help="tokens of a prompt")
    add("--answer-length", nargs=2, type=int, default=[16, 192], metavar=("MIN", "MAX"), help="tokens of an answer")
    add("--batch-size", type=int, default=16, help="rows of a forward pass, at most")
    return parse(options)


def make_rows(per_prompt: int, args: argparse.Namespace) -> Rows:
    """Prompts and answers of random ids; every answer ends with EOS."""
    generator = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return torch.randint(SPECIAL, args.size[1], (length,), generator=generator).tolist()

    rows: Rows = []
    while len(rows) < args.answers:
        prompt = ids(*args.prompt_length)
        rows += [(prompt, [*ids(*args.answer_length)[:-1], 0]) for _ in range(per_prompt)]
    return rows[: args.answers]


# ---- contestants -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def bare(model: Any, batches: list[Tensor], mode: str) -> Tensor:
    """The model's own forward pass over all batches; returns the last logits."""
    with autocast(mode):
        for ids in batches:
            logits = model(input_ids=ids, use_cache=False).logits
    return logits


def reward(scorer: Any, rows: Rows, batch_size: int, mode: str) -> Any:
    with autocast(mode):
        return scorer.score_ids([p for p, _ in rows], [a for _, a in rows], batch_size=batch_size)


# ---- measuring -------------------------------------------------------------------------------------------------------
def without_padding(rows: Rows, batch_size: int) -> list[Tensor]:
    """Batches of rows that have exactly the same length, longest first."""
    whole = sorted(([*prompt, *answer] for prompt, answer in rows), key=len, reverse=True)
    groups = [list(group) for _, group in groupby(whole, key=len)]
    return [torch.tensor(group[k : k + batch_size]) for group in groups for k in range(0, len(group), batch_size)]


def check(models: list[Any], rows: Rows, scores: Any, mode: str) -> None:
    """The first row's rewards are what bare passes give.

    Raises:
        RuntimeError: they are not.
    """
    prompt, answer = rows[0]
    ids = torch.tensor([[*prompt, *answer]])
    log_probs = []
    for model in models:
        logits = bare(model, [ids], mode)[0, len(prompt) - 1 : -1].float()
        log_probs.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    apart = float((scores[0].rewards - (log_probs[0] - log_probs[1])).abs().max())
    if not apart <= (1e-3 if mode == "float32" else 0.05):
        raise RuntimeError(f"{mode}: rewards differ from those of bare passes by {apart:.3g} nats")


def measure(mode: str, per_prompt: int, args: argparse.Namespace) -> dict[str, Any]:
    from inverselm import TokenReward

    shape = Shape("llama", *args.size, tied=False)
    longest = args.prompt_length[1] + args.answer_length[1]
    sft, baseline = (shape.model(args.layers, longest, seed).to(MODES[mode][0]).eval() for seed in (0, 1))
    scorer = TokenReward.from_checkpoints(sft, baseline, tokenizer=tokenizer())
    rows = make_rows(per_prompt, args)
    batches = without_padding(rows, args.batch_size)
    contestants = {
        "bare": partial(bare, sft, batches, mode),
        "reward": partial(reward, scorer, rows, args.batch_size, mode),
    }
    contestants["bare"]()  # the warm-up
    check([sft, baseline], rows, contestants["reward"](), mode)
    times = interleaved(contestants, repeats=args.repeats, seconds=args.seconds)
    return {"times": times, "tokens": sum(len(p) + len(a) for p, a in rows), "bare_calls": len(batches)}


def main() -> None:
    args, where = arguments(), environment()
    plan = list(product(args.modes, args.per_prompt))
    progress = Progress("scoring", len(plan))
    rows: list[dict[str, Any]] = []
    lines, bars = [], []
    for mode, per_prompt in plan:
        progress.at(f"{mode}, {per_prompt} to a prompt", 1)
        found = measure(mode, per_prompt, args)
        times, tokens = found["times"], found["tokens"]
        bars.append(Bar.of("reward/bare", times["reward"], times["bare"], BAR))
        label = {"mode": mode, "answers": args.answers, "per prompt": per_prompt, "tokens": tokens}
        speed = {"tokens/s": f"{tokens / times['reward'].median:.0f}"}
        lines.append({**label, bars[-1].name: bars[-1], **{f"{name}, s": t for name, t in times.items()}, **speed})
        rows.append(
            {
                "mode": mode,
                "hidden": args.size[0],
                "vocab": args.size[1],
                "answers": args.answers,
                "per_prompt": per_prompt,
                "tokens": tokens,
                "bare_calls": found["bare_calls"],
                "seconds": {name: t.as_dict() for name, t in times.items()},
                "bars": [bars[-1].as_dict()],
            }
        )
    title = "Scoring: ratio of medians (min..max within a repeat) and its bar, medians (min..max)"
    finish("scoring", args, where, {title: table(lines)}, bars, rows=rows)


if __name__ == "__main__":
    main()
