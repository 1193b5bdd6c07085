"""GAILTrainer under observation, and its numbers once more in plain Python."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from helpers.data import sums, text_tokenizer
from helpers.training import arguments, make
from inverselm.inference.generate import Completion
from inverselm.training.gail import GAILConfig, GAILTrainer


class Watched(GAILTrainer):
    """Keeps what was sampled, and the networks it was sampled and scored with; can be told what to answer."""

    def __init__(self, *args: Any, fixed: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[int, Any, Any, Any, Any]] = []
        self.fixed = fixed

    def _answers(self, prompts: list[list[int]]) -> list[Completion]:
        return super()._answers(prompts) if self.fixed is None else [self.fixed(prompt) for prompt in prompts]

    def _rollout(self, batches: Any) -> Any:
        networks = copy.deepcopy(self.critics.networks)
        samples = super()._rollout(batches)
        policy = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.seen.append((self.state.global_step, batches, samples, policy, networks))
        return samples


def by_prompt(prompt: list[int]) -> Completion:
    """An answer that depends on the prompt alone; some are cut."""
    draw = sum(prompt)
    body = tuple(5 + (draw + 3 * i) % 40 for i in range(1 + draw % 4))
    ends = bool(draw % 3)
    return Completion("", (*body, text_tokenizer().eos_token_id) if ends else (*body, 9), ends)


def gail(folder: Any, trainer: type = Watched, rows: Any = None, tokenizer: Any = None, model: Any = None, **options):
    """A small run: 3 steps of SGD on the sums, answers of at most 5 tokens."""
    outside = {name: options.pop(name) for name in ("fixed", "peft_config", "eval_dataset") if name in options}
    tokenizer = text_tokenizer() if tokenizer is None else tokenizer
    defaults = {"max_completion_length": 5, "discriminator_learning_rate": 1e-2, "value_learning_rate": 1e-2}
    args = arguments(GAILConfig, folder, **{**defaults, **options})
    return make(trainer, args, sums() if rows is None else rows, tokenizer, model, **outside)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def rows_of(ids: Any, actions: Any, real: Any) -> list[tuple[list[int], list[int]]]:
    """Unpadded ids of each row, and the columns of its actions."""
    found = []
    for row, acts, mask in zip(ids, actions, real, strict=True):
        keep = mask.bool()
        found.append((row[keep].tolist(), acts[keep].nonzero().flatten().tolist()))
    return found


def read_critic(critic: Any, ids: list[int], body: Any) -> list[float]:
    """A critic's number after each token, from one unpadded row."""
    with torch.no_grad():
        hidden = body(input_ids=torch.tensor([ids])).last_hidden_state
        return critic.head(hidden)[0, :, 0].tolist()


def advantages_by_hand(
    rewards: list[float], values: list[float], bootstrap: float, gamma: float, lam: float
) -> list[float]:
    """GAE of one answer by its recursion; `values` of the states before each action, `bootstrap` after the last."""
    result, running, after = [], 0.0, bootstrap
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        running = reward + gamma * after - value + gamma * lam * running
        result.append(running)
        after = value
    return result[::-1]
