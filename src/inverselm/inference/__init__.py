"""What rewards are good for without training: sampling, guided decoding, reranking, filtering."""

from .._lazy import exports

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
__getattr__, __dir__ = exports(__name__, _EXPORTS)
