"""Metrics and statistics: of answers, of token rewards, of differences between runs. Modules load when first used."""

from .._lazy import exports

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
__getattr__, __dir__ = exports(__name__, _EXPORTS)
