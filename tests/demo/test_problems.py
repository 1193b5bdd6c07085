import re

import pytest

from inverselm.demo.problems import make_problems, plant_error, train_test_problems
from inverselm.demo.templates import Step, Template
from inverselm.errors import UserError
from inverselm.evaluation.gsm8k import evaluate_expression, extract_answer

MARK = re.compile(r"(\S*?)=<<([^=<>]+)=(\d+)>>(\d+)")


def results_of(completion):
    return [(expr, int(number), int(echo)) for _, expr, number, echo in MARK.findall(completion)]


def test_clean_demonstrations_calculate_correctly_and_end_in_the_answer():
    for problem in make_problems(400, seed=0):
        steps = results_of(problem["completion"])
        assert 1 <= len(steps) <= 3
        for expr, number, echo in steps:
            assert evaluate_expression(expr) == number == echo
        assert problem["right"] is True
        assert extract_answer(problem["completion"]) == problem["answer"] == str(steps[-1][1])


def test_format_is_that_of_gsm8k():
    for problem in make_problems(200, seed=1):
        assert re.fullmatch(r"Question: [^\n{}]+\?\nAnswer:", problem["prompt"])
        assert re.fullmatch(r" (?:[^\n{}]*=<<[^\n]*>>[^\n]*\n){1,3}#### \d+", problem["completion"])
        assert len(problem["prompt"].split()) <= 26
        assert list(problem) == ["prompt", "completion", "answer", "right"]


def test_numbers_stay_in_the_small_tables():
    seen = set()
    for problem in make_problems(1000, seed=2):
        for expr, number, _ in results_of(problem["completion"]):
            left, op, right = re.fullmatch(r"(\d+)([-+*/])(\d+)", expr).groups()
            seen.add(op)
            if op == "*":
                assert 2 <= int(left) <= 9
                assert 2 <= int(right) <= 9
            if op == "/":
                assert 2 <= int(right) <= 9
                assert 2 <= number <= 9
            assert 0 < number < 100
    assert seen == set("+-*/")


def test_every_number_of_the_calculation_comes_from_the_question_or_an_earlier_result():
    for problem in make_problems(300, seed=3):
        known = {int(n) for n in re.findall(r"\d+", problem["prompt"])} | {2}  # there and back: twice
        for expr, number, _ in results_of(problem["completion"]):
            assert {int(n) for n in re.findall(r"\d+", expr)} <= known
            known.add(number)


def test_seed_decides_everything_and_a_longer_list_starts_like_a_shorter_one():
    first = make_problems(50, seed=4, error_rate=0.3, sloppy_rate=0.2)
    assert first == make_problems(50, seed=4, error_rate=0.3, sloppy_rate=0.2)
    assert make_problems(50, seed=4)[:20] == make_problems(20, seed=4)
    assert make_problems(50, seed=5) != make_problems(50, seed=4)
    clean = make_problems(50, seed=4)
    assert [(p["prompt"], p["answer"]) for p in first] == [(p["prompt"], p["answer"]) for p in clean]


def test_error_rate_is_the_exact_share_of_wrong_demonstrations_with_one_slip_carried_on():
    problems = make_problems(200, seed=6, error_rate=0.25)
    wrong = [p for p in problems if not p["right"]]
    assert len(wrong) == 50
    for problem in wrong:
        steps = results_of(problem["completion"])
        slips = [expr for expr, number, echo in steps if evaluate_expression(expr) != number or number != echo]
        assert len(slips) == 1
        assert extract_answer(problem["completion"]) == str(steps[-1][1]) != problem["answer"]
    slipped_early = [p for p in wrong if evaluate_expression(results_of(p["completion"])[-1][0]) == _final(p)]
    assert slipped_early, "some slips are in earlier steps and carried to the end"


def test_a_slip_that_later_steps_would_hide_is_not_used(monkeypatch):
    steps = (Step("{e}", "a", "+", "b"), Step("{e}", "a", "*", "b"))
    template = Template("{name} {a} {b}?", {"a": (1, 20), "b": (1, 20)}, steps)
    monkeypatch.setattr("inverselm.demo.problems.TEMPLATES", (template,))
    for problem in make_problems(100, seed=0, error_rate=1.0):
        assert not problem["right"]
        left, right = re.findall(r"\d+", problem["prompt"])
        assert 2 <= int(left) <= 9, "the table also holds where a template allows more"
        assert 2 <= int(right) <= 9


def _final(problem):
    return float(extract_answer(problem["completion"]))


def test_sloppy_demonstrations_are_right_and_differ_from_the_clean_ones():
    clean, sloppy = make_problems(200, seed=7), make_problems(200, seed=7, sloppy_rate=0.4, error_rate=0.1)
    changed = [s for c, s in zip(clean, sloppy, strict=True) if s["right"] and c["completion"] != s["completion"]]
    assert len(changed) == 80
    assert sum(not p["right"] for p in sloppy) == 20
    kinds = {_kind(p["completion"]) for p in changed}
    assert kinds == {"no mark", "repeat", "unfinished"}
    assert all(extract_answer(p["completion"]) == p["answer"] for p in changed)


def _kind(completion):
    lines = [line.strip() for line in completion.split("\n")]
    if len(set(lines)) < len(lines):
        return "repeat"
    if any("=" not in line for line in lines[:-1]):
        return "unfinished"
    return "no mark" if any("<<" not in line for line in lines[:-1]) else "clean"


def test_train_and_test_share_no_prompt():
    train, test = train_test_problems(3000, 300, seed=8, error_rate=0.5)
    held_out = {p["prompt"] for p in test}
    assert len(train) == 3000
    assert len(held_out) == len(test) == 300
    assert not held_out & {p["prompt"] for p in train}
    assert all(p["right"] for p in test)
    assert sum(not p["right"] for p in train) == 1500


def test_plant_error_changes_one_result_and_nothing_else():
    places = set()
    for seed, problem in enumerate(make_problems(200, seed=9)):
        text = problem["completion"]
        planted, start, end = plant_error(text, seed)
        assert len(planted) == len(text)
        before, after = results_of(text), results_of(planted)
        changed = [i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        assert len(changed) == 1
        expr, number, echo = after[changed[0]]
        assert planted[start:end] == str(number) == str(echo)
        assert evaluate_expression(expr) != number
        assert planted[:start] == text[:start]
        assert planted[start - 1] == "="
        assert planted[end : end + 2] == ">>"
        rest = end + 2 + len(str(echo))
        assert planted[rest:] == text[rest:]
        assert extract_answer(planted) == problem["answer"]
        places.add(changed[0])
    assert places == {0, 1, 2}


def test_plant_error_follows_thousands_commas_and_decimals():
    for seed in range(20):
        planted, start, end = plant_error("cost $<<2*600=1200>>1,200 in all", seed)
        wrong = planted[start:end]
        assert wrong != "1200"
        assert planted == f"cost $<<2*600={wrong}>>{int(wrong):,} in all"
        planted, start, end = plant_error("<<1/4=0.25>>.25", seed)  # not the same text: the repetition stays
        assert planted == f"<<1/4={planted[start:end]}>>.25"


def test_plant_error_needs_a_right_marked_result():
    assert plant_error(" no marks here\n#### 5", 0) is None
    assert plant_error(" <<2+2=5>>5\n#### 5", 0) is None
    planted, start, end = plant_error("<<2+2=5>>5 <<2+3=5>>5", 0)
    assert planted.startswith("<<2+2=5>>5 <<2+3=")
    assert planted[start:end] != "5"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"n": -1, "seed": 0}, "problems"),
        ({"n": 1, "seed": 0, "error_rate": 1.5}, "error_rate"),
        ({"n": 1, "seed": 0, "sloppy_rate": -0.1}, "sloppy_rate"),
        ({"n": 1, "seed": 0, "error_rate": 0.6, "sloppy_rate": 0.6}, "sum"),
    ],
)
def test_impossible_requests_are_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        make_problems(**arguments)
