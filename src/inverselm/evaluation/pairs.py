"""Does an accumulated reward prefer the better of two answers to the same prompt?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .correlation import _checked, answer_controls, make_report
from .results import RewardReport
from .statistics import bootstrap, cluster_index


def pairwise_accuracy(
    rewards: Mapping[str, Sequence[float]],
    labels: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    controls: Mapping[str, str] | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RewardReport:
    """Share of pairs of answers to one prompt in which the answer with the higher label has the higher reward.

    Every pair with different labels counts, a tie of the reward as half. Intervals: percentile bootstrap over prompts,
    all pairs of a prompt together. 0.5 is chance.

    Args:
        rewards: name -> one number per answer; `answer_values` makes sums, means and controls of token rewards.
        labels: right (True, 1) or wrong, or any score; higher is better.
        prompts: the prompt of each answer, in any hashable form.
        groups: pair answers within these only (chosen with its own rejected); default: within prompts.
        controls: reward -> the one to compare it with, on the same resamples; default: `answer_controls`.
        n: bootstrap resamples.
        seed: of the resamples.
        level: of the intervals.

    Returns:
        A report with the measure `accuracy` and the counts `prompts`, `answers` and `pairs` (prompts and answers: those
        that are in a pair).

    Raises:
        UserError: lists of different lengths, a number that is not finite, or no pair with different labels.

    Example:
        >>> report = pairwise_accuracy({"r": [3, 1, 1]}, [True, False, True], ["a", "a", "a"])
        >>> report.values["accuracy"]["r"].value, report.counts["pairs"]
        (0.75, 2)
    """
    values, truth, index = _checked(rewards, labels, prompts)
    if groups is not None and len(groups) != truth.size:
        raise UserError(f"there are {len(groups)} groups for {truth.size} labels; give one for each answer")
    better, worse = _pairs(truth, index if groups is None else cluster_index(list(groups)))
    if not better.size:
        raise UserError("no prompt has two answers of different labels: sample several answers to each prompt")
    wins = np.stack([(v[better] > v[worse]) + 0.5 * (v[better] == v[worse]) for v in values.values()], axis=1)
    cluster = cluster_index(index[better].tolist())
    sums = np.zeros((int(cluster.max()) + 1, wins.shape[1]))
    np.add.at(sums, cluster, wins)
    sizes = np.bincount(cluster).astype(float)

    def accuracy(weights: Any) -> Any:
        return weights @ sums / (weights @ sizes)[:, None]

    pairs = answer_controls(list(values)) if controls is None else dict(controls)
    answers = np.unique(np.concatenate([better, worse]))
    counts = {"prompts": len(sizes), "answers": int(answers.size), "pairs": int(better.size)}
    found = bootstrap(accuracy, np.arange(len(sizes)), n, seed)
    return make_report({"accuracy": found}, list(values), pairs, counts, {"accuracy": 0.5}, level)


def _pairs(labels: Any, groups: Any) -> tuple[Any, Any]:
    """Indices of the better and of the worse answer of every pair."""
    order = np.argsort(groups, kind="stable")
    better, worse = [], []
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        above, below = np.nonzero(labels[rows][:, None] > labels[rows][None, :])
        better.append(rows[above])
        worse.append(rows[below])
    return np.concatenate(better), np.concatenate(worse)
