"""Returns, baselines and scaling against naive loops; unbiasedness by enumeration."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch

from helpers.mdp import LAYOUTS, lay_out, naive_returns, place, random_documents, steps
from inverselm.token_mdp import advantages, returns_to_go, scale_advantages, subtract_baseline

GAMMAS = [0.0, 0.5, 0.9, 1.0]


def random_rewards(batch, seed=0):
    return torch.randn(batch.input_ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_document(values, documents, places):
    return [
        [values[row, start + s.column].item() for s in steps(d)]
        for d, (row, start) in zip(documents, places, strict=True)
    ]


def by_row(values, mask):
    return [[values[i, j].item() for j in range(mask.size(1)) if mask[i, j]] for i in range(mask.size(0))]


def to_columns(numbers, mask):
    result = torch.zeros(mask.shape, dtype=torch.float64)
    result[mask] = torch.tensor([x for row in numbers for x in row], dtype=torch.float64)
    return result


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_returns_to_go(layout, gamma, seed):
    documents = random_documents(seed, 6, max_length=20)  # with turns of others in between
    batch, _, places = lay_out(documents, layout, extra=seed)
    rewards = random_rewards(batch)
    naive = [naive_returns(one, gamma) for one in by_document(rewards, documents, places)]
    expected = place(naive, documents, batch, places)
    rewards[~batch.action_mask] = torch.nan
    close(returns_to_go(rewards, batch.action_mask, gamma, batch.document_ids), expected)
    if layout != "packed":
        close(returns_to_go(rewards, batch.action_mask, gamma), expected)


def test_returns_by_hand():
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0]]).bool()
    rewards = torch.tensor([[9.0, 1.0, 9.0, 9.0, 2.0, 4.0, 9.0]])
    assert returns_to_go(rewards, mask, 0.5).tolist() == [[0, 3.0, 0, 0, 4.0, 4.0, 0]]
    assert returns_to_go(rewards, mask).tolist() == [[0, 7.0, 0, 0, 6.0, 4.0, 0]]
    one = torch.ones(1, 1, dtype=torch.bool)
    assert returns_to_go(torch.tensor([[3.0]]), one).item() == 3.0
    long = torch.ones(1, 1000, dtype=torch.bool)
    assert returns_to_go(torch.ones(1, 1000), long).flatten().tolist() == list(range(1000, 0, -1))
    for gamma in (-0.1, 1.1):
        with pytest.raises(ValueError, match="gamma"):
            returns_to_go(rewards, mask, gamma)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_documents_of_a_packed_row_do_not_see_each_other(gamma):
    mask = torch.tensor([[0, 1, 1, 0, 1, 1]]).bool()
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    first = returns_to_go(torch.tensor([[0.0, 1, 2, 0, 3, 4]]), mask, gamma, documents)
    second = returns_to_go(torch.tensor([[0.0, 1, 2, 0, 30, 40]]), mask, gamma, documents)
    assert torch.equal(first[:, :3], second[:, :3])
    assert first[0, 2] == 2


@pytest.fixture(params=["right", "left"])
def groups(request):
    """Six rows, three per prompt, of very different lengths."""
    documents = random_documents(21, 6, max_length=10)
    batch, _, _ = lay_out(documents, request.param)
    return random_rewards(batch), batch.action_mask


def test_no_baseline(groups):
    returns, mask = groups
    assert torch.equal(subtract_baseline(returns, mask), torch.where(mask, returns, 0.0))


def test_batch_baseline(groups):
    returns, mask = groups
    rows = by_row(returns, mask)
    mean = statistics.fmean(x for row in rows for x in row)
    close(subtract_baseline(returns, mask, "batch"), to_columns([[x - mean for x in row] for row in rows], mask))


def test_position_baseline(groups):
    returns, mask = groups
    rows = by_row(returns, mask)
    expected = [[x - statistics.fmean(r[k] for r in rows if len(r) > k) for k, x in enumerate(row)] for row in rows]
    close(subtract_baseline(returns, mask, "position"), to_columns(expected, mask))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_leave_one_out_baseline(groups, size):
    returns, mask = groups
    rows = by_row(returns, mask)
    expected = []
    for i, row in enumerate(rows):
        group = range(i // size * size, i // size * size + size)
        others = [rows[j] for j in group if j != i]
        expected.append([])
        for k, x in enumerate(row):
            there = [r[k] for r in others if len(r) > k]
            expected[-1].append(x - (statistics.fmean(there) if there else 0.0))
    close(subtract_baseline(returns, mask, "leave_one_out", size), to_columns(expected, mask))


def test_leave_one_out_is_unbiased():
    """Every pair of answers to one prompt, weighed by its probability: the estimate is the exact policy gradient.

    Two states; token 0 ends the answer, so that answers differ in length: [0], [1, 0], [1, 1].
    """
    theta = torch.tensor([[0.3, -0.4], [0.9, 0.2]], dtype=torch.float64, requires_grad=True)
    log_pi = theta.log_softmax(-1)
    answers = [[0], [1, 0], [1, 1]]
    rewards = [[2.0], [0.5, -1.0], [0.5, 3.0]]  # of what is known when they are paid
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    table = torch.tensor([[*r, 0.0][:2] for r in rewards], dtype=torch.float64)
    taken = torch.stack([torch.stack([log_pi[t, a] for t, a in enumerate(answer)]).sum() for answer in answers])
    exact = torch.autograd.grad((taken.exp() * table.sum(1)).sum(), theta, retain_graph=True)[0]

    def estimate(kind, gamma=1.0):
        total = 0.0
        for i, j in itertools.product(range(3), repeat=2):
            pair = [i, j]
            held = advantages(
                table[pair], mask[pair], variance_reduction=kind, group_size=2, credit="return_to_go", gamma=gamma
            )
            surrogate = sum(held[n, t] * log_pi[t, a] for n, k in enumerate(pair) for t, a in enumerate(answers[k]))
            total = total + (taken[i] + taken[j]).exp().detach() * surrogate / 2
        return torch.autograd.grad(total, theta, retain_graph=True)[0]

    close(estimate("none"), exact)
    close(estimate("leave_one_out"), exact)
    assert (estimate("position") - exact).abs().max() > 1e-2  # it holds the answer itself: this test can tell
    assert (estimate("leave_one_out", gamma=0.0) - exact).abs().max() > 1e-2


def test_scaling(groups):
    numbers, mask = groups
    assert scale_advantages(numbers, mask) is numbers
    spread = statistics.pstdev(numbers[mask].tolist())
    scaled = scale_advantages(numbers, mask, "std")
    close(scaled[mask], numbers[mask] / (spread + 1e-6))
    assert statistics.pstdev(scaled[mask].tolist()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("credit", ["return_to_go", "myopic"])
@pytest.mark.parametrize("kind", ["none", "batch", "position", "leave_one_out"])
def test_the_whole_chain_and_padding(kind, credit):
    documents = random_documents(22, 6)
    found = {}
    for layout, extra in (("right", 0), ("right", 5), ("left", 0), ("left", 5)):
        batch, _, places = lay_out(documents, layout, extra=extra)
        rewards = torch.full(batch.input_ids.shape, 100.0, dtype=torch.float64)
        generator = torch.Generator().manual_seed(3)
        rewards[batch.action_mask] = torch.randn(int(batch.num_actions), dtype=torch.float64, generator=generator)
        settings = {"credit": credit, "gamma": 0.9, "variance_reduction": kind, "scale": "std", "group_size": 3}
        held = advantages(rewards, batch.action_mask, document_ids=batch.document_ids, **settings)
        assert not held[~batch.action_mask].any()
        found[layout, extra] = torch.tensor([x for one in by_document(held, documents, places) for x in one])
        by_hand = returns_to_go(rewards, batch.action_mask, 0.9 if credit == "return_to_go" else 0.0)
        by_hand = subtract_baseline(by_hand, batch.action_mask, kind, 3)
        close(held, scale_advantages(by_hand, batch.action_mask, "std"))
    for numbers in found.values():
        torch.testing.assert_close(numbers, found["right", 0], rtol=1e-12, atol=1e-12)


def test_nothing_but_padding():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for kind in ("none", "batch", "position", "leave_one_out"):
        held = advantages(torch.ones(2, 3), mask, variance_reduction=kind, scale="std", group_size=2)
        assert torch.equal(held, torch.zeros(2, 3))


def test_errors(groups):
    rewards, mask = groups
    with pytest.raises(ValueError, match="credit must be one of"):
        advantages(rewards, mask, credit="reward_to_come")
    with pytest.raises(ValueError, match="variance reduction must be one of"):
        advantages(rewards, mask, variance_reduction="mean")
    with pytest.raises(ValueError, match="advantage scale must be one of"):
        advantages(rewards, mask, scale="max")
    for size in (1, 4):
        with pytest.raises(ValueError, match=f"group_size={size}"):
            advantages(rewards, mask, variance_reduction="leave_one_out", group_size=size)
