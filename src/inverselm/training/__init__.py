"""Thin trainers on TRL: no mathematics of their own."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BaselineCheckpointCallback": ".checkpoints",
    "DensePathConfig": ".dense_path",
    "DensePathTrainer": ".dense_path",
    "EMABaselineCallback": ".ema",
    "GAILConfig": ".gail",
    "GAILTrainer": ".gail",
    "IQLearnConfig": ".iqlearn",
    "IQLearnTrainer": ".iqlearn",
    "OnlineIQLearnConfig": ".online",
    "OnlineIQLearnTrainer": ".online",
    "Seq2SeqIQLearnConfig": ".seq2seq",
    "Seq2SeqIQLearnTrainer": ".seq2seq",
    "SelfPlayConfig": ".self_play_config",
    "SelfPlayTrainer": ".self_play_trainer",
    "baseline_folder": ".checkpoints",
    "build_from_scratch": ".scratch",
    "find_baseline": "..scorers.markers",
    "last_complete_checkpoint": ".checkpoints",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
