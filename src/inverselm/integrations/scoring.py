"""What the batcher's worker does: rows of token ids through a scorer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..scorers import QFunctionReward, TokenScorer
from ..token_mdp import TokenBatch, bellman_residual
from .rows import Row, RowScores


class _WithValues(QFunctionReward):
    """Q - gamma V' and V(s), side by side in a last dimension that `score_ids` carries through."""

    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T 2"], Float[Tensor, "B T"]]:
        stats = self.model.read(batch).stats()
        values = torch.where(batch.action_mask, stats.value, 0.0)
        return torch.stack([bellman_residual(stats, self.gamma), values], dim=-1), stats.log_prob


def worker(scorer: TokenScorer, batch_size: int) -> Callable[[list[Row]], list[RowScores]]:
    """A function that scores rows as `scorer.score_ids` does, and gives V(s) too where the reward is Q - gamma V'.

    Args:
        scorer: used by no other thread.
        batch_size: rows of a forward pass, at most.
    """
    source: Any = scorer
    valued = type(scorer) is QFunctionReward and scorer.kind == "bellman"
    if valued:
        source = _WithValues(scorer.tokenizer, scorer.model, kind=scorer.kind, gamma=scorer.gamma)

    def work(rows: list[Row]) -> list[RowScores]:
        masks = None
        if any(row.action_mask is not None for row in rows):
            masks = [row.action_mask or (1,) * len(row.completion_ids) for row in rows]
        scored = source.score_ids(
            [row.prompt_ids for row in rows],
            [row.completion_ids for row in rows],
            masks,
            batch_size=batch_size,
        )
        return [_numbers(scores.rewards, scores.ref_log_prob, valued) for scores in scored]

    return work


def _numbers(rewards: Tensor, log_probs: Tensor, valued: bool) -> RowScores:
    if not valued:
        return RowScores(rewards.tolist(), log_probs.tolist())
    return RowScores(rewards[:, 0].tolist(), log_probs.tolist(), rewards[:, 1].tolist())
