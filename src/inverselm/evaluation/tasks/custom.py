"""A task of the user's own: a Python function, or a `Task`, in a file."""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..examples import Example
from .base import Metric, Task, mean_of


class FunctionTask(Task):
    """Means of what a function `f(completion, references, row)` returns: a number, True or False, or a dict of them.

    `completion` is a text, `references` a list of texts, `row` the row's columns. One number is called as the function
    is; of a dict the first key is the main metric. Higher is better, unless the function says otherwise:
    `f.better = "low"`, or `f.better = {"errors": "low"}`.

    Raises:
        UserError: `better` says something else.

    Example:
        >>> def short(completion, references, row):
        ...     return len(completion) <= max(map(len, references))
        >>> FunctionTask(short).measure("ab", Example("?", ("abc",), {}))
        {'short': 1.0}
    """

    columns = None

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function, self.name = function, name or getattr(function, "__name__", type(function).__name__)
        better = getattr(function, "better", "high")
        self._better = better if isinstance(better, Mapping) else {}
        self._default = "high" if isinstance(better, Mapping) else better
        for value in (self._default, *self._better.values()):
            if value not in ("high", "low"):
                raise UserError(f"--task {self.name}: better is {value!r}; set it to 'high' or 'low'")
        self._keys: tuple[str, ...] = ()

    def prepare(self, examples: Sequence[Example]) -> None:
        """Tries the function on the first reference of the first example, which tells the names of its metrics."""
        first = examples[0]
        self._keys = tuple(self.measure(first.references[0], first))

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        try:
            found = self.function(text, list(example.references), dict(example.row))
        except Exception as error:  # whatever the user's code raises
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"--task {self.name}: failed on {text[:40]!r}, {example.where} ({line})") from error
        values = found if isinstance(found, Mapping) else {self.name.rpartition(":")[2]: found}
        values = {str(key): value for key, value in values.items()}
        if not values or (self._keys and tuple(values) != self._keys):
            there = f"{list(values)}, but {list(self._keys)} before" if values else "an empty dict"
            raise UserError(f"--task {self.name}: returned {there}; return the same keys for every answer")
        for key, value in values.items():
            if not _is_number(value):
                raise UserError(
                    f"--task {self.name}: returned {value!r} as '{key}' ({example.where}); return a finite number, "
                    "True or False, or a dict of them"
                )
        return {key: float(value) for key, value in values.items()}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return tuple(mean_of(key, self._better.get(key, self._default)) for key in self._keys)


def load_custom(spec: str) -> Task:
    """The task of `path/to/file.py:function`, where the name may also be that of a `Task` (a class or an instance).

    Raises:
        UserError: no such file or name, the file does not run, or the name is neither function nor task.
    """
    path, _, name = spec.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"--task {spec}: no such file {path}")
    found = importlib.util.spec_from_file_location(f"inverselm_task_{file.stem}", file)
    if found is None or found.loader is None:
        raise UserError(f"--task {spec}: {path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses, for one, look their own module up
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"--task {spec}: {path} does not run ({line})") from error
    target = getattr(module, name, None)
    if target is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"--task {spec}: {path} has no {name!r}; it has {', '.join(names) or 'no function'}")
    if inspect.isclass(target) and issubclass(target, Task):
        try:
            target = target()
        except Exception as error:  # whatever the user's code raises
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"--task {spec}: cannot be made without arguments ({line})") from error
    if isinstance(target, Task):
        target.name = target.name or name
        return target
    if not callable(target) or inspect.isclass(target):
        raise UserError(f"--task {spec}: {name} is no function f(completion, references, row)")
    return FunctionTask(target, name)


def _is_number(value: Any) -> bool:
    if not isinstance(value, numbers.Real) and getattr(value, "shape", None) != ():  # numpy and torch scalars too
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
