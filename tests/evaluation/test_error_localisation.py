"""Where a planted error is, by hand and against loops; the tokens that hold it."""

import doctest

import numpy as np
import pytest
from scipy import stats

from inverselm.errors import UserError
from inverselm.evaluation import error_localisation, localisation, planted_tokens
from inverselm.evaluation.statistics import bootstrap_weights


def values(report, reward="r"):
    return {measure: found[reward].value for measure, found in report.values.items()}


def test_examples_in_docstrings():
    assert doctest.testmod(localisation).failed == 0


def test_by_hand():
    rewards = [[0.5, -3.0, -1.0, -2.0], [0.0, 1.0, -5.0]]
    planted = [[False, False, True, False], [False, True, False]]
    found = values(error_localisation({"r": rewards}, planted, precision_at=(2,), n=5))
    # planted -1 and 1; others: all tokens 0.5 -3 -2 0 -5, up to the planted one 0.5 -3 0
    assert found["auroc"] == pytest.approx((2 + 0) / 10)
    assert found["auroc_until"] == pytest.approx((2 + 0) / 6)
    assert found["rank"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["rank_until"] == pytest.approx((1 / 2 + 1) / 2)
    assert (found["top1"], found["top1_until"]) == (0.0, 0.0)
    assert (found["precision@2"], found["precision@2_until"]) == (0.0, pytest.approx((1 / 2 + 1 / 2) / 2))


def test_ties_count_by_expectation():
    found = values(error_localisation({"r": [[-1.0, -1.0, 0.0, -1.0]]}, [[True, False, False, False]], n=5))
    assert found["auroc"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["rank"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["precision@3"] == pytest.approx(1 / 3)
    constant = values(error_localisation({"r": [[1.0] * 4]}, [[False, True, False, False]], n=5))
    assert (constant["auroc"], constant["rank"], constant["top1"]) == (0.5, 0.5, 0.25)


def test_several_planted_tokens():
    found = values(error_localisation({"r": [[-3.0, -1.0, -2.0, 5.0]]}, [[True, True, False, False]], n=5))
    assert found["auroc"] == pytest.approx(3 / 4)
    assert found["rank"] == pytest.approx((0 + 1 / 2) / 2)
    assert (found["top1"], found["precision@3"]) == (1.0, pytest.approx(2 / 3))
    # "up to it" is up to the last planted one
    found = values(error_localisation({"r": [[1.0, -1.0, -2.0, 5.0]]}, [[False, True, True, False]], n=5))
    assert found["rank_until"] == 0.0
    assert found["precision@3_until"] == pytest.approx(2 / 3)


def test_an_error_at_the_first_token_has_nothing_before_it():
    rewards, planted = [[-1.0, 0.0], [0.0, -1.0]], [[True, False], [False, True]]
    found = values(error_localisation({"r": rewards}, planted, n=30))
    assert found["top1_until"] == 1.0
    assert found["auroc_until"] == 1.0
    alone = error_localisation({"r": rewards[:1]}, planted[:1], n=5)
    assert np.isnan(alone.values["auroc_until"]["r"].value)
    assert np.isnan(alone.values["top1_until"]["r"].value)
    assert alone.values["top1"]["r"].value == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_measures_and_intervals_against_loops(seed):
    rng = np.random.default_rng(seed)
    rewards = [np.round(rng.normal(size=n), 1) for n in rng.integers(2, 12, 20)]
    places = [int(rng.integers(0, r.size)) for r in rewards]
    for r, place in zip(rewards, places, strict=True):
        r[place] -= 0.8
    planted = [[i == place for i in range(r.size)] for r, place in zip(rewards, places, strict=True)]
    prompts = [i // 2 for i in range(20)]
    report = error_localisation({"r": rewards}, planted, prompts=prompts, precision_at=(1,), n=40, seed=seed)

    def by_hand(rows):
        above = np.concatenate([-rewards[i][planted[i]] for i in rows])
        below = np.concatenate([-np.delete(rewards[i], places[i]) for i in rows])
        auroc = stats.mannwhitneyu(above, below).statistic / (above.size * below.size)
        ranks = [(stats.rankdata(rewards[i])[places[i]] - 1) / (rewards[i].size - 1) for i in rows]
        lowest = [(rewards[i] == rewards[i].min()) for i in rows]
        top = [low[places[i]] / low.sum() for i, low in zip(rows, lowest, strict=True)]
        return auroc, np.mean(ranks), np.mean(top)

    expected = by_hand(range(20))
    drawn = []
    for weights in np.concatenate(list(bootstrap_weights(np.array(prompts), 40, seed))).astype(int):
        drawn.append(by_hand(np.repeat(np.arange(20), weights)))
    bounds = np.quantile(drawn, [0.025, 0.975], axis=0).T
    for name, value, interval in zip(("auroc", "rank", "top1"), expected, bounds, strict=True):
        found = report.values[name]["r"]
        assert found.value == pytest.approx(value)
        assert found[1:] == pytest.approx(interval)
    assert report.values["precision@1"]["r"] == report.values["top1"]["r"]


def test_differences_are_on_the_same_resamples():
    rng = np.random.default_rng(3)
    planted = [[i == 4 for i in range(9)] for _ in range(40)]
    base = [rng.normal(size=9) for _ in planted]
    shifted = [r + 100 for r in base]
    better = [r - 3 * np.array(p) for r, p in zip(base, planted, strict=True)]
    rewards = {"log pi": base, "shifted": shifted, "better": better}
    controls = {"shifted": "log pi", "better": "log pi"}
    report = error_localisation(rewards, planted, controls=controls, n=200)
    assert report.differences["rank"]["shifted"] == (0.0, 0.0, 0.0), "ranks within an answer do not see a shift"
    assert report.differences["auroc"]["better"].low > 0.2
    assert report.verdict("auroc", "better").startswith("better beats log pi by 0.")
    assert report.values["auroc"]["random"].value == pytest.approx(0.5, abs=0.15)
    assert list(report.values["auroc"]) == ["log pi", "shifted", "better", "random"]
    assert report.counts == {"prompts": 40, "answers": 40, "tokens": 360, "planted": 40}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({}, [[True]]), "there is no reward"),
        (({"r": []}, []), "no answers"),
        (({"r": [[1.0, 2.0]]}, [[True]]), "True or False for every token"),
        (({"r": [[1.0, 2.0]]}, [[False, False]]), "answer 0 has no planted token"),
        (({"r": [[1.0, 2.0]]}, [[True, True]]), "no answer has a token besides"),
        (({"r": [[1.0, float("nan")]]}, [[True, False]]), "not finite"),
        (({"random": [[1.0, 2.0]]}, [[True, False]]), "rename the reward"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(UserError, match=words):
        error_localisation(*arguments)
    with pytest.raises(UserError, match="1 prompts for 2 answers"):
        error_localisation({"r": [[1.0, 2.0]] * 2}, [[True, False]] * 2, prompts=["a"])


def test_planted_tokens_are_those_that_differ():
    spans = [(0, 3), (3, 5), (5, 6), (6, 6)]
    assert planted_tokens(spans, 4, 6) == [False, True, True, False]
    # " ca" "t" against " ca" "r": the first token of the word was chosen alike
    assert planted_tokens([(0, 3), (3, 4)], 0, 4, ids=[5, 6], right_ids=[5, 7]) == [False, True]
    assert planted_tokens([(0, 3), (3, 4)], 0, 4, ids=[8, 6], right_ids=[5, 6]) == [True, True]
    # a character of three tokens: only the last one shows it
    assert planted_tokens([(0, 1), (1, 1), (1, 1), (1, 2)], 1, 2) == [False, True, True, True]
    assert planted_tokens([(0, 1), (1, 1), (1, 1), (1, 2)], 0, 1) == [True, False, False, False]
