"""Metrics and statistics: of answers, of token rewards, of differences between runs. Modules load when first used."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Comparison": ".comparison",
    "Estimate": ".results",
    "Judged": ".judging",
    "Metric": ".tasks",
    "Pair": ".judging",
    "Planted": ".planting",
    "Prompting": ".judging",
    "RewardReport": ".results",
    "Row": ".summary",
    "Sampler": ".samplers",
    "Task": ".tasks",
    "WinRate": ".win_rate",
    "answer_values": ".correlation",
    "compare_runs": ".comparison",
    "error_localisation": ".localisation",
    "evaluate": ".sweep",
    "judge": ".judge_run",
    "load_task": ".tasks",
    "paired_permutation": ".statistics",
    "pairwise_accuracy": ".pairs",
    "parse_sampler": ".samplers",
    "plant_errors": ".planting",
    "planted_tokens": ".localisation",
    "reward_correlation": ".correlation",
    "win_rates": ".win_rate",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
