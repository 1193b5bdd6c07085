"""Demonstrations by their token rewards: where one is probably wrong, and which to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError
from .reranking import segment_means, segments_of

if TYPE_CHECKING:
    from ..scorers import ScoredCompletion


@dataclass(frozen=True)
class Place:
    """A part of an answer.

    Attributes:
        text: the part, as scored.
        start: where it begins in the scored text, in characters.
        end: where it ends.
        first: its first token.
        last: its last token.
        reward: mean reward of its tokens, nats.
    """

    text: str
    start: int
    end: int
    first: int
    last: int
    reward: float


def suspicion(scored: ScoredCompletion, unit: str = "token", *, share: float = 1.0) -> Place:
    """The part of an answer that is most probably wrong: its token with the lowest reward, or the line that holds it.

    An error that contradicts the rest of its answer makes later tokens surprising too, and the lowest one may be among
    them: a smaller `share` then names the first token that is nearly as low.

    Args:
        scored: the answer.
        unit: "token", or the "sentence" or "line" in which that token begins.
        share: take the first token whose reward is at most this share of the lowest one (which must be negative; else
            the lowest is taken); 1 is the lowest token itself, of equal ones the first.

    Raises:
        UserError: unknown unit, or a share that is not above 0 and at most 1.

    Example:
        >>> place = suspicion(reward.score(["2+2="], [" 5"])[0])
        >>> place.text, place.start, place.reward
    """
    if not 0 < share <= 1:
        raise UserError(f"share is {share}; set it above 0 and at most 1")
    numbers, rewards = segments_of(scored, unit), scored.rewards
    lowest = min(rewards)
    bound = share * lowest if lowest < 0 else lowest
    number = numbers[next(i for i, reward in enumerate(rewards) if reward <= bound)]
    tokens = [i for i, other in enumerate(numbers) if other == number]
    start, end = scored.tokens[tokens[0]].start, scored.tokens[tokens[-1]].end
    return Place(scored.text[start:end], start, end, tokens[0], tokens[-1], segment_means(rewards, numbers)[number])


def keep_rows(scores: Sequence[float], *, share: float | None = None, threshold: float | None = None) -> list[bool]:
    """Which rows to keep: the best share of them, or those that reach a threshold.

    Args:
        scores: of the rows, higher is better.
        share: above 0, at most 1; rounded to whole rows, at least one. Of equal scores the earlier rows are kept.
        threshold: rows with a lower score go.

    Raises:
        UserError: both, none, or a share out of range.

    Example:
        >>> keep_rows([0.3, -2.0, 0.1], share=0.67)
        [True, False, True]
    """
    if (share is None) == (threshold is None):
        raise UserError("keep the best share, or what reaches a threshold: give one of them")
    if threshold is not None:
        return [score >= threshold for score in scores]
    if share is None or not 0 < share <= 1:
        raise UserError(f"the share to keep is {share}; set it above 0 and at most 1")
    count = max(1, round(share * len(scores)))
    best = set(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])
    return [i in best for i in range(len(scores))]
