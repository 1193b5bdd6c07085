"""Does an accumulated reward rank answers as a task metric does? Overall and among the answers to one prompt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import UserError
from .results import Estimate, RewardReport
from .statistics import Ranks, bootstrap, cluster_index, percentile, spearman, weighted_correlation

LOG_LIKELIHOOD, LENGTH, RANDOM = "log-likelihood", "length", "random"
SUM, MEAN = "sum", "mean"


def answer_values(
    token_rewards: Mapping[str, Sequence[Sequence[float]]],
    *,
    log_probs: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """One number per answer from its token rewards: their sum and their mean, beside the controls.

    Args:
        token_rewards: name -> for each answer the rewards of its tokens, in nats.
        log_probs: for each answer log pi of its tokens under the SFT model, the control `log-likelihood`.
        seed: of the control `random`.

    Returns:
        For every name two entries, `<name>, sum` and `<name>, mean` (normalised by length), then the controls:
        `log-likelihood, sum`, `log-likelihood, mean`, `length` (in tokens), `random`.

    Raises:
        UserError: lists of different lengths, an answer without tokens, a number that is not finite.

    Example:
        >>> values = answer_values({"dense": [[0.5, -0.1], [0.2]]})
        >>> values["dense, sum"], values["dense, mean"], values["length"]
        ([0.4, 0.2], [0.2, 0.2], [2.0, 1.0])
    """
    named = dict(token_rewards) | ({} if log_probs is None else {LOG_LIKELIHOOD: log_probs})
    if not named:
        raise UserError("answer_values needs rewards, {name: [token rewards of each answer]}, or log_probs")
    lengths = token_counts(named)
    out: dict[str, list[float]] = {}
    for name, answers in named.items():
        out[f"{name}, {SUM}"] = [float(np.sum(tokens)) for tokens in answers]
        out[f"{name}, {MEAN}"] = [float(np.mean(tokens)) for tokens in answers]
    out[LENGTH] = [float(n) for n in lengths]
    out[RANDOM] = np.random.default_rng(seed).random(len(lengths)).tolist()
    return out


def token_counts(token_rewards: Mapping[str, Sequence[Sequence[float]]]) -> list[int]:
    """The number of tokens of each answer, the same for all rewards.

    Raises:
        UserError: it is not the same; an answer has none; a reward is not finite.
    """
    lengths: list[int] | None = None
    for name, answers in token_rewards.items():
        found = [len(tokens) for tokens in answers]
        if lengths is not None and found != lengths:
            raise UserError(f"{name!r} has other answers or tokens than the rewards before it; score the same answers")
        lengths = found
        for i, tokens in enumerate(answers):
            if not len(tokens):
                raise UserError(f"{name!r}: answer {i} has no token; leave it out")
            if not np.isfinite(np.asarray(tokens, dtype=float)).all():
                raise UserError(f"{name!r}: answer {i} has a reward that is not finite; leave it out, or clip")
    return lengths or []


def answer_controls(names: Sequence[str]) -> dict[str, str]:
    """For every reward of `answer_values` the log-likelihood that it is compared with: sum with sum, mean with mean.

    >>> answer_controls(["dense, sum", "log-likelihood, sum", "length"])
    {'dense, sum': 'log-likelihood, sum'}
    """
    found = {}
    for name in names:
        control = f"{LOG_LIKELIHOOD}, {name.rpartition(', ')[2]}"
        if control in names and control != name and not name.startswith(f"{LOG_LIKELIHOOD}, "):
            found[name] = control
    return found


def reward_correlation(
    rewards: Mapping[str, Sequence[float]],
    scores: Sequence[float],
    prompts: Sequence[Hashable] | None = None,
    *,
    controls: Mapping[str, str] | None = None,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RewardReport:
    """Spearman's correlation of rewards with a task metric (the question of arXiv 2409.01369, sec. 4.3).

    Two measures. `overall`: over all answers, so that a reward that only tells easy prompts from hard ones scores too.
    `within`: of the answers to each prompt, averaged over the prompts where both the reward and the score vary; what
    reranking and policy gradients live on. Intervals: percentile bootstrap over prompts, all answers of a prompt
    together.

    Args:
        rewards: name -> one number per answer; `answer_values` makes sums, means and controls of token rewards.
        scores: the task metric of each answer; booleans are 0 and 1.
        prompts: what answers belong together, in any hashable form; None: each answer has its own prompt.
        controls: reward -> the one to compare it with, on the same resamples; default: `answer_controls`.
        n: bootstrap resamples.
        seed: of the resamples.
        level: of the intervals.

    Returns:
        A report with the counts `prompts`, `answers` and `prompts_within`, the prompts where the score varies;
        `used["within"]` counts, for each reward, those where it varies too.

    Raises:
        UserError: lists of different lengths, or a number that is not finite.

    Example:
        >>> report = reward_correlation({"r": [1, 2, 3, 4]}, [0, 1, 1, 0], ["a", "a", "b", "b"])
        >>> report.values["overall"]["r"].value, report.values["within"]["r"].value
        (0.0, 0.0)
    """
    values, truth, index = _checked(rewards, scores, prompts)
    groups = [np.flatnonzero(index == i) for i in range(int(index.max()) + 1)] if prompts is not None else []
    groups = [rows for rows in groups if np.ptp(truth[rows]) > 0]
    ranked, true_ranks = {name: Ranks(value) for name, value in values.items()}, Ranks(truth)

    def overall(weights: Any) -> Any:
        target = true_ranks(weights)
        return np.stack([weighted_correlation(r(weights), target, weights) for r in ranked.values()], axis=1)

    each = np.array([[spearman(value[rows], truth[rows]) for value in values.values()] for rows in groups])
    first = np.array([rows[0] for rows in groups], dtype=int)  # a prompt's weight is that of its answers

    def within(weights: Any) -> Any:
        if not groups:
            return np.full((len(weights), len(values)), np.nan)
        defined = ~np.isnan(each)
        total = weights[:, first] @ defined.astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, weights[:, first] @ np.nan_to_num(each) / total, np.nan)

    measures = {name: bootstrap(f, index, n, seed) for name, f in (("overall", overall), ("within", within))}
    counts = {"prompts": int(index.max()) + 1, "answers": len(truth), "prompts_within": len(groups)}
    pairs = answer_controls(list(values)) if controls is None else dict(controls)
    report = make_report(measures, list(values), pairs, counts, {"overall": 0.0, "within": 0.0}, level)
    varying = (~np.isnan(each)).sum(axis=0).tolist() if groups else [0] * len(values)
    return replace(report, used={"within": dict(zip(values, varying, strict=True))})


def make_report(
    measures: Mapping[str, tuple[Any, Any]],
    names: Sequence[str],
    controls: Mapping[str, str],
    counts: dict[str, int],
    chance: dict[str, float],
    level: float,
) -> RewardReport:
    """A report of `bootstrap` results: measure -> ((K,) values, (n, K) replicates), in the order of `names`.

    Raises:
        UserError: a control that is none of the names.
    """
    place = {name: k for k, name in enumerate(names)}
    for name in {*controls, *controls.values()}:
        if name not in place:
            raise UserError(f"{name!r} is none of the rewards: {', '.join(map(repr, names))}")
    values: dict[str, dict[str, Estimate]] = {}
    differences: dict[str, dict[str, Estimate]] = {}
    for measure, (found, drawn) in measures.items():
        values[measure] = {name: percentile(found[k], drawn[:, k], level) for name, k in place.items()}
        differences[measure] = {
            name: percentile(found[place[name]] - found[place[c]], drawn[:, place[name]] - drawn[:, place[c]], level)
            for name, c in controls.items()
        }
    return RewardReport(counts, values, differences, dict(controls), chance, level)


def _checked(
    rewards: Mapping[str, Sequence[float]], scores: Sequence[float], prompts: Sequence[Hashable] | None
) -> tuple[dict[str, Any], Any, Any]:
    """Rewards and scores as float arrays, and the prompt number of each answer."""
    if not rewards:
        raise UserError("there is no reward: give {name: one number per answer}")
    truth = _array("scores", scores)
    if not truth.size:
        raise UserError("there are no answers")
    values = {name: _array(name, value) for name, value in rewards.items()}
    for name, value in values.items():
        if value.size != truth.size:
            raise UserError(f"{name!r} has {value.size} numbers for {truth.size} scores; give one for each answer")
    if prompts is not None and len(prompts) != truth.size:
        raise UserError(f"there are {len(prompts)} prompts for {truth.size} scores; repeat a prompt for each answer")
    return values, truth, np.arange(truth.size) if prompts is None else cluster_index(prompts)


def _array(name: str, values: Sequence[float]) -> Any:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise UserError(f"{name!r} must be one number per answer; `answer_values` sums token rewards up")
    if not np.isfinite(array).all():
        raise UserError(f"{name!r} has a number that is not finite at answer {int(np.argmin(np.isfinite(array)))}")
    return array
