"""Best-of-n: each score against a hand-computed case, length control, ids as sampled, and the order."""

import math
import random

import numpy as np
import pytest

from helpers.data import text_tokenizer, tiny_for
from inverselm import UserError
from inverselm.inference import answer_scores, best_of_n, rerank
from inverselm.inference.generate import generate
from inverselm.inference.reranking import length_correlation, length_slope
from inverselm.inference.segments import segment_numbers
from inverselm.scorers import FrozenLM, TokenReward

REWARDS = [[0.5, -0.1, -0.4], [0.2], [1.0, -2.0, 4.0, 0.0]]


@pytest.fixture(scope="module")
def scorer():
    tokenizer = text_tokenizer()
    models = [FrozenLM(tiny_for(tokenizer, seed=seed)) for seed in (0, 1)]
    return TokenReward(tokenizer, models[0], models[1:])


def test_sum_mean_and_minimum_by_hand():
    groups = ["a"] * 3
    assert answer_scores(REWARDS, groups, by="sum") == pytest.approx([0.0, 0.2, 3.0])
    assert answer_scores(REWARDS, groups, by="mean") == pytest.approx([0.0, 0.2, 0.75])
    assert answer_scores(REWARDS, groups, by="min") == [-0.4, 0.2, -2.0]
    segments = [[0, 0, 1], [0], [0, 0, 2, 2]]
    assert answer_scores(REWARDS, groups, by="min", segments=segments) == pytest.approx([-0.4, 0.2, -0.5])


def test_length_control_is_the_residual_of_a_regression_within_the_prompts():
    rng = random.Random(0)
    answers = [[rng.gauss(0.3, 1) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    groups = [i % 5 for i in range(40)]
    lengths, sums = np.array([len(a) for a in answers], float), np.array([sum(a) for a in answers])
    dummies = np.eye(5)[groups]  # one intercept for each prompt, one slope for all
    fit = np.linalg.lstsq(np.column_stack([lengths, dummies]), sums, rcond=None)[0]
    assert length_slope(sums, lengths, groups) == pytest.approx(fit[0])
    found = np.array(answer_scores(answers, groups, by="length_controlled"))
    residual = sums - np.column_stack([lengths, dummies]) @ fit
    for group in range(5):
        rows = np.array(groups) == group
        np.testing.assert_allclose(found[rows] - found[rows].mean(), residual[rows], atol=1e-12)
        assert found[rows].mean() == pytest.approx(sums[rows].mean())
    assert length_correlation(found, lengths, groups) == pytest.approx(0.0, abs=1e-12)
    assert abs(length_correlation(sums, lengths, groups)) > 0.1


def test_length_control_does_not_see_a_constant_per_token():
    shifted = [[reward + 0.7 for reward in answer] for answer in REWARDS]
    groups = ["a", "a", "b"]
    for by, same in (("length_controlled", True), ("sum", False), ("mean", False)):
        gaps = [np.diff(answer_scores(answers, groups, by=by)[:2]) for answers in (REWARDS, shifted)]
        # the mean shifts by the constant too, but not its differences
        assert np.allclose(*gaps) is (same or by == "mean")


def test_one_length_only_leaves_the_sum_and_no_correlation():
    answers = [[1.0, 2.0], [0.0, -1.0]]
    assert answer_scores(answers, ["a", "a"], by="length_controlled") == [3.0, -1.0]
    assert math.isnan(length_correlation([3.0, -1.0], [2, 2], ["a", "a"]))


@pytest.mark.parametrize("by", ["sum", "mean", "min", "length_controlled"])
def test_rerank_orders_texts_as_the_scorer_scores_them(scorer, by):
    prompts, candidates = ["Q: 1+2=", "Q: 3+1="], [[" 3", " 12 ok", " 4"], [" 4", " 7 ok ok"]]
    found = rerank(scorer, prompts, candidates, by=by, batch_size=2)
    rewards = [scorer.score([p], [c])[0].rewards for p, group in zip(prompts, candidates, strict=True) for c in group]
    want = answer_scores(rewards, [0, 0, 0, 1, 1], by=by)
    for ranked, scores in zip(found, (want[:3], want[3:]), strict=True):
        assert [r.index for r in ranked] == sorted(range(len(scores)), key=lambda i: -scores[i])
        assert [r.score for r in ranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert [r.index for r in best_of_n(scorer, prompts, candidates, by=by)] == [ranked[0].index for ranked in found]


def test_sampled_ids_are_scored_and_not_their_text(scorer):
    prompts = ["Q: 1+2=", "Q: 5+5="]
    answers = generate(scorer.sft.model, scorer.tokenizer, prompts, num_return=3, max_new_tokens=5, progress=False)
    for group, ranked in zip(answers, rerank(scorer, prompts, answers), strict=True):
        for candidate in ranked:
            answer = group[candidate.index]
            assert tuple(token.token_id for token in candidate.scored.tokens) == answer.token_ids
            assert candidate.scored.terminated is answer.finished


def test_equal_scores_keep_their_order(scorer):
    [ranked] = rerank(scorer, ["Q: 1+2="], [[" 3", " 3", " 3"]])
    assert [r.index for r in ranked] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [["b"], ["c"]]), "1 prompts but 2 lists"),
        ((["a"], ["b"]), "a list of texts"),
        ((["a"], [[]]), "no candidate"),
    ],
)
def test_bad_candidates_are_refused(scorer, arguments, message):
    with pytest.raises(UserError, match=message):
        rerank(scorer, *arguments)


def test_bad_scores_are_refused(scorer):
    for call in (
        lambda: answer_scores([[1.0]], ["a"], by="max"),
        lambda: answer_scores([[]], ["a"]),
        lambda: answer_scores([[math.nan]], ["a"]),
        lambda: rerank(scorer, ["a"], [["b"]], by="min", unit="word"),
    ):
        with pytest.raises(UserError):
            call()


def test_lines_and_tokens():
    texts = ["\n", "a. b", "\n\n", "c", "\n", "d\ne", "<eos>"]
    assert segment_numbers(texts, "line", True) == [0, 0, 0, 1, 1, 2, 2]
    assert segment_numbers(texts, "line") == [0, 0, 0, 1, 1, 2, 3]
    assert segment_numbers(texts, "token", True) == [0, 1, 2, 3, 4, 5, 6]
