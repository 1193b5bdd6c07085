"""Studies: a grid of training runs and evaluations from one YAML file. Modules load when first used."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Study": ".collect",
    "StudySpec": ".spec",
    "load_study": ".collect",
    "read_spec": ".spec",
    "run_study": ".runner",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
