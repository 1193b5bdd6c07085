"""What rewards are good for without training: sampling, guided decoding, reranking, filtering."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Ranked": ".reranking",
    "answer_scores": ".reranking",
    "best_of_n": ".reranking",
    "rerank": ".reranking",
    "Place": ".filtering",
    "keep_rows": ".filtering",
    "suspicion": ".filtering",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
