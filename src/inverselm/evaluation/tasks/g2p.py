"""Grapheme to phoneme: phoneme error rate and word error rate, against one or more pronunciations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..examples import Example
from .base import Metric, Task, mean_of, ratio_of


class G2P(Task):
    """`wer`: share of words whose pronunciation is no reference; `per`: edits over phonemes of the reference.

    Phonemes are separated by white space, and `AH0` is not `AH1`. With several pronunciations the one with the fewest
    edits counts (the first of equals). Edits are insertions, deletions and substitutions, each 1.
    """

    name = "g2p"

    def measure(self, text: str, example: Example) -> dict[str, Any]:
        said = text.split()
        edits, length = min(
            ((edit_distance(said, reference.split()), len(reference.split())) for reference in example.references),
            key=lambda pair: pair[0],
        )
        return {"wer": float(edits > 0), "per": edits / length, "edits": edits, "phonemes": length}

    def metrics(self, samples: int) -> tuple[Metric, ...]:
        return mean_of("wer", "low"), ratio_of("per", "edits", "phonemes")


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein distance.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]
