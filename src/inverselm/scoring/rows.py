"""From rows to scored rows: what cannot be scored says why, and nothing vanishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from jinja2 import TemplateError
from torch import Tensor

from ..errors import UserError
from ..scorers import QFunctionReward, ScoredCompletion, TokenScorer
from ..token_mdp import TokenBatch

LONG, EMPTY, UNUSABLE, NOT_FINITE = "long", "empty", "unusable", "not_finite"
"""Why a row has no score: it does not fit into the model, has no token to score, is no prompt with an answer, or the
model (a damaged one, or one in float16) gives no finite number."""


@dataclass(frozen=True)
class ScoredRow:
    """One row's scores, or why it has none.

    Attributes:
        scored: tokens with their rewards; None if the row could not be scored.
        values: V(s) at the state of every token, nats; None if the scorer has none.
        error: what is wrong, in words; empty if nothing is.
        reason: one of `LONG`, `EMPTY`, `UNUSABLE`, `NOT_FINITE`; empty if nothing is wrong.
    """

    scored: ScoredCompletion | None
    values: tuple[float, ...] | None = None
    error: str = ""
    reason: str = ""


ON_ERROR = ("skip", "keep", "stop")


def kept_rows(scored: Sequence[ScoredRow], on_error: str, where: Callable[[int], str]) -> list[int]:
    """Which rows are written.

    Args:
        scored: rows with their scores or errors.
        on_error: "keep" writes all; "stop" stops at the first without a score; "skip" leaves out rows that are too long
            or have no token, and stops at any other.
        where: names a row for the message.

    Raises:
        UserError: the row to stop at.
    """
    kept = []
    for i, row in enumerate(scored):
        if on_error == "keep" or not row.reason:
            kept.append(i)
        elif on_error == "stop" or row.reason in (UNUSABLE, NOT_FINITE):
            raise UserError(f"{where(i)}: {row.error}; --on_error keep writes such rows with their error")
    return kept


class _WithValues(QFunctionReward):
    """The reward and V(s), side by side in a last dimension that `score_ids` carries through."""

    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T 2"], Float[Tensor, "B T"]]:
        from ..token_mdp import bellman_residual

        stats = self.model.read(batch).stats()
        values = torch.where(batch.action_mask, stats.value, 0.0)
        return torch.stack([bellman_residual(stats, self.gamma), values], dim=-1), stats.log_prob


class RowScorer:
    """Scores rows of `prompt` and `completion`, in order.

    Args:
        load: gives the scorer; called once, when the first row that can be scored is there.
        tokenizer: of the scorer.
        encode: `encode_pair` or `encode_seq2seq_pair`.
        fits: whether so many tokens of prompt and completion fit into the model.
        too_long: what to say of a row that does not.
        ends: whether a row's completion ends with EOS.
        problem: what is wrong with a row, before it is tokenised; empty if nothing is.
        batch_size: rows per forward pass; rows of like length go together.

    Example:
        >>> rows = RowScorer(load, tokenizer, encode_pair, fits, "longer than the model's 96 positions")
        >>> rows.score([{"prompt": "2+2=", "completion": " 5"}])[0].scored.total
    """

    def __init__(
        self,
        load: Callable[[], TokenScorer],
        tokenizer: Any,
        encode: Callable[..., Any],
        fits: Callable[[int, int], bool],
        too_long: str,
        *,
        ends: Callable[[dict[str, Any]], bool] = lambda row: True,
        problem: Callable[[dict[str, Any]], str] = lambda row: "",
        batch_size: int = 16,
    ) -> None:
        self._load, self.tokenizer, self._encode, self._fits, self.too_long = load, tokenizer, encode, fits, too_long
        self._ends, self._problem, self.batch_size = ends, problem, batch_size
        self._scorer: Any = None
        self._valued = False

    def score(self, rows: Sequence[dict[str, Any]]) -> list[ScoredRow]:
        """One result for each row, in order."""
        out: list[ScoredRow | None] = [None] * len(rows)
        pairs: dict[int, Any] = {}
        for i, row in enumerate(rows):
            found = self._encoded(row)
            if isinstance(found, ScoredRow):
                out[i] = found
            else:
                pairs[i] = found
        if pairs:
            scorer = self._ready()
            prompts = [pair.prompt_ids for pair in pairs.values()]
            answers = [pair.completion_ids for pair in pairs.values()]
            scores = scorer.score_ids(prompts, answers, batch_size=self.batch_size)
            for i, ids, numbers in zip(pairs, answers, scores, strict=True):
                if not torch.isfinite(numbers.rewards).all():
                    out[i] = ScoredRow(None, None, "the model gives a reward that is no finite number", NOT_FINITE)
                    continue
                rewards = numbers.rewards[:, 0] if self._valued else numbers.rewards
                values = tuple(numbers.rewards[:, 1].tolist()) if self._valued else None
                out[i] = ScoredRow(scorer._scored(ids, rewards), values)
        return [row for row in out if row is not None]

    def _encoded(self, row: dict[str, Any]) -> Any:
        """The token ids of a row, or why there are none."""
        problem = self._problem(row)
        if problem:
            return ScoredRow(None, None, problem, UNUSABLE)
        try:
            pair = self._encode(self.tokenizer, row["prompt"], row["completion"], self._ends(row))
        except (UserError, TemplateError) as error:
            return ScoredRow(None, None, " ".join(str(error).split()), UNUSABLE)
        if not pair.completion_ids:
            return ScoredRow(None, None, "the completion has no token", EMPTY)
        if not pair.prompt_ids:
            return ScoredRow(None, None, "the prompt has no token: the first token would have no state", UNUSABLE)
        if not self._fits(len(pair.prompt_ids), len(pair.completion_ids)):
            tokens = f"{len(pair.prompt_ids):,} + {len(pair.completion_ids):,} tokens"
            return ScoredRow(None, None, f"{self.too_long} ({tokens})", LONG)
        return pair

    def _ready(self) -> Any:
        if self._scorer is None:
            scorer = self._load()
            self._valued = type(scorer) is QFunctionReward and scorer.kind == "bellman"
            if self._valued:
                scorer = _WithValues(scorer.tokenizer, scorer.model, kind=scorer.kind, gamma=scorer.gamma)
            self._scorer = scorer
        return self._scorer
