"""Held-out accuracy of the demo's models over temperatures, and how well rewards find planted errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.gsm8k import CalculatorLogitsProcessor, is_correct
from ..evaluation.localisation import auroc, overlapping
from ..evaluation.metrics import bootstrap_ci, compute_metrics
from ..inference.generate import generate
from ..scorers import ScoredCompletion, TokenScorer
from .problems import plant_error


@dataclass(frozen=True)
class Result:
    """One model with one sampler on the held-out problems.

    Attributes:
        model: its name in the table.
        temperature: 0 is greedy.
        calculator: whether results in `<<...>>` were filled in.
        per_problem: share of right answers of each problem.
        interval: 95% bootstrap interval of the accuracy, over problems.
        length: mean answer length in tokens.
        truncated: share of answers without EOS.
        self_bleu: Self-BLEU-4 of a problem's answers, 0 to 100 (high = less diverse); None for greedy.
    """

    model: str
    temperature: float
    calculator: bool
    per_problem: tuple[float, ...]
    interval: tuple[float, float]
    length: float
    truncated: float
    self_bleu: float | None

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(np.mean(self.per_problem))


@dataclass(frozen=True)
class Planted:
    """A right answer with one wrong digit planted in it, scored.

    Attributes:
        prompt: the question.
        right: scores of the right answer.
        wrong: scores of the answer with the planted error.
        marked: token range [start, end) of the wrong digits in `wrong`.
    """

    prompt: str
    right: ScoredCompletion
    wrong: ScoredCompletion
    marked: tuple[int, int]


def evaluate(
    name: str,
    model: Any,
    tokenizer: Any,
    problems: Sequence[dict[str, Any]],
    *,
    temperature: float,
    calculator: bool,
    samples: int,
    max_new_tokens: int = 96,
    seed: int = 0,
) -> Result:
    """Sample answers to all problems and count the right ones."""
    answers = generate(
        model,
        tokenizer,
        [problem["prompt"] for problem in problems],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_return=samples if temperature else 1,
        batch_size=256,
        seed=seed,
        logits_processor=CalculatorLogitsProcessor if calculator else None,
        progress=False,
    )
    right = [
        float(np.mean([is_correct(answer.text, problem["answer"]) for answer in group]))
        for group, problem in zip(answers, problems, strict=True)
    ]
    flat = [answer for group in answers for answer in group]
    diversity = None
    if temperature and samples > 1 and not calculator:
        texts = [[answer.text for answer in group] for group in answers]
        found = compute_metrics(["diversity"], texts, [p["answer"] for p in problems])
        diversity = found.get(f"self_bleu_n{samples}")
    return Result(
        model=name,
        temperature=temperature,
        calculator=calculator,
        per_problem=tuple(right),
        interval=bootstrap_ci(right),
        length=float(np.mean([len(answer.token_ids) for answer in flat])),
        truncated=float(np.mean([not answer.finished for answer in flat])),
        self_bleu=diversity,
    )


def planted_errors(scorer: TokenScorer, problems: Sequence[dict[str, Any]], *, seed: int = 0) -> list[Planted]:
    """Plant an error in the reference answer of every problem that allows it, and score both."""
    chosen = []
    for i, problem in enumerate(problems):
        planted = plant_error(problem["completion"], seed + i)
        if planted is not None:
            chosen.append((problem, planted))
    prompts = [problem["prompt"] for problem, _ in chosen]
    rights = scorer.score(prompts, [problem["completion"] for problem, _ in chosen], batch_size=64)
    wrongs = scorer.score(prompts, [text for _, (text, _, _) in chosen], batch_size=64)
    out = []
    for (problem, (_, start, end)), right, wrong in zip(chosen, rights, wrongs, strict=True):
        places = _changed(right, wrong, start, end)
        out.append(Planted(problem["prompt"], right, wrong, (places[0], places[-1] + 1)))
    return out


def _changed(right: ScoredCompletion, wrong: ScoredCompletion, start: int, end: int) -> list[int]:
    """Tokens of the planted number that differ from the right answer's (all of them if the tokens do not line up)."""
    hits = overlapping([(token.start, token.end) for token in wrong.tokens], start, end)
    places = [i for i, hit in enumerate(hits) if hit]
    if len(right.tokens) != len(wrong.tokens):
        return places
    return [i for i in places if right.tokens[i].token_id != wrong.tokens[i].token_id] or places


def localisation(planted: Sequence[Planted]) -> dict[str, float]:
    """How well -r_t finds the planted tokens.

    Returns:
        `auroc`: of -r_t over the tokens of all wrong answers; `first`: share of wrong answers whose lowest reward lies
        on the planted number; `pairs`: share of problems whose right answer has the larger reward sum.
    """
    scores, labels, first, pairs = [], [], [], []
    for item in planted:
        rewards = item.wrong.rewards
        hit = [item.marked[0] <= i < item.marked[1] for i in range(len(rewards))]
        scores += [-reward for reward in rewards]
        labels += hit
        first.append(hit[int(np.argmin(rewards))])
        pairs.append(item.right.total > item.wrong.total)
    return {"auroc": auroc(scores, labels), "first": float(np.mean(first)), "pairs": float(np.mean(pairs))}
