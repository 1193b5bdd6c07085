"""Inverse reinforcement learning for language models.

Light on import: torch, transformers and TRL load when a name that needs them is first used.
"""

from importlib import import_module
from typing import Any

from ._version import __version__

_EXPORTS = {
    "TokenBatch": ".token_mdp",
    "TokenStats": ".token_mdp",
    "token_stats": ".token_mdp",
    "TokenReward": ".scorers",
    "IQLearnConfig": ".training",
    "IQLearnTrainer": ".training",
    "OnlineIQLearnConfig": ".training",
    "OnlineIQLearnTrainer": ".training",
    "Seq2SeqIQLearnConfig": ".training",
    "Seq2SeqIQLearnTrainer": ".training",
    "DensePathConfig": ".training",
    "DensePathTrainer": ".training",
    "SelfPlayConfig": ".training",
    "SelfPlayTrainer": ".training",
    "self_play": ".training.self_play",
    "GAILConfig": ".training",
    "GAILTrainer": ".training",
    "BaselineCheckpointCallback": ".training",
    "UserError": ".errors",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
