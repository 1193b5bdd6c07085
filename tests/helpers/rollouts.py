"""DensePathTrainer under observation, and its numbers once more in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from helpers.data import sums, tiny_for, toy_tokenizer
from helpers.mdp import naive_returns
from helpers.training import arguments, make
from inverselm.scorers import FrozenLM, TokenReward
from inverselm.training.dense_path import DensePathConfig, DensePathTrainer

SFT, BASELINE, ELSEWHERE = 0, 1, 2
"""Seeds of the SFT model, of its baseline, and of a policy that is neither."""


class Watched(DensePathTrainer):
    """Keeps every rollout, the sampled ids and what the trainer made of them, and every micro-batch with its loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.losses: list[tuple[dict[str, Any], float]] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        prompts, completions, _ = self._rollout
        self.seen.append({"prompts": prompts, "completions": completions, **output})
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        self.losses.append((inputs, loss.item()))
        return loss


def toy_reward(tokenizer: Any = None) -> TokenReward:
    """Of two random models."""
    tokenizer = toy_tokenizer() if tokenizer is None else tokenizer
    return TokenReward(tokenizer, FrozenLM(tiny_for(tokenizer, SFT)), [FrozenLM(tiny_for(tokenizer, BASELINE))])


def dense_path(folder: Any, policy: Any = SFT, reward: Any = None, rows: Any = None, tokenizer: Any = None, **options):
    """A Watched trainer on the toy prompts; `policy` is a seed or a model."""
    outside = {name: options.pop(name) for name in ("reward_funcs", "eval_dataset", "callbacks") if name in options}
    tokenizer = toy_tokenizer() if tokenizer is None else tokenizer
    defaults = {
        "per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.1, "lr_scheduler_type": "constant",
        "max_completion_length": 10, "num_generations": 4, "max_grad_norm": 1e9,
    }  # fmt: skip
    args = arguments(DensePathConfig, folder, **{**defaults, **options})
    rows = [{"prompt": row["prompt"]} for row in sums()] if rows is None else rows
    model = tiny_for(tokenizer, policy) if isinstance(policy, int) else policy
    reward = toy_reward(tokenizer) if reward is None else reward
    return make(Watched, args, rows, tokenizer, model, reward=reward, **outside)


def action_log_probs(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    """log pi of each completion token, from one unpadded row."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()


def of_rollout(seen: dict[str, Any], model: Any) -> list[list[float]]:
    """log pi of every answer's tokens."""
    return [action_log_probs(model, p, c) for p, c in zip(seen["prompts"], seen["completions"], strict=True)]


def minus(a: list[list[float]], b: list[list[float]], weight: float = 1.0) -> list[list[float]]:
    """a - weight * b, number by number."""
    return [[x - weight * y for x, y in zip(p, q, strict=True)] for p, q in zip(a, b, strict=True)]


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def advantages_by_hand(
    rewards: list[list[float]],
    credit: str = "return_to_go",
    gamma: float = 1.0,
    variance_reduction: str = "leave_one_out",
    advantage_scale: str = "none",
    group: int = 4,
) -> list[list[float]]:
    """Returns, minus what they are compared with, as the definitions say; rows of one prompt are neighbours."""
    returns = [naive_returns(row, gamma) if credit == "return_to_go" else list(row) for row in rewards]
    result = []
    for i, row in enumerate(returns):
        result.append([])
        for t, value in enumerate(row):
            peers = {
                "none": [],
                "batch": flat(returns),
                "position": [other[t] for other in returns if len(other) > t],
                "leave_one_out": [
                    other[t]
                    for j, other in enumerate(returns)
                    if j != i and j // group == i // group and len(other) > t
                ],
            }[variance_reduction]
            result[-1].append(value - mean(peers) if peers else value)
    if advantage_scale == "std":
        centre = mean(flat(result))
        spread = math.sqrt(mean([(x - centre) ** 2 for x in flat(result)])) + 1e-6
        result = [[x / spread for x in row] for row in result]
    return result


def padded(rows: list[list[float]], width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])
