"""SPIN and GSIL: numbers by hand, naive references, and where each loss is least, on a space of four answers."""

from __future__ import annotations

import math

import pytest
import torch

from inverselm.objectives import GSIL_LOSSES, SELF_PLAY_LOSSES, gsil, self_play_loss, spin

PROPER = [name for name in GSIL_LOSSES if name != "hinge"]
P = torch.tensor([8, 4, 3, 1])
"""Of 16 demonstrations; and of as many own answers:"""
Q = torch.tensor([2, 6, 4, 4])
LOG_P, LOG_Q = (counts.double().div(16).log() for counts in (P, Q))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def naive(loss_type, real, generated, beta=0.1, scale=0.01, offset=2.0):
    """One pair at a time, as printed."""
    total = 0.0
    for r, g in zip(real, generated, strict=True):
        u, v = scale * r + offset, scale * g + offset
        total += {
            "spin": lambda r=r, g=g: -math.log(sigmoid(beta * r - beta * g)),
            "gsil_bernoulli": lambda u=u, v=v: -math.log(sigmoid(u)) - math.log(sigmoid(-v)),
            "gsil_brier": lambda u=u, v=v: (sigmoid(u) - 1) ** 2 + sigmoid(v) ** 2,
            "gsil_hinge": lambda u=u, v=v: max(0.0, 1 - u) + max(0.0, 1 + v),
            "gsil_kliep": lambda u=u, v=v: -u + math.exp(v),
            "gsil_lsif": lambda u=u, v=v: -math.exp(u) + 0.5 * math.exp(v) ** 2,
        }[loss_type]()
    return total / len(real)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda r, g: spin(r, g, beta=0.5), math.log(1 + math.exp(-1.5))),  # 0.5 (2 - -1)
        (lambda r, g: gsil(r, g, surrogate="bernoulli", scale=0.5, offset=0.0),
         math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-0.5))),  # u = 1, v = -1/2
        (lambda r, g: gsil(r, g, surrogate="brier", scale=0.5, offset=0.5),
         (1 / (1 + math.exp(1.5))) ** 2 + 0.25),  # u = 3/2, v = 0
        (lambda r, g: gsil(r, g, surrogate="hinge", scale=0.25, offset=0.0), 0.5 + 0.75),  # u = 1/2, v = -1/4
        (lambda r, g: gsil(r, g, surrogate="kliep", scale=1.0, offset=1.0), -3 + 1),  # u = 3, v = 0
        (lambda r, g: gsil(r, g, surrogate="lsif", scale=0.5, offset=0.5), -math.exp(1.5) + 0.5),  # u = 3/2, v = 0
    ],
)  # fmt: skip
def test_by_hand(loss, expected):
    """A demonstration that became e^2 times as likely, an own answer that became e times less likely."""
    value, metrics = loss(torch.tensor([2.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64))
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert metrics["log_ratio/real"].item() == 2.0
    assert metrics["log_ratio/generated"].item() == -1.0


def test_the_published_defaults():
    value = self_play_loss("gsil_bernoulli", torch.zeros(1), torch.zeros(1)).value.item()
    assert value == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2)), rel=1e-6)
    one = torch.ones(1)
    assert spin(one, -one).value.item() == pytest.approx(math.log(1 + math.exp(-0.2)), rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"beta": 0.7, "scale": 0.3, "offset": -0.4}])
@pytest.mark.parametrize("loss_type", SELF_PLAY_LOSSES)
def test_against_one_pair_at_a_time(loss_type, settings):
    generator = torch.Generator().manual_seed(0)
    real, generated = 3 * torch.randn(2, 9, generator=generator, dtype=torch.float64)
    value, metrics = self_play_loss(loss_type, real, generated, **settings)
    assert value.item() == pytest.approx(naive(loss_type, real.tolist(), generated.tolist(), **settings), rel=1e-12)
    pairs = list(zip(real.tolist(), generated.tolist(), strict=True))
    defaults = {"beta": 0.1, "scale": 0.01} | settings
    factor = defaults["beta" if loss_type == "spin" else "scale"]
    expected = {
        "rewards/margins": factor * sum(r - g for r, g in pairs) / 9,
        "rewards/accuracies": sum(r > g for r, g in pairs) / 9,
        "log_ratio/real": sum(r for r, _ in pairs) / 9,
        "log_ratio/generated": sum(g for _, g in pairs) / 9,
    }
    assert {name: x.item() for name, x in metrics.items()} == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("loss_type", SELF_PLAY_LOSSES)
def test_gradient(loss_type):
    generator = torch.Generator().manual_seed(1)
    real, generated = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    inputs = real.requires_grad_(), generated.requires_grad_()
    settings = {"beta": 0.7, "scale": 0.5, "offset": 0.2}
    assert torch.autograd.gradcheck(lambda r, g: self_play_loss(loss_type, r, g, **settings).value, inputs)


@pytest.mark.parametrize("loss_type", SELF_PLAY_LOSSES)
def test_half_precision_is_widened(loss_type):
    real, generated = torch.tensor([[1.5, 40.0], [-1.0, -30.0]], dtype=torch.bfloat16)
    settings = {"scale": 0.1, "offset": 0.3}
    value, metrics = self_play_loss(loss_type, real, generated, **settings)
    assert {value.dtype, *(x.dtype for x in metrics.values())} == {torch.float32}
    expected = naive(loss_type, real.tolist(), generated.tolist(), **settings)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_large_log_ratios_stay_finite():
    """Where the printed forms take the logarithm of 0."""
    far = torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4])
    for loss_type in ("spin", "gsil_bernoulli", "gsil_brier", "gsil_hinge"):
        real, generated = (x.clone().requires_grad_() for x in far)
        value = self_play_loss(loss_type, real, generated, beta=1.0, scale=1.0, offset=0.0).value
        value.backward()
        assert value.isfinite()
        assert real.grad.isfinite().all()


def test_equal_answers():
    """SPIN: log 2, and no gradient in the policy, which both come from."""
    same = torch.tensor([0.7, -0.2], requires_grad=True)
    value, metrics = spin(same, same)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert same.grad.tolist() == [0.0, 0.0]
    assert metrics["rewards/accuracies"].item() == 0.0


# --- where the losses are least: answers 0..3, demonstrations P, own answers Q ----------------------------------------


def batches(scores, pairs=False):
    """Scores of all demonstrations and of all own answers; or of every pair of the two."""
    real, generated = scores.repeat_interleave(P), scores.repeat_interleave(Q)
    return (real.repeat_interleave(16), generated.repeat(16)) if pairs else (real, generated)


def least(loss, start):
    """The minimiser, by L-BFGS."""
    x = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([x], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimiser.step(closure)
    return x.detach()


@pytest.mark.parametrize("surrogate", PROPER)
def test_a_free_function_ends_at_the_log_density_ratio(surrogate):
    def loss(u):
        return gsil(*batches(u), surrogate=surrogate, scale=1.0, offset=0.0).value

    found = least(loss, torch.tensor([0.1, -0.3, 0.2, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found, LOG_P - LOG_Q, atol=1e-5, rtol=0)


@pytest.mark.parametrize("surrogate", PROPER)
@pytest.mark.parametrize(("scale", "offset"), [(0.5, 0.0), (2.0, 1.5)])
def test_scale_and_offset_are_of_the_function(surrogate, scale, offset):
    """u = scale x + offset = log p / q at the end, where x need not come from a policy."""

    def loss(x):
        return gsil(*batches(x), surrogate=surrogate, scale=scale, offset=offset).value

    found = least(loss, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(scale * found + offset, LOG_P - LOG_Q, atol=1e-5, rtol=0)


def test_hinge_only_classifies():
    """Least at the sign of p - q, wherever the ratio is: no other point of a grid is as good."""

    def loss(u):
        return gsil(*batches(u), surrogate="hinge", scale=1.0, offset=0.0).value.item()

    signs = (P - Q).sign().double()
    best = loss(signs)
    grid = torch.cartesian_prod(*[torch.arange(-2, 2.25, 0.5, dtype=torch.float64)] * 4)
    values = torch.tensor([loss(u) for u in grid])
    assert values.min().item() == pytest.approx(best, abs=1e-12)
    assert torch.equal(grid[values.argmin()], signs)
    assert loss(LOG_P - LOG_Q) > best + 0.1


@pytest.mark.parametrize("surrogate", PROPER)
def test_a_policy_ends_at_the_demonstrations(surrogate):
    def loss(logits):
        x = logits.log_softmax(-1) - LOG_Q
        return gsil(*batches(x), surrogate=surrogate, scale=1.0, offset=0.0).value

    policy = least(loss, torch.zeros(4, dtype=torch.float64)).log_softmax(-1)
    torch.testing.assert_close(policy, LOG_P, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_spin_ends_at_its_closed_form(beta):
    """pi ~ q (p / q)^(1 / beta)."""

    def loss(logits):
        return spin(*batches(logits.log_softmax(-1) - LOG_Q, pairs=True), beta=beta).value

    policy = least(loss, torch.zeros(4, dtype=torch.float64)).log_softmax(-1)
    expected = (LOG_Q + (LOG_P - LOG_Q) / beta).log_softmax(-1)
    torch.testing.assert_close(policy, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss_type", SELF_PLAY_LOSSES)
@pytest.mark.parametrize("offset", [0.0, 0.7, 2.0])
def test_nothing_moves_at_the_demonstrations(loss_type, offset):
    """pi = pi_ref = p is stationary, whatever the offset."""
    logits = LOG_P.clone().requires_grad_()
    x = logits.log_softmax(-1) - LOG_P
    real, generated = x.repeat_interleave(P), x.repeat_interleave(P)
    value = self_play_loss(loss_type, real.repeat_interleave(16), generated.repeat(16), scale=0.3, offset=offset).value
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("offset", [-0.5, 0.0, 2.0])
@pytest.mark.parametrize("surrogate", GSIL_LOSSES)
def test_the_first_step_is_weighed_likelihood(surrogate, offset):
    """At pi = pi_ref own answers have no gradient in expectation; hinge with an offset above 1 has none at all."""
    s, scale = sigmoid(offset), 0.3
    weight = {
        "bernoulli": 1 - s, "brier": 2 * (1 - s) ** 2 * s, "hinge": float(offset < 1), "kliep": 1.0,
        "lsif": math.exp(offset),
    }[surrogate]  # fmt: skip
    logits = LOG_Q.clone().requires_grad_()
    value = gsil(*batches(logits.log_softmax(-1) - LOG_Q), surrogate=surrogate, scale=scale, offset=offset).value
    (gradient,) = torch.autograd.grad(value, logits)
    expected = -weight * scale * (P - Q).double() / 16  # of -log pi on demonstrations: q - p
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: spin(x, x, beta=0.0), "beta must be a number above 0"),
        (lambda x: gsil(x, x, scale=-1.0), "scale must be a number above 0"),
        (lambda x: gsil(x, x, offset=math.inf), "offset must be a finite number"),
        (lambda x: gsil(x, x, surrogate="square"), "surrogate must be one of bernoulli"),
        (lambda x: self_play_loss("dpo", x, x), "loss_type must be one of spin"),
        (lambda x: spin(x, x[:1]), r"two \(B,\) tensors"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2))
