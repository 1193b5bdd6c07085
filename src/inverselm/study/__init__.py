"""Studies: a grid of training runs and evaluations from one YAML file. Modules load when first used."""

from .._lazy import exports

_EXPORTS = {
    "Study": ".collect",
    "StudySpec": ".spec",
    "load_study": ".collect",
    "read_spec": ".spec",
    "run_study": ".runner",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = exports(__name__, _EXPORTS)
