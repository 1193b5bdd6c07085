"""Inverse reinforcement learning for language models.

Light on import: torch, transformers and TRL load when a name that needs them is first used.
"""

from ._lazy import exports
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
__getattr__, __dir__ = exports(__name__, _EXPORTS)
