"""GAIL's updates of its discriminator and its value network, after each step of the policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..objectives.gail import discriminator_loss, state_values, value_loss
from ..token_mdp import TokenBatch
from .gail_collapse import CollapseMonitor
from .gail_critics import Critics
from .rollouts import below, stacked


class Pair(NamedTuple):
    """A micro-batch for the critics: demonstrations above own samples, and the own samples alone."""

    both: TokenBatch
    own: Tensor
    hidden: Tensor | None
    sample: dict[str, Tensor]


class CriticUpdates:
    """For GAILTrainer: one update of each critic, on what the policy was just updated on, and what is logged of it."""

    args: Any
    state: Any
    accelerator: Any
    critics: Critics
    collapse: CollapseMonitor
    reference: Any
    _metrics: dict[str, Any]
    _step: Sequence[dict[str, Any]]
    _eos_token_ids: list[int]
    _token_batch: Any
    _own_batch: Any
    _prepare_inputs: Any

    def update_critics(self) -> None:
        """One update of the discriminator and one of the value network, on what the policy was just updated on.

        Raises:
            UserError: the run has collapsed.
        """
        pairs = [self._pair(self._prepare_inputs(inputs)) for inputs in self._step]
        counts = [torch.stack([pair.both.num_actions, pair.sample["actions"].sum()]) for pair in pairs]
        both, own = self.accelerator.reduce(torch.stack(counts).sum(dim=0), reduction="sum")
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.critics.train()
        self.critics.step("discriminator", self._discriminator_losses(pairs, both, sums))
        self.critics.step("value", self._value_losses(pairs, own, sums))
        for pair in pairs:
            finished = pair.sample["finished"]
            answers = torch.ones_like(finished).sum()
            _add(sums, "own_length", pair.sample["actions"].sum() / answers, answers)
            _add(sums, "own_truncated", 1 - finished.mean(), answers)
        self._watch(self.log_means(sums))

    def _pair(self, inputs: dict[str, Any]) -> Pair:
        """First answers of the demonstrations, and below them own samples: what the discriminator compares."""
        own, batch = inputs["own"], self._token_batch(inputs)
        answers = first_answers(batch.action_mask, self.args.max_completion_length)
        batch = TokenBatch.build(
            batch.input_ids, answers, eos_token_ids=self._eos_token_ids, attention_mask=batch.attention_mask
        )
        both = stacked(batch, own, eos_token_ids=self._eos_token_ids)
        hidden = None
        if self.args.critics == "head":
            with self.accelerator.autocast():
                expert = self.reference.read(batch).projection.hidden
            hidden = _stacked_hidden(expert, own["hidden"], both.input_ids.size(1))
        return Pair(both, below(torch.ones_like(own["actions"]), both), hidden, own)

    def _discriminator_losses(self, pairs: Sequence[Pair], total: Tensor, sums: dict[str, Any]) -> Iterator[Tensor]:
        for both, own, hidden, _ in pairs:
            logits = self.critics.read("discriminator", both, hidden)
            loss, metrics = discriminator_loss(logits, both.action_mask, own, num_actions=total)
            counts = {"expert": (both.action_mask & ~own).sum(), "own": (both.action_mask & own).sum()}
            for name, value in metrics.items():
                _add(sums, f"discriminator_{name}", value, counts[name.rsplit("_", 1)[1]])
            _add(sums, "discriminator_loss", loss.detach() * total / both.num_actions.clamp(min=1), both.num_actions)
            yield loss

    def _value_losses(self, pairs: Sequence[Pair], total: Tensor, sums: dict[str, Any]) -> Iterator[Tensor]:
        for *_, sample in pairs:
            batch = self._own_batch(sample)
            value, _ = state_values(self.critics.read("value", batch, sample.get("hidden")), batch)
            loss, metrics = value_loss(value, sample["returns"], batch.action_mask, num_actions=total)
            for name, number in metrics.items():
                _add(sums, "value_loss" if name == "value_squared_error" else name, number, batch.num_actions)
            yield loss

    def _watch(self, means: dict[str, float]) -> None:
        """Log what compares expert and own, and stop a run that has collapsed."""
        logged = self._metrics["train"]
        expert, own = (means[f"discriminator_accuracy_{side}"] for side in ("expert", "own"))
        logged["discriminator_accuracy"].append((expert + own) / 2)
        rewards = [means[f"discriminator_reward_{side}"] for side in ("expert", "own")]
        for side in ("expert", "own"):
            del logged[f"discriminator_reward_{side}"]
        logged["own_reward"].append(rewards[1] - self.args.reward_shift)
        logged["reward_margin"].append(rewards[0] - rewards[1])
        problem = self.collapse.update(means["own_truncated"], min(expert, own))
        if problem:
            raise UserError(f"stopped at step {self.state.global_step}: {problem}")

    def log_means(self, parts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Keep sum / count of each, over all processes, for the log."""
        local = torch.stack([x.float() for pair in parts.values() for x in pair]).to(self.accelerator.device)
        total = self.accelerator.reduce(local, reduction="sum").tolist()
        means = {name: total[2 * i] / max(total[2 * i + 1], 1.0) for i, name in enumerate(parts)}
        for name, mean in means.items():
            self._metrics["train"][name].append(mean)
        return means


def first_answers(action_mask: Tensor, limit: int) -> Tensor:
    """The first `limit` actions of each row's first run of actions: what an own sample can be compared with."""
    started = action_mask.long().cumsum(dim=1)
    interrupted = ((started > 0) & ~action_mask).long().cumsum(dim=1) > 0
    return action_mask & ~interrupted & (started <= limit)


def _stacked_hidden(expert: Tensor, own: Tensor, width: int) -> Tensor:
    parts = [nn.functional.pad(x, (0, 0, 0, width - x.size(1))) for x in (expert, own)]
    return torch.cat([part.float() for part in parts])


def _add(sums: dict[str, tuple[Tensor, Tensor]], name: str, mean: Tensor, count: Tensor) -> None:
    total, number = sums.get(name, (torch.zeros_like(mean), torch.zeros_like(count)))
    sums[name] = total + mean * count, number + count
