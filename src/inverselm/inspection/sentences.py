"""Which sentence each token of an answer belongs to."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_CLOSING = "[\"'”’»)\\]]*"
_END = re.compile(rf"[.!?…]+{_CLOSING}(?:[ \t]*\n)+|[.!?…]+{_CLOSING}(?=[ \t])|[。！？]+{_CLOSING}\n*|\n+")
_NO_SENTENCE = re.compile(r"\s*(\(?\d{1,2}[.)])?\s*")  # nothing, or the number of an item in a list


def sentence_numbers(texts: Sequence[str], terminated: bool = False) -> list[int]:
    """The number of the sentence in which each token begins, from 0.

    A sentence ends after `.`, `!`, `?` or `…` and a space, after their East Asian forms, and at a line break; "3.14"
    and the number of an item in a list ("2. ") end none.

    Args:
        texts: the tokens' texts; joined they are the answer.
        terminated: the last token is EOS, which stays with the sentence before it.

    Example:
        >>> sentence_numbers(["Yes", ".", " It", " is", "\\n", "4"])
        [0, 0, 1, 1, 1, 2]
    """
    whole = "".join(texts)
    ends: list[int] = []
    start = 0
    for match in _END.finditer(whole):
        if not _NO_SENTENCE.fullmatch(whole, start, match.end()):
            ends.append(match.end())
            start = match.end()
    starts = [0, *accumulate(map(len, texts))]
    numbers = [bisect_right(ends, place) for place in starts[: len(texts)]]
    if terminated and len(numbers) > 1:
        numbers[-1] = numbers[-2]
    return numbers
