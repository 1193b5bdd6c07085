"""On small MDPs whose reward is known: a right reward scores near 1, noise near 0 or 0.5."""

import numpy as np
import pytest
import torch

from inverselm.evaluation import answer_values, error_localisation, pairwise_accuracy, reward_correlation
from inverselm.tabular import TokenTree, log_policy, soft_optimal
from inverselm.token_mdp import bellman_residual, log_ratio, stats_from_logits


def rewards_on(tree, truth, sequences, prompt_length):
    """Token rewards of sequences by name, as lists: read off the soft-optimal policies of `truth` by the package."""
    batch = tree.batch(sequences, prompt_length=prompt_length)
    sft, half = soft_optimal(tree, truth), soft_optimal(tree, truth / 2)  # an earlier checkpoint: half-way there
    stats, base = (stats_from_logits(tree.logits_for(batch, s.q), batch) for s in (sft, half))
    tables = {
        "true": tree.at_actions(truth, batch),
        "recovered": bellman_residual(stats),
        "dense": log_ratio(stats.log_prob, base.log_prob, batch.action_mask),
        "log pi": stats.log_prob,
        "noise": torch.randn(stats.log_prob.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    }
    mask = batch.action_mask
    return {name: [row[keep].tolist() for row, keep in zip(t, mask, strict=True)] for name, t in tables.items()}


@pytest.fixture(scope="module")
def answers():
    """Every answer of a tree to every prompt of two tokens, with its true return as the task metric."""
    tree = TokenTree(vocab_size=4, max_length=6, eos=0, min_length=3)
    truth = torch.randn(tree.num_states, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sequences = [s for s in tree.sequences if len(s) > 2]
    rewards = rewards_on(tree, truth, sequences, prompt_length=2)
    scores = [sum(tokens) for tokens in rewards["true"]]
    log_probs = rewards.pop("log pi")
    return answer_values(rewards, log_probs=log_probs), scores, [s[:2] for s in sequences]


def test_correlation(answers):
    values, scores, prompts = answers
    report = reward_correlation(values, scores, prompts, n=100)
    assert report.counts["prompts"] == 9
    within, overall = ({k: e.value for k, e in report.values[m].items()} for m in ("within", "overall"))
    for name in ("true, sum", "recovered, sum"):
        assert overall[name] == pytest.approx(1.0)
        assert within[name] == pytest.approx(1.0)
    # the dense reward's sum is half the return and a constant of the prompt, log-likelihood the return and another one
    assert within["dense, sum"] == pytest.approx(1.0)
    assert within["log-likelihood, sum"] == pytest.approx(1.0)
    assert overall["log-likelihood, sum"] < 0.97
    assert abs(within["noise, sum"]) < 0.15
    assert abs(overall["noise, sum"]) < 0.15
    assert abs(within["random"]) < 0.15


def test_pairs(answers):
    values, scores, prompts = answers
    report = pairwise_accuracy(values, np.array(scores) > np.median(scores), prompts, n=100)
    found = {name: estimate.value for name, estimate in report.values["accuracy"].items()}
    assert found["recovered, sum"] == 1.0
    assert found["dense, sum"] == 1.0
    assert found["noise, sum"] == pytest.approx(0.5, abs=0.1)
    assert found["random"] == pytest.approx(0.5, abs=0.1)


def test_localisation():
    """In every state one token is right and pays 0, the others -6; each answer goes wrong once."""
    tree = TokenTree(vocab_size=4, max_length=7, eos=0, min_length=7)
    rng = np.random.default_rng(0)
    right = rng.integers(1, 4, tree.num_states)
    truth = torch.full((tree.num_states, 4), -6.0, dtype=torch.float64)
    truth[torch.arange(tree.num_states), torch.as_tensor(right)] = 0.0
    truth[:, 0] = 0.0  # EOS, which only the last state allows
    index = {prefix: state for state, prefix in enumerate(tree.states)}
    sequences, planted = [], []
    for _ in range(120):
        place, prefix = int(rng.integers(0, 6)), ()
        for t in range(6):
            token = int(right[index[prefix]])
            prefix = (*prefix, token % 3 + 1 if t == place else token)
        sequences.append((*prefix, 0))
        planted.append([t == place for t in range(7)])
    rewards = rewards_on(tree, truth, sequences, prompt_length=0)
    report = error_localisation(rewards, planted, controls={"dense": "log pi", "noise": "log pi"}, n=100)
    for name in ("true", "recovered", "dense", "log pi"):
        for measure, perfect in (("auroc", 1.0), ("auroc_until", 1.0), ("rank", 0.0), ("top1", 1.0)):
            assert report.values[measure][name].value == pytest.approx(perfect), (measure, name)
        assert report.values["precision@3"][name].value == pytest.approx(1 / 3)
    for measure in ("auroc", "auroc_until", "rank"):
        assert report.values[measure]["noise"].value == pytest.approx(0.5, abs=0.08)
    assert report.values["top1"]["noise"].value == pytest.approx(1 / 7, abs=0.1)
    assert report.verdict("auroc", "noise").startswith("noise is behind log pi by 0.")
    assert "no difference shown" in report.verdict("auroc", "dense")


def test_the_policies_differ_from_the_baseline():
    """The dense reward above is no constant."""
    tree = TokenTree(vocab_size=3, max_length=3)
    truth = torch.randn(tree.num_states, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sft, half = (log_policy(tree, soft_optimal(tree, r).q) for r in (truth, truth / 2))
    assert (sft - half).abs().max() > 0.1
