"""Tasks of one's own: functions, and classes in files."""

import math

import numpy as np
import pytest

from helpers.tasks import corpus, example, prepared
from inverselm.errors import UserError
from inverselm.evaluation.summary import check_names
from inverselm.evaluation.tasks import TASKS, FunctionTask, load_task


def brevity(completion, references, row):
    """More than one number."""
    return {"short": len(completion) < 4, "excess": abs(len(completion) - len(references[0])) * row.get("weight", 1)}


brevity.better = {"excess": "low"}


def test_a_function_is_a_task():
    task = load_task(brevity)
    task.prepare([example("abc")])
    assert task.measure("abcd", example("abc", weight=2)) == {"short": 0.0, "excess": 2.0}
    assert [(m.name, m.better) for m in task.metrics(1)] == [("short", "high"), ("excess", "low")]
    one = FunctionTask(lambda completion, references, row: np.float32(0.5), "half")
    one.prepare([example("abc")])
    assert one.measure("", example("a")) == {"half": 0.5}
    assert corpus(one, [[{"half": 1.0}, {"half": 0.0}]]) == {"half": 0.5}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completion: 1.0, "failed on 'abc', the row (TypeError"),
        (lambda *_: 1 / 0, "(ZeroDivisionError: division by zero)"),
        (lambda *_: "good", "returned 'good' as 'f'"),
        (lambda *_: math.nan, "returned nan as 'f'"),
        (lambda *_: {}, "returned an empty dict"),
        (lambda *_: {"a": None}, "returned None as 'a'"),
        (lambda *_: [1.0], "returned [1.0] as 'f'"),
    ],
)
def test_functions_that_measure_nothing_are_refused(function, message):
    with pytest.raises(UserError) as error:
        FunctionTask(function, "f").prepare([example("abc")])
    assert message in str(error.value)
    assert "--task f" in str(error.value)


def test_a_function_returns_the_same_keys_each_time():
    task = FunctionTask(lambda completion, *_: {completion: 1.0}, "f")
    task.prepare([example("abc")])
    with pytest.raises(UserError, match=r"returned \['x'\], but \['abc'\] before"):
        task.measure("x", example("abc"))
    with pytest.raises(UserError, match="better is 'up'"):
        load_task(type("F", (), {"better": "up", "__call__": lambda *_: 1.0})())


FILE = """
from inverselm.evaluation.tasks import Task, mean_of

number = 3

def length(completion, references, row):
    return len(completion)

class Mine(Task):
    def measure(self, text, example):
        return {"mine": 1.0}

    def metrics(self, samples):
        return (mean_of("mine"),)

ready = Mine()
"""


def test_tasks_from_files(tmp_path):
    path = tmp_path / "metrics.py"
    path.write_text(FILE, encoding="utf-8")
    task = load_task(f"{path}:length")
    task.prepare([example("abc")])
    assert task.measure("abcd", example("abc")) == {"length": 4.0}
    assert task.metrics(1)[0].name == "length"
    for name in ("Mine", "ready"):
        own = load_task(f"{path}:{name}")
        assert (own.name, own.measure("", example("a"))) == (name, {"mine": 1.0})
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("", encoding="utf-8")
    for spec, message in [
        (f"{tmp_path}/none.py:f", "no such file"),
        (f"{path}:missing", "has no 'missing'; it has "),
        (f"{path}:number", "number is no function f\\(completion, references, row\\)"),
        (f"{tmp_path}/broken.py:f", "does not run \\(ModuleNotFoundError: No module named 'nothing_of_this_name'\\)"),
        (f"{tmp_path}/text.txt:f", "is no Python file"),
    ]:
        with pytest.raises(UserError, match=message):
            load_task(spec)


def test_keys_need_not_be_text():
    task = FunctionTask(lambda *_: {1: 0.5, 2: True}, "f")
    task.prepare([example("abc")])
    assert task.measure("x", example("abc")) == {"1": 0.5, "2": 1.0}
    assert [metric.name for metric in task.metrics(1)] == ["1", "2"]


DATACLASS = """
from __future__ import annotations

from dataclasses import dataclass

from inverselm.evaluation.tasks import Task


@dataclass
class Score:
    value: float


def short(completion, references, row):
    return Score(float(len(completion) < 3)).value


class Needs(Task):
    def __init__(self, setting):
        self.setting = setting

    def measure(self, text, example):
        return {}

    def metrics(self, samples):
        return ()
"""


def test_a_file_is_a_module_like_any_other(tmp_path):
    path = tmp_path / "own_task.py"
    path.write_text(DATACLASS, encoding="utf-8")
    task = load_task(f"{path}:short")
    task.prepare([example("abc")])
    assert task.measure("ab", example("abc")) == {"short": 1.0}
    with pytest.raises(UserError, match=r"own_task.py:Needs: cannot be made without arguments \(TypeError: .*setting"):
        load_task(f"{path}:Needs")


@pytest.mark.parametrize("name", ["length", "entropy", "log_prob", "seed", "distinct_2", "best_of", "guided_by"])
def test_metrics_that_are_called_as_a_column_are_refused(name):
    """In results.csv, and where files are compared, one of the two would take the other's place."""
    task = FunctionTask(lambda *_: {"own": 1.0, name: 1.0}, "f")
    task.prepare([example("abc")])
    with pytest.raises(UserError, match=f"task f: the metric '{name}' has the name of a column"):
        check_names(task)
    for known in TASKS:
        check_names(prepared(known, example("1", mr="a[b]")))
