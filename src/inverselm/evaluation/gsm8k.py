r"""GSM8K: read the final answer of a solution, compare it, and calculate what stands between `<<` and `>>`.

A GSM8K solution ends in `#### 17` and marks each calculation as `3*4=<<3*4=12>>12`. This module is plain Python; the
calculator that acts during generation, `CalculatorLogitsProcessor`, loads transformers when it is first asked for.
"""

import re
from typing import Any

from ..errors import UserError

__all__ = ["CalculatorLogitsProcessor", "evaluate_expression", "extract_answer", "format_number", "is_correct"]  # noqa: F822

MAX_EXPRESSION_LENGTH = 100
MAX_MAGNITUDE = 1e12

_ANSWER = re.compile(r"\s*([-+]?)\s*\$?\s*([-+]?)(\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_TOKEN = re.compile(r"\s*(\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+|[-+*/()%])", re.ASCII)


def __getattr__(name: str) -> Any:
    if name == "CalculatorLogitsProcessor":
        from .calculator import CalculatorLogitsProcessor

        return CalculatorLogitsProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def extract_answer(text: str) -> str | None:
    """The number that follows the last `####` on its line, in one normal form; None when there is none.

    Thousands commas, `$`, a trailing dot, a leading `+` or zeros, and zero decimals are removed, so that equal numbers
    are equal strings. Only a plain number counts: a fraction (`#### 1/2`) or a word gives None.

    >>> extract_answer("He pays $5.\\n#### $1,200.00.")
    '1200'
    """
    _, mark, tail = text.rpartition("####")
    if not mark:
        return None
    return _parse_number(tail.lstrip(" \t:").split("\n", 1)[0])


def is_correct(completion: str, answer: str) -> bool:
    """Whether the final answer of `completion` is the number `answer`.

    `answer` is a bare number (`"17"`, `"1,200"`) or a whole reference solution that ends in `#### 17`. Both sides are
    compared in the normal form of `extract_answer`, as exact decimals.

    Raises `UserError` when `answer` holds no number.

    >>> is_correct(" 3*4=<<3*4=12>>12\\n#### 12.0", "12")
    True
    """
    gold = extract_answer(answer) if "####" in answer else _parse_number(answer)
    if gold is None:
        raise UserError(f"the reference answer {answer[:60]!r} is not a number: give '17' or a solution with '#### 17'")
    return extract_answer(completion) == gold


def evaluate_expression(expr: str) -> float | None:
    """The value of an arithmetic expression, or None when it has none.

    Knows `+ - * /`, parentheses, signs, decimals, thousands commas (`1,000`) and `%` as a percent sign (`50%` is 0.5).
    None for anything malformed (also `**`, `//` and names), for a division by zero, for more than 100 characters, and
    for values beyond 1e12. It is a small parser: no text is ever run as code.

    >>> evaluate_expression("(2+3)*4")
    20.0
    """
    if len(expr) > MAX_EXPRESSION_LENGTH:
        return None
    try:
        return _Parser(_tokenize(expr)).parse()
    except (_MalformedError, ZeroDivisionError):
        return None


def format_number(value: float) -> str:
    """Writes a number as GSM8K does: no exponent, at most six decimals, no trailing zeros.

    >>> format_number(12.0), format_number(0.1 + 0.2), format_number(-0.0)
    ('12', '0.3', '0')
    """
    return _normal_form(f"{value:.6f}")


def _parse_number(text: str) -> str | None:
    """The normal form of the number that `text` starts with, or None; a number that goes on as a fraction is None."""
    match = _ANSWER.match(text)
    if match is None or text[match.end() :].lstrip().startswith("/"):
        return None
    sign, inner_sign, digits = match.groups()
    if sign and inner_sign:
        return None
    return _normal_form((sign or inner_sign) + digits)


def _normal_form(number: str) -> str:
    """`+1,200.50` -> `1200.5`; works on the text, so that no digit of a long number is lost."""
    negative = number.startswith("-")
    whole, _, decimals = number.lstrip("+-").replace(",", "").partition(".")
    whole = whole.lstrip("0") or "0"
    decimals = decimals.rstrip("0")
    text = f"{whole}.{decimals}" if decimals else whole
    return f"-{text}" if negative and text != "0" else text


class _MalformedError(ValueError):
    """The expression does not follow the grammar, or its value is too large."""


def _tokenize(expr: str) -> list[str]:
    tokens, position, expr = [], 0, expr.rstrip()
    while position < len(expr):
        match = _TOKEN.match(expr, position)
        if match is None:
            raise _MalformedError
        tokens.append(match.group(1))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent.

    sum = product ([+-] product)*;  product = signed ([*/] signed)*;  signed = [+-] signed | atom %*;
    atom = number | "(" sum ")"
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def parse(self) -> float:
        value = self._sum()
        if self.position != len(self.tokens):
            raise _MalformedError
        return value

    def _next(self, allowed: str) -> str | None:
        """Takes the next token when it is one of the characters in `allowed`."""
        if self.position < len(self.tokens) and self.tokens[self.position] in allowed:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def _sum(self) -> float:
        value = self._product()
        while operator := self._next("+-"):
            right = self._product()
            value = _bounded(value + right if operator == "+" else value - right)
        return value

    def _product(self) -> float:
        value = self._signed()
        while operator := self._next("*/"):
            right = self._signed()
            value = _bounded(value * right if operator == "*" else value / right)
        return value

    def _signed(self) -> float:
        if sign := self._next("+-"):
            return -self._signed() if sign == "-" else self._signed()
        value = self._atom()
        while self._next("%"):
            value /= 100
        return value

    def _atom(self) -> float:
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise _MalformedError
            return value
        if self.position == len(self.tokens) or self.tokens[self.position] in "+-*/()%":
            raise _MalformedError
        self.position += 1
        return _bounded(float(self.tokens[self.position - 1].replace(",", "")))


def _bounded(value: float) -> float:
    if abs(value) > MAX_MAGNITUDE:
        raise _MalformedError
    return value
