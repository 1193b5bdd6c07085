"""GSM8K: the final answer after `####`, without or with the calculator (a sampler's setting), and pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..examples import Example
from ..gsm8k import extract_answer, is_correct
from ..metrics import pass_at_k
from .base import Measured, Metric, Task, mean_of


class GSM8K(Task):
    """`accuracy`: share of answers whose number after the last `####` is right; `answered`: share that have one.

    `pass@k`, with several answers to a prompt: the unbiased estimate for k = 2, 4, 8, ... and for all of them.
    References are numbers ("17") or solutions that end in `#### 17`.
    """

    name = "gsm8k"

    def prepare(self, examples: Sequence[Example]) -> None:
        for example in examples:
            try:
                self.measure("", example)
            except UserError as error:
                raise UserError(f"{example.where}: {error}") from error

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        right = [is_correct(text, reference) for reference in example.references]
        return {"accuracy": float(any(right)), "answered": float(extract_answer(text) is not None)}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        powers = [2**i for i in range(1, samples.bit_length()) if 2**i < samples]
        sizes = [*powers, samples] if samples > 1 else []
        return (mean_of("accuracy"), mean_of("answered"), *(_pass_at(k) for k in sizes))


def _pass_at(k: int) -> Metric:
    def statistics(group: Sequence[Measured]) -> tuple[float, float]:
        return pass_at_k(len(group), int(sum(answer["accuracy"] for answer in group)), k), 1.0

    return Metric(f"pass@{k}", "high", statistics)
