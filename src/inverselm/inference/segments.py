"""The parts of an answer: which token belongs to which sentence or line."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from ..errors import UserError

UNITS = ("token", "sentence", "line")

_QUOTES = "[\"'”’»)\\]]*"
_SENTENCE = re.compile(rf"[.!?…]+{_QUOTES}(?:[ \t]*\n)+|[.!?…]+{_QUOTES}(?=[ \t])|[。！？]+{_QUOTES}\n*|\n+")
_LINE = re.compile(r"\n+")
_NOTHING = re.compile(r"\s*(\(?\d{1,2}[.)])?\s*")  # white space, or the number of an item in a list


def segment_numbers(texts: Sequence[str], unit: str = "sentence", terminated: bool = False) -> list[int]:
    """The number of the segment in which each token begins, from 0; numbers never fall.

    A sentence ends after `.`, `!`, `?` or `…` and a space, after their East Asian forms, and at a line break; "3.14"
    and the number of an item in a list ("2. ") end none. A line ends at a line break; empty lines are none.

    Args:
        texts: the tokens' texts; joined they are the answer.
        unit: "token" (each is its own segment), "sentence" or "line".
        terminated: the last token is EOS, which stays with the segment before it (of sentences and lines).

    Raises:
        UserError: unknown unit.

    Example:
        >>> segment_numbers(["Yes", ".", " It", " is", "\\n", "4"])
        [0, 0, 1, 1, 1, 2]
    """
    if unit not in UNITS:
        raise UserError(f"unit is {unit!r}; choose {', '.join(UNITS)}")
    if unit == "token":
        return list(range(len(texts)))
    whole = "".join(texts)
    ends: list[int] = []
    start = 0
    sentences = unit == "sentence"
    for match in (_SENTENCE if sentences else _LINE).finditer(whole):
        empty = _NOTHING.fullmatch(whole, start, match.end()) if sentences else match.start() == start
        if not empty:
            ends.append(match.end())
            start = match.end()
    numbers = [bisect_right(ends, place) for place in [0, *accumulate(map(len, texts))][: len(texts)]]
    if terminated and len(numbers) > 1:
        numbers[-1] = numbers[-2]
    return numbers
