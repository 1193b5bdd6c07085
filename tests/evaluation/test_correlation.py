"""Spearman overall and within prompts against scipy; bootstrap over prompts against a loop."""

import doctest

import numpy as np
import pytest
from scipy import stats

from inverselm.errors import UserError
from inverselm.evaluation import answer_values, correlation, reward_correlation
from inverselm.evaluation.statistics import bootstrap_weights, cluster_index


def data(prompts=25, answers=5, seed=0):
    rng = np.random.default_rng(seed)
    names = [f"p{i}" for i in range(prompts) for _ in range(answers)]
    easy = np.repeat(rng.normal(size=prompts), answers)
    scores = (easy + rng.normal(size=easy.size) > 0.2).astype(float)
    rewards = {"r": scores + easy + rng.normal(size=easy.size), "noise": rng.normal(size=easy.size)}
    order = rng.permutation(easy.size)  # answers of a prompt need not be neighbours
    return {k: v[order] for k, v in rewards.items()}, scores[order], [names[i] for i in order]


def within_by_hand(reward, scores, prompts):
    found = []
    for name in dict.fromkeys(prompts):
        rows = [i for i, prompt in enumerate(prompts) if prompt == name]
        if len(set(scores[rows])) > 1 and len(set(reward[rows])) > 1:
            found.append(stats.spearmanr(reward[rows], scores[rows]).statistic)
    return np.mean(found), len(found)


def test_examples_in_docstrings():
    assert doctest.testmod(correlation).failed == 0


def test_values_are_scipys():
    rewards, scores, prompts = data()
    rewards["coarse"] = np.round(rewards["r"])  # ties, and prompts in which it is constant
    report = reward_correlation(rewards, scores, prompts, n=50)
    for name, reward in rewards.items():
        overall = stats.spearmanr(reward, scores).statistic
        within, used = within_by_hand(reward, scores, prompts)
        assert report.values["overall"][name].value == pytest.approx(overall)
        assert report.values["within"][name].value == pytest.approx(within)
        assert report.used["within"][name] == used
    varying = len({p for p in set(prompts) if len({s for s, q in zip(scores, prompts, strict=True) if q == p}) > 1})
    assert report.counts == {"prompts": 25, "answers": 125, "prompts_within": varying}
    assert varying < 25


def test_intervals_are_those_of_resampled_prompts():
    rewards, scores, prompts = data(prompts=12, answers=4)
    report = reward_correlation(rewards, scores, prompts, n=60, seed=2, controls={"r": "noise"})
    overall, within, differences = [], [], []
    for weights in np.concatenate(list(bootstrap_weights(cluster_index(prompts), 60, 2))).astype(int):
        drawn = np.repeat(np.arange(len(prompts)), weights)
        copies = [f"{prompts[i]} copy {k}" for i in range(len(prompts)) for k in range(weights[i])]
        r, noise = (stats.spearmanr(rewards[name][drawn], scores[drawn]).statistic for name in ("r", "noise"))
        overall.append(r)
        differences.append(r - noise)
        within.append(within_by_hand(rewards["r"][drawn], scores[drawn], copies)[0])
    for measure, drawn in (("overall", overall), ("within", within)):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert report.values[measure]["r"][1:] == pytest.approx((low, high))
    low, high = np.quantile(differences, [0.025, 0.975])
    assert report.differences["overall"]["r"][1:] == pytest.approx((low, high)), "on the same resamples"
    values = report.values["overall"]
    assert report.differences["overall"]["r"].value == pytest.approx(values["r"].value - values["noise"].value)


def test_answers_of_a_prompt_are_not_independent():
    """Copying every answer four times adds no information: clustered intervals stay, naive ones halve."""
    rewards, scores, prompts = data(prompts=60, answers=1)
    once = reward_correlation({"r": rewards["r"]}, scores, prompts, n=400)
    copied = {"r": np.repeat(rewards["r"], 4)}
    many = reward_correlation(copied, np.repeat(scores, 4), [p for p in prompts for _ in range(4)], n=400)
    naive = reward_correlation(copied, np.repeat(scores, 4), n=400)
    width = lambda report: report.values["overall"]["r"].high - report.values["overall"]["r"].low
    assert width(many) == pytest.approx(width(once))
    assert width(naive) < 0.65 * width(once)


def test_without_several_answers_there_is_nothing_within():
    report = reward_correlation({"r": [1.0, 2.0, 3.0]}, [0, 1, 1], ["a", "b", "c"], n=20)
    assert np.isnan(report.values["within"]["r"].value)
    assert report.counts["prompts_within"] == 0
    assert str(report.values["within"]["r"]) == "-"
    assert report.as_dict()["values"]["within"]["r"]["value"] is None


def test_sums_means_and_controls_of_token_rewards():
    values = answer_values({"a": [[1.0, 2.0], [4.0]]}, log_probs=[[-1.0, -3.0], [-2.0]], seed=1)
    random = values.pop("random")
    assert values == {
        "a, sum": [3.0, 4.0],
        "a, mean": [1.5, 4.0],
        "log-likelihood, sum": [-4.0, -2.0],
        "log-likelihood, mean": [-2.0, -2.0],
        "length": [2.0, 1.0],
    }
    assert len(random) == 2
    report = reward_correlation(values, [0, 1], n=5)
    assert report.controls == {"a, sum": "log-likelihood, sum", "a, mean": "log-likelihood, mean"}


def test_verdicts():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=300)
    rewards = {"good": scores + 0.1 * rng.normal(size=300), "bad": rng.normal(size=300), "same": rng.normal(size=300)}
    controls = {"good": "bad", "bad": "good", "same": "bad"}
    report = reward_correlation(rewards, scores, n=300, controls=controls)
    assert report.verdict("overall", "good").startswith("good beats bad by 0.")
    assert report.verdict("overall", "bad").startswith("bad is behind good by 0.")
    assert "no difference shown" in report.verdict("overall", "same")
    assert "not defined" in report.verdict("within", "good")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({}, [1.0]), "no reward"),
        (({"r": []}, []), "no answers"),
        (({"r": [1.0]}, [1.0, 2.0]), "1 numbers for 2 scores"),
        (({"r": [1.0, 2.0]}, [1.0, 2.0], ["a"]), "1 prompts for 2 scores"),
        (({"r": [1.0, float("nan")]}, [1.0, 2.0]), "not finite at answer 1"),
        (({"r": [[1.0], [2.0]]}, [1.0, 2.0]), "one number per answer"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(UserError, match=words):
        reward_correlation(*arguments)


def test_bad_token_rewards_and_controls():
    with pytest.raises(UserError, match="other answers or tokens"):
        answer_values({"a": [[1.0]], "b": [[1.0, 2.0]]})
    with pytest.raises(UserError, match="answer 1 has no token"):
        answer_values({"a": [[1.0], []]})
    with pytest.raises(UserError, match="not finite"):
        answer_values({"a": [[float("-inf")]]})
    with pytest.raises(UserError, match="needs rewards"):
        answer_values({})
    with pytest.raises(UserError, match="'x' is none of the rewards"):
        reward_correlation({"r": [1.0, 2.0]}, [0, 1], controls={"r": "x"})
