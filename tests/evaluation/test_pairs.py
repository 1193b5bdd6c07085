"""Right before wrong, against a loop over pairs."""

import doctest

import numpy as np
import pytest

from inverselm.errors import UserError
from inverselm.evaluation import pairs, pairwise_accuracy
from inverselm.evaluation.statistics import bootstrap_weights


def wins_by_hand(reward, labels, groups):
    wins = []
    for i, better in enumerate(labels):
        for j, worse in enumerate(labels):
            if groups[i] == groups[j] and better > worse:
                wins.append((groups[i], 1.0 if reward[i] > reward[j] else 0.5 if reward[i] == reward[j] else 0.0))
    return wins


def data(seed=0, prompts=15):
    rng = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(prompts) for _ in range(rng.integers(1, 6))]
    labels = rng.integers(0, 3, len(names)).astype(float)
    rewards = {"r": np.round(labels + rng.normal(size=labels.size)), "noise": rng.normal(size=labels.size)}
    order = rng.permutation(labels.size)
    return {k: v[order] for k, v in rewards.items()}, labels[order], [names[i] for i in order]


def test_examples_in_docstrings():
    assert doctest.testmod(pairs).failed == 0


def test_accuracy_counts_pairs_with_ties_half():
    rewards, labels, prompts = data()
    report = pairwise_accuracy(rewards, labels, prompts, n=20)
    for name, reward in rewards.items():
        wins = wins_by_hand(reward, labels, prompts)
        assert report.values["accuracy"][name].value == pytest.approx(np.mean([w for _, w in wins]))
    assert 0.5 in [w for _, w in wins_by_hand(rewards["r"], labels, prompts)], "the data has ties"
    assert report.counts["pairs"] == len(wins)
    assert report.counts["prompts"] == len({name for name, _ in wins}) < 15


def test_intervals_are_those_of_resampled_prompts():
    rewards, labels, prompts = data(1)
    report = pairwise_accuracy(rewards, labels, prompts, n=80, seed=4)
    wins = wins_by_hand(rewards["r"], labels, prompts)
    by_prompt = {}
    for name, win in wins:
        by_prompt.setdefault(name, []).append(win)
    rows = [by_prompt[name] for name in sorted(by_prompt, key=prompts.index)]
    drawn = [
        np.mean([w for row, count in zip(rows, weights.astype(int), strict=True) for w in row * count])
        for weights in np.concatenate(list(bootstrap_weights(np.arange(len(rows)), 80, 4)))
    ]
    assert report.values["accuracy"]["r"][1:] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_chosen_and_rejected_are_paired_by_row_and_clustered_by_prompt():
    labels, groups = [1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2]
    reward = {"r": [2.0, 1.0, 4.0, 3.0, 0.0, 5.0]}
    rows = pairwise_accuracy(reward, labels, ["a", "a", "a", "a", "b", "b"], groups=groups, n=50)
    assert rows.counts == {"prompts": 2, "answers": 6, "pairs": 3}
    assert rows.values["accuracy"]["r"].value == pytest.approx(2 / 3)
    every = pairwise_accuracy(reward, labels, ["a", "a", "a", "a", "b", "b"], n=50)
    assert every.counts["pairs"] == 5
    assert every.values["accuracy"]["r"].value == pytest.approx(3 / 5)


def test_bad_input():
    with pytest.raises(UserError, match="no prompt has two answers of different labels"):
        pairwise_accuracy({"r": [1.0, 2.0]}, [1, 0], ["a", "b"])
    with pytest.raises(UserError, match="1 groups for 2 labels"):
        pairwise_accuracy({"r": [1.0, 2.0]}, [1, 0], ["a", "a"], groups=[0])
