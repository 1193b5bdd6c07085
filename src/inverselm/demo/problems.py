r"""Arithmetic word problems in GSM8K's format, small enough for a model of a million parameters trained on a CPU.

    {"prompt": "Question: Tom has 3 pens and gets 4 more. How many pens are there now?\nAnswer:",
     "completion": " Now there are 3+4=<<3+4=7>>7 pens.\n#### 7", "answer": "7", "right": True}

`answer` is the right final number, and `right` says whether the completion reaches it.
Products are of numbers from 2 to 9, divisions are exact and within the same table, no result is negative, and all
results are below 100. Demonstrations can hold what real ones hold: mistakes and sloppy writing.
"""

import random
import re
from typing import Any

from ..errors import UserError
from ..evaluation.gsm8k import evaluate_expression, extract_answer, format_number
from .templates import NAMES, OBJECTS, TEMPLATES, Step, Template

Problem = dict[str, Any]
_MARK = re.compile(r"<<([^<>=]+)=([^<>=]+)>>(\$?\d[\d,]*(?:\.\d+)?)?")
_ANY_MARK = re.compile(r"<<[^<>]*>>")
_OFFSETS = (-10, -3, -2, -1, 1, 2, 3, 10)


def make_problems(n: int, seed: int, error_rate: float = 0.0, sloppy_rate: float = 0.0) -> list[Problem]:
    """`n` problems with demonstrations; the same arguments give the same problems, on any machine.

    Args:
        n: number of problems.
        seed: of the problems and of the flaws. Prompts and answers depend on `n` and `seed` only, and the first
            problems of a longer list are those of a shorter one.
        error_rate: share of demonstrations with one wrong result, carried on to a wrong final answer; exact up to
            rounding to whole problems.
        sloppy_rate: share of other demonstrations that are right but sloppy: a missing calculator mark, a repeated
            line, an unfinished phrase.

    Returns dictionaries with `prompt`, `completion`, `answer` (str) and `right` (bool).

    Raises `UserError` for a negative `n`, or rates outside [0, 1] or with a sum above 1.

    Example:
        rows = make_problems(1000, seed=0, error_rate=0.1)
    """
    _check(n, error_rate, sloppy_rate)
    return _write(_draw(n, random.Random(seed), set()), seed, error_rate, sloppy_rate)


def train_test_problems(
    n_train: int, n_test: int, seed: int, error_rate: float = 0.0, sloppy_rate: float = 0.0
) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems (train, test) with no prompt in common.

    The test prompts are all different, and their demonstrations are clean; the rates (see `make_problems`) apply to the
    training demonstrations. A held-out problem may use numbers that a training problem uses in another story.

    Raises `UserError` as `make_problems` does.

    Example:
        train, test = train_test_problems(2000, 200, seed=0, error_rate=0.1)
    """
    _check(n_train, error_rate, sloppy_rate)
    _check(n_test, 0.0, 0.0)
    rng = random.Random(seed)
    held_out: set[str] = set()
    test: list[_Draft] = []
    for _ in range(n_test):
        draft = _draw(1, rng, held_out)[0]
        held_out.add(draft.prompt)
        test.append(draft)
    train = _draw(n_train, rng, held_out)
    return _write(train, seed, error_rate, sloppy_rate), _write(test, seed, 0.0, 0.0)


def plant_error(completion: str, seed: int) -> tuple[str, int, int] | None:
    """Makes one result of a right solution wrong, to test whether a token reward finds it.

    Picks one mark `<<expr=number>>` whose number is right and changes one digit of the number, so that its length stays
    the same; a repetition of the number right after `>>` changes with it. All other text stays as it is: later lines
    go on from the right number, and the final answer stays right, so that the planted number is the only mistake.

    Returns (text, start, end) where `text[start:end]` is the wrong number inside `<<...>>`, in characters; None when
    there is no mark with a right result.

    Example:
        text, start, end = plant_error(" 3*4=<<3*4=12>>12\\n#### 12", seed=0)
    """
    marks = [mark for mark in _MARK.finditer(completion) if _holds(mark)]
    if not marks:
        return None
    rng = random.Random(seed)
    mark = rng.choice(marks)
    number, echo = mark.group(2), mark.group(3)
    place = rng.choice([i for i, char in enumerate(number) if char.isdigit()])
    leading = place == 0 and len(number) > 1
    wrong_digit = rng.choice([d for d in "0123456789" if d != number[place] and not (leading and d == "0")])
    wrong = number[:place] + wrong_digit + number[place + 1 :]
    start, end = mark.span(2)
    after = completion[end:]
    if echo is not None and echo.replace(",", "").lstrip("$") == number.replace(",", ""):
        at = [i for i, char in enumerate(echo) if char.isdigit()][sum(c.isdigit() for c in number[:place])]
        after = ">>" + echo[:at] + wrong_digit + echo[at + 1 :] + completion[mark.end() :]
    return completion[:start] + wrong + after, start, end


def _holds(mark: re.Match[str]) -> bool:
    value, claimed = evaluate_expression(mark.group(1)), evaluate_expression(mark.group(2))
    return value is not None and claimed is not None and format_number(value) == format_number(claimed)


def _check(n: int, error_rate: float, sloppy_rate: float) -> None:
    if n < 0:
        raise UserError(f"the number of problems is {n}: set it to 0 or more")
    for name, rate in (("error_rate", error_rate), ("sloppy_rate", sloppy_rate)):
        if not 0 <= rate <= 1:
            raise UserError(f"{name} is {rate}: set it between 0 and 1")
    if error_rate + sloppy_rate > 1:
        raise UserError(f"error_rate + sloppy_rate is {error_rate + sloppy_rate}: lower one, their sum is at most 1")


class _Draft:
    """A template with its slots filled, and the right results of its steps."""

    def __init__(self, template: Template, words: dict[str, str], numbers: dict[str, int], results: list[int]) -> None:
        self.template = template
        self.words = words
        self.numbers = numbers
        self.results = results
        self.prompt = f"Question: {template.question.format(**words, **numbers)}\nAnswer:"


def _draw(n: int, rng: random.Random, excluded: set[str]) -> list[_Draft]:
    drafts: list[_Draft] = []
    while len(drafts) < n:
        template = rng.choice(TEMPLATES)
        words = {"name": rng.choice(NAMES), "obj": rng.choice(OBJECTS)}
        numbers, results = _draw_numbers(template, rng)
        draft = _Draft(template, words, numbers, results)
        if draft.prompt not in excluded:
            drafts.append(draft)
    return drafts


def _draw_numbers(template: Template, rng: random.Random) -> tuple[dict[str, int], list[int]]:
    """Numbers for which each step stays within the tables, by rejection."""
    while True:
        numbers = {name: rng.randint(low, high) for name, (low, high) in template.ranges.items()}
        results: list[int] = []
        for step in template.steps:
            calculation = _calculation(step, numbers, results)
            value = _calculate(*calculation)
            if value is None or not _is_easy(*calculation, value):
                break
            results.append(value)
        else:
            return numbers, results


def _calculation(step: Step, numbers: dict[str, int], results: list[int]) -> tuple[int, str, int]:
    """(left, operator, right) of a step, given the results before it."""

    def look_up(operand: str | int) -> int:
        if isinstance(operand, int):
            return operand
        return results[int(operand[1:])] if operand.startswith("#") else numbers[operand]

    return look_up(step.left), step.op, look_up(step.right)


def _calculate(left: int, op: str, right: int) -> int | None:
    """The result, or None when it is not whole."""
    if op == "/":
        return left // right if right and left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def _is_easy(left: int, op: str, right: int, value: int) -> bool:
    if op == "*":
        return 2 <= left <= 9 and 2 <= right <= 9
    if op == "/":
        return 2 <= right <= 9 and 2 <= value <= 9
    return 0 < value < 100


def _write(drafts: list[_Draft], seed: int, error_rate: float, sloppy_rate: float) -> list[Problem]:
    """Demonstrations of the drafts; exactly the asked share, rounded, is wrong or sloppy."""
    rng = random.Random(f"flaws of {seed}")
    order = list(range(len(drafts)))
    rng.shuffle(order)
    n_wrong = round(error_rate * len(drafts))
    wrong = set(order[:n_wrong])
    sloppy = set(order[n_wrong : n_wrong + round(sloppy_rate * len(drafts))])
    return [_problem(d, "wrong" if i in wrong else "sloppy" if i in sloppy else "", rng) for i, d in enumerate(drafts)]


def _problem(draft: _Draft, flaw: str, rng: random.Random) -> Problem:
    results = _wrong_results(draft, rng) if flaw == "wrong" else draft.results
    lines = _lines(draft, results)
    if flaw == "sloppy":
        lines = _sloppy_lines(lines, rng)
    completion = " " + "\n".join([*lines, f"#### {results[-1]}"])
    answer = str(draft.results[-1])
    return {
        "prompt": draft.prompt,
        "completion": completion,
        "answer": answer,
        "right": extract_answer(completion) == answer,
    }


def _lines(draft: _Draft, results: list[int]) -> list[str]:
    lines = []
    for step, result in zip(draft.template.steps, results, strict=True):
        expr = "{}{}{}".format(*_calculation(step, draft.numbers, results))
        lines.append(step.text.format(e=f"{expr}=<<{expr}={result}>>{result}", **draft.words))
    return lines


def _wrong_results(draft: _Draft, rng: random.Random) -> list[int]:
    """Results with one miscalculated step; later steps go on from it, and the final answer is wrong."""
    slips = [(place, offset) for place in range(len(draft.results)) for offset in _OFFSETS]
    rng.shuffle(slips)
    for place, offset in slips:
        results = _carry(draft, place, offset)
        if results is not None and results[-1] != draft.results[-1]:
            return results
    raise AssertionError("a slip of +1 in the last step always leaves a whole, wrong answer")


def _carry(draft: _Draft, place: int, offset: int) -> list[int] | None:
    """The results when step `place` is off by `offset`; None when one is not a positive whole number."""
    results: list[int] = []
    for index, step in enumerate(draft.template.steps):
        value = _calculate(*_calculation(step, draft.numbers, results))
        if value is None:
            return None
        value += offset if index == place else 0
        if value <= 0:
            return None
        results.append(value)
    return results


def _sloppy_lines(lines: list[str], rng: random.Random) -> list[str]:
    """One right solution, written carelessly."""
    place = rng.randrange(len(lines))
    style = rng.choice(("no mark", "repeat", "unfinished"))
    if style == "no mark":
        return [*lines[:place], _ANY_MARK.sub("", lines[place]), *lines[place + 1 :]]
    extra = lines[place] if style == "repeat" else rng.choice(("So about", "Rounded, it is", "That makes about"))
    return [*lines[: place + 1], extra, *lines[place + 1 :]]
