"""Comparisons of runs: against scipy and by hand, and over many simulated experiments whose truth is known."""

import doctest
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from inverselm.errors import UserError
from inverselm.evaluation import Estimate, compare_runs, comparison, corpus
from inverselm.evaluation.comparison import adjust, mean_score, two_way_error
from inverselm.evaluation.corpus import CorpusScore


def pair(prompts=60, effect=0.0, seed=0, seeds=None):
    rng = np.random.default_rng(seed)
    shape = (prompts,) if seeds is None else (seeds, prompts)
    easy = rng.normal(size=prompts)
    return {"a": easy + rng.normal(size=shape), "b": easy + effect + rng.normal(size=shape)}


def test_examples_in_docstrings():
    assert doctest.testmod(comparison).failed == 0
    assert doctest.testmod(corpus).failed == 0


def test_one_seed_is_scipys_bootstrap_and_permutation_test():
    runs = pair(effect=0.3)
    [found] = compare_runs(runs, n=20_000, metric="score")
    difference = runs["b"] - runs["a"]
    assert found.difference.value == pytest.approx(difference.mean())
    assert (found.value, found.reference_value) == pytest.approx((runs["b"].mean(), runs["a"].mean()))
    scipys = stats.bootstrap((difference,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    low, high = scipys.confidence_interval
    assert found.difference[1:] == pytest.approx((low, high), abs=0.03 * (high - low))
    p = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    assert found.p == pytest.approx(p, abs=0.005)
    assert found.p_prompts == found.p
    assert found.p_seeds is None
    assert (found.prompts, found.seeds, found.metric, found.run, found.reference) == (60, 1, "score", "b", "a")


@pytest.mark.parametrize("seed", range(3))
def test_few_prompts_are_tested_exactly(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, 11), rng.integers(0, 3, 11)
    [found] = compare_runs({"a": a, "b": b}, n=5000)
    exact = stats.permutation_test((b - a,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert found.p == pytest.approx(exact, abs=1e-12)


def test_two_way_error_by_hand():
    # means of seeds 2 and 4, of prompts 2, 3 and 4; mean squares 3*2 = 6, 2*1 = 2, noise 0
    table = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    error, freedom = two_way_error(table)
    assert error == pytest.approx(np.sqrt((6 + 2) / 6))
    assert freedom == pytest.approx(8**2 / (6**2 / 1 + 2**2 / 2))
    # mean squares 3*2 = 6 and 2*0.75 = 1.5, residuals 0 or 1/2: noise 1/2
    error, freedom = two_way_error(np.array([[1.0, 2.0, 3.0], [3.0, 5.0, 4.0]]))
    assert error == pytest.approx(np.sqrt((6 + 1.5 - 0.5) / 6))
    assert freedom == pytest.approx(7**2 / (6**2 / 1 + 1.5**2 / 2 + 0.5**2 / 2))
    # no seed effect beyond the noise: seeds drop out, what is left is the prompts' mean square
    table = np.array([[1.0, 4.0, 1.0], [3.0, 2.0, 1.0]])
    error, freedom = two_way_error(table)
    assert error == pytest.approx(np.sqrt(2 * np.var([2, 3, 1], ddof=1) / 6))
    assert freedom == 2


def test_two_way_error_is_unbiased_for_crossed_effects():
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(0, 1, (4, 1)) + rng.normal(0, 2, (1, 30)) + rng.normal(0, 1.5, (4, 30))
    true = 1 / 4 + 4 / 30 + 1.5**2 / 120
    squares = [two_way_error(draw())[0] ** 2 for _ in range(1500)]
    assert np.mean(squares) == pytest.approx(true, rel=0.06)


def test_several_seeds_have_a_t_interval():
    """Seeds without noise of their own: the mean of three numbers, and nothing else."""
    base = np.zeros((3, 40))
    shifted = np.repeat([[1.0], [2.0], [3.5]], 40, axis=1)
    [found] = compare_runs({"a": base, "b": shifted}, n=4000)
    expected = stats.ttest_1samp([1.0, 2.0, 3.5], 0)
    assert found.p_seeds == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.p == found.p_seeds, "the larger of the two"
    assert found.p_prompts < 0.001
    low, high = expected.confidence_interval(0.95)
    assert (found.difference.high - found.difference.low) == pytest.approx(high - low, rel=0.15)
    assert not found.shown
    assert found.seeds == 3


def test_rows_of_all_runs_are_paired_and_order_does_not_matter():
    runs = pair(effect=0.8)
    [found] = compare_runs(runs, n=4000)
    assert found.shown
    rng = np.random.default_rng(1)
    [unpaired] = compare_runs({"a": rng.permutation(runs["a"]), "b": runs["b"]}, n=4000)
    width = lambda c: c.difference.high - c.difference.low
    assert width(unpaired) > 1.2 * width(found)
    order = rng.permutation(60)
    [same] = compare_runs({name: values[order] for name, values in runs.items()}, n=4000)
    assert same.difference.value == pytest.approx(found.difference.value)
    assert same.difference.low == pytest.approx(found.difference.low, abs=0.05)


def test_verdicts_and_directions():
    runs = pair(prompts=200, effect=1.0)
    [up] = compare_runs(runs, n=999)
    [down] = compare_runs(runs, n=999, lower_is_better=True)
    [back] = compare_runs({"b": runs["b"], "a": runs["a"]}, n=999)
    assert up.shown
    assert up.verdict.startswith("better by 1.094 [")
    assert up.verdict.endswith("p = 0.001")
    assert down.verdict.startswith("worse by 1.094 [")
    assert back.verdict.startswith("worse by 1.094 [")
    [none] = compare_runs({"a": [0, 1, 0, 1], "b": [1, 0, 0, 1]})
    assert none.verdict.startswith("no difference shown (+0 [")
    [same] = compare_runs({"a": [0, 1, 0, 1], "b": [0, 1, 0, 1]})
    assert same.difference == (0.0, 0.0, 0.0)
    assert (same.p, same.shown) == (1.0, False)
    assert json.loads(json.dumps(up.as_dict()))["verdict"] == up.verdict


def test_both_the_interval_and_the_corrected_p_must_show_it():
    runs = pair(prompts=100, effect=0.5, seed=5)
    [alone] = compare_runs(runs, n=4000)
    assert alone.shown
    rng = np.random.default_rng(0)
    others = {f"c{i}": runs["a"] + rng.normal(size=100) for i in range(30)}
    corrected = compare_runs({**runs, **others}, n=4000)[0]
    assert corrected.p == alone.p
    assert corrected.p_adjusted == pytest.approx(31 * alone.p)
    assert corrected.difference.shown
    assert not corrected.shown
    assert not replace(alone, difference=Estimate(0.1, -0.1, 0.3)).shown
    assert [c.p_adjusted for c in adjust([alone])] == [alone.p]


def test_lengths_stand_beside():
    runs = pair()
    lengths = {"a": np.full(60, 10.0), "b": np.full(60, 12.5)}
    [found] = compare_runs(runs, lengths=lengths, n=500)
    assert found.length == pytest.approx((2.5, 2.5, 2.5))
    with pytest.raises(UserError, match=r"lengths\['b'\]"):
        compare_runs(runs, lengths={"a": lengths["a"]}, n=500)


def simulate(experiments, effect, seeds=None, seed_effect=0.0, prompts=50, binary=False):
    """Share of experiments in which a difference is shown; what is drawn is fixed."""
    shown = 0
    for experiment in range(experiments):
        rng = np.random.default_rng(1000 + experiment)
        easy = rng.normal(size=prompts)
        shape = (prompts,) if seeds is None else (seeds, prompts)
        a, b = easy + rng.normal(size=shape), easy + effect + rng.normal(size=shape)
        if seeds is not None:
            a, b = a + rng.normal(0, seed_effect, (seeds, 1)), b + rng.normal(0, seed_effect, (seeds, 1))
        if binary:
            a, b = a > 0, b > 0
        [found] = compare_runs({"a": a, "b": b}, n=199, seed=experiment)
        shown += found.shown
    return shown / experiments


@pytest.mark.parametrize("binary", [False, True])
def test_under_the_null_one_seed_is_wrong_about_as_often_as_alpha(binary):
    assert 0.02 <= simulate(400, 0.0, binary=binary) <= 0.08


@pytest.mark.parametrize("seed_effect", [0.0, 0.5, 2.0])
def test_under_the_null_three_seeds_are_wrong_about_as_often_as_alpha(seed_effect):
    """The prompts' test alone would be wrong in most of the experiments with large seed effects."""
    assert 0.01 <= simulate(300, 0.0, seeds=3, seed_effect=seed_effect) <= 0.095


def test_an_effect_is_found():
    assert simulate(100, 0.7) > 0.85
    assert simulate(100, 0.2) < 0.5
    assert simulate(60, 0.7, seeds=3) > 0.7
    assert simulate(60, 0.7, seeds=5) > 0.95


REFERENCES = [
    "the cat sat on the mat today",
    "a dog ran home very fast",
    "we all went to the old hall",
    "it rains",
]
GOOD = ["the cat sat on a mat today", "a dog ran home very fast", "we went to the old hall", "it rains"]
BAD = ["the dog sat on a mat", "a dog walked home fast", "all went to a new town", "it is raining"]


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_scores_are_sacrebleus(name):
    sacrebleu = pytest.importorskip("sacrebleu")
    scorer = CorpusScore(name)
    counts = np.array([scorer.counts(text, [r]) for text, r in zip(BAD, REFERENCES, strict=True)])
    for rows in ([0, 1, 2, 3], [0, 0, 2], [1]):
        expected = getattr(sacrebleu, f"corpus_{name}")([BAD[i] for i in rows], [[REFERENCES[i] for i in rows]])
        assert scorer.score(counts[rows].sum(axis=0)) == pytest.approx(expected.score)
    both = np.stack([counts.sum(axis=0), counts[:2].sum(axis=0)])
    assert scorer.score(both[:, None]).shape == (2, 1)
    several = scorer.counts("a cat sat", ["the cat sat", "a cat lay"])
    expected = getattr(sacrebleu, f"corpus_{name}")(["a cat sat"], [["the cat sat"], ["a cat lay"]])
    assert scorer.score(several) == pytest.approx(expected.score)
    own = sacrebleu.sentence_bleu if name == "bleu" else sacrebleu.sentence_chrf
    assert scorer.sentence(BAD[0], [REFERENCES[0]]) == pytest.approx(own(BAD[0], [REFERENCES[0]]).score)


def test_bleu_resamples_prompts_and_not_sentence_scores():
    sacrebleu = pytest.importorskip("sacrebleu")
    scorer = CorpusScore("bleu")
    tables = {
        name: np.array([[scorer.counts(text, [r]) for text, r in zip(texts * 3, REFERENCES * 3, strict=True)]])
        for name, texts in (("bad", BAD), ("good", GOOD))
    }
    [found] = compare_runs(tables, score=scorer.score, metric="bleu", n=300, seed=3)
    bleu = lambda texts, rows: (
        sacrebleu.corpus_bleu([texts[i % 4] for i in rows], [[REFERENCES[i % 4] for i in rows]]).score
    )
    every = range(12)
    assert found.value == pytest.approx(bleu(GOOD, every))
    assert found.reference_value == pytest.approx(bleu(BAD, every))
    rng = np.random.default_rng(3)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=300)
    drawn = [bleu(GOOD, np.repeat(every, w)) - bleu(BAD, np.repeat(every, w)) for w in weights]
    assert found.difference[1:] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))
    swaps = (np.arange(2**12)[:, None] >> np.arange(12)) & 1
    [exact] = compare_runs(tables, score=scorer.score, metric="bleu", n=2**12)
    permuted = []
    for swap in swaps[::37]:  # a sample of all the ways, each counted with the texts themselves
        mixed = [(BAD if s else GOOD)[i % 4] for i, s in enumerate(swap)]
        other = [(GOOD if s else BAD)[i % 4] for i, s in enumerate(swap)]
        truth = [REFERENCES[i % 4] for i in every]
        permuted.append(sacrebleu.corpus_bleu(mixed, [truth]).score - sacrebleu.corpus_bleu(other, [truth]).score)
    share = np.mean(np.abs(permuted) >= abs(exact.difference.value) - 1e-9)
    assert exact.p == pytest.approx(share, abs=0.03)


def test_ratios_are_of_sums():
    table = lambda errors: np.stack([np.array([errors], dtype=float), [[10.0, 100.0, 1.0]]], axis=-1)
    runs = {"a": table([1, 10, 1]), "b": table([0, 10, 0])}
    [found] = compare_runs(runs, score=mean_score, lower_is_better=True, n=200)
    assert (found.value, found.reference_value) == pytest.approx((10 / 111, 12 / 111))


def test_missing_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    [found] = compare_runs(pair(), n=100)
    assert found.p_seeds is None, "one seed needs no t distribution"
    with pytest.raises(UserError, match=r"pip install 'inverselm\[eval\]'"):
        compare_runs(pair(seeds=2), n=100)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({"a": [1, 2]}, "at least two runs"),
        ({"a": [1, 2], "b": [1, 2, 3]}, "same seeds and prompts"),
        ({"a": [1], "b": [2]}, "at least two prompts"),
        ({"a": [1, 2], "b": [1, float("inf")]}, "not finite"),
        ({"a": [[1, 2], [3]], "b": [1, 2]}, "different prompts"),
        ({"a": [], "b": []}, r"shape \(1, 0\)"),
        ({"a": [[[1.0]]], "b": [[[1.0]]]}, "shape"),
    ],
)
def test_bad_input(runs, words):
    with pytest.raises(UserError, match=words):
        compare_runs(runs)


def test_bad_options():
    with pytest.raises(UserError, match="alpha is 1"):
        compare_runs(pair(), alpha=1)
    with pytest.raises(UserError, match="n is 0"):
        compare_runs(pair(), n=0)
