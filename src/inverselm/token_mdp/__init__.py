"""The token-level MDP of a language model: batches, statistics, rewards and credit. Needs torch only."""

from .batch import PADDING, TERMINAL, TokenBatch
from .credit import CREDITS, SCALES, VARIANCE_REDUCTIONS, advantages, returns_to_go, scale_advantages, subtract_baseline
from .head import state_kl, stats_from_logits, token_logits, token_stats
from .rewards import (
    add_to_last_action,
    bellman_residual,
    centre,
    clip,
    floor_log_ratio,
    log_ratio,
    mix_baselines,
    sequence_sum,
    shape,
    standardise_per_position,
)
from .stats import TokenStats, masked_mean, masked_sum

__all__ = [
    "CREDITS",
    "PADDING",
    "SCALES",
    "TERMINAL",
    "VARIANCE_REDUCTIONS",
    "TokenBatch",
    "TokenStats",
    "add_to_last_action",
    "advantages",
    "bellman_residual",
    "centre",
    "clip",
    "floor_log_ratio",
    "log_ratio",
    "masked_mean",
    "masked_sum",
    "mix_baselines",
    "returns_to_go",
    "scale_advantages",
    "sequence_sum",
    "shape",
    "standardise_per_position",
    "state_kl",
    "stats_from_logits",
    "subtract_baseline",
    "token_logits",
    "token_stats",
]
