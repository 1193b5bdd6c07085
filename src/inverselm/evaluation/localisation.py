"""Does a token reward point at the place where an answer is wrong?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .correlation import RANDOM, make_report, token_counts
from .results import RewardReport
from .statistics import Auroc, bootstrap, cluster_index

UNTIL = "_until"
"""At the end of a measure's name: over the tokens up to the planted one only."""


def auroc(scores: Sequence[float], positives: Sequence[bool]) -> float:
    """Probability that a positive scores higher than a negative, ties counted half (the Mann-Whitney statistic).

    Raises:
        ValueError: there is no positive or no negative.

    Example:
        >>> auroc([0.9, 0.1, 0.4], [True, False, False])
        1.0
    """
    values, labels = np.asarray(scores, dtype=float), np.asarray(positives, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError("auroc needs at least one positive and one negative.")
    return float(Auroc(values, labels)(np.ones((1, values.size)))[0])


def overlapping(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[bool]:
    """Which token spans share a character with [start, end).

    Example:
        >>> overlapping([(0, 2), (2, 4)], 3, 4)
        [False, True]
    """
    return [a < end and b > start for a, b in spans]


def planted_tokens(
    spans: Sequence[tuple[int, int]],
    start: int,
    end: int,
    *,
    ids: Sequence[int] | None = None,
    right_ids: Sequence[int] | None = None,
) -> list[bool]:
    """Which tokens of a wrong answer hold what was planted in it.

    Those that share a character with [start, end); a token that only begins a character (its span is empty) goes with
    the token that completes it. If the right answer's ids are known, a token before the first difference is none of
    them: it was chosen alike in both.

    Args:
        spans: (start, end) of each token in the text, as `TokenScore` has them.
        start: where the planted text begins.
        end: where it ends.
        ids: token ids of the wrong answer.
        right_ids: token ids of the right answer.

    Example:
        >>> planted_tokens([(0, 3), (3, 4), (4, 5)], 3, 5, ids=[7, 1, 4], right_ids=[7, 1, 2])  # " is" "1" "4"
        [False, False, True]
    """
    hits = overlapping(spans, start, end)
    for i in range(len(spans) - 2, -1, -1):
        if spans[i][0] == spans[i][1]:
            hits[i] = hits[i + 1]
    if ids is None or right_ids is None:
        return hits
    shared = 0
    while shared < min(len(ids), len(right_ids)) and ids[shared] == right_ids[shared]:
        shared += 1
    return [hit and i >= shared for i, hit in enumerate(hits)]


def error_localisation(
    token_rewards: Mapping[str, Sequence[Sequence[float]]],
    planted: Sequence[Sequence[bool]],
    *,
    prompts: Sequence[Hashable] | None = None,
    controls: Mapping[str, str] | None = None,
    precision_at: Sequence[int] = (3,),
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RewardReport:
    """Where answers with a planted error have their lowest rewards: at the error?

    Measures, each over all tokens of an answer and again, named `.._until`, over those up to the last planted one: what
    follows a wrong token is written in a wrong context, and its rewards are affected too.

    - `auroc`: the chance that -r of a planted token is above -r of another token, over the tokens of all answers.
    - `rank`: the share of an answer's other tokens with a lower reward than the planted one; 0 is best, 0.5 chance.
    - `top1`: share of answers whose lowest token is a planted one.
    - `precision@k`: planted tokens among the k lowest of an answer, per k (or per token, if there are fewer than k).

    Ties count by expectation. The last three are means over answers with at least one other token. Intervals:
    percentile bootstrap over prompts. A control `random`, rewards drawn at random, is added: it shows the chance level.

    Args:
        token_rewards: name -> for each wrong answer the rewards of its tokens.
        planted: for each answer and token whether it was planted; `planted_tokens` finds them.
        prompts: what answers belong together; None: each is on its own.
        controls: reward -> the one to compare it with, on the same resamples.
        precision_at: the k of `precision@k`.
        n: bootstrap resamples.
        seed: of the resamples and of `random`.
        level: of the intervals.

    Returns:
        A report with the counts `answers`, `prompts`, `tokens` and `planted` (tokens).

    Raises:
        UserError: lists of different lengths, an answer without a planted token, or no answer with another one.

    Example:
        >>> report = error_localisation({"r": [[0.5, -2.0, 0.1]]}, [[False, True, False]])
        >>> report.values["auroc"]["r"].value, report.values["rank"]["r"].value
        (1.0, 0.0)
    """
    labels, cluster = _checked(token_rewards, planted, prompts)
    rng = np.random.default_rng(seed)
    rewards = dict(token_rewards) | {RANDOM: [rng.random(len(answer)).tolist() for answer in labels]}
    measures: dict[str, tuple[Any, Any]] = {}
    ends = [int(np.flatnonzero(answer)[-1]) + 1 for answer in labels]
    for suffix, lengths in (("", [len(answer) for answer in labels]), (UNTIL, ends)):
        kept = [answer[:end] for answer, end in zip(labels, lengths, strict=True)]
        cut = {name: _cut(answers, lengths) for name, answers in rewards.items()}
        measures[f"auroc{suffix}"] = _pooled(cut, kept, cluster, n, seed)
        measures |= _per_answer(cut, kept, cluster, precision_at, suffix, n, seed)
    counts = {"prompts": int(cluster.max()) + 1, "answers": len(labels), "tokens": sum(map(len, labels))}
    counts["planted"] = int(sum(answer.sum() for answer in labels))
    chance = {f"{name}{suffix}": 0.5 for name in ("auroc", "rank") for suffix in ("", UNTIL)}
    return make_report(measures, list(rewards), controls or {}, counts, chance, level)


def _cut(answers: Sequence[Sequence[float]], lengths: Sequence[int]) -> list[Any]:
    return [np.asarray(tokens[:end], dtype=float) for tokens, end in zip(answers, lengths, strict=True)]


def _pooled(rewards: Mapping[str, list[Any]], labels: list[Any], cluster: Any, n: int, seed: int) -> tuple[Any, Any]:
    """AUROC over the tokens of all answers."""
    positives, owner = np.concatenate(labels), np.repeat(np.arange(len(labels)), [len(answer) for answer in labels])
    found = [Auroc(-np.concatenate(answers), positives, owner) for answers in rewards.values()]
    return bootstrap(lambda w: np.stack([f(w) for f in found], axis=1), cluster, n, seed, size=positives.size)


def _per_answer(
    rewards: Mapping[str, list[Any]],
    labels: list[Any],
    cluster: Any,
    precision_at: Sequence[int],
    suffix: str,
    n: int,
    seed: int,
) -> dict[str, tuple[Any, Any]]:
    """Means over the answers that have a token besides the planted ones."""
    usable = np.array([not answer.all() for answer in labels])
    names = ["rank", "top1", *(f"precision@{k}" for k in precision_at)]
    found = np.zeros((len(labels), len(names), len(rewards)))
    for i in np.flatnonzero(usable):
        for column, answers in enumerate(rewards.values()):
            found[i, :, column] = _of_answer(answers[i], labels[i], precision_at)

    def mean(weights: Any) -> Any:
        total = weights @ usable.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0, 1 / total, np.nan)
        return (weights @ found.reshape(len(labels), -1)) * share[:, None]

    values, drawn = bootstrap(mean, cluster, n, seed)
    values, drawn = values.reshape(found.shape[1:]), drawn.reshape(n, *found.shape[1:])
    return {f"{name}{suffix}": (values[i], drawn[:, i]) for i, name in enumerate(names)}


def _of_answer(rewards: Any, planted: Any, precision_at: Sequence[int]) -> list[float]:
    """rank, top1, precision@k of one answer, ties by expectation."""
    others = np.sort(rewards[~planted])
    below = np.searchsorted(others, rewards[planted], "left")
    not_above = np.searchsorted(others, rewards[planted], "right")
    rank = float(((below + not_above) / 2).mean() / others.size)
    return [rank, *(_among_lowest(rewards, planted, k) for k in (1, *precision_at))]


def _among_lowest(rewards: Any, planted: Any, k: int) -> float:
    """Expected share of planted tokens among the k lowest, tied tokens in random order."""
    k = min(k, rewards.size)
    edge = np.sort(rewards)[k - 1]
    sure, tied = rewards < edge, rewards == edge
    room = k - int(sure.sum())
    return float((planted[sure].sum() + room * planted[tied].mean()) / k)


def _checked(
    token_rewards: Mapping[str, Sequence[Sequence[float]]],
    planted: Sequence[Sequence[bool]],
    prompts: Sequence[Hashable] | None,
) -> tuple[list[Any], Any]:
    """Labels as arrays, and the prompt number of each answer."""
    if not token_rewards:
        raise UserError("there is no reward: give {name: [token rewards of each answer]}")
    if RANDOM in token_rewards:
        raise UserError(f"the name {RANDOM!r} is the control's; rename the reward")
    labels = [np.asarray(answer, dtype=bool) for answer in planted]
    if not labels:
        raise UserError("there are no answers")
    if token_counts(token_rewards) != [len(answer) for answer in labels]:
        raise UserError("planted must say True or False for every token of every answer")
    for i, answer in enumerate(labels):
        if not answer.any():
            raise UserError(f"answer {i} has no planted token; leave it out")
    if all(answer.all() for answer in labels):
        raise UserError("no answer has a token besides the planted ones")
    if prompts is not None and len(prompts) != len(labels):
        raise UserError(f"there are {len(prompts)} prompts for {len(labels)} answers; repeat a prompt for each answer")
    return labels, np.arange(len(labels)) if prompts is None else cluster_index(list(prompts))
