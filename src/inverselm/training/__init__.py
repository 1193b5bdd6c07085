"""Thin trainers on TRL: no mathematics of their own."""

from .._lazy import exports

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
__getattr__, __dir__ = exports(__name__, _EXPORTS)
