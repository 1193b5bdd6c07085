"""Data to text: multi-reference BLEU, and slot errors against the meaning representation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..corpus import CorpusScore
from ..examples import Example
from .base import Metric, Task, ratio_of
from .slots import Meaning, SlotMatcher, parse_meaning


class DataToText(Task):
    """`bleu`, 0 to 100, and `ser`, the slot error rate: (missing + hallucinated values) / values.

    The meaning representation, `name[The Eagle], eatType[coffee shop]`, is read from the column
    `meaning_representation` or `mr`, else from the prompt. How values are found in a text: `SlotMatcher`. `missing` and
    `hallucinated` are the two parts of `ser`.
    """

    name = "data_to_text"
    columns = ("meaning_representation", "mr")

    def prepare(self, examples: Sequence[Example]) -> None:
        self.bleu = CorpusScore("bleu")
        self.note = self.bleu.signature(examples)
        self.matcher = SlotMatcher(_meaning(example) for example in examples)

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        errors = self.matcher.errors(text, _meaning(example))
        counts = {"missing": errors.missing, "hallucinated": errors.hallucinated, "slots": errors.slots}
        rate = (errors.missing + errors.hallucinated) / errors.slots
        return {
            **self.bleu.measure(text, example.references),
            "ser": rate,
            "errors": errors.missing + errors.hallucinated,
            **counts,
        }

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return (
            self.bleu.metric(),
            ratio_of("ser", "errors", "slots"),
            ratio_of("missing", "missing", "slots"),
            ratio_of("hallucinated", "hallucinated", "slots"),
        )


def _meaning(example: Example) -> Meaning:
    given = example.row.get("meaning_representation") or example.row.get("mr") or _text(example.prompt)
    meaning = parse_meaning(given) if isinstance(given, str) else ()
    if not meaning:
        raise UserError(
            f"{example.where}: no meaning representation such as name[The Eagle], food[French] in 'mr' or the prompt; "
            "add the column 'mr', or measure BLEU alone with --task translation"
        )
    return meaning


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    contents = (message.get("content") for message in prompt)
    return "\n".join(content for content in contents if isinstance(content, str))
