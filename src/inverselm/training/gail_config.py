"""Options of GAIL."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UserError
from ..objectives import check_kl_in_loss
from ..objectives.gail import RESCALINGS
from .iqlearn import IQLearnConfig
from .rollouts import check_saves

CRITICS = ("full", "head")


@dataclass
class GAILConfig(IQLearnConfig):
    """SFTConfig with the options of GAIL (arXiv 2409.01369, app. A.1.3).

    The paper gives the reward, one discriminator update per policy step, rescaled advantages, and a KL weight annealed
    over 10,000 steps to 1e-3; other defaults are our choice. Demonstrations need a prompt: rows are not packed.

    Example: `GAILConfig("runs/gail", learning_rate=1e-5, max_completion_length=128)`.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of the policy."})
    max_completion_length: int = field(default=256, metadata={"help": "Longest own sample, in tokens."})
    rollout_every: int = field(
        default=1,
        metadata={"help": "Sample anew every so many optimiser steps; between them the last samples are used again."},
    )
    critics: str = field(
        default="full",
        metadata={
            "help": "Discriminator and value network: 'full', each a copy of the model with a scalar head; 'head', "
            "small heads on the hidden states of the initial policy, which stays as it is.",
            "choices": list(CRITICS),
        },
    )
    discriminator_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the discriminator. Default: learning_rate if critics is full, else 1e-3."}
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the value network. Default: as the discriminator's."}
    )
    mle_coef: float = field(
        default=1.0,
        metadata={"help": "Weight of -log pi of the demonstrations; without it (0) the policy often collapses."},
    )
    kl_coef: float = field(default=1e-3, metadata={"help": "Final weight of the KL to the initial policy."})
    kl_coef_start: float = field(default=0.1, metadata={"help": "Its weight at the first step."})
    kl_anneal_steps: int = field(
        default=10_000, metadata={"help": "Optimiser steps over which it goes from one to the other, linearly."}
    )
    kl_estimator: str = field(
        default="k2", metadata={"help": "KL estimator in the loss: k2 or k3.", "choices": ["k2", "k3"]}
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of the entropy bonus in the states of own samples."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount per action, in [0, 1]."})
    gae_lambda: float = field(
        default=0.95, metadata={"help": "Lambda of generalised advantage estimation, in [0, 1]; 1 is return minus V."}
    )
    reward_shift: float = field(
        default=0.0,
        metadata={
            "help": "Subtracted from each token's reward softplus(D). With 0.6931 (log 2) a token that the "
            "discriminator cannot tell earns nothing, so that length does not pay by itself."
        },
    )
    advantage_scale: str = field(
        default="whiten",
        metadata={
            "help": "'std' divides advantages by their standard deviation over the rollout, 'whiten' also centres.",
            "choices": list(RESCALINGS),
        },
    )
    clip_range: float = field(
        default=0.2, metadata={"help": "PPO's clipping, where samples are used again; 0 is none."}
    )
    collapse_steps: int = field(
        default=25, metadata={"help": "Stop when the run has looked collapsed for so many steps in a row; 0 is never."}
    )
    collapse_truncated: float = field(
        default=0.98, metadata={"help": "Collapsed: at least this share of own samples has no EOS."}
    )
    collapse_accuracy: float = field(
        default=1.0, metadata={"help": "Collapsed: the discriminator is right at least so often, on either kind."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Switch dropout off, so that sampling and loss see the same policy."}
    )

    td_coef: float = field(default=0.0, init=False)
    mle_warmup_steps: float = field(default=0.0, init=False)
    td_anneal_steps: float = field(default=0.0, init=False)
    objective: str = field(default="iqlearn", init=False)
    gem_temperature: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.mask_after_eos = True if self.mask_after_eos is None else self.mask_after_eos
        super().__post_init__()
        for name, allowed in (("critics", CRITICS), ("advantage_scale", RESCALINGS), ("kl_estimator", ("k2", "k3"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        check_kl_in_loss(self.kl_estimator)
        for name in ("max_completion_length", "rollout_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        for name in ("mle_coef", "kl_coef", "kl_coef_start", "kl_anneal_steps", "clip_range", "collapse_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be >= 0, not {getattr(self, name)}.")
        for name in ("gae_lambda", "collapse_truncated", "collapse_accuracy"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} must be in [0, 1], not {getattr(self, name)}.")
        base = self.learning_rate if self.critics == "full" else 1e-3
        if self.discriminator_learning_rate is None:
            self.discriminator_learning_rate = base
        if self.value_learning_rate is None:
            self.value_learning_rate = self.discriminator_learning_rate
        if self.packing:
            raise UserError("GAIL answers the prompt of each row: set packing=False.")
        if self.completion_only_loss is False:
            raise UserError("GAIL answers prompts: completion_only_loss=False would make prompts part of the answer.")
        if self.fp16:
            raise UserError("The critics are not scaled for fp16: use bf16, or float32.")
        check_saves(self)
