"""Chains with side states: dynamics, losses, fixed points by hand, and when online IQLearn is ahead of offline."""

import math
import random

import pytest
import torch

from inverselm.errors import UserError
from inverselm.objectives import iqlearn, iqlearn_online
from inverselm.report import chains as chains_report
from inverselm.tabular import Chain, chain_loss, compare_on_chain, learn_chain, mean_interval
from inverselm.token_mdp import TokenStats

SMALL = {"length": 3, "num_actions": 4, "num_good": 2, "horizon": 8}
KINDS = [{}, {"side_ends": False}, {"recoverable": False}, {"recoverable": False, "side_ends": False}]


def step(chain, state, action, draw):
    """One transition by the rules, as they are written."""
    if state < chain.length:
        if action < chain.num_good and draw.random() >= chain.slip:
            return state + 1 if state + 1 < chain.length else "goal"
        return chain.length + state
    if chain.recoverable and action == 0:
        return state - chain.length
    return "failure" if chain.side_ends else state


def walks(chain, policy, count, seed=0):
    """Episodes as lists of (state, action, next state)."""
    draw, episodes = random.Random(seed), []
    for _ in range(count):
        state, episode = 0, []
        while len(episode) < chain.horizon and state not in ("goal", "failure"):
            action = draw.choices(range(chain.num_actions), policy[state].tolist())[0]
            after = step(chain, state, action, draw)
            episode.append((state, action, after))
            state = after
        episodes.append(episode)
    return episodes


def table(chain, seed=0, scale=1.0):
    size = chain.num_states, chain.num_actions
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stats_of(chain, q, episodes):
    """The episodes as a batch, padded on the right."""
    values = torch.cat([q.logsumexp(1), q.new_zeros(1)])  # goal and failure are worth 0
    mask = torch.tensor([[t < len(episode) for t in range(chain.horizon)] for episode in episodes])
    moves = torch.tensor(
        [[s, a, chain.num_states if isinstance(n, str) else n] for episode in episodes for s, a, n in episode]
    )
    state, action, after = moves.unbind(1)
    numbers = (
        q.new_zeros(mask.shape).masked_scatter(mask, x) for x in (q[state, action], values[state], values[after])
    )
    return TokenStats(*numbers, mask, torch.where(mask, 0, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_visits_and_success_are_those_of_walks_by_the_rules(kind):
    chain = Chain(**SMALL, slip=0.2, **kind)
    policy = table(chain).softmax(-1)
    count = 4000
    episodes = walks(chain, policy, count)
    taken, success = chain.visits(policy)
    seen = torch.zeros_like(taken)
    for state, action, _ in (move for episode in episodes for move in episode):
        seen[state, action] += 1 / count
    arrived = sum(episode[-1][2] == "goal" for episode in episodes) / count
    assert arrived == pytest.approx(float(success), abs=4 * math.sqrt(0.25 / count))
    assert (seen - taken).abs().max() < 0.1
    assert 0.02 < float(success) < 0.98
    torch.testing.assert_close(chain.transitions.sum(-1), torch.ones_like(taken))


def test_success_by_hand():
    """A place is passed with p = (1 - e) / (1 - e b), b the way back; without recovery with 1 - e."""
    for kind, passed in (({}, 0.9 / (1 - 0.1 * 0.25)), ({"recoverable": False}, 0.9)):
        chain = Chain(length=3, num_actions=4, num_good=1, slip=0.1, horizon=200, **kind)
        policy = torch.full((6, 4), 0.25, dtype=torch.float64)
        policy[:3] = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        assert float(chain.success(policy)) == pytest.approx(passed**3, rel=1e-9)
    cut = Chain(length=3, num_actions=4, num_good=1, slip=0.1, horizon=3)
    assert float(cut.success(policy)) == pytest.approx(0.9**3, rel=1e-9)  # no time to come back


@pytest.mark.parametrize("sizes", [{"length": 0}, {"num_good": 5}, {"num_good": 0}, {"slip": 1.0}, {"horizon": 7}])
def test_sizes_that_make_no_chain_are_refused(sizes):
    with pytest.raises(ValueError, match="Need"):
        Chain(**sizes)


def demonstrated(chain, count, seed=0):
    """As episodes, and as the table of counts that the package takes."""
    counts = chain.demonstrations(count, torch.Generator().manual_seed(seed))
    actions = [[a for a in range(chain.num_actions) for _ in range(int(counts[i, a]))] for i in range(chain.length)]
    onward = [*range(1, chain.length), "goal"]
    episodes = [[(i, actions[i][n], onward[i]) for i in range(chain.length)] for n in range(count)]
    return episodes, counts


def test_demonstrations_go_on_by_all_good_actions():
    chain = Chain(**SMALL)
    counts = demonstrated(chain, 40)[1]
    assert counts[: chain.length].sum(1).tolist() == [40.0] * 3
    assert (counts[: chain.length, : chain.num_good] > 5).all()
    assert counts[:, chain.num_good :].sum() == counts[chain.length :].sum() == 0


def test_offline_loss_is_iqlearn_of_the_demonstrations():
    chain, q = Chain(**SMALL), table(Chain(**SMALL)).requires_grad_()
    episodes, counts = demonstrated(chain, 9)
    wanted = iqlearn(stats_of(chain, q, episodes), td_coef=0.3, gamma=0.9).value
    [ours] = chain_loss(chain, q[None], counts[None], td_coef=0.3, gamma=0.9)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(loss, q)[0] for loss in (ours, wanted)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [{}, {"side_ends": False}])
def test_online_loss_is_the_expectation_of_iqlearn_online_over_samples(kind):
    """The objective of demonstrations and sampled walks in one batch, whose own part varies with the sample."""
    chain = Chain(**SMALL, slip=0.2, **kind)
    q = table(chain, 3).requires_grad_()
    episodes, counts = demonstrated(chain, 9)
    own = walks(chain, q.detach().softmax(-1), 3000, seed=4)
    stats = stats_of(chain, q, episodes + own)
    flags = torch.zeros_like(stats.action_mask)
    flags[len(episodes) :] = True
    sampled = iqlearn_online(stats, own=flags, td_coef=0.5, mix_in=0.4, gamma=0.9).value
    [ours] = chain_loss(chain, q[None], counts[None], td_coef=0.5, mix_in=0.4, gamma=0.9)
    assert sampled.item() == pytest.approx(ours.item(), rel=0.03)
    slopes = [torch.autograd.grad(loss, q)[0] for loss in (ours, sampled)]
    assert (slopes[0] - slopes[1]).abs().max() < 0.05 * slopes[0].abs().max()
    assert slopes[0][chain.length :].abs().max() > 0.05  # side states do learn


def test_online_loss_is_exact_transition_by_transition():
    """Outcomes by the rules: a good action slips with probability 0.2, everything else is certain."""
    chain = Chain(**SMALL, slip=0.2)
    q = table(chain, 5)
    taken, _ = chain.visits(q.softmax(-1))
    options = {"td_coef": 0.5, "mix_in": 0.4, "gamma": 0.9}
    total = 0.0
    for state in range(chain.num_states):
        for action in range(chain.num_actions):
            slips = state < chain.length and action < chain.num_good
            for draw, chance in ((0.0, 0.2), (0.9, 0.8)) if slips else ((0.9, 1.0),):
                fixed = type("Draw", (), {"random": lambda self, value=draw: value})()
                stats = stats_of(chain, q, [[(state, action, step(chain, state, action, fixed))]])
                one = iqlearn_online(stats, own=stats.action_mask, num_own=1, **options).value
                total += float(taken[state, action]) * chance * float(one)
    episodes, counts = demonstrated(chain, 9)
    stats = stats_of(chain, q, episodes)
    shown = iqlearn_online(stats, own=torch.zeros_like(stats.action_mask), **options).value
    [ours] = chain_loss(chain, q[None], counts[None], **options)
    assert float(ours) == pytest.approx(float(shown) + total / float(taken.sum()), rel=1e-10)


def even(chain):
    """Every good action once."""
    counts = torch.zeros(1, chain.num_states, chain.num_actions, dtype=torch.float64)
    counts[:, : chain.length, : chain.num_good] = 1.0
    return counts


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_offline_values_are_the_entropy_still_to_be_shown_and_the_mean_reward_is_zero(gamma):
    """V_i = H_i + gamma V_{i+1}, H_i the NLL at place i: exactly, for uneven demonstrations too."""
    chain = Chain(**SMALL)
    start = torch.stack([table(chain, seed) for seed in (0, 1)])
    shown = torch.cat([even(chain), demonstrated(chain, 5, seed=1)[1][None]])
    assert (shown[1, :3, 0] != shown[1, :3, 1]).any()
    q = learn_chain(chain, start, shown, td_coef=0.5, gamma=gamma)
    torch.testing.assert_close(q[:, chain.length :], start[:, chain.length :])  # nothing was said of side states
    value = q.logsumexp(-1)[:, :3]
    following = torch.nn.functional.pad(value[:, 1:], (0, 1))
    share = shown[:, :3] / shown[:, :3].sum(-1, keepdim=True)
    reward = (share * q[:, :3]).sum(-1) - gamma * following
    assert reward.abs().max() < 0.02
    by_hand = [sum(gamma**k for k in range(left)) * math.log(2) for left in (3, 2, 1)]
    torch.testing.assert_close(value[0], torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=0.05)


@pytest.mark.parametrize(("side_ends", "num_good"), [(True, 3), (False, 3), (True, 1)])
def test_online_the_way_back_is_the_soft_optimal_one(side_ends, num_good):
    """r is the same for all actions of a side state: pi(a) ~ exp(gamma v'(a)), v = (1 - alpha) V of where it leads."""
    gamma, mix_in, others = 0.7, 0.2, 3
    chain = Chain(length=3, num_actions=4, num_good=num_good, slip=0.1, side_ends=side_ends, horizon=8)
    q = learn_chain(chain, table(chain)[None], even(chain), td_coef=0.3, mix_in=mix_in, gamma=gamma)[0]
    value, back = (1 - mix_in) * q.logsumexp(-1), q.softmax(-1)[chain.length :, 0]
    for place, side in enumerate(range(chain.length, chain.num_states)):
        home, other = (math.exp(gamma * float(v)) for v in (value[place], 0.0 if side_ends else value[side]))
        assert float(back[place]) == pytest.approx(home / (home + others * other), abs=0.005)
        assert 0.2 < value[side] < math.log(home + others * other) + 0.01  # every mistake pulls on it, too
    if num_good == 1:
        assert 0.25 < back.mean() < 0.28  # a single way to go on is worth nothing, but for what is not learned yet
    elif side_ends:
        assert back.min() > 0.35


def test_online_is_ahead_where_mistakes_can_be_recovered_from_and_only_there():
    """The effect that arXiv 2409.01369 reports, at more than its 11 points, over seeds."""
    options = {"num_seeds": 8, "steps": 250}
    _, low, _ = mean_interval(compare_on_chain(Chain(), **options).gap())
    assert low > 0.2
    without = compare_on_chain(Chain(recoverable=False), **options)
    assert without.gap().abs().max() < 0.005
    assert without.success()[0].mean() > 0.3


def test_online_mistakes_have_a_price_where_its_weight_is_large():
    runs = compare_on_chain(Chain(recoverable=False), num_seeds=3, steps=250, td_coef=1.0, mix_in=0.5)
    assert runs.gap().max() < -0.1


def test_greedy_success_is_of_the_best_action():
    chain = Chain(**SMALL, slip=0.1)
    runs = compare_on_chain(chain, num_seeds=2, num_demonstrations=4, steps=3)
    best = torch.nn.functional.one_hot(runs.online.argmax(-1), 4).double()
    offline, online = runs.success(greedy=True)
    torch.testing.assert_close(online, chain.success(best))
    torch.testing.assert_close(runs.gap(greedy=True), online - offline)
    assert (runs.success()[1] - online).abs().max() > 0.01


def test_interval_of_a_mean():
    values = torch.arange(100, dtype=torch.float64)
    mean, low, high = mean_interval(values)
    wide = 1.96 * math.sqrt(99 * 101 / 12 / 100)
    assert (mean, low, high) == (49.5, pytest.approx(49.5 - wide, abs=0.5), pytest.approx(49.5 + wide, abs=0.5))


def test_the_study_draws_its_lines_and_keeps_them(tmp_path, monkeypatch):
    settings = [f"{good} good" for good in chains_report.SWEEP]
    kept = tmp_path / "lines.json"
    lines = chains_report.run(kept, settings, num_seeds=2, steps=2)
    assert len(lines) == 4 * 3
    line = lines["not recoverable / 2 good"]
    chain = Chain(num_good=2, recoverable=False)
    runs = compare_on_chain(chain, num_seeds=2, steps=2)
    assert line["gap"] == mean_interval(runs.gap())
    assert line["back"][0] == pytest.approx(float(runs.offline.softmax(-1)[:, 8:, 0].mean()))
    lines["recoverable / 2 good"].update(offline=[0.5, 0, 1], online=[0.75, 0, 1], gap=[0.25, 0.125, 0.3])
    assert "| 2 good | 50.0 → 75.0: +25.0 (+12.5 to +30.0) |" in chains_report.table(lines, settings)
    picture = chains_report.picture(lines, tmp_path / "chains.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(chains_report, "measure", None)  # nothing is measured again
    assert chains_report.run(kept, settings, num_seeds=2, steps=2).keys() == lines.keys()
    with pytest.raises(UserError, match="other options"):
        chains_report.run(kept, settings, num_seeds=3, steps=2)


def test_uniform_in_side_states_by_hand():
    """Eight places of p = 0.9 / (1 - 0.1 / 5); 16 actions leave time for four ways back of two actions each."""
    q, passed = 0.1 / 5, 0.9
    by_hand = sum(math.comb(7 + n, n) * q**n for n in range(5)) * passed**8
    assert chains_report.uniform_success("recoverable") == pytest.approx(by_hand, rel=1e-9)
    assert chains_report.uniform_success("not recoverable") == pytest.approx(0.9**8, rel=1e-9)
