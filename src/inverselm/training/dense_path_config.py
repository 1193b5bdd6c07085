"""Options of Dense-Path REINFORCE."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers.utils import logging
from trl import GRPOConfig

from ..errors import UserError
from ..objectives import KL_ESTIMATORS, check_kl_in_loss
from ..token_mdp import CREDITS, SCALES, VARIANCE_REDUCTIONS

logger = logging.get_logger(__name__)


@dataclass
class DensePathConfig(GRPOConfig):
    """GRPOConfig with the options of Dense-Path REINFORCE (arXiv 2510.02493).

    The paper leaves most of these open; the defaults are our choice. `1 / kl_coef` is how far the optimum extrapolates
    beyond the SFT model: pi* ~ pi_SFT (pi_SFT / pi_baseline)^(1 / kl_coef). GRPO's sequence-level options that would be
    a second way to say the same (`beta`, `scale_rewards`) are refused.

    Example: `DensePathConfig("runs/dpr", kl_coef=1.0, num_generations=4)`.
    """

    kl_coef: float = field(
        default=1.0,
        metadata={"help": "Beta, the weight of the KL to the SFT model; 1/kl_coef is how far to go beyond it."},
    )
    kl_in: str = field(
        default="reward",
        metadata={
            "help": "Where the KL enters: 'reward' (exact for sequences, with return-to-go credit) or 'loss'.",
            "choices": ["reward", "loss"],
        },
    )
    kl_estimator: str = field(
        default="k1",
        metadata={"help": "KL estimator: k1, k2 or k3; the loss takes k2 or k3 only.", "choices": list(KL_ESTIMATORS)},
    )
    credit: str = field(
        default="return_to_go",
        metadata={
            "help": "What an action is credited with: all rewards from it on, or its own.",
            "choices": [*CREDITS],
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per action of the return-to-go, in [0, 1]."})
    variance_reduction: str = field(
        default="leave_one_out",
        metadata={
            "help": "What is subtracted from the returns; leave_one_out is the mean over the prompt's other answers.",
            "choices": [*VARIANCE_REDUCTIONS],
        },
    )
    advantage_scale: str = field(
        default="none",
        metadata={"help": "'std' divides by the standard deviation over the batch's actions.", "choices": [*SCALES]},
    )
    standardise_rewards: bool = field(
        default=False,
        metadata={"help": "Standardise token rewards at each action index over the batch before credit."},
    )
    warn_length_ratio: float = field(
        default=1.5, metadata={"help": "Warn when the mean answer length changes by more than this factor."}
    )
    warn_kl: float = field(default=0.5, metadata={"help": "Warn when the KL to the SFT model exceeds it (nats/token)."})
    num_generations: int | None = field(
        default=4, metadata={"help": "Answers sampled per prompt (at least 2). The generation batch must divide by it."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Switch dropout off, so that sampling and loss see the same policy."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {
            "kl_in": ("reward", "loss"),
            "kl_estimator": KL_ESTIMATORS,
            "credit": CREDITS,
            "variance_reduction": VARIANCE_REDUCTIONS,
            "advantage_scale": SCALES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must be in [0, 1], not {self.gamma}.")
        if self.kl_coef < 0:
            raise UserError(f"kl_coef must be >= 0, not {self.kl_coef}.")
        if self.kl_coef and self.kl_in == "loss":
            try:
                check_kl_in_loss(self.kl_estimator)
            except ValueError as error:
                raise UserError(f"kl_in='loss' with kl_estimator='k1': {error}") from error
            if self.loss_type != "dapo":
                raise UserError("kl_in='loss' is normalised like loss_type='dapo'; use that, or kl_in='reward'.")
        if self.beta:
            raise UserError("Use kl_coef, not beta: beta would load a second reference beside the SFT model.")
        if self.temperature != 1.0 and self.kl_coef:
            raise UserError("The KL is defined at temperature 1; leave temperature at 1.0 or set kl_coef to 0.")
        if self.importance_sampling_level != "token":
            raise UserError("Token-level advantages need importance_sampling_level='token'.")
        self._land_on_rollout_boundaries()

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that use one rollout; only a checkpoint at their end resumes exactly."""
        span = int(self.steps_per_generation or 1) * self.num_iterations
        return max(1, -(-span // self.gradient_accumulation_steps))

    def _land_on_rollout_boundaries(self) -> None:
        span = self.steps_per_rollout
        if span == 1 or str(self.save_strategy).split(".")[-1].lower() != "steps" or self.save_steps < 1:
            return
        if self.save_steps % span:
            rounded = -(-int(self.save_steps) // span) * span
            logger.warning(f"save_steps {self.save_steps} -> {rounded}: a rollout lasts {span} optimiser steps.")
            self.save_steps = rounded
