"""Answers of one model under one sampler, batch by batch, as records: ids, length, likelihood, entropy, choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..inference.generate import Completion, generate
from ..scorers.frozen import FrozenLM, is_encoder_decoder, load_frozen
from ..scorers.text import prompt_ids
from ..scorers.tokens import eos_token_ids
from ..token_mdp import TokenBatch
from .examples import Example
from .samplers import Sampler

if TYPE_CHECKING:
    from ..scorers import TokenScorer

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What all samplers of an evaluation share.

    Attributes:
        num_samples: answers to each prompt, where sampling is random.
        max_new_tokens: longest answer, in tokens.
        batch_size: answers (or beams) per batch.
        seed: of the sampling.

    Raises:
        UserError: a count below 1.
    """

    num_samples: int = 4
    max_new_tokens: int = 256
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; set it to 1 or more")


class OwnStats(NamedTuple):
    """What a model says of its own answer at temperature 1: sum of log pi, sum of entropies, both in nats."""

    log_prob: float
    entropy: float


class Runner:
    """A model with its tokenizer, ready to answer the examples of a task.

    Args:
        model: of transformers.
        tokenizer: its tokenizer, with an EOS token.
        examples: of the task.
        settings: see `Settings`.
        reward: scorer for samplers that choose by reward; of the same tokenizer.
        baseline: for samplers that are guided away from it, as `GuidedDecodingProcessor` takes it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        settings: Settings,
        reward: TokenScorer | None = None,
        baseline: Any = None,
    ) -> None:
        self.model, self.tokenizer, self.reward = model, tokenizer, reward
        self.baseline = None if baseline is None else load_frozen(baseline, name="baseline", device=model.device)
        self.examples, self.settings = examples, settings
        self.eos = eos_token_ids(tokenizer, model)
        self.prompts = [prompt_ids(tokenizer, example.prompt) for example in examples]

    def check(self, samplers: Sequence[Sampler]) -> None:
        """What would otherwise be found out in the middle of sampling.

        Raises:
            UserError: a sampler that needs a reward or a baseline, without one, or a calculator that the tokenizer
                cannot write for.
        """
        for sampler in samplers:
            if sampler.uses_reward and self.reward is None:
                raise UserError(f"sampler {sampler.name}: chooses by a reward, and there is none; pass a scorer")
            if sampler.guidance_weight and self.baseline is None:
                raise UserError(f"sampler {sampler.name}: is guided by a baseline, and there is none; pass guided_by")
        if any(sampler.calculator for sampler in samplers):
            check_calculator(self.tokenizer)

    def batches(self, sampler: Sampler) -> list[list[int]]:
        """Numbers of the examples of each batch: prompts of like length together, the longest first."""
        rows = sampler.drawn(self.settings.num_samples) * sampler.num_beams
        size = max(1, self.settings.batch_size // rows)
        order = sorted(range(len(self.prompts)), key=lambda i: (-len(self.prompts[i]), i))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def run(self, sampler: Sampler, batch: Sequence[int], number: int) -> list[Record]:
        """Records of the answers to the examples of batch `number`; its seed is its own, whatever ran before."""
        drawn = generate(
            self.model,
            self.tokenizer,
            [self.examples[i].prompt for i in batch],
            max_new_tokens=self.settings.max_new_tokens,
            temperature=sampler.temperature,
            top_p=sampler.top_p,
            num_beams=sampler.num_beams,
            length_penalty=sampler.length_penalty,
            num_return=sampler.drawn(self.settings.num_samples),
            batch_size=len(batch),
            seed=self.settings.seed + 1_000_000_007 * number,
            logits_processor=_calculator() if sampler.calculator else None,
            guided_by=self.baseline if sampler.guidance_weight else None,
            guidance_weight=sampler.guidance_weight,
            progress=False,
        )
        prompts = [self.prompts[i] for i, group in zip(batch, drawn, strict=True) for _ in group]
        answers = [list(answer.token_ids) for group in drawn for answer in group]
        stats = self.own_stats(prompts, answers)
        records, done = [], 0
        for i, group in zip(batch, drawn, strict=True):
            here = slice(done, done + len(group))
            records += self._records(i, group, stats[here], sampler)
            done += len(group)
        return records

    def own_stats(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[OwnStats]:
        """log pi and entropy of sampled ids as they are, at temperature 1."""
        order = sorted(range(len(answers)), key=lambda i: -len(prompts[i]) - len(answers[i]))
        found: dict[int, OwnStats] = {}
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            batch = self._token_batch([prompts[i] for i in rows], [answers[i] for i in rows])
            stats = FrozenLM(self.model).read(batch).stats(entropy=True)
            assert stats.entropy is not None
            log_probs, entropies = (x.double().sum(dim=1).tolist() for x in (stats.log_prob, stats.entropy))
            found.update({i: OwnStats(a, b) for i, a, b in zip(rows, log_probs, entropies, strict=True)})
        return [found[i] for i in range(len(answers))]

    def _token_batch(self, prompts: list[list[int]], answers: list[list[int]]) -> TokenBatch:
        pad = self.tokenizer.pad_token_id
        shared: dict[str, Any] = {
            "pad_token_id": self.eos[0] if pad is None else pad,
            "eos_token_ids": self.eos,
            "device": next(self.model.parameters()).device,
        }
        if is_encoder_decoder(self.model):
            from ..scorers.seq2seq import decoder_start_token_id
            from ..token_mdp import Seq2SeqBatch

            return Seq2SeqBatch.from_ids(prompts, answers, start_token_id=decoder_start_token_id(self.model), **shared)
        return TokenBatch.from_ids(prompts, answers, **shared)

    def _records(self, i: int, group: list[Completion], stats: list[OwnStats], sampler: Sampler) -> list[Record]:
        """The records of one example's answers, the best one marked."""
        example = self.examples[i]
        reference_length = self._reference_length(example)
        records: list[Record] = []
        for k, (answer, own) in enumerate(zip(group, stats, strict=True)):
            tokens = len(answer.token_ids)
            records.append(
                {
                    "example": i,
                    "sample": k,
                    "prompt": example.prompt,
                    "completion": answer.text,
                    "references": list(example.references),
                    "finished": answer.finished,
                    "length": tokens - answer.finished,
                    "reference_length": reference_length,
                    "log_prob": own.log_prob,
                    "entropy": own.entropy / tokens,
                    "token_ids": list(answer.token_ids),
                }
            )
        if sampler.best_of > 1:
            scores = self._scores(i, records, sampler)
            best = max(range(len(scores)), key=lambda k: (scores[k], -k))
            for k, record in enumerate(records):
                record |= {"score": scores[k], "chosen": k == best}
        return records

    def _scores(self, i: int, records: list[Record], sampler: Sampler) -> list[float]:
        lengths = [len(record["token_ids"]) for record in records]
        if sampler.uses_reward:
            assert self.reward is not None, "see check"
            ids = [record["token_ids"] for record in records]
            scored = self.reward.score_ids([self.prompts[i]] * len(ids), ids, batch_size=self.settings.batch_size)
            sums = [float(scores.rewards.double().sum()) for scores in scored]
        else:
            sums = [record["log_prob"] for record in records]
        mean = sampler.by.startswith("mean")
        return [total / length if mean else total for total, length in zip(sums, lengths, strict=True)]

    def _reference_length(self, example: Example) -> float | None:
        lengths = [len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in example.texts]
        return sum(lengths) / len(lengths) if lengths else None


def _calculator() -> Any:
    from .gsm8k import CalculatorLogitsProcessor

    return CalculatorLogitsProcessor


def check_calculator(tokenizer: Any) -> None:
    """Whether a tokenizer can write what GSM8K's calculator forces.

    Raises:
        UserError: it cannot.
    """
    _calculator()(tokenizer, 1)
