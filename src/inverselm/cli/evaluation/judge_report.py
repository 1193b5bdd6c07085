"""What `inverselm judge` says and writes: the estimate before it starts, the table, JSON, CSV and the pairs."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluation.judge_run import estimated_tokens

if TYPE_CHECKING:
    from ...evaluation.judge_cache import ReplyCache
    from ...evaluation.judge_run import Plan
    from ...evaluation.judging import Judged
    from ...evaluation.win_rate import WinRate

MILLION = 1_000_000
DOUBTFUL = 0.6  # agreement of the two orders below which the judge is doubted


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 request`, `2,000 requests`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def estimate(args: Any, plan: Plan, missing: Mapping[str, Any], cache: str) -> str:
    """What will be sent, and what it may cost."""
    pairs = [pair for of_run in plan.pairs.values() for pair in of_run]
    known = len(plan.requests) - len(missing)
    identical = sum(pair.identical for pair in pairs)
    notes = [f"{counted(identical, 'pair')} of equal answers (ties, not asked)"] if identical else []
    notes += [f"{known:,} of them known from {cache}"] if known else []
    lines = [f"{counted(len(pairs), 'pair')}, both orders: {counted(len(plan.requests), 'request')}" + _more(notes)]
    if not missing:
        return f"{lines[0]}. Nothing is to be sent."
    tokens = sum(map(estimated_tokens, missing.values()))
    body = plan.endpoint.body
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    text = f"To send to {plan.endpoint.model} at {plan.endpoint.address}: {counted(len(missing), 'request')}, "
    text += f"about {tokens:,} prompt tokens"
    text += f", at most {len(missing) * most:,} completion tokens" if isinstance(most, int) else ""
    costs = _costs(args, tokens, len(missing) * most if isinstance(most, int) else None)
    return "\n".join([lines[0] + ".", text + "." + (f" Cost: {costs}." if costs else "")])


def _more(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _costs(args: Any, prompt: int, most: int | None) -> str:
    parts = []
    if args.price_prompt is not None:
        parts.append(f"about {prompt * args.price_prompt / MILLION:,.2f} for prompts")
    if args.price_completion is not None and most is not None:
        parts.append(f"at most {most * args.price_completion / MILLION:,.2f} for completions")
    return ", ".join(parts)


def print_results(
    args: Any,
    found: Sequence[WinRate],
    plan: Plan,
    cache: ReplyCache,
    sent: set[str],
    failed: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Table, verdicts, positions, notes; returns what judge.json says of the run as a whole."""
    usage = _usage(args, plan, cache, sent)
    notes = [*notes, *_notes(found, plan, cache, failed)]
    prompts = len({pair.number for of_run in plan.pairs.values() for pair in of_run})
    print(f"\n{counted(prompts, 'prompt')}, {counted(found[0].seeds, 'seed')} per run. Judge: {args.judge_model}.\n")
    print(_table(found))
    print()
    for rate in found:
        print(f"{rate.run} against {rate.against}: {rate.verdict}")
    for rate in found:
        if rate.agreement is not None:
            first = "" if rate.first_position is None else f"{rate.first_position:.0%} of its decisions are for the "
            print(
                f"Positions ({rate.run}): {first}{'answer shown first; ' if first else ''}the two orders agree in "
                f"{rate.agreement:.0%} of the pairs."
            )
    if usage["requests_sent"]:
        print(_usage_line(usage))
    for note in notes:
        print(f"Note: {note}")
    return {"notes": notes, "usage": usage, "comparisons": [rate.as_dict() for rate in found]}


def _usage(args: Any, plan: Plan, cache: ReplyCache, sent: set[str]) -> dict[str, Any]:
    """Of the requests of this run that were answered: counts, tokens as the endpoint counts them, and their price."""
    replies = [reply for reply in map(cache.get, sent) if reply is not None]
    usage: dict[str, Any] = {"requests": len(plan.requests), "requests_sent": len(replies)}
    total, known = 0.0, True
    for name, price in (("prompt_tokens", args.price_prompt), ("completion_tokens", args.price_completion)):
        counts = [getattr(reply, name) for reply in replies]
        usage[name] = None if None in counts else sum(counts)
        known = known and price is not None and usage[name] is not None
        total += (usage[name] or 0) * (price or 0) / MILLION
    usage["cost"] = total if known else None
    return usage


def _usage_line(usage: Mapping[str, Any]) -> str:
    text = counted(usage["requests_sent"], "reply", "replies")
    if usage["prompt_tokens"] is not None and usage["completion_tokens"] is not None:
        text += f", {usage['prompt_tokens']:,} prompt tokens, {usage['completion_tokens']:,} completion tokens"
    return text + ("." if usage["cost"] is None else f", cost {usage['cost']:,.2f}.")


def _notes(found: Sequence[WinRate], plan: Plan, cache: ReplyCache, failed: Mapping[str, str]) -> list[str]:
    out = []
    replies = [reply for reply in map(cache.get, plan.requests) if reply is not None]
    unread = [reply for reply in replies if plan.prompting.verdict(reply.text) is None]
    if unread:
        cut = sum(reply.finish_reason == "length" for reply in unread)
        hint = f"; {cut:,} of them were cut off: raise --max_tokens" if cut else ""
        out.append(f"{len(unread):,} of {counted(len(replies), 'reply', 'replies')} hold no verdict{hint}.")
    if failed:
        reason = next(iter(failed.values()))
        out.append(f"{counted(len(failed), 'request')} got no answer ({reason}); the same command asks again.")
    for rate in found:
        left = rate.unread + rate.unanswered
        if left:
            low, high = rate.bounds
            text = f"{rate.run}: {left:,} of {counted(rate.pairs, 'pair')} left out without two verdicts"
            out.append(f"{text}; were all of them lost or won, the win rate would be {low:.3f} or {high:.3f}.")
        if rate.agreement is not None and rate.agreement < DOUBTFUL:
            out.append(
                f"{rate.run}: the judge often changes its mind with the order of the answers; doubt its verdicts."
            )
        if not math.isnan(rate.equal_length.value) and not 0.1 <= rate.longer <= 0.9:
            side = "longer" if rate.longer > 0.5 else "shorter"
            out.append(f"{rate.run}: nearly all of its answers are {side}; the rate at equal length is extrapolated.")
    return out


def _table(found: Sequence[WinRate]) -> str:
    head = ["", "win rate", "win", "tie", "loss", "at equal length", "characters", "p"]
    head += ["p (Holm)"] if len(found) > 1 else []
    rows = [head, [found[0].against, "", "", "", "", "", f"{found[0].against_length:.1f}"]]
    for rate in found:
        counts = [f"{n:,}" for n in (rate.wins, rate.ties, rate.losses)]
        row = [rate.run, str(rate.rate), *counts, str(rate.equal_length), f"{rate.length:.1f}", _p(rate.p)]
        rows.append(row + ([_p(rate.p_adjusted)] if len(found) > 1 else []))
    rows = [row + [""] * (len(head) - len(row)) for row in rows]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [c.ljust(s) if i == 0 else c.rjust(s) for i, (c, s) in enumerate(zip(r, sizes, strict=True))] for r in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"


def write_results(
    folder: Path, found: Sequence[WinRate], judged: Mapping[str, Sequence[Judged]], content: Mapping[str, Any]
) -> None:
    """pairs.jsonl, judge.csv and, last, judge.json; each appears when it is complete."""
    lines = (
        json.dumps(_record(run, found[0].against, pair), ensure_ascii=False) + "\n"
        for run, pairs in judged.items()
        for pair in pairs
    )
    _replace(folder / "pairs.jsonl", lines)
    rows = [_flat(rate) for rate in found]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _replace(folder / "judge.csv", [table.getvalue()])
    _replace(folder / "judge.json", [json.dumps(content, indent=2, ensure_ascii=False) + "\n"])


def _record(run: str, against: str, found: Judged) -> dict[str, Any]:
    """A line of pairs.jsonl."""
    pair = found.pair
    record = {"run": run, "against": against, "prompt": pair.prompt, "seed": pair.seed, "sample": pair.sample}
    record |= {"completion": pair.answers[0], "against_completion": pair.answers[1]}
    record |= {} if pair.reference is None else {"reference": pair.reference}
    names = {1.0: run, 0.0: against, 0.5: "tie", None: None}
    orders = [] if pair.identical else zip((run, against), found.scores, found.texts, strict=True)
    judge = [{"shown_first": first, "prefers": names[score], "text": text} for first, score, text in orders]
    return record | {"score": found.score, "judge": judge}


def _flat(rate: WinRate) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in rate.as_dict().items():
        if isinstance(value, dict):  # an estimate
            row |= {name if key == "value" else f"{name}_{key}": number for key, number in value.items()}
        elif name == "bounds":
            row |= {"bound_low": value[0], "bound_high": value[1]}
        else:
            row[name] = value
    return row


def _replace(path: Path, parts: Iterable[str]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as stream:
        stream.writelines(parts)
    os.replace(temporary, path)
