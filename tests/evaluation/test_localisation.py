"""AUROC against a count over pairs; spans that overlap."""

import random

import pytest

from inverselm.evaluation.localisation import auroc, overlapping


def naive(scores, labels):
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, is_p in zip(scores, labels, strict=True)
        if is_p
        for n, is_n in zip(scores, labels, strict=True)
        if not is_n
    ]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs_with_ties_half(seed):
    rng = random.Random(seed)
    scores = [rng.randrange(6) for _ in range(40)]  # many ties
    labels = [rng.random() < 0.3 for _ in range(39)] + [True]
    assert auroc(scores, labels) == pytest.approx(naive(scores, labels), abs=1e-12)


def test_auroc_at_its_ends():
    assert auroc([1.0, 2.0, 3.0], [False, False, True]) == 1.0
    assert auroc([1.0, 2.0, 3.0], [True, False, False]) == 0.0
    assert auroc([5.0, 5.0], [True, False]) == 0.5


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_auroc_needs_both_kinds(labels):
    with pytest.raises(ValueError, match="at least one"):
        auroc([1.0, 2.0], labels)


def test_overlapping_shares_a_character():
    spans = [(0, 2), (2, 2), (2, 4), (4, 6)]
    assert overlapping(spans, 3, 5) == [False, False, True, True]
    assert overlapping(spans, 2, 3) == [False, False, True, False]
