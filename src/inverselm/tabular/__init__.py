"""Exact small token MDPs: every state and every answer enumerated, every claim checkable in closed form."""

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
    "SequenceOptimum",
    "SoftSolution",
    "TokenTree",
    "dense_path_optimum",
    "expected_return",
    "log_policy",
    "myopic_optimum",
    "occupancy",
    "policy_value",
    "sequence_entropy",
    "sequence_kl",
    "sequence_log_probs",
    "sequence_returns",
    "soft_optimal",
]
