"""SPIN and GSIL: tell demonstrations from answers of the last iterate by the policy's own log-ratio to it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .base import Loss

GSIL_LOSSES = ("bernoulli", "brier", "hinge", "kliep", "lsif")
SELF_PLAY_LOSSES = ("spin", *(f"gsil_{name}" for name in GSIL_LOSSES))


def spin(real: Float[Tensor, " B"], generated: Float[Tensor, " B"], *, beta: float = 0.1) -> Loss:
    """-logsigmoid(beta (real - generated)), mean over pairs (arXiv 2401.01335, eq. 4.7 with the logistic loss).

    Log-ratios are log pi(y|x) / pi_t(y|x) of whole answers, where pi_t, the last iterate, is what the generated answers
    were sampled from. It is the logistic loss of ranking a demonstration above an own answer, and DPO's sigmoid loss
    with chosen = real, rejected = generated, reference = pi_t. Over all pairs of demonstrations (p) and own answers it
    is least where beta times the log-ratio is log p / pi_t up to a constant of the prompt, so at
    pi ~ pi_t (p / pi_t)^(1/beta): p itself for beta = 1, beyond it for less. Where pi_t = p nothing moves. A generated
    answer that equals the real one costs log 2 and has no gradient.

    Args:
        real: log-ratios of demonstrations, nats, with gradient.
        generated: log-ratios of the generated answers to the same prompts.
        beta: lambda of the paper.

    Returns:
        The loss; metrics as :func:`self_play_loss`, of rewards beta * log-ratio.

    Raises:
        ValueError: beta is not a number above 0, or the two differ in length.

    Example:
        >>> spin(torch.tensor([2.0]), torch.tensor([-1.0]), beta=1.0).value  # log(1 + e^-3)
        tensor(0.0486)
    """
    _check_positive("beta", beta)
    real, generated = _wide(real, generated)
    per_pair = -F.logsigmoid(beta * (real - generated))
    return Loss(per_pair.mean(), _metrics(real, generated, beta))


def gsil(
    real: Float[Tensor, " B"],
    generated: Float[Tensor, " B"],
    *,
    surrogate: str = "bernoulli",
    scale: float = 0.01,
    offset: float = 2.0,
) -> Loss:
    """Density-ratio estimation by the policy: l_1(u) + l_-1(v), mean over pairs (GSIL, arXiv 2410.10093).

    u and v are scale * log(pi / pi_ref) + offset of real and of generated answers; pi_ref generated the latter.

    ============  ====================================  ============================================================
    surrogate     loss                                  what it is
    ============  ====================================  ============================================================
    bernoulli     -logsigmoid(u) - logsigmoid(-v)       log loss, strictly proper (probability sigmoid(u))
    brier         (1 - sigmoid(u))^2 + sigmoid(v)^2     squared error, strictly proper (probability sigmoid(u))
    kliep         -u + exp(v)                           KL importance estimation, its constraint as a Lagrangian
    lsif          -exp(u) + exp(v)^2 / 2                least-squares importance fitting
    hinge         max(0, 1 - u) + max(0, 1 + v)         classifies only: not proper, no density ratio
    ============  ====================================  ============================================================

    The first four are Bregman divergences to the true ratio (Menon and Ong, "Linking losses for density ratio and
    class-probability estimation", 2016): over all functions each is least at u = log p / pi_ref, p the demonstrations'
    distribution. The hinge loss is least at u = sign(p - pi_ref). As u is tied to a normalised policy, offset = 0 and
    scale = 1 end at pi = p; other values bend the optimum, but for every loss and value pi = p = pi_ref is stationary,
    as E_pi[grad log pi] = 0. The same holds for the generated half of the first step (pi = pi_ref): what is left in
    expectation is the gradient of likelihood on demonstrations, weighed by -l_1'(offset), which is 0 for hinge with an
    offset of 1 or more: then nothing pulls demonstrations up until their log-ratio is below (1 - offset) / scale.
    kliep and lsif grow like exp(v) and exp(2 v): keep `scale` small.

    Args:
        real: log-ratios of demonstrations, nats, with gradient.
        generated: log-ratios of the generated answers to the same prompts.
        surrogate: one of `GSIL_LOSSES`.
        scale: a; the reference code's .01 by default.
        offset: b; the reference code's 2 by default.

    Returns:
        The loss; metrics as :func:`self_play_loss`, of rewards scale * log-ratio.

    Raises:
        ValueError: an unknown surrogate, a scale that is not above 0, or the two differ in length.

    Example:
        >>> gsil(torch.tensor([1.0]), torch.tensor([-1.0]), surrogate="hinge", scale=1.0, offset=0.0).value
        tensor(0.)
    """
    _check_positive("scale", scale)
    if not math.isfinite(offset):
        raise ValueError(f"offset must be a finite number, not {offset}.")
    real, generated = _wide(real, generated)
    u, v = scale * real + offset, scale * generated + offset
    if surrogate == "bernoulli":
        per_pair = -F.logsigmoid(u) - F.logsigmoid(-v)
    elif surrogate == "brier":
        per_pair = torch.sigmoid(-u).square() + torch.sigmoid(v).square()
    elif surrogate == "hinge":
        per_pair = torch.relu(1 - u) + torch.relu(1 + v)
    elif surrogate == "kliep":
        per_pair = -u + v.exp()
    elif surrogate == "lsif":
        per_pair = -u.exp() + (2 * v).exp() / 2
    else:
        raise ValueError(f"surrogate must be one of {', '.join(GSIL_LOSSES)}, not {surrogate!r}.")
    return Loss(per_pair.mean(), _metrics(real, generated, scale))


def self_play_loss(
    loss_type: str,
    real: Float[Tensor, " B"],
    generated: Float[Tensor, " B"],
    *,
    beta: float = 0.1,
    scale: float = 0.01,
    offset: float = 2.0,
) -> Loss:
    """:func:`spin` or, for "gsil_<surrogate>", :func:`gsil`.

    Returns:
        The loss; the metrics `rewards/margins` (mean reward of real minus generated), `rewards/accuracies` (share of
        pairs whose real answer has the higher reward; equal ones do not count), `log_ratio/real` and
        `log_ratio/generated` (means, nats per answer).

    Raises:
        ValueError: a loss type that is none of `SELF_PLAY_LOSSES`; as those functions.
    """
    if loss_type == "spin":
        return spin(real, generated, beta=beta)
    if loss_type not in SELF_PLAY_LOSSES:
        raise ValueError(f"loss_type must be one of {', '.join(SELF_PLAY_LOSSES)}, not {loss_type!r}.")
    surrogate = loss_type.removeprefix("gsil_")
    return gsil(real, generated, surrogate=surrogate, scale=scale, offset=offset)


def _wide(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """float32 or wider; a pair each."""
    if real.shape != generated.shape or real.dim() != 1:
        raise ValueError(f"log-ratios must be two (B,) tensors, not {tuple(real.shape)} and {tuple(generated.shape)}.")
    dtype = torch.promote_types(torch.promote_types(real.dtype, generated.dtype), torch.float32)
    return real.to(dtype), generated.to(dtype)


def _metrics(real: Tensor, generated: Tensor, factor: float) -> dict[str, Tensor]:
    real, generated = real.detach(), generated.detach()
    return {
        "rewards/margins": factor * (real - generated).mean(),
        "rewards/accuracies": (real > generated).to(real.dtype).mean(),
        "log_ratio/real": real.mean(),
        "log_ratio/generated": generated.mean(),
    }


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, not {value}.")
