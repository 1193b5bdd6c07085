"""Which tokens make a sentence."""

import pytest

from inverselm.inference.segments import segment_numbers


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Yes", ".", " It", " is", ".", " So"], [0, 0, 1, 1, 1, 2]),
        (["3", ".", "14", " is", " pi"], [0, 0, 0, 0, 0]),
        (["Is", " it", "?!", " Yes"], [0, 0, 0, 1]),
        (["a", ".\n\n", "b", "\n", "c"], [0, 0, 1, 1, 2]),
        (["He said “no.”", " She left"], [0, 1]),
        (["1", ".", " First", ".", " 2", ".", " Second"], [0, 0, 0, 0, 1, 1, 1]),
        (["是", "。", "不", "是"], [0, 0, 1, 1]),
        (["\n", "\n", "a"], [0, 0, 0]),
        (["end. Ne", "w"], [0, 1]),
        ([" It is 146.", " So"], [0, 1]),
        (["", ""], [0, 0]),
        ([], []),
    ],
)
def test_where_sentences_end(texts, expected):
    assert segment_numbers(texts) == expected


def test_eos_stays_with_the_last_sentence():
    assert segment_numbers(["a", ".\n", "<eos>"]) == [0, 0, 1]
    assert segment_numbers(["a", ".\n", "<eos>"], terminated=True) == [0, 0, 0]
    assert segment_numbers(["<eos>"], terminated=True) == [0]
