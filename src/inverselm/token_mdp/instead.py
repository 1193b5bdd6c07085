"""Something else in the place of a module's method, for one thread and a while."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_LOCK = threading.Lock()


class Switch:
    """In the place of a module's method: for the threads that put something else there, that; else the method."""

    def __init__(self, own: Callable[..., Any], before: Any) -> None:
        self.own, self.before, self.users = own, before, 0
        self.places: dict[int, tuple[Callable[..., Any], bool]] = {}
        functools.update_wrapper(self, own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        thread = threading.get_ident()
        replacement, once = self.places.get(thread, (self.own, False))
        if once:
            del self.places[thread]
        return replacement(*args, **kwargs)


@contextmanager
def instead(
    module: nn.Module, name: str, replacement: Callable[..., Any], *, once: bool = True
) -> Iterator[Callable[..., Any]]:
    """`replacement` in the place of the module's method for this thread, for a while or one call; yields the method."""
    attributes, thread = vars(module), threading.get_ident()
    with _LOCK:
        before = attributes.get(name)
        switch = before if isinstance(before, Switch) else Switch(getattr(module, name), before)
        attributes[name] = switch
        switch.users += 1
    try:
        switch.places[thread] = replacement, once
        yield switch.own
    finally:
        switch.places.pop(thread, None)
        with _LOCK:
            switch.users -= 1
            if not switch.users and attributes.get(name) is switch:
                if switch.before is None:
                    del attributes[name]
                else:
                    attributes[name] = switch.before
