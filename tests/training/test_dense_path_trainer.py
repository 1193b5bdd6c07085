"""DensePathTrainer: the token rewards of the sampled ids become the advantages in the loss, as the definitions say."""

import pytest
import torch
from datasets import Dataset

from helpers.data import chats, sums, tiny_for, toy_tokenizer
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
)
from helpers.training import steps
from inverselm.objectives import policy_gradient
from inverselm.token_mdp import TokenBatch, token_stats


def trained(folder, policy=ELSEWHERE, **options):
    trainer = dense_path(folder, policy, **options)
    trainer.train()
    return trainer, trainer.seen[0]


def model(seed):
    return tiny_for(toy_tokenizer(), seed)


def dense_rewards(seen):
    return minus(of_rollout(seen, model(SFT)), of_rollout(seen, model(BASELINE)))


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=tolerance, atol=tolerance)


ADVANTAGES = [
    *({"credit": c, "variance_reduction": v} for c in ("return_to_go", "myopic")
      for v in ("none", "batch", "position", "leave_one_out")),
    {"gamma": 0.8},
    {"advantage_scale": "std", "variance_reduction": "batch"},
]  # fmt: skip


PARTS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("how", "cut"), [*((how, {}) for how in ADVANTAGES), (ADVANTAGES[3], PARTS), (ADVANTAGES[1], PARTS)], ids=str
)
def test_loss_and_gradient_are_the_objectives_with_advantages_by_hand(tmp_path, how, cut):
    trainer, seen = trained(tmp_path, kl_coef=0.3, **how, **cut)
    lengths = {len(c) for c in seen["completions"]}
    assert len(lengths) > 2  # rows of different lengths, or little would be tested
    kl = minus(of_rollout(seen, model(ELSEWHERE)), of_rollout(seen, model(SFT)))
    advantages = advantages_by_hand(minus(dense_rewards(seen), kl, 0.3), **how)
    close(seen["advantages"], padded(advantages, seen["advantages"].size(1)))
    close(trainer._logs["advantages"], [mean(row) for row in advantages])
    check_step(trainer, seen, advantages)


def check_step(trainer, seen, advantages, kl_coef=0.0, estimator="k3"):
    """The logged loss and the step SGD took are the pure objective's."""
    policy = model(ELSEWHERE)
    batch = TokenBatch.from_ids(seen["prompts"], seen["completions"], pad_token_id=1, eos_token_ids=[0])
    held, reference = torch.zeros(batch.input_ids.shape), torch.zeros(batch.input_ids.shape)
    ref = of_rollout(seen, model(SFT))
    for i, (prompt, row) in enumerate(zip(seen["prompts"], advantages, strict=True)):
        held[i, len(prompt) : len(prompt) + len(row)] = torch.tensor(row)
        reference[i, len(prompt) : len(prompt) + len(row)] = torch.tensor(ref[i])
    loss, _ = policy_gradient(
        token_stats(policy, batch), held, ref_log_prob=reference, kl_coef=kl_coef, kl_estimator=estimator
    )
    loss.backward()
    assert steps(trainer)[0]["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=2e-5)
    after, norm = dict(trainer.model.named_parameters()), 0.0
    for name, parameter in policy.named_parameters():
        close((parameter.detach() - after[name].detach()) / 0.1, parameter.grad, 2e-4)
        norm += parameter.grad.square().sum().item()
    assert steps(trainer)[0]["grad_norm"] == pytest.approx(norm**0.5, rel=1e-3)
    assert norm**0.5 > 1e-2


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("cut", [{}, PARTS], ids=str)
def test_kl_in_the_loss(tmp_path, estimator, cut):
    trainer, seen = trained(tmp_path, kl_coef=0.3, kl_in="loss", kl_estimator=estimator, **cut)
    advantages = advantages_by_hand(dense_rewards(seen))
    close(seen["advantages"], padded(advantages, seen["advantages"].size(1)))
    check_step(trainer, seen, advantages, 0.3, estimator)


def test_kl_in_the_loss_of_a_part_of_a_rollout(tmp_path):
    """Half of the rollout for each step: the policy term and the KL are both divided by half of its tokens."""
    trainer, seen = trained(
        tmp_path, kl_coef=0.3, kl_in="loss", kl_estimator="k2", steps_per_generation=2, per_device_train_batch_size=4
    )
    inputs, loss = trainer.losses[0]
    mask = inputs["completion_mask"].bool()
    gap = inputs["old_per_token_logps"] - inputs["ref_per_token_logps"]
    total = (0.3 * gap.square() / 2 - inputs["advantages"])[mask].sum().item()
    assert mask.size(0) == 4
    assert loss == pytest.approx(total / (sum(map(len, seen["completions"])) / 2), rel=1e-4)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_other_kl_estimators_in_the_reward(tmp_path, estimator):
    _, seen = trained(tmp_path, kl_coef=0.3, kl_estimator=estimator)
    gap = minus(of_rollout(seen, model(ELSEWHERE)), of_rollout(seen, model(SFT)))
    penalty = {"k2": lambda x: x * x / 2, "k3": lambda x: torch.tensor(-x).exp().item() - 1 + x}[estimator]
    rewards = minus(dense_rewards(seen), [[penalty(x) for x in row] for row in gap], 0.3)
    close(seen["advantages"], padded(advantages_by_hand(rewards), seen["advantages"].size(1)), 1e-3)


def test_what_is_logged(tmp_path):
    trainer, seen = trained(tmp_path, kl_coef=0.3)
    rewards = dense_rewards(seen)
    kl = minus(of_rollout(seen, model(ELSEWHERE)), of_rollout(seen, model(SFT)))
    (entry,) = steps(trainer)
    sums_of = [sum(row) for row in rewards]
    assert entry["reward"] == pytest.approx(mean(sums_of), rel=1e-4)
    assert entry["rewards/dense_reward/mean"] == pytest.approx(mean(sums_of), rel=1e-4)
    close(list(trainer._logs["rewards"]["dense_reward"]), sums_of)
    assert entry["reward_per_token"] == pytest.approx(mean(flat(rewards)), rel=1e-4)
    assert entry["kl"] == pytest.approx(mean(flat(kl)), rel=1e-4)
    assert entry["kl_sequence"] == pytest.approx(mean([sum(row) for row in kl]), rel=1e-4)
    advantages = advantages_by_hand(minus(rewards, kl, 0.3))
    assert entry["advantage_abs"] == pytest.approx(mean([abs(x) for x in flat(advantages)]), rel=1e-4)


def test_the_kl_is_zero_at_the_start(tmp_path):
    trainer, _ = trained(tmp_path, SFT, max_steps=3)
    first, *later = steps(trainer)
    assert abs(first["kl"]) < 1e-6
    assert abs(first["kl_sequence"]) < 1e-5
    assert max(abs(entry["kl"]) for entry in later) > 1e-4


def test_rewards_are_those_of_the_sampled_ids(tmp_path):
    """Special tokens that were sampled are gone from the decoded text, and the text is not what is scored."""
    tokenizer = toy_tokenizer()
    _, seen = trained(tmp_path, kl_coef=0.0, credit="myopic", variance_reduction="none")
    again = [tokenizer.encode(tokenizer.decode(ids, skip_special_tokens=True)) for ids in seen["completions"]]
    changed = [i for i, ids in enumerate(seen["completions"]) if [x for x in ids if x != 0] != again[i]]
    assert changed
    close(seen["advantages"], padded(dense_rewards(seen), seen["advantages"].size(1)))


def test_outside_rewards_are_paid_at_the_last_token(tmp_path):
    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    def sometimes(completions, **columns):
        return [None if i % 3 == 0 else float(i) for i in range(len(completions))]

    trainer, seen = trained(
        tmp_path,
        kl_coef=0.0,
        reward_funcs=[length, sometimes],
        reward_weights=[0.5, 2.0],
        per_device_train_batch_size=8,
    )
    rewards = dense_rewards(seen)
    totals = [sum(row) for row in rewards]
    for i, row in enumerate(rewards):
        paid = 0.5 * len(row) + (0.0 if i % 3 == 0 else 2.0 * i)
        row[-1] += paid
        totals[i] += paid
    advantages = advantages_by_hand(rewards)
    close(seen["advantages"], padded(advantages, seen["advantages"].size(1)), 1e-3)
    assert steps(trainer)[0]["reward"] == pytest.approx(mean(totals), rel=1e-4)
    check_step(trainer, seen, advantages)


def test_one_outside_reward_needs_no_list_and_no_weight(tmp_path):
    _, seen = trained(tmp_path, kl_coef=0.0, reward_funcs=lambda completions, **columns: [1.0] * len(completions))
    rewards = [[*row[:-1], row[-1] + 1.0] for row in dense_rewards(seen)]
    close(seen["advantages"], padded(advantages_by_hand(rewards), seen["advantages"].size(1)))


def test_truncated_answers_can_be_left_out(tmp_path):
    """Their tokens carry no advantage and no reward, and the means are over the others' tokens."""
    trainer, seen = trained(
        tmp_path, kl_coef=0.0, mask_truncated_completions=True, credit="myopic", variance_reduction="none"
    )
    ended = [ids[-1] in (0, 1) for ids in seen["completions"]]
    assert 0 < sum(ended) < 8
    rewards = [row if end else [0.0] * len(row) for row, end in zip(dense_rewards(seen), ended, strict=True)]
    close(seen["advantages"], padded(rewards, seen["advantages"].size(1)))
    kept = [x for row, end in zip(rewards, ended, strict=True) for x in row if end]
    assert steps(trainer)[0]["reward_per_token"] == pytest.approx(mean(kept), rel=1e-4)


def test_standardised_rewards(tmp_path):
    _, seen = trained(tmp_path, kl_coef=0.0, standardise_rewards=True, credit="myopic", variance_reduction="none")
    rewards = dense_rewards(seen)
    first = torch.tensor([row[0] for row in rewards])
    close(seen["advantages"][:, 0], (first - first.mean()) / (first.std(unbiased=False) + 1e-6), 1e-3)


def test_conversational_prompts(tmp_path):
    tokenizer = toy_tokenizer(chat=True)
    rows = [{"prompt": row["messages"][:1]} for row in chats()]
    trainer = dense_path(tmp_path, ELSEWHERE, rows=rows, tokenizer=tokenizer, kl_coef=0.0, variance_reduction="none")
    trainer.train()
    (seen,) = trainer.seen
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for row in rows
    ]
    assert all(prompt in prompts for prompt in seen["prompts"])
    rewards = minus(of_rollout(seen, tiny_for(tokenizer, SFT)), of_rollout(seen, tiny_for(tokenizer, BASELINE)))
    close(seen["advantages"], padded(advantages_by_hand(rewards, variance_reduction="none"),
                                     seen["advantages"].size(1)))  # fmt: skip
    ends = {ids[-1] for ids in seen["completions"]}
    assert tokenizer.eos_token_id in ends
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("answers", [1, 2])
def test_evaluation(tmp_path, answers):
    held_out = Dataset.from_list([{"prompt": row["prompt"]} for row in sums(4)])
    trainer = dense_path(tmp_path, ELSEWHERE, eval_dataset=held_out, num_generations_eval=answers,
                         per_device_eval_batch_size=4, kl_coef=0.5)  # fmt: skip
    found = trainer.evaluate()
    rewards = [row for seen in trainer.seen for row in dense_rewards(seen)]
    assert len(rewards) == 4 * answers
    assert found["eval_reward"] == pytest.approx(mean([sum(row) for row in rewards]), rel=1e-4)
    assert found["eval_kl"] != 0


def test_a_rollout_used_for_several_steps(tmp_path):
    """Advantages, and the log-probs of the sampling policy, stay those of the rollout."""
    trainer = dense_path(
        tmp_path, ELSEWHERE, per_device_train_batch_size=4, steps_per_generation=2, max_steps=4, kl_coef=0.3
    )
    trainer.train()
    assert len(trainer.seen) == 2
    first = trainer.seen[0]
    close(first["old_per_token_logps"], padded(of_rollout(first, model(ELSEWHERE)), first["advantages"].size(1)))
    kl = minus(of_rollout(first, model(ELSEWHERE)), of_rollout(first, model(SFT)))
    close(first["advantages"], padded(advantages_by_hand(minus(dense_rewards(first), kl, 0.3)),
                                      first["advantages"].size(1)))  # fmt: skip
