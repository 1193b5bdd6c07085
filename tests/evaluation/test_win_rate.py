"""Win rates: by hand, against compare_runs, and over many experiments whose truth is known."""

import json
import math

import numpy as np
import pytest

from inverselm.errors import UserError
from inverselm.evaluation import compare_runs
from inverselm.evaluation.judging import Judged, Pair
from inverselm.evaluation.win_rate import positions, win_rates

WON, TIED, LOST = ("A", "B"), ("A", "A"), ("B", "A")


def pairs(verdicts, seed=0, first=0, answers=("abc", "abcde")):
    """A judged pair for each prompt."""
    return [Judged(Pair(f"q{i}", answers, None, i, seed), v) for i, v in enumerate(verdicts, first)]


def exchangeable(rng, size, bias=0.0):
    """A judge that decides each order by a noisy quality and by position; the answers are alike."""
    quality = rng.normal(0, 1, size)
    one = quality + bias + rng.normal(0, 0.5, size) > 0
    two = quality - bias + rng.normal(0, 0.5, size) > 0
    return [("A" if a else "B", "B" if b else "A") for a, b in zip(one, two, strict=True)]


def test_by_hand():
    verdicts = [WON, WON, WON, TIED, LOST, ("C", "C"), ("C", "B"), WON]
    [found] = win_rates({"b": pairs(verdicts)}, "a")
    assert (found.wins, found.ties, found.losses, found.pairs) == (4, 3, 1, 8)
    assert found.rate.value == pytest.approx((4 + 1.5) / 8)
    assert (found.length, found.against_length, found.longer) == (3.0, 5.0, 0.0)
    # decisions: A B | A B | A B | A A | B A | - | B | A B: seven are for the first answer, six for the second
    assert found.first_position == pytest.approx(7 / 13)
    # all pairs but (A, A) and (C, B)
    assert found.agreement == pytest.approx(6 / 8)
    assert found.bounds == (found.rate.value, found.rate.value)
    assert math.isnan(found.equal_length.value), "every difference in length is the same"
    assert (found.prompts, found.seeds, found.identical, found.unread, found.unanswered) == (8, 1, 0, 0, 0)
    # signs of the 5 decided prompts: 4 up, 1 down; of 32 sign flips 2 * (1 + 5) are as far from 0
    assert found.p == pytest.approx(12 / 32)
    assert found.verdict == f"no difference shown (win rate {found.rate}, p = 0.38)"


def test_interval_and_test_are_those_of_compare_runs():
    rng = np.random.default_rng(0)
    score = rng.choice([0, 0.5, 1, 1], 40)
    verdicts = [{0: LOST, 0.5: TIED, 1: WON}[s] for s in score]
    [found] = win_rates({"b": pairs(verdicts)}, "a", n=2000, seed=7)
    [expected] = compare_runs({"a": 1 - score, "b": score}, n=2000, seed=7)
    assert found.rate == pytest.approx([(1 + value) / 2 for value in expected.difference])
    assert found.p == expected.p
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=20_000) / 40
    assert found.rate[1:] == pytest.approx(np.quantile(weights @ score, [0.025, 0.975]), abs=0.015)


def test_a_prompts_pairs_together_weigh_one():
    judged = pairs([WON] * 4) + pairs([LOST, LOST], first=1)
    [found] = win_rates({"b": judged}, "a", n=100)
    assert found.rate.value == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert found.prompts == 4
    assert (found.wins, found.losses) == (4, 2)


def test_seeds_count_alike_and_widen_the_interval():
    rng = np.random.default_rng(3)
    tables = [rng.choice([0, 0.5, 1], 30, p=p) for p in ([0.1, 0.1, 0.8], [0.4, 0.2, 0.4], [0.2, 0.2, 0.6])]
    names = {0: LOST, 0.5: TIED, 1: WON}
    judged = [j for seed, row in enumerate(tables) for j in pairs([names[s] for s in row], seed)]
    [found] = win_rates({"b": judged}, "a", n=1000)
    [expected] = compare_runs({"a": [1 - row for row in tables], "b": tables}, n=1000)
    assert found.rate.value == pytest.approx(np.mean(tables))
    assert found.rate == pytest.approx([min(1.0, (1 + value) / 2) for value in expected.difference])
    assert found.p == expected.p == max(expected.p_prompts, expected.p_seeds)
    assert found.seeds == 3


def test_a_judge_of_positions_gives_one_half():
    [found] = win_rates({"b": pairs([("A", "A")] * 30)}, "a")
    assert tuple(found.rate) == (0.5, 0.5, 0.5)
    assert (found.first_position, found.agreement, found.ties, found.p) == (1.0, 0.0, 30, 1.0)
    assert not found.shown
    [found] = win_rates({"b": pairs([("B", "B")] * 30)}, "a")
    assert (found.rate.value, found.first_position) == (0.5, 0.0)


def test_position_bias_does_not_move_the_rate():
    """The same answers under a judge that favours what is shown first: more ties, the same direction."""
    rng = np.random.default_rng(1)
    [found] = win_rates({"b": pairs(exchangeable(rng, 2000, bias=1.0))}, "a", n=200)
    assert found.rate.low < 0.5 < found.rate.high
    assert found.first_position > 0.75
    assert found.agreement < 0.6


def test_missing_verdicts_are_left_out_counted_and_bounded():
    judged = pairs([WON, WON, LOST, (None, "B"), ("A", None), (None, None)])
    judged[4] = Judged(judged[4].pair, ("A", None), answered=(True, False))
    [found] = win_rates({"b": judged}, "a", n=100)
    assert (found.wins, found.ties, found.losses, found.unread, found.unanswered, found.pairs) == (2, 0, 1, 2, 1, 6)
    assert found.rate.value == pytest.approx(2 / 3)
    assert found.bounds == pytest.approx((2 / 6, 5 / 6))
    assert found.prompts == 3
    assert found.agreement == 1.0


def test_without_verdicts_there_is_no_rate():
    for judged in (pairs([(None, None)] * 5), pairs([WON, *[(None, "A")] * 5])):
        [found] = win_rates({"b": judged}, "a", n=50)
        assert math.isnan(found.rate.value)
        assert not found.shown
        assert found.verdict == "not judged: too few pairs have a verdict"
        assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["rate"]["value"] is None
    [found] = win_rates({"b": pairs([WON] * 9) + pairs([(None, None)] * 9, seed=1)}, "a", n=50)
    assert math.isnan(found.rate.value), "a seed without a verdict says nothing of seeds"


def test_identical_answers_are_ties():
    judged = pairs([WON, WON, WON]) + pairs([(None, None)] * 2, first=3, answers=("x", "x"))
    [found] = win_rates({"b": judged}, "a", n=100)
    assert (found.wins, found.ties, found.identical, found.unread) == (3, 2, 2, 0)
    assert found.rate.value == pytest.approx(0.8)
    assert found.agreement == 1.0


def test_holm_over_the_runs_judged_together():
    many, few = pairs([WON] * 9 + [LOST]), pairs([WON] * 7 + [LOST] * 3)
    none = pairs([(None, None)] * 10)
    found = {rate.run: rate for rate in win_rates({"few": few, "none": none, "many": many}, "a", n=5000)}
    assert found["many"].p == pytest.approx(22 / 1024)
    assert found["many"].p_adjusted == pytest.approx(2 * 22 / 1024)
    assert found["few"].p_adjusted == found["few"].p == pytest.approx(352 / 1024)
    assert math.isnan(found["none"].p_adjusted)


def test_sentences():
    up = pairs([WON] * 60 + [LOST] * 20)
    [found] = win_rates({"b": up}, "a", n=999)
    assert found.shown
    assert found.verdict == f"preferred: win rate {found.rate}, p = 0.001"
    [found] = win_rates({"b": pairs([LOST] * 60 + [WON] * 20)}, "a", n=999)
    assert found.verdict.startswith("not preferred: win rate 0.250 [")
    longer = [Judged(Pair(f"q{i}", ("x" * (20 + i), "x" * 35), None, i), WON if i > 15 else LOST) for i in range(60)]
    [found] = win_rates({"b": longer}, "a", n=999)
    assert found.shown
    assert found.equal_length.low < 0.5 < found.equal_length.high
    assert found.verdict.startswith("preferred: win rate 0.742 ["), "44 won, and one tie of equal answers"
    assert f"; at equal length no such difference is shown ({found.equal_length})" in found.verdict
    with pytest.raises(UserError, match="alpha"):
        win_rates({"b": up}, "a", alpha=1.0)


def test_positions_without_decisions():
    assert positions(pairs([("C", "C"), (None, "C")])) == (None, 1.0)
    assert positions(pairs([(None, None)])) == (None, None)


@pytest.mark.parametrize("bias", [0.0, 0.8])
def test_exchangeable_answers_are_called_so(bias):
    """Over simulated experiments: intervals hold 1/2 in about 95%, and a difference is shown in at most 5% or so."""
    rng = np.random.default_rng(4)
    held, equal, shown = [], [], []
    for _ in range(200):
        verdicts = exchangeable(rng, 60, bias)
        sizes = rng.integers(50, 500, (60, 2))
        judged = [
            Judged(Pair(f"q{i}", ("x" * a, "y" * b), None, i), v)
            for i, (v, (a, b)) in enumerate(zip(verdicts, sizes.tolist(), strict=True))
        ]
        [found] = win_rates({"b": judged}, "a", n=300)
        held.append(found.rate.low <= 0.5 <= found.rate.high)
        equal.append(found.equal_length.low <= 0.5 <= found.equal_length.high)
        shown.append(found.shown)
    assert 0.91 <= np.mean(held) <= 0.985
    assert 0.90 <= np.mean(equal) <= 0.985
    assert np.mean(shown) <= 0.08
