"""Objectives: pure functions of TokenStats that return a Loss(value, metrics)."""

from .base import Loss, normalised
from .dft import dft
from .gail import (
    RESCALINGS,
    discriminator_loss,
    gae,
    gail_policy,
    gail_reward,
    kl_coef_at,
    rescale_advantages,
    state_values,
    value_loss,
)
from .gem import gem
from .iqlearn import iqlearn, remaining_nll, td_coef_at
from .iqlearn_online import iqlearn_online, mixed_residual
from .mle import entropy_regularised_mle, mle
from .policy_gradient import KL_ESTIMATORS, check_kl_in_loss, kl_in_reward, kl_penalty, policy_gradient
from .self_play import GSIL_LOSSES, SELF_PLAY_LOSSES, gsil, self_play_loss, spin

__all__ = [
    "GSIL_LOSSES",
    "KL_ESTIMATORS",
    "RESCALINGS",
    "SELF_PLAY_LOSSES",
    "Loss",
    "check_kl_in_loss",
    "dft",
    "discriminator_loss",
    "entropy_regularised_mle",
    "gae",
    "gail_policy",
    "gail_reward",
    "gem",
    "gsil",
    "iqlearn",
    "iqlearn_online",
    "kl_coef_at",
    "kl_in_reward",
    "kl_penalty",
    "mixed_residual",
    "mle",
    "normalised",
    "policy_gradient",
    "remaining_nll",
    "rescale_advantages",
    "self_play_loss",
    "spin",
    "state_values",
    "td_coef_at",
    "value_loss",
]
