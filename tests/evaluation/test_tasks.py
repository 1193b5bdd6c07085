"""Tasks as such, and those of single answers, against hand-computed cases and independent implementations."""

import functools
import itertools
import sys

import numpy as np
import pytest

from helpers.tasks import corpus, example, prepared
from inverselm.errors import UserError
from inverselm.evaluation.tasks import TASKS, Metric, Task, load_task, mean_of
from inverselm.evaluation.tasks.base import ratio
from inverselm.evaluation.tasks.g2p import edit_distance


def test_every_task_loads_and_says_what_is_better():
    for name in TASKS:
        task = prepared(name, example("1", mr="a[b]"))
        assert task.name == name
        for metric in task.metrics(2):
            assert metric.better == (
                "low" if metric.name in ("wer", "per", "ser", "missing", "hallucinated") else "high"
            )
    with pytest.raises(UserError, match="unknown task 'translate'; did you mean translation"):
        load_task("translate")
    with pytest.raises(UserError, match="no task: name one of gsm8k"):
        load_task("")


def test_a_ratio_of_nothing_is_zero():
    assert ratio([0, 0]) == 0
    assert ratio(np.array([[1, 2], [3, 4.0]])).tolist() == [0.5, 0.75]


def test_gsm8k():
    task = prepared("gsm8k", example("so #### 7"))
    assert task.measure("#### 7.0", example("7")) == {"accuracy": 1.0, "answered": 1.0}
    assert task.measure("seven", example("7")) == {"accuracy": 0.0, "answered": 0.0}
    assert task.measure("#### 8", example("7", "8"))["accuracy"] == 1.0, "any reference"
    groups = [[task.measure(t, example("7")) for t in row] for row in (["#### 7", "#### 1", "x"], ["#### 1", "x", "x"])]
    assert corpus(task, groups) == pytest.approx(
        {"accuracy": 1 / 6, "answered": 1 / 2, "pass@2": (2 / 3) / 2, "pass@3": 1 / 2}
    )
    names = lambda n: [m.name for m in task.metrics(n)][2:]
    assert (names(1), names(2), names(4), names(5)) == (
        [],
        ["pass@2"],
        ["pass@2", "pass@4"],
        ["pass@2", "pass@4", "pass@5"],
    )
    with pytest.raises(UserError, match="the row: the reference answer 'many' is not a number"):
        task.prepare([example("many")])


def test_exact_match_takes_any_reference():
    task = prepared("exact_match")
    assert task.measure(" b\n", example("a", "b"))["exact_match"] == 1.0
    assert task.measure("c", example("a", "b"))["exact_match"] == 0.0


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[eval\]'"):
        prepared("summarisation")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[eval\]'"):
        prepared("translation")


def test_g2p():
    task = prepared("g2p")
    assert task.measure(" AH0 B ", example("AH0 B"))["wer"] == 0.0
    found = task.measure("K AE1 T", example("K AE0 T S", "D AO1 G"))
    assert found == {"wer": 1.0, "per": 0.5, "edits": 2, "phonemes": 4}
    tie = task.measure("A B", example("A", "A B C"))
    assert (tie["edits"], tie["phonemes"]) == (1, 1), "the first of equals"
    groups = [[task.measure("K AE1 T", example("K AE0 T S"))], [task.measure("B", example("B"))]]
    assert corpus(task, groups) == {"wer": 0.5, "per": 2 / 5}
    assert task.measure("", example("A B"))["per"] == 1.0


def test_edit_distance_is_the_shortest_script():
    @functools.cache
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for a, b in itertools.product(map("".join, itertools.product("ab", repeat=3)), ["", "a", "ba", "abab", "bbbb"]):
        assert edit_distance(a, b) == slow(a, b) == edit_distance(b, a)


def test_the_docstrings_task_works():
    class Shorter(Task):
        name = "shorter"

        def measure(self, text, example):
            return {"shorter": float(len(text) < len(example.references[0]))}

        def metrics(self, samples):
            return (mean_of("shorter"),)

    task = load_task(Shorter())
    assert corpus(task, [[task.measure("a", example("abc"))], [task.measure("abc", example("abc"))]]) == {
        "shorter": 0.5
    }
    assert isinstance(task.metrics(1)[0], Metric)
