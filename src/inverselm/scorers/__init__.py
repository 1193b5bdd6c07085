"""Frozen models that give token rewards."""

from .base import IdScores, ScoredCompletion, TokenScore, TokenScorer
from .controls import REWARD_CONTROLS, ControlledReward
from .frozen import FrozenLM, load_frozen, load_model
from .q_function import QFunctionReward
from .text import encode_pair, token_spans
from .token_reward import TokenReward, load_adapters

__all__ = [
    "REWARD_CONTROLS",
    "ControlledReward",
    "FrozenLM",
    "IdScores",
    "QFunctionReward",
    "ScoredCompletion",
    "TokenReward",
    "TokenScore",
    "TokenScorer",
    "encode_pair",
    "load_adapters",
    "load_frozen",
    "load_model",
    "token_spans",
]
