"""The demo's page and its printed table: what came out, good or bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.metrics import paired_bootstrap
from ..report import Page, ScoredToken, interval_chart, line_chart, shared_scale, token_heatmap
from ..scorers import ScoredCompletion
from .evaluate import Planted, Result
from .pipeline import ERROR_RATE, SLOPPY_RATE, Size

SLOTS = {"SFT": 0, "IQLearn": 1, "DPR": 2}
HEADER = ("model", "temperature", "calculator", "accuracy", "95% interval", "tokens", "truncated", "Self-BLEU")


def table_rows(results: Sequence[Result]) -> list[list[Any]]:
    """One row per model and sampler, as HEADER says."""
    return [
        [
            r.model,
            "greedy" if r.temperature == 0 else f"{r.temperature:g}",
            "with" if r.calculator else "without",
            f"{r.accuracy:.1%}",
            f"{r.interval[0]:.1%} to {r.interval[1]:.1%}",
            f"{r.length:.1f}",
            f"{r.truncated:.1%}",
            None if r.self_bleu is None else f"{r.self_bleu:.1f}",
        ]
        for r in results
    ]


def text_table(results: Sequence[Result]) -> str:
    """The table for a terminal."""
    rows = [list(HEADER), *([("–" if c is None else str(c)) for c in row] for row in table_rows(results))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def differences(results: Sequence[Result]) -> list[tuple[str, bool, list[tuple[str, str, bool]]]]:
    """IQLearn and DPR against SFT: per sampler, and each model's best sampler against the other's, paired intervals.

    Returns:
        (model, with calculator?, [(sampler, difference in points with its 95% interval, is 0 outside of it?)]).
    """
    out = []
    for calculator in (False, True):
        ours = {name: [r for r in results if r.model == name and r.calculator == calculator] for name in SLOTS}
        for name in ("IQLearn", "DPR"):
            pairs = list(zip(ours["SFT"], ours[name], strict=True))
            best = max(ours["SFT"], key=lambda r: r.accuracy), max(ours[name], key=lambda r: r.accuracy)
            cells = [(_sampler(b), *_difference(a, b)) for a, b in pairs]
            out.append((name, calculator, [*cells, ("best sampler", *_difference(*best))]))
    return out


def verdicts(results: Sequence[Result]) -> list[str]:
    """The differences as lines for a terminal."""
    return [
        f"{name} against SFT, {'with' if calculator else 'without'} the calculator (points of accuracy): "
        + "; ".join(f"{sampler} {text}{'' if shown else ' (no difference shown)'}" for sampler, text, shown in cells)
        for name, calculator, cells in differences(results)
    ]


def _sampler(result: Result) -> str:
    return "greedy" if result.temperature == 0 else f"T={result.temperature:g}"


def _difference(a: Result, b: Result) -> tuple[str, bool]:
    mean, low, high = paired_bootstrap(b.per_problem, a.per_problem)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", not low <= 0 <= high


def build_page(
    results: Sequence[Result],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    planted: Mapping[str, Sequence[Planted]],
    measures: Mapping[str, Mapping[str, float]],
    size: Size,
    seed: int,
    path: Path,
) -> Path:
    """Write the self-contained page."""
    page = Page(
        "From demonstrations to dense rewards and a better policy",
        f"inverselm demo: {size.demonstrations:,} arithmetic word problems, seed {seed}",
    )
    page.text(
        f"Demonstrations are word problems in GSM8K's format; {ERROR_RATE:.0%} of them are wrong and {SLOPPY_RATE:.0%} "
        f"sloppy, as real data is. A small model was trained on them from scratch by SFT and by IQLearn ({size.steps} "
        f"steps each). The SFT run contains a token reward, log π_SFT − log π_baseline, with which Dense-Path "
        f"REINFORCE (DPR) trained the SFT model for {size.dpr_steps} more steps. One seed and one small model: read "
        "it as a tour, not as evidence for or against a method."
    )
    page.heading("What came out")
    found = differences(results)
    page.table(
        ("against SFT", "calculator", *(sampler for sampler, _, _ in found[0][2])),
        [[name, "with" if calc else "without", *(text for _, text, _ in cells)] for name, calc, cells in found],
        caption="Difference in accuracy, points, with paired 95% bootstrap intervals. Highlighted where 0 is outside, "
        "elsewhere no difference shown. Best sampler: each model's own.",
        align="ll" + "r" * len(found[0][2]),
        highlight={(i, k + 2) for i, (_, _, cells) in enumerate(found) for k, cell in enumerate(cells) if cell[2]},
    )
    page.table(HEADER, table_rows(results), caption=_caption(size))
    page.columns([_accuracy_chart(results, False), _accuracy_chart(results, True)])
    _rewards(page, planted, measures)
    _training(page, curves)
    return page.write(path)


def _caption(size: Size) -> str:
    return (
        f"{size.held_out} held-out problems, {size.samples} answers each above temperature 0; 95% bootstrap intervals "
        "over problems. Self-BLEU: BLEU-4 of an answer against the others to the same problem (high = less diverse)."
    )


def _accuracy_chart(results: Sequence[Result], calculator: bool) -> str:
    series = {
        name: [
            (r.temperature, 100 * r.accuracy, 100 * r.interval[0], 100 * r.interval[1])
            for r in results
            if r.model == name and r.calculator == calculator
        ]
        for name in SLOTS
    }
    title = "With the calculator" if calculator else "Without the calculator"
    return interval_chart(series, xlabel="temperature (0 = greedy)", ylabel="accuracy (%)", title=title, slot=SLOTS)


def _rewards(page: Page, planted: Mapping[str, Sequence[Planted]], measures: Mapping[str, Mapping[str, float]]) -> None:
    page.heading("Where the rewards point")
    page.text(
        "In right answers to held-out problems one digit of one result was changed. Does the reward fall there? Chance "
        "is an AUROC of 0.5 and, for the lowest token, one in the length of an answer."
    )
    rows = [[name, f"{m['auroc']:.3f}", f"{m['first']:.1%}", f"{m['pairs']:.1%}"] for name, m in measures.items()]
    header = ("reward", "AUROC of −r at the wrong digit", "lowest token is the wrong digit", "right answer sums higher")
    page.table(header, rows, caption=f"{len(next(iter(planted.values())))} answers with a planted error.")
    for name, items in planted.items():
        page.heading(f"{name}: token rewards", level=3)
        shown = list(items[:2])
        scale = shared_scale([_tokens(x) for item in shown for x in (item.right, item.wrong)])
        for item in shown:
            right = token_heatmap(_tokens(item.right), title="Right answer", prompt=item.prompt, scale=scale)
            wrong = token_heatmap(
                _tokens(item.wrong),
                title="The same with a planted error (underlined)",
                prompt=item.prompt,
                scale=scale,
                marked=item.marked,
            )
            page.columns([right, wrong])


def _tokens(scored: ScoredCompletion) -> list[ScoredToken]:
    return [ScoredToken(token.text, token.reward) for token in scored.tokens]


def _training(page: Page, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    page.heading("Training")
    sft, iqlearn, dpr = curves["SFT"], curves["IQLearn"], curves["DPR"]

    def line(rows: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
        used = [row for row in rows if row.get(key) is not None]
        return [row["step"] for row in used], [float(row[key]) for row in used]

    def chart(series: dict[str, Any], ylabel: str, title: str) -> str:
        return line_chart(series, xlabel="optimiser step", ylabel=ylabel, title=title, slot=SLOTS)

    nll = {"SFT": line(sft, "loss"), "IQLearn": line(iqlearn, "nll")}
    page.columns(
        [
            chart(nll, "nats per token", "Negative log-likelihood"),
            chart({"IQLearn": line(iqlearn, "td_error")}, "mean |δ| (nats)", "Temporal-difference error"),
        ]
    )
    page.columns(
        [
            chart({"DPR": line(dpr, "reward")}, "nats per answer", "Dense reward of the rollouts"),
            chart({"DPR": line(dpr, "kl_sequence")}, "nats per answer", "KL to the SFT model"),
        ]
    )
    page.columns(
        [
            chart({"DPR": line(dpr, "completions/mean_length")}, "tokens", "Answer length of the rollouts"),
            chart({"DPR": line(dpr, "entropy")}, "nats per token", "Entropy of the policy"),
        ]
    )
