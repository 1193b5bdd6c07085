"""Objectives: pure functions of TokenStats that return a Loss(value, metrics)."""

from .base import Loss, normalised
from .dft import dft
from .gem import gem
from .iqlearn import iqlearn, remaining_nll, td_coef_at
from .iqlearn_online import iqlearn_online, mixed_residual
from .mle import entropy_regularised_mle, mle
from .policy_gradient import KL_ESTIMATORS, check_kl_in_loss, kl_in_reward, kl_penalty, policy_gradient

__all__ = [
    "KL_ESTIMATORS",
    "Loss",
    "check_kl_in_loss",
    "dft",
    "entropy_regularised_mle",
    "gem",
    "iqlearn",
    "iqlearn_online",
    "kl_in_reward",
    "kl_penalty",
    "mixed_residual",
    "mle",
    "normalised",
    "policy_gradient",
    "remaining_nll",
    "td_coef_at",
]
