"""`inverselm sft --loss_type`: TRL's name for the loss, and the objectives of our trainers behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig

from ...errors import UserError
from ...training.iqlearn import IQLearnConfig
from ...training.iqlearn_shared import GEM_TEMPERATURE
from ...training.online import OnlineIQLearnConfig

LOSS_TYPES = ("nll", "dft", "gem")
_IQLEARN = ("td_coef", "gamma", "mle_warmup_steps", "td_anneal_steps", "entropy_coef", "mask_after_eos")
HIDDEN = {"sft": ("objective", *_IQLEARN), "iqlearn": ("objective", "gem_temperature")}
"""Fields that are no flags of a command."""


def loss_type_flag() -> Any:
    """The field of `--loss_type`."""
    text = (
        "nll: plain SFT. Its peers on the same data: dft (arXiv 2508.05629) weighs each token by its own probability; "
        "gem (arXiv 2408.16673) keeps the policy broad. Compare them by eval_nll: their eval_loss is no likelihood."
    )
    return field(default="nll", metadata={"help": text, "choices": list(LOSS_TYPES)})


def gem_temperature_flag() -> Any:
    """The field of `--gem_temperature`."""
    text = f"Beta of --loss_type gem, above 0; 1 is nll. Default: {GEM_TEMPERATURE}."
    return field(default=None, metadata={"help": text})


def set_objective(flags: Any) -> None:
    """`objective` from `loss_type`, which goes back to TRL's default.

    Raises:
        UserError: an unknown loss, or a temperature without GEM.
    """
    if flags.loss_type not in LOSS_TYPES:
        raise UserError(f"--loss_type {flags.loss_type}: unknown; choose {', '.join(LOSS_TYPES)}")
    if flags.gem_temperature is not None and flags.loss_type != "gem":
        raise UserError("--gem_temperature belongs to --loss_type gem; leave it out")
    flags.objective = "iqlearn" if flags.loss_type == "nll" else flags.loss_type
    flags.loss_type = "nll"


@dataclass
class SFTFlags(IQLearnConfig):
    """SFTConfig with more losses: for SFTTrainer, or for IQLearnTrainer if the objective is not that of SFT."""

    loss_type: str = loss_type_flag()
    gem_temperature: float | None = gem_temperature_flag()
    objective: str = field(default="iqlearn", init=False)
    td_coef: float = field(default=0.0, init=False)
    gamma: float = field(default=1.0, init=False)
    mle_warmup_steps: float = field(default=0.0, init=False)
    td_anneal_steps: float = field(default=0.0, init=False)
    entropy_coef: float = field(default=0.0, init=False)
    mask_after_eos: bool | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        set_objective(self)
        if self.objective == "iqlearn":
            SFTConfig.__post_init__(self)  # what IQLearn refuses may be fine here
        else:
            super().__post_init__()


@dataclass
class IQLearnFlags(OnlineIQLearnConfig):
    """OnlineIQLearnConfig without its peers, which are losses of `inverselm sft`."""

    objective: str = field(default="iqlearn", init=False)
    gem_temperature: float | None = field(default=None, init=False)
