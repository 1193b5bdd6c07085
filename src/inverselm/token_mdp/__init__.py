"""The token-level MDP of a language model: batches, statistics, rewards and credit. Needs torch only."""

from .batch import PADDING, TERMINAL, TokenBatch
from .credit import CREDITS, SCALES, VARIANCE_REDUCTIONS, advantages, returns_to_go, scale_advantages, subtract_baseline
from .divergence import head_kl
from .head import state_kl, stats_from_logits, token_logits
from .lm_head import Projection, SoftHeadError, run_with_head
from .of_models import project, token_loss, token_stats
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
from .seq2seq import Seq2SeqBatch
from .soft_head import head_loss, head_stats
from .stats import TokenStats, masked_mean, masked_sum
from .tiles import HeadSpec

__all__ = [
    "CREDITS",
    "PADDING",
    "SCALES",
    "TERMINAL",
    "VARIANCE_REDUCTIONS",
    "HeadSpec",
    "Projection",
    "Seq2SeqBatch",
    "SoftHeadError",
    "TokenBatch",
    "TokenStats",
    "add_to_last_action",
    "advantages",
    "bellman_residual",
    "centre",
    "clip",
    "floor_log_ratio",
    "head_kl",
    "head_loss",
    "head_stats",
    "log_ratio",
    "masked_mean",
    "masked_sum",
    "mix_baselines",
    "project",
    "returns_to_go",
    "run_with_head",
    "scale_advantages",
    "sequence_sum",
    "shape",
    "standardise_per_position",
    "state_kl",
    "stats_from_logits",
    "subtract_baseline",
    "token_logits",
    "token_loss",
    "token_stats",
]
