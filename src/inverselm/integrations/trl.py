"""Token rewards as a reward function of TRL's own trainers: one number for each answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UserError
from ..inference.reranking import answer_scores, check_by, length_correlation, segments_of
from ..scorers import TokenScorer
from ..scorers.text import prompt_ids


class SequenceReward:
    """A reward function for stock `GRPOTrainer` and `RLOOTrainer`: the token rewards of an answer as one number.

    The sampled ids that TRL passes (`completion_ids`) are scored as they are: no answer is tokenised again, and one
    that was cut counts as cut. Prompts, which TRL passes as text or messages, are tokenised as its trainers do it.
    One number per answer is all that these trainers take: for token-level advantages use `DensePathTrainer`.

    Args:
        scorer: of token rewards; on the trainer's device, and no part of the trained model.
        by: how token rewards become one number, as in `inverselm.inference.answer_scores`; "length_controlled" takes
            its slope from the answers of one call, within prompts.
        unit: of `by="min"`.
        name: in TRL's logs: `rewards/<name>/mean`.
        batch_size: answers per forward pass.
        encode_prompt: prompt -> token ids, for trainers with tools or `chat_template_kwargs`. Default: the scorer's
            tokenizer and its chat template.

    Raises:
        UserError: unknown `by` or `unit`; when called: an answer that holds a tool's turns (TRL does not say which of
            its tokens the policy chose).

    Example:
        >>> reward = SequenceReward(TokenReward.from_checkpoints("runs/sft"), name="dense")
        >>> GRPOTrainer("runs/sft", reward_funcs=reward, args=GRPOConfig("runs/grpo"), train_dataset=prompts).train()
    """

    def __init__(
        self,
        scorer: TokenScorer,
        *,
        by: str = "sum",
        unit: str = "token",
        name: str = "token_reward",
        batch_size: int = 16,
        encode_prompt: Callable[[Any], list[int]] | None = None,
    ) -> None:
        check_by(by, unit)
        if not isinstance(scorer, TokenScorer):
            raise UserError("SequenceReward needs a scorer, e.g. TokenReward.from_checkpoints('runs/sft')")
        self.scorer, self.by, self.unit, self.batch_size = scorer, by, unit, batch_size
        self.encode_prompt = encode_prompt or (lambda prompt: prompt_ids(scorer.tokenizer, prompt))
        self.__name__ = name  # what TRL logs it under

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """One number for each answer, nats. Without `completion_ids`, texts are tokenised and end with EOS."""
        for completion in completions:
            if not isinstance(completion, str) and any(m.get("role") != "assistant" for m in completion):
                raise UserError(
                    "an answer holds a tool's turns, and TRL does not tell reward functions which tokens the policy "
                    "chose; use DensePathTrainer, which is told"
                )
        if completion_ids is None:
            scored = self.scorer.score(prompts, completions, batch_size=self.batch_size)
        else:
            ids = [list(map(int, row)) for row in completion_ids]
            rewards = self.scorer.score_ids(
                [self.encode_prompt(prompt) for prompt in prompts], ids, batch_size=self.batch_size
            )
            scored = [self.scorer._scored(row, found.rewards) for row, found in zip(ids, rewards, strict=True)]
        groups = [repr(prompt) for prompt in prompts]
        segments = [segments_of(completion, self.unit) for completion in scored]
        scores = answer_scores([s.rewards for s in scored], groups, by=self.by, segments=segments)
        log_metric = kwargs.get("log_metric")
        if log_metric is not None:
            correlation = length_correlation(scores, [len(s.tokens) for s in scored], groups)
            if not math.isnan(correlation):
                log_metric(f"rewards/{self.__name__}/length_correlation", correlation)
        return scores
