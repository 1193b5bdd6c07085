"""Policy gradient: naive surrogate, KL estimators, and exact gradients by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from helpers.mdp import LAYOUTS, Document, lay_out, place, random_documents, steps
from inverselm.objectives import check_kl_in_loss, kl_in_reward, kl_penalty, policy_gradient
from inverselm.token_mdp import advantages, stats_from_logits


def rollouts(layout="right", seed=50):
    """Documents, batch, logits and random (advantage, old log-prob, reference log-prob) of each action."""
    documents = random_documents(seed, 5)
    batch, logits, places = lay_out(documents, layout)
    generator = torch.Generator().manual_seed(seed)
    numbers = []
    for document in documents:
        drawn = torch.randn(len(steps(document)), 3, generator=generator, dtype=torch.float64).tolist()
        numbers.append(
            [(a, s.log_prob + b / 2, s.log_prob + c / 2) for s, (a, b, c) in zip(steps(document), drawn, strict=True)]
        )
    held, old, ref = ([[n[k] for n in one] for one in numbers] for k in range(3))
    tensors = [place(x, documents, batch, places) for x in (held, old, ref)]
    log_probs = [s.log_prob for document in documents for s in steps(document)]
    flat = [(p, *n) for p, n in zip(log_probs, [n for one in numbers for n in one], strict=True)]
    return batch, logits, tensors, flat


def naive_kl(log_prob, ref, estimator):
    gap = log_prob - ref
    return {"k1": gap, "k2": gap * gap / 2, "k3": math.exp(-gap) - 1 + gap}[estimator]


def naive_loss(flat, clip_range=None, kl_coef=0.0, estimator="k3"):
    total = 0.0
    for log_prob, held, old, ref in flat:
        ratio = math.exp(log_prob - old)
        surrogate = ratio * held
        if clip_range is not None:
            surrogate = min(surrogate, min(max(ratio, 1 - clip_range), 1 + clip_range) * held)
        total += -surrogate + kl_coef * naive_kl(log_prob, ref, estimator)
    return total / len(flat)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.7])
@pytest.mark.parametrize("clip_range", [None, 0.2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_one_action_at_a_time(layout, clip_range, kl_coef, estimator):
    batch, logits, (held, old, ref), flat = rollouts(layout)
    settings = {"clip_range": clip_range, "kl_coef": kl_coef}
    value, metrics = policy_gradient(
        stats_from_logits(logits, batch), held, old_log_prob=old, ref_log_prob=ref, kl_estimator=estimator, **settings
    )
    assert value.item() == pytest.approx(naive_loss(flat, estimator=estimator, **settings), rel=1e-12)
    expected = {
        "advantage": sum(f[1] for f in flat) / len(flat),
        "advantage_abs": sum(abs(f[1]) for f in flat) / len(flat),
        "ratio": sum(math.exp(f[0] - f[2]) for f in flat) / len(flat),
        "kl": sum(f[0] - f[3] for f in flat) / len(flat),
    }
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_gradient(clip_range, estimator):
    documents = [Document([3, 4, 1, 2], [False, True, True, True], [[0.3, -0.2, 0.1, 0.8, 0.5]] * 4)]
    documents += [Document([3, 1, 4], [False, True, True], [[-0.4, 0.6, 0.1, 0.0, 1.0]] * 3)]
    batch, logits, places = lay_out(documents)
    stats = stats_from_logits(logits, batch)
    gaps = [[-0.5, 0.05, 0.6], [0.4, -0.7]]  # ratios .61, 1.05, 1.82 and 1.49, .50: far from .8 and 1.2
    signs = [[1.0, -2.0, 1.5], [-0.5, -1.0]]
    shifts, held = (place(x, documents, batch, places) for x in (gaps, signs))
    old, ref = stats.log_prob - shifts, stats.log_prob + 0.5 * shifts.flip(0)

    def loss(x):
        return policy_gradient(
            stats_from_logits(x, batch),
            held,
            old_log_prob=old,
            clip_range=clip_range,
            ref_log_prob=ref,
            kl_coef=0.3,
            kl_estimator=estimator,
        ).value

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    clipped = torch.autograd.grad(loss(logits), logits)[0]
    assert clipped.abs().max() > 1e-3


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_on_policy_gradient_is_reinforce(clip_range):
    batch, logits, (held, _, _), _ = rollouts()
    logits.requires_grad_()
    stats = stats_from_logits(logits, batch)
    count = stats.num_actions
    value, metrics = policy_gradient(stats, held.requires_grad_(), clip_range=clip_range)
    assert metrics["ratio"].item() == 1.0
    assert "kl" not in metrics
    found = torch.autograd.grad(value, logits, retain_graph=True)[0]
    expected = torch.autograd.grad(-(held.detach() * stats.log_prob).sum() / count, logits, retain_graph=True)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(value, held, allow_unused=True) == (None,)  # the advantage is a constant


def test_garbage_off_the_actions_is_not_read():
    batch, logits, tensors, _ = rollouts("left")
    losses, gradients = [], []
    for garbage in (0.0, float("nan"), -1e4):
        held, old, ref = (torch.where(batch.action_mask, t, garbage) for t in tensors)
        leaf = logits.clone().requires_grad_()
        loss = policy_gradient(
            stats_from_logits(leaf, batch), held, old_log_prob=old, clip_range=0.2, ref_log_prob=ref, kl_coef=0.1
        )
        loss.value.backward()
        losses.append([loss.value.item(), *(m.item() for m in loss.metrics.values())])
        gradients.append(leaf.grad)
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_kl_estimators():
    log_prob, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    torch.testing.assert_close(kl_penalty(log_prob, ref, "k1"), torch.tensor([[0.5, -1.0]]))
    torch.testing.assert_close(kl_penalty(log_prob, ref, "k2"), torch.tensor([[0.125, 0.5]]))
    torch.testing.assert_close(kl_penalty(log_prob, ref, "k3"), torch.tensor([[0.10653066, 0.71828183]]))
    with pytest.raises(ValueError, match="'k4'"):
        kl_penalty(log_prob, ref, "k4")


def test_kl_estimators_over_all_actions():
    """k1 and k3 average to the KL; as a loss k2 has the gradient of KL(pi || ref), k3 of KL(ref || pi), k1 none."""
    theta = torch.tensor([0.2, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.9, 0.1, -0.3], dtype=torch.float64).log_softmax(-1)
    log_pi = theta.log_softmax(-1)
    pi = log_pi.exp().detach()
    forward, backward = (log_pi.exp() * (log_pi - ref)).sum(), (ref.exp() * (ref - log_pi)).sum()
    for estimator in ("k1", "k3"):
        assert (pi * kl_penalty(log_pi, ref, estimator)).sum().item() == pytest.approx(forward.item())
    gradient = lambda x: torch.autograd.grad(x, theta, retain_graph=True)[0]
    pathwise = {k: gradient((pi * kl_penalty(log_pi, ref, k)).sum()) for k in ("k1", "k2", "k3")}
    torch.testing.assert_close(pathwise["k1"], torch.zeros_like(theta))
    torch.testing.assert_close(pathwise["k2"], gradient(forward))
    torch.testing.assert_close(pathwise["k3"], gradient(backward))


def test_errors():
    batch, logits, (held, _, ref), _ = rollouts()
    stats = stats_from_logits(logits, batch)
    with pytest.raises(ValueError, match="k1 estimator in the loss"):
        check_kl_in_loss("k1")
    with pytest.raises(ValueError, match="k1 estimator in the loss"):
        policy_gradient(stats, held, ref_log_prob=ref, kl_coef=0.1, kl_estimator="k1")
    with pytest.raises(ValueError, match="needs ref_log_prob"):
        policy_gradient(stats, held, kl_coef=0.1)
    for estimator in ("k2", "k3"):
        check_kl_in_loss(estimator)


class Tree:
    """All answers of two tokens over {0, 1}: three states (start, after 0, after 1), a table of logits each."""

    answers = tuple(itertools.product(range(2), repeat=2))

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.theta, self.ref, self.reward = (
            torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        self.theta.requires_grad_()

    def log_probs(self, table):
        """(4, 2) log-probabilities of the actions of each answer."""
        log_pi = table.log_softmax(-1)
        return torch.stack([torch.stack([log_pi[0, a], log_pi[1 + a, b]]) for a, b in self.answers])

    def rewards(self):
        return torch.stack([torch.stack([self.reward[0, a], self.reward[1 + a, b]]) for a, b in self.answers])

    def batch(self):
        documents = [Document([0, a, b], [False, True, True], [[0.0, 0.0]] * 3) for a, b in self.answers]
        return lay_out(documents, eos=(9,))[0]

    def logits(self):
        end = torch.zeros(2, dtype=torch.float64)
        return torch.stack([torch.stack([self.theta[0], self.theta[1 + a], end]) for a, _ in self.answers])


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_kl_in_the_reward_is_the_exact_gradient(beta):
    """Over all answers, weighed by their probability: the gradient of E[sum r] - beta KL(pi || ref)."""
    tree = Tree()
    log_probs, ref = tree.log_probs(tree.theta), tree.log_probs(tree.ref)
    probability = log_probs.sum(1).exp()
    objective = (probability * tree.rewards().sum(1)).sum()
    objective = objective - beta * (probability * (log_probs.sum(1) - ref.sum(1))).sum()
    exact = torch.autograd.grad(objective, tree.theta, retain_graph=True)[0]

    batch = tree.batch()
    stats = stats_from_logits(tree.logits(), batch)
    torch.testing.assert_close(stats.log_prob[:, 1:], log_probs)
    pad = lambda x: torch.nn.functional.pad(x, (1, 0))

    def estimate(credit):
        held = kl_in_reward(pad(tree.rewards()), stats.log_prob, pad(ref), beta)
        assert not held.requires_grad
        held = advantages(held, batch.action_mask, credit=credit)
        weighed = held * probability.detach().unsqueeze(1)
        loss = policy_gradient(stats, weighed, num_actions=1).value
        return -torch.autograd.grad(loss, tree.theta, retain_graph=True)[0]

    torch.testing.assert_close(estimate("return_to_go"), exact, rtol=1e-10, atol=1e-12)
    assert (estimate("myopic") - exact).abs().max() > 1e-2


def test_kl_in_the_reward_has_the_known_optimum():
    """At pi* ~ ref exp(r / beta) over answers every return with the KL in it is one constant: no gradient is left."""
    tree, beta = Tree(), 0.5
    ref, rewards = tree.log_probs(tree.ref), tree.rewards()
    best = (ref.sum(1) + rewards.sum(1) / beta).log_softmax(0)
    last = torch.stack([best[[0, 1]].log_softmax(0), best[[2, 3]].log_softmax(0)])
    first = torch.stack([best[[0, 1]].logsumexp(0), best[[2, 3]].logsumexp(0)])
    log_prob = torch.stack([first[[0, 0, 1, 1]], last.flatten()], dim=1)
    paid = kl_in_reward(rewards, log_prob, ref, beta).sum(1)
    torch.testing.assert_close(paid, paid[:1].expand(4))
    torch.testing.assert_close(kl_in_reward(rewards, log_prob, ref, 0.0), rewards)
