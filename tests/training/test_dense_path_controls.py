"""DensePathTrainer with a controlled reward: what the loss sees, and that a resumed run sees it again."""

import pytest
import torch

from helpers.data import tiny_for, toy_tokenizer
from helpers.rollouts import (
    BASELINE,
    ELSEWHERE,
    SFT,
    advantages_by_hand,
    dense_path,
    flat,
    mean,
    minus,
    of_rollout,
    padded,
    toy_reward,
)
from helpers.training import assert_same_weights, steps
from inverselm.scorers import REWARD_CONTROLS, ControlledReward
from inverselm.tabular import TokenTree, log_policy, myopic_optimum, sequence_kl
from inverselm.training.scratch_tokenizer import build_tokenizer


def model(seed):
    return tiny_for(toy_tokenizer(), seed)


def trained(folder, control, **options):
    trainer = dense_path(folder, ELSEWHERE, ControlledReward(toy_reward(), control), kl_coef=0.3, **options)
    trainer.train()
    return trainer, trainer.seen[0]


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=tolerance, atol=tolerance)


def by_hand(control, seen, given):
    """The controlled rewards: computed from the rollout, or (where numbers were drawn) taken after a look at them."""
    sft, real = of_rollout(seen, model(SFT)), minus(of_rollout(seen, model(SFT)), of_rollout(seen, model(BASELINE)))
    if control == "log_prob_only":
        return sft
    if control == "sequence_sum_on_last":
        return [[*[0.0] * (len(row) - 1), sum(row)] for row in real]
    if control == "shuffled_tokens":
        for row, own in zip(given, real, strict=True):
            assert sorted(row) == pytest.approx(sorted(own), abs=1e-4)
    elif control == "shuffled_sequences":
        assert sorted(map(sum, given)) == pytest.approx(sorted(map(sum, real)), abs=1e-3)
        assert all(abs(sum(row) - sum(own)) > 1e-3 for row, own in zip(given, real, strict=True))
    else:
        spread = torch.tensor(flat(real)).std(correction=0).item()
        assert abs(mean(flat(given)) - mean(flat(real))) < 4 * spread / len(flat(real)) ** 0.5
        assert 0.5 * spread < torch.tensor(flat(given)).std().item() < 1.5 * spread
    assert max(abs(x - y) for x, y in zip(flat(given), flat(real), strict=True)) > 0.1
    return given


@pytest.mark.parametrize("control", REWARD_CONTROLS)
def test_the_controlled_rewards_are_what_is_trained_on(tmp_path, control):
    trainer, seen = trained(tmp_path, control)
    rewards = by_hand(control, seen, [s.rewards.tolist() for s in trainer._scores])
    kl = minus(of_rollout(seen, model(ELSEWHERE)), of_rollout(seen, model(SFT)))
    advantages = advantages_by_hand(minus(rewards, kl, 0.3))
    close(seen["advantages"], padded(advantages, seen["advantages"].size(1)), 1e-3)
    (entry,) = steps(trainer)
    assert entry["reward"] == pytest.approx(mean([sum(row) for row in rewards]), rel=1e-3)
    assert entry["kl"] == pytest.approx(mean(flat(kl)), rel=1e-3)


@pytest.mark.parametrize("control", ["shuffled_tokens", "shuffled_sequences", "random"])
def test_a_resumed_run_draws_the_same_numbers(tmp_path, control):
    """Without the rollouts before it; and each rollout draws its own."""

    def build():
        saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 0.05}
        return dense_path(tmp_path, SFT, ControlledReward(toy_reward(), control, seed=7), **saved)

    whole, resumed = build(), build()
    whole.train()
    torch.manual_seed(123)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(resumed.seen) == 2
    for a, b in zip(whole.seen[2:], resumed.seen, strict=True):
        assert a["completions"] == b["completions"]
        close(a["advantages"], b["advantages"], 1e-5)
    assert_same_weights(whole.model, resumed.model)


@pytest.mark.slow
def test_myopic_training_goes_where_guided_decoding_is(tmp_path):
    """On a model of 5 tokens, whose answers can be enumerated: with myopic credit and kl_coef beta the policy comes
    closer to decoding with w = 1 / beta; with rewards shuffled between answers it does not."""
    beta, length = 0.5, 3
    tokenizer = build_tokenizer({"type": "char"}, ["ab"])
    tree = TokenTree(vocab_size=len(tokenizer), max_length=length, eos=tokenizer.eos_token_id)

    def table(lm):
        with torch.no_grad():
            rows = [lm(torch.tensor([[3, 4, *state]])).logits[0, -1].double() for state in tree.states]
        return log_policy(tree, torch.stack(rows))

    target = myopic_optimum(tree, table(tiny_for(tokenizer, SFT)), table(tiny_for(tokenizer, BASELINE)), beta)
    left = {}
    for control in (None, "shuffled_sequences"):
        reward = toy_reward(tokenizer)
        trainer = dense_path(
            tmp_path, SFT, reward if control is None else ControlledReward(reward, control), [{"prompt": "ab"}] * 64,
            tokenizer=tokenizer, kl_coef=beta, credit="myopic", max_steps=40, max_completion_length=length,
            num_generations=64, per_device_train_batch_size=128, optim="adamw_torch", learning_rate=3e-3,
            warn_kl=100.0,
        )  # fmt: skip
        before = sequence_kl(tree, table(trainer.model), target)
        trainer.train()
        left[control] = (sequence_kl(tree, table(trainer.model), target) / before).item()
    assert before > 1.0
    assert left[None] < 0.05, left
    assert left["shuffled_sequences"] > 0.8, left
