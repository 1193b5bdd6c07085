"""Exact small token MDPs: every state and every answer enumerated, every claim checkable in closed form."""

from .chains import Chain, ChainRuns, chain_loss, compare_on_chain, learn_chain, mean_interval
from .solve import (
    SequenceOptimum,
    SoftSolution,
    dense_path_optimum,
    expected_return,
    log_policy,
    myopic_optimum,
    occupancy,
    policy_value,
    sequence_entropy,
    sequence_kl,
    sequence_log_probs,
    sequence_returns,
    soft_optimal,
)
from .token_tree import FORBIDDEN, TokenTree

__all__ = [
    "FORBIDDEN",
    "Chain",
    "ChainRuns",
    "SequenceOptimum",
    "SoftSolution",
    "TokenTree",
    "chain_loss",
    "compare_on_chain",
    "dense_path_optimum",
    "expected_return",
    "learn_chain",
    "log_policy",
    "mean_interval",
    "myopic_optimum",
    "occupancy",
    "policy_value",
    "sequence_entropy",
    "sequence_kl",
    "sequence_log_probs",
    "sequence_returns",
    "soft_optimal",
]
