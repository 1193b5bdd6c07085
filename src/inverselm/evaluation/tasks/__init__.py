"""Tasks by name: one module each, loaded when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..._lazy import exports
from ...errors import UserError

if TYPE_CHECKING:
    from .base import Task

TASKS = {
    "gsm8k": ("gsm8k", "GSM8K"),
    "translation": ("translation", "Translation"),
    "summarisation": ("summarisation", "Summarisation"),
    "g2p": ("g2p", "G2P"),
    "data_to_text": ("data_to_text", "DataToText"),
    "equations": ("equations", "Equations"),
    "exact_match": ("exact_match", "ExactMatch"),
}
"""name -> (module, class); a new task is one module and one line here."""

_EXPORTS = {"FunctionTask": ".custom", "Metric": ".base", "Task": ".base", "mean_of": ".base", "ratio_of": ".base"}

__all__ = ["TASKS", "FunctionTask", "Metric", "Task", "load_task", "mean_of", "ratio_of"]

__getattr__, _ = exports(__name__, _EXPORTS)


def load_task(task: Any) -> Task:
    """A task from its name, from `path/to/file.py:function`, or from a function `f(completion, references, row)`.

    Raises:
        UserError: an unknown name, or see `load_custom`.

    Example:
        >>> load_task("exact_match").name
        'exact_match'
    """
    from .base import Task
    from .custom import FunctionTask, load_custom

    if isinstance(task, Task):
        return task
    if callable(task):
        return FunctionTask(task)
    if task in TASKS:
        module, name = TASKS[task]
        return getattr(import_module(f".{module}", __name__), name)()
    if not isinstance(task, str) or not task:
        raise UserError(f"no task: name one of {', '.join(TASKS)}, or path/to/file.py:function")
    if ":" in task:
        return load_custom(task)
    close = difflib.get_close_matches(task, TASKS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(TASKS)}, or path/to/file.py:function"
    raise UserError(f"unknown task {task!r}; {hint}")
