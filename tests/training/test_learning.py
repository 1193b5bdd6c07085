"""Each trainer improves what it says it improves: on fresh data, over seeds, by a test of significance.

A seed draws the demonstrations and the first weights. What is measured is written here from its definition, on held-out
demonstrations or on samples drawn with seeds of their own.
"""

from functools import partial

import pytest
import torch

from helpers.data import tiny_for
from helpers.grammar import demonstrations, grammar_tokenizer, improves, log_prob
from helpers.training import arguments, make
from inverselm.inference.generate import generate
from inverselm.scorers import FrozenLM, TokenReward
from inverselm.token_mdp import TokenBatch, token_stats
from inverselm.training.dense_path import DensePathConfig, DensePathTrainer
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer
from inverselm.training.online import OnlineIQLearnConfig, OnlineIQLearnTrainer

SEEDS = range(20, 25)  # not those that the settings were chosen on
TD, GAMMA, MIX_IN = 0.3, 0.9, 0.2
TEMPORAL = {"td_coef": TD, "gamma": GAMMA, "mle_warmup_steps": 0, "td_anneal_steps": 0}
HELD_OUT = demonstrations(64, seed=1000)
LONGEST = 8

better = partial(improves, seeds=SEEDS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(name, seed): the model after a run, made once; "start" is the one before."""
    folder, models = tmp_path_factory.mktemp("learning"), {}

    def run(trainer, config, seed, model=None, rows=None, reward=None, **options):
        settings = {
            "optim": "adamw_torch", "learning_rate": 0.02, "lr_scheduler_type": "constant", "max_steps": 40,
            "per_device_train_batch_size": 16, "seed": seed, "logging_steps": 1000, **options,
        }  # fmt: skip
        args = arguments(config, folder, **settings)
        more = {} if reward is None else {"reward": reward}
        rows = demonstrations(64, seed) if rows is None else rows
        job = make(trainer, args, rows, grammar_tokenizer(), start(seed) if model is None else model, **more)
        job.train()
        return job.model.eval()

    def of(name, seed):
        if (name, seed) not in models:
            models[name, seed] = RUNS[name](run, of, seed)
        return models[name, seed]

    return of


RUNS = {
    "start": lambda run, of, seed: start(seed),
    "sft": lambda run, of, seed: run(IQLearnTrainer, IQLearnConfig, seed, td_coef=0.0),
    "early": lambda run, of, seed: run(IQLearnTrainer, IQLearnConfig, seed, td_coef=0.0, max_steps=10),
    "iqlearn": lambda run, of, seed: run(IQLearnTrainer, IQLearnConfig, seed, **TEMPORAL),
    "online": lambda run, of, seed: run(
        OnlineIQLearnTrainer, OnlineIQLearnConfig, seed, mix_in=MIX_IN, max_completion_length=LONGEST, **TEMPORAL
    ),
    "dense_path": lambda run, of, seed: run(
        DensePathTrainer, DensePathConfig, seed, copy_of(of("sft", seed)), [{"prompt": r["prompt"]} for r in HELD_OUT],
        dense_reward(of, seed), kl_coef=1.0, num_generations=4, max_completion_length=LONGEST, learning_rate=5e-3,
        per_device_train_batch_size=64, max_steps=10,
    ),
}  # fmt: skip


def start(seed):
    return tiny_for(grammar_tokenizer(), seed, hidden_size=32, intermediate_size=64)


def copy_of(model):
    """Its weights in a new model: a trained one's forward is wrapped, and a deep copy would still run the old one."""
    new = start(0)
    new.load_state_dict(model.state_dict())
    return new


def dense_reward(trained, seed):
    """log pi_SFT - log pi_early, minus its expectation under pi_SFT: 0 on average for SFT samples of any length."""
    sft, early = (FrozenLM(copy_of(trained(name, seed))) for name in ("sft", "early"))
    return TokenReward(grammar_tokenizer(), sft, [early], centred=True)


def encoded(rows):
    """Token ids of prompts, and of answers with their EOS."""
    tokenizer = grammar_tokenizer()
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    return [ids(r["prompt"]) for r in rows], [[*ids(r["completion"]), tokenizer.eos_token_id] for r in rows]


def sampled(model, seed, count=128):
    """Prompts in turn, and an answer of the model to each, at temperature 1, by a seed that no training uses."""
    prompts, _ = encoded(demonstrations(count))
    answers = generate(
        model, grammar_tokenizer(), prompts,
        max_new_tokens=LONGEST, batch_size=count, seed=50_000 + seed, progress=False,
    )  # fmt: skip
    return prompts, [answer.token_ids for [answer] in answers]


def read(model, rows):
    """Q, V and V(next) at every action of (prompts, answers)."""
    tokenizer = grammar_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_ids": [tokenizer.eos_token_id]}
    batch = TokenBatch.from_ids(*rows, **special)
    with torch.no_grad():
        stats = token_stats(model.eval(), batch)
    return tuple(part[batch.action_mask] for part in (stats.action_logit, stats.value, stats.next_value))


def nll(model, rows):
    q, v, _ = read(model, rows)
    return float((v - q).mean())


def squared_td(model, rows, mix_in=0.0):
    """Mean of r^2 = (V + log pi / (1 - alpha) - gamma V')^2."""
    q, v, following = read(model, rows)
    return float((v + (q - v) / (1 - mix_in) - GAMMA * following).square().mean())


def offline_objective(model, seed):
    held_out = encoded(HELD_OUT)
    return nll(model, held_out) + TD * squared_td(model, held_out)


def online_objective(model, seed):
    held_out, own = encoded(HELD_OUT), sampled(model, seed)
    parts = (1 - MIX_IN) * squared_td(model, held_out, MIX_IN) + MIX_IN * squared_td(model, own, MIX_IN)
    return nll(model, held_out) + TD * parts


def test_likelihood_rises_towards_the_grammars_own(trained):
    held_out = encoded(HELD_OUT)
    actions = sum(len(answer) for answer in held_out[1])
    own = -sum(log_prob(row["prompt"], row["completion"]) for row in HELD_OUT) / actions
    better(lambda seed: (-nll(trained("start", seed), held_out), -nll(trained("sft", seed), held_out)))
    excess = [nll(trained("sft", seed), held_out) - own for seed in SEEDS]
    assert -0.01 < sum(excess) / len(excess) < 0.15  # 2.5 at the start


def test_iqlearn_lowers_its_objective(trained):
    better(lambda seed: tuple(-offline_objective(trained(name, seed), seed) for name in ("start", "iqlearn")))


@pytest.mark.parametrize("other", ["start", "sft"])
def test_iqlearn_lowers_the_temporal_difference_and_likelihood_alone_does_not(trained, other):
    held_out = encoded(HELD_OUT)
    better(lambda seed: tuple(-squared_td(trained(name, seed), held_out) for name in (other, "iqlearn")))


def test_online_iqlearn_lowers_its_objective(trained):
    better(lambda seed: tuple(-online_objective(trained(name, seed), seed) for name in ("start", "online")))


def test_online_iqlearn_lowers_the_residual_of_its_own_samples(trained):
    """Each model on what it samples itself."""

    def measure(seed):
        models = trained("start", seed), trained("online", seed)
        return tuple(-squared_td(model, sampled(model, seed), MIX_IN) for model in models)

    better(measure)


def test_online_iqlearn_knows_its_own_samples_and_offline_iqlearn_does_not(trained):
    """On the same answers, those of the online model: less than 3/4 of the offline model's; what its own term is for.

    (Without that term, the online objective alone leaves 0.75 to 0.95 of it.)
    """

    def measure(seed):
        own = sampled(trained("online", seed), seed)
        offline, online = (squared_td(trained(name, seed), own, MIX_IN) for name in ("iqlearn", "online"))
        return -0.75 * offline, -online

    better(measure)


def test_dense_path_raises_its_reward_on_fresh_samples(trained):
    """The sum of centred rewards per answer: 0 for the SFT model, so that length alone does not raise it."""

    def measure(seed):
        scorer = dense_reward(trained, seed)
        policies = [trained(name, seed) for name in ("sft", "dense_path")]
        scores = [scorer.score_ids(*sampled(policy, seed, 384), batch_size=384) for policy in policies]
        return tuple(sum(float(answer.rewards.sum()) for answer in answers) / 384 for answers in scores)

    better(measure)
