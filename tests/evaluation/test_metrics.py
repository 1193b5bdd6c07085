import itertools
import sys

import numpy as np
import pytest

from inverselm.errors import UserError
from inverselm.evaluation.metrics import (
    METRICS,
    bootstrap_ci,
    compute_metrics,
    paired_bootstrap,
    pass_at_k,
    signature,
)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n, correct in itertools.product(range(1, 6), range(6)):
        if correct > n:
            continue
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(np.mean([any(s) for s in subsets]))
    with pytest.raises(ValueError, match="k must"):
        pass_at_k(2, 1, 3)


def test_gsm8k_accuracy_and_pass_at_k():
    completions = [["#### 1", "#### 2"], ["#### 9", "no answer"], ["#### 3", "#### 3.0"]]
    result = compute_metrics(["gsm8k"], completions, ["1", "2", "so\n#### 3"])
    assert result == pytest.approx({"accuracy": 0.5, "answered": 5 / 6, "pass@2": 2 / 3})
    single = compute_metrics(["gsm8k"], [["#### 1"], ["#### 2"]], ["1", "1"])
    assert single == {"accuracy": 0.5, "answered": 1.0}


def test_gsm8k_with_unequal_sample_counts_uses_the_smallest():
    result = METRICS["gsm8k"]([["#### 1", "#### 0", "#### 0"], ["#### 1", "#### 0"]], ["1", "1"])
    assert result["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result["pass@2"] == pytest.approx((2 / 3 + 1) / 2)


def test_exact_match_ignores_outer_white_space_only():
    result = compute_metrics(["exact_match"], [[" a b\n", "a  b"], ["c"]], ["a b", "c"])
    assert result == {"exact_match": 0.75}


def test_bleu_and_chrf_are_sacrebleu_corpus_scores_of_the_first_sample():
    sacrebleu = pytest.importorskip("sacrebleu")
    first = ["the cat sat on the mat today", "a dog ran home very fast now"]
    references = ["the cat sat on a mat today", "a dog ran home quite fast now"]
    completions = [[text, "nothing alike"] for text in first]
    result = compute_metrics(["bleu", "chrf"], completions, references)
    assert result["bleu"] == pytest.approx(sacrebleu.corpus_bleu(first, [references]).score)
    assert result["chrf"] == pytest.approx(sacrebleu.corpus_chrf(first, [references]).score)
    assert 0 < result["bleu"] < 100
    assert compute_metrics(["bleu"], [[r] for r in references], references)["bleu"] == pytest.approx(100)


def test_signature_names_what_was_done():
    pytest.importorskip("sacrebleu")
    assert "tok:13a" in signature("bleu")
    assert "nc:6" in signature("chrf")
    with pytest.raises(UserError, match="bleu or chrf"):
        signature("rouge")


def test_missing_sacrebleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[eval\]'"):
        compute_metrics(["bleu"], [["a"]], ["a"])


def test_distinct_and_length():
    result = compute_metrics(["diversity"], [["a b a b"], ["a"]], ["x", "x"])
    assert result == pytest.approx({"distinct_1": 2 / 5, "distinct_2": 2 / 3, "distinct_3": 1.0, "mean_words": 2.5})
    assert compute_metrics(["diversity"], [[""]], ["x"]) == {
        "distinct_1": 0.0,
        "distinct_2": 0.0,
        "distinct_3": 0.0,
        "mean_words": 0.0,
    }


def test_self_bleu_compares_samples_of_the_same_prompt_only():
    pytest.importorskip("sacrebleu")
    one, two, three = "we went to the old town", "rain fell over all five hills", "my red car needs new tyres"
    same = compute_metrics(["diversity"], [[one] * 3, [two] * 3], ["", ""])
    assert same["self_bleu_n3"] == pytest.approx(100)
    different = compute_metrics(["diversity"], [[one, two, three]] * 2, ["", ""])
    assert different["self_bleu_n3"] < 5
    half = compute_metrics(["diversity"], [[one, one], [two, three]], ["", ""])["self_bleu_n2"]
    assert half == pytest.approx(50, abs=3)
    assert compute_metrics(["diversity"], [["a", "a"]], [""])["self_bleu_n2"] == pytest.approx(100), "short texts"


def test_self_bleu_uses_as_many_samples_as_every_prompt_has():
    pytest.importorskip("sacrebleu")
    text = "one two three four five"
    result = compute_metrics(["diversity"], [[text, text, "six seven eight nine ten"], [text, text]], ["", ""])
    assert result["self_bleu_n2"] == pytest.approx(100)
    assert not any(key.startswith("self_bleu") for key in compute_metrics(["diversity"], [["a"], ["a", "b"]], ["", ""]))


@pytest.mark.parametrize(
    ("names", "completions", "references", "named"),
    [
        (["gsm8k", "rouge"], [["a"]], ["1"], "'rouge': choose from gsm8k, exact_match, bleu, chrf, diversity"),
        (["exact_match"], [["a"]], ["1", "2"], "1 prompts"),
        (["exact_match"], [], [], "no completions"),
        (["exact_match"], [["a"], []], ["1", "2"], r"completions\[1\]"),
        (["exact_match"], ["text"], ["1"], r"completions\[0\]"),
    ],
)
def test_bad_requests_are_refused(names, completions, references, named):
    with pytest.raises(UserError, match=named):
        compute_metrics(names, completions, references)


def test_bootstrap_interval_matches_the_normal_one():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = bootstrap_ci(values, n=4000, seed=0)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    narrow = bootstrap_ci(values, n=4000, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * values.std() / 20, rel=0.1)
    assert (
        bootstrap_ci(values, n=50, seed=3) == bootstrap_ci(values, n=50, seed=3) != bootstrap_ci(values, n=50, seed=4)
    )


def test_bootstrap_in_chunks_equals_in_one_piece(monkeypatch):
    values = np.random.default_rng(2).normal(size=30)
    whole = bootstrap_ci(values, n=101)
    monkeypatch.setattr("inverselm.evaluation.metrics._CHUNK", 300)
    assert bootstrap_ci(values, n=101) == whole


def test_paired_bootstrap_uses_the_pairs():
    rng = np.random.default_rng(3)
    difficulty = rng.normal(0, 10, size=200)
    a, b = difficulty + 1 + rng.normal(0, 0.5, 200), difficulty
    mean, low, high = paired_bootstrap(a, b)
    assert mean == pytest.approx(np.mean(a - b))
    assert 0.8 < low < mean < high < 1.2, "an unpaired interval would be ten times as wide"
    assert paired_bootstrap(a, b, n=50, seed=7, level=0.5)[1:] == bootstrap_ci(a - b, n=50, seed=7, level=0.5)
    assert paired_bootstrap(b, a)[0] == pytest.approx(-mean)


def test_bootstrap_refuses_bad_input():
    with pytest.raises(UserError, match="one or more"):
        bootstrap_ci([])
    with pytest.raises(UserError, match="level"):
        bootstrap_ci([1.0], level=95)
    with pytest.raises(UserError, match="same prompts"):
        paired_bootstrap([1.0, 2.0], [1.0])
