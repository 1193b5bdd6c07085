"""Best-of-n with token rewards: one number for each candidate, and the candidates of each prompt in its order."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .segments import segment_numbers

if TYPE_CHECKING:
    from ..scorers import ScoredCompletion, TokenScorer

BY = ("sum", "mean", "length_controlled", "min")


@dataclass(frozen=True)
class Ranked:
    """A candidate in its place.

    Attributes:
        index: of the candidate in its prompt's list.
        score: what it was ranked by, nats.
        scored: its tokens with their rewards.
    """

    index: int
    score: float
    scored: ScoredCompletion


def best_of_n(scorer: TokenScorer, prompts: Sequence[Any], candidates: Sequence[Sequence[Any]], **options: Any) -> Any:
    """The best candidate of each prompt: the first of `rerank`, which explains the arguments.

    Returns:
        One `Ranked` per prompt.

    Example:
        >>> answers = generate(model, tokenizer, prompts, num_return=8)
        >>> texts = [group[best.index].text for group, best in zip(answers, best_of_n(reward, prompts, answers))]
    """
    return [ranked[0] for ranked in rerank(scorer, prompts, candidates, **options)]


def rerank(
    scorer: TokenScorer,
    prompts: Sequence[Any],
    candidates: Sequence[Sequence[Any]],
    *,
    by: str = "sum",
    unit: str = "token",
    batch_size: int = 16,
    progress: bool = False,
) -> list[list[Ranked]]:
    """Score given candidates, and order those of each prompt, the best first. Equal scores keep their order.

    Args:
        scorer: of token rewards.
        prompts: strings, or lists of chat messages.
        candidates: for each prompt its candidates: texts (ended by EOS), messages, token ids, or what `generate`
            returns, whose sampled ids are scored as they are.
        by: see `answer_scores`.
        unit: of `by="min"`: "token", "sentence" or "line".
        batch_size: candidates per forward pass.
        progress: show a progress bar.

    Raises:
        UserError: another number of lists than of prompts, a prompt without a candidate, an empty candidate, an unknown
            `by` or `unit`.

    Example:
        >>> [[best, worst]] = rerank(reward, ["2+2="], [[" 5", " 4"]], by="mean")
        >>> best.index
        1
    """
    if len(prompts) != len(candidates):
        raise UserError(f"{len(prompts)} prompts but {len(candidates)} lists of candidates; give one for each")
    if any(isinstance(group, str) for group in candidates):
        raise UserError("candidates holds a text where a list of texts is needed, one list for each prompt")
    if not all(candidates):
        raise UserError("a prompt has no candidate; leave it out")
    check_by(by, unit)
    owner = [i for i, group in enumerate(candidates) for _ in group]
    answers = [_ids_or_text(candidate) for group in candidates for candidate in group]
    scored = scorer.score([prompts[i] for i in owner], answers, batch_size=batch_size, progress=progress)
    scores = answer_scores([s.rewards for s in scored], owner, by=by, segments=[segments_of(s, unit) for s in scored])
    out: list[list[Ranked]] = [[] for _ in prompts]
    for i, score, completion in zip(owner, scores, scored, strict=True):
        out[i].append(Ranked(len(out[i]), score, completion))
    return [sorted(ranked, key=lambda candidate: -candidate.score) for ranked in out]


def answer_scores(
    token_rewards: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    *,
    by: str = "sum",
    segments: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """One number, higher is better, for each answer.

    - `sum`: the accumulated reward, R. The return that training maximises; longer answers have more room for it.
    - `mean`: R / T, where T is the number of tokens, EOS included.
    - `length_controlled`: R - b (T - mean T of the group), where b is the least-squares slope of R on T within groups,
      one for all of them (`length_slope`). Within groups these scores are uncorrelated with T, and a constant added to
      every token's reward changes nothing. A single group gives the residual of its own regression (plus its mean R).
    - `min`: the reward of the worst token; with `segments`, of the segment whose tokens have the lowest mean.

    Args:
        token_rewards: for each answer the rewards of its tokens, nats.
        groups: what answers are candidates of one another: their prompt.
        by: one of `BY`.
        segments: for each answer the segment of each token (`segment_numbers`), for `min`; None: tokens.

    Raises:
        UserError: an unknown `by`, an answer without tokens, a reward that is not finite.

    Example:
        >>> answer_scores([[0.5, -0.1], [0.2]], ["a", "a"], by="mean")
        [0.2, 0.2]
    """
    check_by(by)
    for i, rewards in enumerate(token_rewards):
        if not len(rewards):
            raise UserError(f"answer {i} has no token; leave it out")
        if not all(math.isfinite(reward) for reward in rewards):
            raise UserError(f"answer {i} has a reward that is not finite; leave it out, or clip")
    if by == "min":
        numbers = segments or [range(len(rewards)) for rewards in token_rewards]
        return [min(segment_means(r, n).values()) for r, n in zip(token_rewards, numbers, strict=True)]
    sums, lengths = [math.fsum(rewards) for rewards in token_rewards], [len(rewards) for rewards in token_rewards]
    if by == "mean":
        return [total / length for total, length in zip(sums, lengths, strict=True)]
    if by == "sum":
        return sums
    slope = length_slope(sums, lengths, groups)
    return [total - slope * gap for total, gap in zip(sums, _centred(lengths, groups), strict=True)]


def length_slope(sums: Sequence[float], lengths: Sequence[int], groups: Sequence[Hashable]) -> float:
    """Least-squares slope of the sums on the lengths, nats per token, both centred within groups; 0 if none varies.

    Example:
        >>> length_slope([1.0, 3.0, 8.0], [1, 2, 9], ["a", "a", "b"])
        2.0
    """
    x, y = _centred(lengths, groups), _centred(sums, groups)
    spread = math.fsum(a * a for a in x)
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def length_correlation(scores: Sequence[float], lengths: Sequence[int], groups: Sequence[Hashable]) -> float:
    """Pearson's correlation of scores and lengths within groups, pooled; nan if one of them never varies there."""
    x, y = _centred(lengths, groups), _centred(scores, groups)
    scale = math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / scale if scale else math.nan


def segment_means(rewards: Sequence[float], numbers: Sequence[int]) -> dict[int, float]:
    """Mean reward per token of each segment that has a token, nats."""
    found: dict[int, list[float]] = {}
    for reward, number in zip(rewards, numbers, strict=True):
        found.setdefault(number, []).append(reward)
    return {number: math.fsum(part) / len(part) for number, part in found.items()}


def segments_of(scored: ScoredCompletion, unit: str) -> list[int]:
    """The segment of each token of a scored completion."""
    return segment_numbers([token.text for token in scored.tokens], unit, scored.terminated)


def check_by(by: str, unit: str = "token") -> None:
    """A known score and a known unit.

    Raises:
        UserError: they are not.
    """
    if by not in BY:
        raise UserError(f"by is {by!r}; choose {', '.join(BY)}")
    segment_numbers([], unit)


def _centred(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    parts: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        parts.setdefault(group, []).append(value)
    means = {group: math.fsum(part) / len(part) for group, part in parts.items()}
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def _ids_or_text(candidate: Any) -> Any:
    ids = getattr(candidate, "token_ids", None)
    return candidate if ids is None else list(ids)
