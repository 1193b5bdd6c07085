"""Win rates of judged pairs: intervals, tests, the rate at equal length, and how much the judge went by position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..errors import UserError
from .comparison import Comparison, adjust, compare_runs, mean_score
from .judging import FIRST, SECOND, Judged
from .length_control import UNDEFINED, equal_length_rate
from .results import Estimate


@dataclass(frozen=True)
class WinRate:
    """How often a judge prefers a run to the first one.

    Attributes:
        run: its name.
        against: name of the first run.
        rate: share of pairs won, ties as half, mean over prompts and seeds, with its interval; 1/2 is no preference.
        equal_length: the rate where both answers are equally long (`inverselm.evaluation.length_control`).
        p: two-sided, as in `Comparison`: of the sign-flip test over prompts, or the larger one with several seeds.
        p_adjusted: after Holm's correction over the runs that were judged together.
        wins: pairs in which both orders of the answers gave the run.
        ties: all other pairs with two verdicts, and identical answers.
        losses: pairs in which both orders gave the first run.
        identical: ties of equal texts, which no judge was asked about.
        unread: pairs left out because an answer of the judge has no verdict.
        unanswered: pairs left out because the judge did not answer.
        bounds: the rate if all pairs left out were lost, and won.
        length: mean length of the run's answers, in characters.
        against_length: of the first run's.
        longer: share of pairs in which the run's answer is the longer one.
        first_position: share of the decisions (no ties) for the answer shown first; 1/2 without position bias. None
            if nothing was decided.
        agreement: share of pairs with two verdicts in which both orders say the same of the answers. None if none.
        prompts: that the rate is a mean over.
        seeds: pairs of files.
        alpha: the interval is a 1 - alpha one.
    """

    run: str
    against: str
    rate: Estimate
    equal_length: Estimate
    p: float
    p_adjusted: float
    wins: int
    ties: int
    losses: int
    identical: int
    unread: int
    unanswered: int
    bounds: tuple[float, float]
    length: float
    against_length: float
    longer: float
    first_position: float | None
    agreement: float | None
    prompts: int
    seeds: int
    alpha: float

    @property
    def pairs(self) -> int:
        """All pairs, those left out too."""
        return self.wins + self.ties + self.losses + self.unread + self.unanswered

    @property
    def shown(self) -> bool:
        """Whether a preference is shown: the interval leaves out 1/2, and the adjusted p is below alpha."""
        return self._leaves_out_half(self.rate) and self.p_adjusted < self.alpha

    @property
    def verdict(self) -> str:
        """`preferred: win rate 0.620 [0.540, 0.700], p = 0.004`, `not preferred: ..` or `no difference shown (..)`.

        A preference that is not shown at equal length says so.
        """
        if math.isnan(self.rate.value):
            return "not judged: too few pairs have a verdict"
        p = "p < 0.001" if self.p_adjusted < 0.001 else f"p = {self.p_adjusted:.2g}"
        if not self.shown:
            return f"no difference shown (win rate {self.rate}, {p})"
        text = f"{'preferred' if self.rate.value > 0.5 else 'not preferred'}: win rate {self.rate}, {p}"
        if math.isnan(self.equal_length.value):
            return text
        same = (self.equal_length.value > 0.5) == (self.rate.value > 0.5)
        if self._leaves_out_half(self.equal_length) and same:
            return text
        return f"{text}; at equal length no such difference is shown ({self.equal_length})"

    def _leaves_out_half(self, estimate: Estimate) -> bool:
        return estimate.low > 0.5 or estimate.high < 0.5

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; undefined numbers are None."""
        found = {**asdict(self), "pairs": self.pairs}
        for name in ("rate", "equal_length"):
            found[name] = {key: _plain(value) for key, value in getattr(self, name)._asdict().items()}
        found |= {name: _plain(found[name]) for name in ("p", "p_adjusted", "length", "against_length", "longer")}
        found["bounds"] = [_plain(value) for value in self.bounds]
        return {**found, "shown": self.shown, "verdict": self.verdict}


def win_rates(
    judged: Mapping[str, Sequence[Judged]], against: str, *, n: int = 10_000, alpha: float = 0.05, seed: int = 0
) -> list[WinRate]:
    """Win rates of runs against one other run, from judged pairs.

    Interval and test are those of `compare_runs`, for the run's score and its complement to 1: a bootstrap over
    prompts, and over seeds too where there are several; a sign-flip test over prompts. A prompt's pairs together weigh
    1. Pairs without two verdicts are left out; `bounds` says how much that could matter.

    Args:
        judged: run -> its pairs.
        against: name of the run they are compared with.
        n: resamples, and permutations.
        alpha: level of the tests.
        seed: of resamples and permutations.

    Raises:
        UserError: n < 1, or alpha not between 0 and 1; scipy missing (several seeds).

    Example:
        >>> from inverselm.evaluation.judging import Pair
        >>> pairs = [Judged(Pair(f"question {i}", ("long", "no"), number=i), ("A", "B")) for i in range(6)]
        >>> [found] = win_rates({"dpr": pairs}, "sft")
        >>> found.rate.value, found.wins, found.first_position, found.verdict
        (1.0, 6, 0.5, 'preferred: win rate 1.000 [1.000, 1.000], p = 0.031')
    """
    if n < 1 or not 0 < alpha < 1:
        raise UserError(f"win rates need n >= 1 and 0 < alpha < 1: n is {n}, alpha is {alpha}")
    found = [_win_rate(run, against, list(pairs), n, alpha, seed) for run, pairs in judged.items()]
    tests = adjust([test for test, _ in found if test is not None])
    left = iter(tests)
    return [rate if test is None else replace(rate, p_adjusted=next(left).p_adjusted) for test, rate in found]


def _win_rate(
    run: str, against: str, judged: list[Judged], n: int, alpha: float, seed: int
) -> tuple[Comparison | None, WinRate]:
    valid = [j for j in judged if j.score is not None]
    scores = np.array([j.score for j in valid], dtype=float)
    seeds = 1 + max((j.pair.seed for j in judged), default=0)
    numbers = {number: i for i, number in enumerate(sorted({j.pair.number for j in valid}))}
    cells = [(j.pair.seed, numbers[j.pair.number]) for j in valid]
    test, rate, equal = None, UNDEFINED, UNDEFINED
    tables = _tables(cells, scores, (seeds, len(numbers)))
    if len(numbers) > 1 and (tables[0][..., 1].sum(axis=1) > 1).all():
        named = {against: tables[1], run: tables[0]}
        [test] = compare_runs(named, score=mean_score, metric="win rate", n=n, alpha=alpha, seed=seed)
        rate = Estimate(*(min(1.0, max(0.0, (1 + value) / 2)) for value in test.difference))
        differences = [len(j.pair.answers[0]) - len(j.pair.answers[1]) for j in valid]
        rows, columns = zip(*cells, strict=True)
        equal = equal_length_rate(scores.tolist(), differences, columns, rows, n=n, alpha=alpha, seed=seed)
    p = math.nan if test is None else test.p
    sizes = np.array([[len(text) for text in j.pair.answers] for j in judged], dtype=float).reshape(-1, 2)
    first, agreement = positions(judged)
    missing = [j for j in judged if j.score is None]
    found = WinRate(
        run=run,
        against=against,
        rate=rate,
        equal_length=equal,
        p=p,
        p_adjusted=p,
        wins=int((scores == 1).sum()),
        ties=int((scores == 0.5).sum()),
        losses=int((scores == 0).sum()),
        identical=sum(j.pair.identical for j in judged),
        unread=sum(all(j.answered) for j in missing),
        unanswered=sum(not all(j.answered) for j in missing),
        bounds=_bounds(judged),
        length=_mean(sizes[:, 0]),
        against_length=_mean(sizes[:, 1]),
        longer=_mean(sizes[:, 0] > sizes[:, 1]),
        first_position=first,
        agreement=agreement,
        prompts=len(numbers),
        seeds=seeds,
        alpha=alpha,
    )
    return test, found


def _tables(cells: Sequence[tuple[int, int]], scores: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
    """(seeds, prompts, 2) of mean score and 1, or zeros where no pair is valid; for the run, and for the other one."""
    sums, counts = np.zeros(shape), np.zeros(shape)
    for cell, score in zip(cells, scores, strict=True):
        sums[cell] += score
        counts[cell] += 1
    there = counts > 0
    means = np.divide(sums, counts, out=np.zeros(shape), where=there)
    ones = there.astype(float)
    return np.stack([means, ones], axis=-1), np.stack([ones - means, ones], axis=-1)


def _bounds(judged: Sequence[Judged]) -> tuple[float, float]:
    """The rate with 0 and with 1 for every pair that has no score."""
    cells: dict[tuple[int, int], list[float | None]] = {}
    for j in judged:
        cells.setdefault((j.pair.seed, j.pair.number), []).append(j.score)
    low, high = (
        [sum(instead if s is None else s for s in scores) / len(scores) for scores in cells.values()]
        for instead in (0.0, 1.0)
    )
    return (math.nan, math.nan) if not cells else (sum(low) / len(low), sum(high) / len(high))


def positions(judged: Sequence[Judged]) -> tuple[float | None, float | None]:
    """Share of decisions for the answer shown first, and share of pairs whose two orders agree; None without any.

    >>> from inverselm.evaluation.judging import Pair
    >>> positions([Judged(Pair("p", ("a", "b")), verdicts) for verdicts in (("A", "A"), ("A", "B"))])
    (0.75, 0.5)
    """
    verdicts = [v for j in judged for v in j.verdicts]
    first, second = verdicts.count(FIRST), verdicts.count(SECOND)
    both = [j.scores for j in judged if None not in j.verdicts]
    agreeing = sum(one == two for one, two in both)
    return (first / (first + second) if first + second else None), (agreeing / len(both) if both else None)


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else math.nan


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
