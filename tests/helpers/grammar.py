"""A toy grammar with a known distribution, to show over seeds that a trainer improves what it says it improves.

A prompt names a letter; an answer is that letter, then one to three of `+` (7 of 10) and `-`, then a full stop:

    "b:" -> "b+-+."
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from functools import cache

from scipy.stats import ttest_1samp

from inverselm.training.scratch_tokenizer import build_tokenizer

LETTERS = "abcd"
PLUS = 0.7


def expert(letter: str, draw: random.Random) -> str:
    """An answer of the grammar."""
    signs = "".join("+" if draw.random() < PLUS else "-" for _ in range(draw.randint(1, 3)))
    return f"{letter}{signs}."


def demonstrations(count: int = 64, seed: int = 0) -> list[dict[str, str]]:
    """Rows of prompts in turn, with answers drawn from the grammar."""
    draw = random.Random(seed)
    letters = [LETTERS[i % len(LETTERS)] for i in range(count)]
    return [{"prompt": f"{letter}:", "completion": expert(letter, draw)} for letter in letters]


def log_prob(prompt: str, completion: str) -> float:
    """Of an answer under the grammar, in nats; -inf if it is none of its answers."""
    found = re.fullmatch(r"([a-d])([+-]{1,3})\.", completion)
    if not found or prompt != f"{found[1]}:":
        return -math.inf
    return -math.log(3) + sum(math.log(PLUS if sign == "+" else 1 - PLUS) for sign in found[2])


def valid(prompt: str, completion: str) -> bool:
    """Whether it is an answer of the grammar to this prompt."""
    return log_prob(prompt, completion) > -math.inf


@cache
def grammar_tokenizer():
    """One token per character."""
    return build_tokenizer({"type": "char"}, [row["prompt"] + row["completion"] for row in demonstrations()])


def improves(
    measure: Callable[[int], tuple[float, float]], seeds: Sequence[int] = range(6), alpha: float = 0.01
) -> None:
    """`measure(seed)` gives a number before and after training; after must be above before (one-sided t-test).

    One training set and one start per seed: the seeds are what is sampled.
    """
    pairs = [measure(seed) for seed in seeds]
    gains = [after - before for before, after in pairs]
    p = ttest_1samp(gains, 0.0, alternative="greater").pvalue
    assert p < alpha, f"p = {p:.3g}: {[tuple(round(x, 3) for x in pair) for pair in pairs]}"
