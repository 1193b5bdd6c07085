"""Equations: values of prefix and infix expressions, against Python's own."""

import random

import pytest

from helpers.tasks import example, prepared
from inverselm.errors import UserError
from inverselm.evaluation.tasks.equations import value_of


@pytest.mark.parametrize(
    ("text", "numbers", "value"),
    [
        ("* number0 number1", [3, 4], 12),
        ("- number0 * number1 number2", [25000, 1500, 8], 13000),
        ("- - 10 2 3", [], 5),
        ("/ + number0 number1 2", [50, 60], 55),
        ("- number0 3", [-2], -5),
        ("number0 - 3", [-2], -5),
        (" number0 * ( number1 + 2 )\nso it is", [3, 4], 18),
        ("x = number0 / 4", [10], 2.5),
        ("3*4", [], 12),
        ("12.0", [], 12),
        ("-3", [], -3),
        ("+ 0.1 0.2", [], 0.3),
        ("number10", list(range(11)), 10),
        ("* number0 number1", [3], None),
        ("* 3", [], None),
        ("3 4", [], None),
        ("+ 3 4 5", [], None),
        ("/ 3 0", [], None),
        ("3 / 0", [], None),
        ("", [], None),
        ("number0 number1", [3, 4], None),
        ("* 9e999 2", [], None),
        ("* " * 30 + "999999999999 " * 31, [], None),
        ("3 - number0", [-2], 5),
        ("* number0 number1", [-2, -3], 6),
        ("__import__('os')", [], None),
    ],
)
def test_equations_have_values(text, numbers, value):
    found = value_of(text, numbers)
    assert found == (None if value is None else pytest.approx(value))


def test_random_expressions_in_both_notations_have_pythons_value():
    rng = random.Random(1)

    def build(depth):
        if depth == 0 or rng.random() < 0.3:
            number = str(rng.randint(1, 9))
            return number, number
        operator, (pl, il), (pr, ir) = rng.choice("+-*/"), build(depth - 1), build(depth - 1)
        return f"{operator} {pl} {pr}", f"( {il} {operator} {ir} )"

    checked = 0
    for _ in range(200):
        prefix, infix = build(3)
        try:
            expected = eval(infix)
        except ZeroDivisionError:
            expected = None
        checked += expected is not None
        assert value_of(prefix) == (None if expected is None else pytest.approx(expected))
        assert value_of(infix) == (None if expected is None else pytest.approx(expected))
    assert checked > 150


def test_equations_are_right_by_value():
    task = prepared("equations", example("360.0"), example("* number0 number1", numbers="3 4"))
    row = {"numbers": "8.0 45.0"}
    assert task.measure("* number1 number0", example("360.0", **row)) == {"accuracy": 1.0, "valid": 1.0}
    assert task.measure("number0 * number1", example("* number0 number1", numbers=[8, 45]))["accuracy"] == 1.0
    assert task.measure("+ number1 number0", example("360.0", **row)) == {"accuracy": 0.0, "valid": 1.0}
    assert task.measure("* number1", example("360.0", **row)) == {"accuracy": 0.0, "valid": 0.0}
    assert task.measure("/ 10 3", example("3.3333"))["accuracy"] == 1.0, "references are rounded"
    assert task.measure("/ 10 3", example("3.33"))["accuracy"] == 0.0
    assert task.measure("100009", example("100000"))["accuracy"] == 1.0, "1e-4 of the reference"
    assert task.measure("100011", example("100000"))["accuracy"] == 0.0
    for bad, hint in ((example("many"), "has no value"), (example("+ number0 1"), "column 'numbers'")):
        with pytest.raises(UserError, match=hint):
            task.prepare([bad])
    with pytest.raises(UserError, match="'numbers' must be numbers"):
        task.prepare([example("1", numbers="one two")])


@pytest.mark.parametrize("text", ["number0number1", "2number0", "number0.5", "number0,number1", "xnumber0", "number0x"])
def test_a_number_that_is_written_into_another_is_malformed(text):
    assert value_of(text, [1.0, 500.0]) is None
    assert value_of(f"{text} + 1", [1.0, 500.0]) is None


def test_a_full_stop_is_no_part_of_a_number():
    assert value_of("number0 * number1.", [3.0, 4.0]) == 12
    assert value_of("(number0)", [3.0]) == 3
    assert value_of("-number0%", [50.0]) == -0.5
