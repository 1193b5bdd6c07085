"""Options of self-play: SPIN and GSIL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

from ..errors import UserError
from ..objectives import SELF_PLAY_LOSSES

_REFUSED = {
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0,
    "use_weighting": False,
    "sync_ref_model": False,
    "padding_free": False,
    "truncation_mode": "keep_start",
}
"""DPO's options that these losses do not have, with the only value that is taken."""


@dataclass
class SelfPlayConfig(DPOConfig):
    """DPOConfig with the options of self-play: SPIN (arXiv 2401.01335) and GSIL (arXiv 2410.10093).

    Lengths of training (`max_steps`, `num_train_epochs`) and the learning rate's schedule are of one iteration.

    Example: `SelfPlayConfig("runs/spin", loss_type="spin", iterations=3, max_completion_length=128)`.
    """

    loss_type: str = field(  # type: ignore[assignment]
        default="spin",
        metadata={
            "help": "spin: rank demonstrations above own answers. gsil_*: estimate the density ratio of the two.",
            "choices": list(SELF_PLAY_LOSSES),
        },
    )
    iterations: int = field(
        default=3, metadata={"help": "How often to sample answers from the last iterate and train against them."}
    )
    beta: float = field(default=0.1, metadata={"help": "SPIN's factor of the log-ratios; lower moves further."})
    gsil_scale: float = field(default=0.01, metadata={"help": "GSIL's a: u = a log(pi/pi_ref) + b."})
    gsil_offset: float = field(
        default=2.0, metadata={"help": "GSIL's b. With gsil_hinge keep it below 1, or demonstrations have no pull."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest own answer, in tokens."})
    generation_batch_size: int = field(default=32, metadata={"help": "Prompts per batch when answers are sampled."})
    learning_rate: float = field(
        default=5e-7, metadata={"help": "Peak learning rate; as published for 7B models. Small models need more."}
    )

    def __post_init__(self) -> None:
        loss_type: Any = self.loss_type
        if isinstance(loss_type, list) and len(loss_type) == 1:  # a round trip through TRL's form
            loss_type = loss_type[0]
        if loss_type not in SELF_PLAY_LOSSES:
            raise UserError(f"loss_type must be one of {', '.join(SELF_PLAY_LOSSES)}, not {loss_type!r}.")
        super().__post_init__()
        self.loss_type = loss_type
        for name in ("iterations", "max_completion_length", "generation_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        for name in ("beta", "gsil_scale"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}.")
        if not math.isfinite(self.gsil_offset):
            raise UserError(f"gsil_offset must be a number, not {self.gsil_offset}.")
        for name, value in _REFUSED.items():
            if getattr(self, name) != value:
                raise UserError(f"{name} belongs to DPO and has no meaning in self-play; leave it at {value!r}.")
        self.precompute_ref_log_probs = True  # the reference is where the iteration starts
