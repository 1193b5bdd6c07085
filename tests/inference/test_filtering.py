"""Where an answer is weakest, and which rows to keep."""

import pytest

from inverselm import UserError
from inverselm.inference import keep_rows, suspicion
from inverselm.scorers import ScoredCompletion, TokenScore


def scored(*tokens, terminated=True):
    out, at = [], 0
    for text, reward in tokens:
        out.append(TokenScore(7, text, at, at + len(text), reward))
        at += len(text)
    return ScoredCompletion("".join(text for text, _ in tokens), tuple(out), terminated)


ANSWER = scored((" 3+4", -0.1), ("=", 0.0), ("9", -3.0), ("\n", 0.2), ("So", -2.0), (" 9", -2.0), ("<eos>", 0.1))


def test_the_lowest_token_and_the_lowest_line():
    token = suspicion(ANSWER)
    assert (token.text, token.start, token.end, token.first, token.last, token.reward) == ("9", 5, 6, 2, 2, -3.0)
    line = suspicion(ANSWER, "line")
    assert (line.text, line.first, line.last) == (" 3+4=9\n", 0, 3)
    assert line.reward == pytest.approx(-2.9 / 4)
    assert ANSWER.text[line.start : line.end] == line.text


def test_of_equal_places_the_first():
    assert suspicion(scored(("a", -1.0), ("b", -1.0))).first == 0


def test_the_first_token_that_is_nearly_as_low():
    answer = scored(("3", -0.5), ("9", -1.0), ("\n", 0.0), ("7", -3.0), terminated=False)
    assert [suspicion(answer, share=share).first for share in (1.0, 0.34, 0.33, 0.1)] == [3, 3, 1, 0]
    assert suspicion(answer, "line", share=0.33).text == "39\n"
    assert suspicion(scored(("a", 2.0), ("b", 1.0)), share=0.1).first == 1, "nothing is low: the lowest"
    for share in (0.0, 1.1):
        with pytest.raises(UserError):
            suspicion(answer, share=share)


def test_keep_the_best_share():
    scores = [0.3, -2.0, 0.1, 0.1, 5.0]
    assert keep_rows(scores, share=0.6) == [True, False, True, False, True]
    assert keep_rows(scores, share=1.0) == [True] * 5
    assert keep_rows(scores, share=0.01) == [False, False, False, False, True]


def test_keep_what_reaches_a_threshold():
    assert keep_rows([0.3, -2.0, 0.1], threshold=0.1) == [True, False, True]


@pytest.mark.parametrize("options", [{}, {"share": 0.5, "threshold": 0.0}, {"share": 0.0}, {"share": 1.1}])
def test_what_to_keep_must_be_said_once(options):
    with pytest.raises(UserError):
        keep_rows([1.0], **options)
