"""Everything the page shows of an answer, from one look at each model: rewards by definition, V(s_t), entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..inference.segments import segment_numbers
from ..inputs.models import positions_of
from ..scorers import FrozenLM, QFunctionReward, TokenReward, TokenScorer, encode_pair, token_spans
from ..scorers.seq2seq import encode_seq2seq_pair, position_limits
from ..token_mdp import TokenBatch, bellman_residual, log_ratio, mix_baselines

MODEL, Q_FUNCTION = "model", "q_function"
"""Whose V(s_t) and entropy a curve shows: the model's, or the Q-function's beside it."""


@dataclass(frozen=True)
class Definition:
    """One way to give a token a reward.

    Attributes:
        id: its key in `Reading.rewards`.
        name: for the page.
        about: one sentence for the page.
        curves: whose entropy belongs to it (`MODEL` or `Q_FUNCTION`; "" for none).
        has_value: whether V(s_t) is part of the definition.
    """

    id: str
    name: str
    about: str
    curves: str = MODEL
    has_value: bool = False


FILE = Definition("file", "as in the file", "The rewards that the file holds.", curves="")


@dataclass(frozen=True)
class Reading:
    """What the models say of one answer. Lists have one number per token, nats; those of `values` one more.

    Attributes:
        texts: the tokens' texts; joined they are the answer as scored, EOS shown as text.
        ids: the tokens' ids.
        sentences: number of the sentence each token belongs to.
        terminated: whether the answer ends with EOS.
        rewards: by definition.
        values: by model, V(s_1) .. V(s_T), and the value after the last token (0 if terminated).
        entropy: by model, H(pi(.|s_t)).
    """

    texts: list[str]
    ids: list[int]
    sentences: list[int]
    terminated: bool
    rewards: dict[str, list[float]]
    values: dict[str, list[float]] = field(default_factory=dict)
    entropy: dict[str, list[float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers rounded to a millionth, what is not finite as None."""
        series = {name: {k: [_plain(x) for x in v] for k, v in getattr(self, name).items()} for name in _SERIES}
        fixed = {"texts": self.texts, "ids": self.ids, "sentences": self.sentences, "terminated": self.terminated}
        return fixed | series


_SERIES = ("rewards", "values", "entropy")


def _plain(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None


def stored_reading(tokens: Sequence[dict[str, Any]], terminated: bool) -> Reading:
    """The reading of a row that `inverselm score` wrote."""
    texts = [token["text"] for token in tokens]
    rewards = [math.nan if token["reward"] is None else float(token["reward"]) for token in tokens]
    ids = [int(token.get("token_id", -1)) for token in tokens]
    return Reading(texts, ids, segment_numbers(texts, terminated=terminated), terminated, {FILE.id: rewards})


class Inspector(TokenScorer):
    """A model, with or without baselines and a Q-function beside it, each read once per answer.

    Its definitions of the reward, as far as the models are there: "dense", log pi - log pi_baseline (arXiv 2510.02493,
    eq. 5); "q_function", Q - gamma V' of the Q-function (arXiv 2409.01369, eq. 8-9); "log_prob", log pi; and "bellman",
    Q - gamma V' of the model itself. As a scorer it gives the first of them.

    Args:
        tokenizer: shared by all models.
        model: the SFT model, or an IQLearn model.
        baselines: earlier checkpoints of its run; several are averaged in log space.
        q_function: an IQLearn model.
        gamma: discount of the model's own Q - gamma V'.
        q_gamma: that of the Q-function's.
        iqlearn: the model is one of IQLearn, so its Q - gamma V' comes first.
        max_tokens: longest prompt and answer together; None sets no limit.

    Example:
        >>> inspector = Inspector.from_scorers(TokenReward.from_checkpoints("runs/sft"))
        >>> inspector.read(["2+2="], [" 5"])[0].rewards["dense"]
    """

    def __init__(
        self,
        tokenizer: Any,
        model: FrozenLM,
        baselines: Sequence[FrozenLM] = (),
        q_function: FrozenLM | None = None,
        *,
        gamma: float = 1.0,
        q_gamma: float = 1.0,
        iqlearn: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(tokenizer, model.model)
        self.model, self.baselines, self.q_function = model, list(baselines), q_function
        self.gamma, self.q_gamma, self.max_tokens = gamma, q_gamma, max_tokens
        self.definitions = self._definitions(iqlearn)

    @classmethod
    def from_scorers(
        cls, scorer: TokenReward | QFunctionReward, q_function: QFunctionReward | None = None, **options: Any
    ) -> Inspector:
        """From the scorer of an SFT run or of one model, and that of a Q-function."""
        if isinstance(scorer, TokenReward):
            model, baselines = scorer.sft, scorer.baselines
        else:
            model, baselines = scorer.model, []
            options.setdefault("gamma", scorer.gamma)
        if q_function is not None:
            options.setdefault("q_gamma", q_function.gamma)
        return cls(scorer.tokenizer, model, baselines, None if q_function is None else q_function.model, **options)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def _definitions(self, iqlearn: bool) -> tuple[Definition, ...]:
        found = []
        if self.baselines:
            of = "its baseline" if len(self.baselines) == 1 else f"the mean of {len(self.baselines)} baselines"
            found.append(Definition("dense", "log π − log π_baseline", f"The model against {of}."))
        if self.q_function is not None:
            about = "The Q-function's temporal difference."
            found.append(Definition("q_function", _bellman(self.q_gamma, "Q-function"), about, Q_FUNCTION, True))
        own = [
            Definition("log_prob", "log π", "The model's log-likelihood."),
            Definition("bellman", _bellman(self.gamma, "model"), "The model's own temporal difference.", MODEL, True),
        ]
        return (*found, *(reversed(own) if iqlearn else own))

    def score_with_reference(self, batch: TokenBatch) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        rewards, _, _ = self._series(batch)
        return rewards[self.definitions[0].id], rewards["log_prob"]

    def _series(self, batch: TokenBatch) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Any]]:
        """(B, T) rewards by definition; (value, next value) and entropy by model."""
        stats = self.model.read(batch).stats(entropy=True)
        rewards = {"log_prob": stats.log_prob, "bellman": bellman_residual(stats, self.gamma)}
        values, entropy = {MODEL: (stats.value, stats.next_value)}, {MODEL: stats.entropy}
        if self.baselines:
            earlier = [baseline.read(batch).stats().log_prob for baseline in self.baselines]
            rewards["dense"] = log_ratio(stats.log_prob, mix_baselines(earlier, "log"), batch.action_mask)
        if self.q_function is not None:
            stats = self.q_function.read(batch).stats(entropy=True)
            rewards["q_function"] = bellman_residual(stats, self.q_gamma)
            values[Q_FUNCTION], entropy[Q_FUNCTION] = (stats.value, stats.next_value), stats.entropy
        return rewards, values, entropy

    def read(
        self, prompts: Sequence[Any], completions: Sequence[Any], add_eos: Sequence[bool] | bool = True
    ) -> list[Reading]:
        """Every answer as one batch, with all definitions.

        Args:
            prompts: strings, or lists of chat messages.
            completions: strings or lists of messages.
            add_eos: end the answers with EOS, as in training; off for answers that were cut. One for each, or for all.

        Raises:
            UserError: no token to score or to condition on, or more than `max_tokens`.
        """
        ends = [add_eos] * len(prompts) if isinstance(add_eos, bool) else add_eos
        pairs = [self._encode(p, c, e) for p, c, e in zip(prompts, completions, ends, strict=True)]
        batch = self._batch([pair.prompt_ids for pair in pairs], [pair.completion_ids for pair in pairs])
        rewards, values, entropy = self._series(batch)
        readings = []
        for row, pair in enumerate(pairs):
            first = len(pair.prompt_ids) if self._start_token_id is None else 1
            columns = slice(first, first + len(pair.completion_ids))
            cut = lambda series, row=row, columns=columns: series[row, columns].float().cpu().tolist()
            text, spans = token_spans(self.tokenizer, pair.completion_ids)
            texts = [text[start:end] for start, end in spans]
            terminated = pair.completion_ids[-1] in self.eos_token_ids
            readings.append(
                Reading(
                    texts,
                    list(pair.completion_ids),
                    segment_numbers(texts, terminated=terminated),
                    terminated,
                    {d.id: cut(rewards[d.id]) for d in self.definitions},
                    {name: [*cut(value), cut(after)[-1]] for name, (value, after) in values.items()},
                    {name: cut(numbers) for name, numbers in entropy.items()},
                )
            )
        return readings

    def _encode(self, prompt: Any, completion: Any, add_eos: bool) -> Any:
        encode = encode_pair if self._start_token_id is None else encode_seq2seq_pair
        from jinja2 import TemplateError

        try:
            pair = encode(self.tokenizer, prompt, completion, add_eos)
        except TemplateError as error:
            raise UserError(f"the chat template refuses the conversation ({error})") from error
        if not pair.completion_ids:
            raise UserError("the answer is empty: there is no token to score")
        if not pair.prompt_ids:
            raise UserError("the prompt is empty: the first token would have no state to be chosen in")
        self._check_room(len(pair.prompt_ids), len(pair.completion_ids))
        return pair

    def _check_room(self, prompt: int, answer: int) -> None:
        if self.max_tokens is not None and prompt + answer > self.max_tokens:
            raise UserError(
                f"prompt and answer have {prompt + answer:,} tokens; the page takes up to {self.max_tokens:,}"
            )
        config: Any = self.model.model.config
        if self._start_token_id is not None:
            source, target = position_limits(config)
            if (source is not None and prompt > source) or (target is not None and answer >= target):
                room = f"the model has {source} and {target} positions"
                raise UserError(f"prompt and answer have {prompt:,} and {answer:,} tokens; {room}")
        elif (limit := positions_of(config)) is not None and prompt + answer > limit:
            raise UserError(f"prompt and answer have {prompt + answer:,} tokens; the model has {limit:,} positions")


def _bellman(gamma: float, whose: str) -> str:
    return f"Q − {'' if gamma == 1 else f'{gamma:g} '}V′ ({whose})"
