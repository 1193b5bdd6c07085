"""SFT is IQ-Learn with a linear conjugate, and what IQLearn's regulariser adds to it."""

import pytest
import torch

from inverselm.objectives import iqlearn, mle
from inverselm.tabular import log_policy, sequence_log_probs
from inverselm.token_mdp import bellman_residual, sequence_sum
from inverselm.token_mdp.batch import first_actions
from inverselm.token_mdp.credit import returns_to_go

EXACT = {"rtol": 0, "atol": 1e-12}


def sample(tree, seed, count=60, minimum=1):
    """Demonstrations: rows drawn from a random distribution over the sequences of at least `minimum` tokens."""
    generator = torch.Generator().manual_seed(seed)
    long_enough = [y for y in tree.sequences if len(y) >= minimum]
    weights = torch.rand(len(long_enough), generator=generator) ** 3
    return [long_enough[i] for i in torch.multinomial(weights, count, replacement=True, generator=generator).tolist()]


def linear_iq_learn(stats, gamma):
    """J(Q) = E_expert[ sum_t gamma^(t-1) phi(Q(s_t,a_t) - gamma V(s_{t+1})) ] - E[V(s_1)] with phi(x) = x.

    IQ-Learn maximises E_rho_E[phi(Q - gamma V')] - E_rho_E[V - gamma V'] over the expert's discounted occupancy rho_E
    (arXiv 2409.01369, sec. 3). The second term telescopes over an episode that terminates, whatever the policy:

        sum_t gamma^(t-1) (V(s_t) - gamma V(s_{t+1})) = V(s_1) - gamma^T V(s_{T+1}) = V(s_1),   V(s_{T+1}) = 0,

    so that E[V(s_1)] over the starts rho_0 remains (written (1 - gamma) E[V(s_0)] where rho_E is normalised to 1; with
    gamma = 1 it cannot be, so we sum over the finite episode). A linear phi is IQ-Learn without a reward regulariser.
    Then the same telescoping, read backwards, leaves the likelihood:

        J(Q) = E sum_t gamma^(t-1) [ Q(s_t,a_t) - gamma V(s_{t+1}) - (V(s_t) - gamma V(s_{t+1})) ]
             = E sum_t gamma^(t-1) [ Q(s_t,a_t) - V(s_t) ] = E sum_t gamma^(t-1) log pi(a_t|s_t).

    gamma = 1: minus the NLL of the answers, which is SFT; the value of the next state has cancelled.
    """
    starts = first_actions(stats.action_mask, stats.document_ids)
    discounted = returns_to_go(bellman_residual(stats, gamma), stats.action_mask, gamma)
    return (sequence_sum(discounted - stats.value, starts)).mean()


@pytest.mark.parametrize("prompt_length", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_linear_iq_learn_is_sft(tree, table, read, gradient, seed, prompt_length):
    """Value and gradient, for random Q, random demonstrations and random starts (the prompts)."""
    rows = sample(tree, seed, minimum=prompt_length + 1)
    q = table(tree, seed, 2.0)

    def sft(q):
        batch, stats = read(tree, q, rows, prompt_length=prompt_length)
        return mle(stats).value * int(batch.num_actions) / len(rows)

    def inverse(q):
        return -linear_iq_learn(read(tree, q, rows, prompt_length=prompt_length)[1], 1.0)

    torch.testing.assert_close(inverse(q), sft(q), **EXACT)
    slope = gradient(sft, q)
    torch.testing.assert_close(gradient(inverse, q), slope, **EXACT)
    assert slope.abs().max() > 1e-2


def test_linear_iq_learn_from_logged_metrics(tree, table, read):
    """J = mean reward per answer - V(s_1): a run's own log of `reward` and `value_first` adds up to its `nll`."""
    rows = sample(tree, 9)
    batch, stats = read(tree, table(tree, 9, 2.0), rows)
    loss, metrics = iqlearn(stats, td_coef=0.0)
    length = int(batch.num_actions) / len(rows)
    torch.testing.assert_close(metrics["value_first"] - length * metrics["reward"], length * metrics["nll"], **EXACT)
    torch.testing.assert_close(loss, mle(stats).value, **EXACT)


@pytest.mark.parametrize("gamma", [0.9, 0.4])
def test_gamma_below_one_weights_the_likelihood(tree, table, read, gamma):
    """J is then the *discounted* likelihood: no longer the SFT objective."""
    batch, stats = read(tree, table(tree, 5), sample(tree, 5))
    weights = gamma ** (batch.action_mask.double().cumsum(1) - 1).clamp(min=0)
    wanted = sequence_sum(weights * stats.log_prob, batch.action_mask).mean()
    torch.testing.assert_close(linear_iq_learn(stats, gamma), wanted, **EXACT)
    plain = sequence_sum(stats.log_prob, batch.action_mask).mean()
    assert (wanted - plain).abs() > 0.1


def test_truncation_breaks_the_identity_by_the_bootstrapped_value(tree, table, read):
    """Without EOS the last V(s_{T+1}) stays: J = log-likelihood - V(s_{T+1})."""
    batch, stats = read(tree, table(tree, 6), [(0, 1), (3,), (1, 3, 0)])
    assert batch.truncated.sum() == 3
    left = sequence_sum(stats.next_value, batch.truncated)
    wanted = (sequence_sum(stats.log_prob, batch.action_mask) - left).mean()
    torch.testing.assert_close(linear_iq_learn(stats, 1.0), wanted, **EXACT)
    assert left.abs().min() > 0.1


def test_telescoping_of_the_recovered_reward(tree, table, read):
    """gamma = 1: sum_t r_t = V(s_1) + log pi(y|x) for every answer y (arXiv 2510.02493, sec. 3)."""
    q = table(tree, 7, 3.0)
    batch, stats = read(tree, q)
    total = sequence_sum(bellman_residual(stats), batch.action_mask)
    wanted = tree.mask(q)[0].logsumexp(0) + sequence_log_probs(tree, log_policy(tree, q))
    torch.testing.assert_close(total, wanted, **EXACT)


def test_likelihood_does_not_see_state_offsets_and_the_td_term_does(tree, table, read, gradient):
    """Q + c(s): pi, nll and its gradient stay; delta moves by c(s) - gamma c(s'), c(terminal) = 0."""
    q, offset = table(tree, 10), torch.cat([table(tree, 11)[:, 0], torch.zeros(1, dtype=torch.float64)])
    moved = q + offset[:-1, None]
    batch, stats = read(tree, q)
    stats_moved = read(tree, moved)[1]
    torch.testing.assert_close(mle(stats_moved).value, mle(stats).value, **EXACT)
    loss = lambda q: mle(read(tree, q)[1]).value
    slope = gradient(loss, q)
    torch.testing.assert_close(gradient(loss, moved), slope, **EXACT)
    torch.testing.assert_close(slope.sum(dim=1), torch.zeros_like(slope[:, 0]), **EXACT)
    for gamma in (1.0, 0.8):
        change = tree.at_actions(offset[:-1, None] - gamma * offset[tree.next_state], batch)
        delta = bellman_residual(stats, gamma)
        torch.testing.assert_close(bellman_residual(stats_moved, gamma), delta + change, **EXACT)
    pull = gradient(lambda q: iqlearn(read(tree, q)[1], td_coef=0.5).value, q)
    assert pull.sum(dim=1).abs().max() > 1e-3


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_zero_td_error_means_calibrated_values(tree, table, read, gamma):
    """With reward 0 everywhere V(s_t) is the NLL still to come: `value_gap` is 0 (for any gamma)."""
    q = torch.zeros(tree.num_states, tree.vocab_size, dtype=torch.float64)
    for state in reversed(range(tree.num_states)):
        value = torch.cat([tree.mask(q).logsumexp(-1), q.new_zeros(1)])
        q[state] = gamma * value[tree.next_state[state]]
    metrics = iqlearn(read(tree, q, sample(tree, 12))[1], td_coef=1.0, gamma=gamma).metrics
    assert metrics["td_error"] < 1e-12
    assert metrics["value_gap"].abs() < 1e-12
    shifted = iqlearn(read(tree, q + 2.0, sample(tree, 12))[1], td_coef=1.0, gamma=gamma).metrics
    assert shifted["value_gap"] > 0.5
