"""Equations: the value of the expression that the model writes, in prefix or infix notation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..examples import Example
from ..gsm8k import evaluate_expression
from .base import Metric, Task, mean_of

TOLERANCE = 1e-4
_OPERATORS = {"+": float.__add__, "-": float.__sub__, "*": float.__mul__, "/": float.__truediv__}
_VARIABLE = re.compile(r"(?<![\w.,])number(\d+)(?!\w|[.,]\w)")  # never a part of another number: "number0number1"
_LEFT_SIDE = re.compile(r"^\s*[A-Za-z]\w*\s*=(?!=)")


class Equations(Task):
    """`accuracy`: share of answers whose value is right; `valid`: share that are expressions with a value.

    An answer's first line counts; a left side such as `x =` is dropped. It is in prefix notation (`* number0 number1`,
    signs and numbers separated by white space) or infix (`number0 * (number1 + 2)`). `number0` is the first of the
    row's `numbers` (a list, or text separated by white space). The reference is a number or an expression. Values are
    equal within 1e-4, or 1e-4 of the reference if that is more than 1: references are often rounded.
    """

    name = "equations"
    columns = ("numbers",)

    def prepare(self, examples: Sequence[Example]) -> None:
        for example in examples:
            for reference in example.references:
                if value_of(reference, _numbers(example)) is None:
                    hint = ", with number0 ... from the column 'numbers'" if "number" in reference else ""
                    raise UserError(
                        f"{example.where}: the reference {reference[:60]!r} has no value: it must be a number or an "
                        f"expression{hint}"
                    )

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        numbers = _numbers(example)
        value = value_of(text, numbers)
        right = value is not None and any(_equal(value, value_of(r, numbers)) for r in example.references)
        return {"accuracy": float(right), "valid": float(value is not None)}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return mean_of("accuracy"), mean_of("valid")


def value_of(text: str, numbers: Sequence[float] = ()) -> float | None:
    """The value of the expression in the first line of a text; None for anything malformed.

    Example:
        >>> value_of("- number0 * 2 3", [10.0]), value_of("x = (number0 - 2) * 3", [10.0])
        (4.0, 24.0)
    """
    line = _LEFT_SIDE.sub("", text.strip().split("\n", 1)[0]).strip()
    if any(int(index) >= len(numbers) for index in _VARIABLE.findall(line)):
        return None
    line = _VARIABLE.sub(lambda match: _written(numbers[int(match.group(1))]), line)
    prefix = _prefix_value(line.split())
    return evaluate_expression(line) if prefix is None else prefix


def _written(number: float) -> str:
    return f"{number:.12f}".rstrip("0").rstrip(".")


def _prefix_value(tokens: Sequence[str]) -> float | None:
    """Of prefix notation; None if it is none. No text is both prefix and infix: prefix ends in two operands."""
    stack: list[float] = []
    if len(tokens) < 3:
        return None
    for token in reversed(tokens):
        if token in _OPERATORS:
            if len(stack) < 2:
                return None
            try:
                stack.append(_OPERATORS[token](stack.pop(), stack.pop()))
            except ZeroDivisionError:
                return None
        else:
            value = evaluate_expression(token)
            if value is None:
                return None
            stack.append(value)
    return stack[0] if len(stack) == 1 and math.isfinite(stack[0]) else None


def _equal(value: float, reference: float | None) -> bool:
    return reference is not None and abs(value - reference) <= TOLERANCE * max(1.0, abs(reference))


def _numbers(example: Example) -> list[float]:
    given = example.row.get("numbers")
    parts = given.split() if isinstance(given, str) else given or []
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{example.where}: 'numbers' must be numbers: a list, or text such as '8 45'")
    return numbers
