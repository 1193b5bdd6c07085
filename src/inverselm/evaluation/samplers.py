"""Samplers in a few characters: `greedy`, `T=1.0,top_p=0.9`, `beam=4`, `best_of=8`, `greedy,guided=0.5`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

__all__ = ["BEST_OF", "Sampler", "parse_sampler", "parse_samplers"]

BEST_OF = ("mean_log_prob", "sum_log_prob", "mean_reward", "sum_reward")
"""What best-of-n can choose by: log pi of the policy at temperature 1, or a scorer's token rewards."""

_ALIASES = {"temperature": "T", "num_beams": "beam", "guidance_weight": "guided"}
_KEYS = ("T", "top_p", "beam", "length_penalty", "best_of", "by", "guided")
_FLAGS = ("greedy", "calculator")
SYNTAX = (
    "greedy | T=0.5 | top_p=0.9 | T=1.0,top_p=0.9 | beam=4,length_penalty=0.6 | best_of=8,T=1.0[,by=sum_log_prob], "
    "each also with ,calculator or ,guided=0.5"
)


@dataclass(frozen=True)
class Sampler:
    """How answers are drawn from a model.

    Attributes:
        temperature: 0 is greedy, or beam search.
        top_p: nucleus sampling; 1 is off.
        num_beams: more than 1 is beam search.
        length_penalty: of beam search: hypotheses are ranked by sum log pi / tokens^length_penalty (transformers').
        best_of: more than 1 draws so many answers and keeps the best one.
        by: what the best is chosen by, one of `BEST_OF`.
        calculator: fill in the results of GSM8K's `<<a*b=` marks.
        guidance_weight: w of guided decoding, at least -1; 0 is off. Answers come from pi^(1+w) / pi_baseline^w at each
            token, which temperature, top_p and beams then act on.

    Raises:
        UserError: values out of range, or settings that do not go together.

    Example:
        >>> parse_sampler("T=0.7,top_p=0.9").name
        'T=0.7,top_p=0.9'
    """

    temperature: float = 1.0
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    best_of: int = 1
    by: str = "mean_log_prob"
    calculator: bool = False
    guidance_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"sampler: T is {self.temperature}; set it above 0, or write greedy")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampler: top_p is {self.top_p}; set it above 0 and at most 1")
        if self.num_beams < 1 or self.best_of < 1:
            raise UserError("sampler: beam and best_of are counts of 1 or more")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"sampler: length_penalty is {self.length_penalty}; set it to a number")
        if self.by not in BEST_OF:
            raise UserError(f"sampler: by={self.by} is unknown; choose {', '.join(BEST_OF)}")
        if self.temperature == 0 and (self.top_p < 1 or self.best_of > 1):
            raise UserError("sampler: greedy and beam search give one answer; top_p and best_of need T above 0")
        if self.temperature > 0 and self.num_beams > 1:
            raise UserError("sampler: beam search does not sample; leave out T, top_p and best_of")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise UserError("sampler: length_penalty belongs to beam search; write beam=4,length_penalty=0.6")
        if self.best_of == 1 and self.by != "mean_log_prob":
            raise UserError(f"sampler: by={self.by} belongs to best_of; write best_of=8,T=1.0,by={self.by}")
        if self.calculator and self.num_beams > 1:
            raise UserError("sampler: the calculator does not work with beam search; leave one of them out")
        if not -1 <= self.guidance_weight < math.inf:
            raise UserError(f"sampler: guided is {self.guidance_weight}; set it to a number of at least -1")

    @property
    def name(self) -> str:
        """The sampler in its shortest notation: equal samplers have equal names."""
        temperature, top_p, penalty = float(self.temperature), float(self.top_p), float(self.length_penalty)
        if self.num_beams > 1:
            parts = [f"beam={self.num_beams}"]
            parts += [f"length_penalty={penalty}"] if penalty != 1 else []
        elif self.temperature == 0:
            parts = ["greedy"]
        else:
            parts = [f"best_of={self.best_of}"] if self.best_of > 1 else []
            parts += [f"T={temperature}"] + ([f"top_p={top_p}"] if top_p < 1 else [])
            parts += [f"by={self.by}"] if self.by != "mean_log_prob" else []
        parts += ["calculator"] if self.calculator else []
        return ",".join([*parts, f"guided={float(self.guidance_weight)}"] if self.guidance_weight else parts)

    @property
    def uses_reward(self) -> bool:
        """Whether it needs a scorer."""
        return self.best_of > 1 and self.by.endswith("_reward")

    def drawn(self, num_samples: int) -> int:
        """Answers drawn for each prompt: one where sampling is not random."""
        if self.best_of > 1:
            return self.best_of
        return num_samples if self.temperature > 0 else 1

    def measured(self, num_samples: int) -> int:
        """Answers for each prompt that count: of best-of-n, the chosen one."""
        return 1 if self.best_of > 1 else self.drawn(num_samples)


def parse_sampler(text: str | Mapping[str, Any] | Sampler) -> Sampler:
    """A sampler from its notation, or from a mapping with the same keys.

    `T=0` and `beam=1` are greedy; `top_p=0.9`, `best_of=8` and `guided=0.5` alone sample at temperature 1.

    Raises:
        UserError: unknown or repeated keys, values that are no numbers, settings that do not go together.

    Example:
        >>> parse_sampler("beam=4,length_penalty=0.6") == parse_sampler({"beam": 4, "length_penalty": 0.6})
        True
    """
    if isinstance(text, Sampler):
        return text
    given = _pairs(text)
    greedy, calculator = given.pop("greedy", False), given.pop("calculator", False)
    if greedy and set(given) - {"guided"}:
        raise UserError(f"sampler {_shown(text)}: greedy takes no other setting than calculator and guided")
    if not greedy and not given:
        raise UserError(f"sampler {_shown(text)}: says nothing about sampling; write {SYNTAX}")
    beam = _whole(text, given, "beam")
    searches = greedy or "beam" in given
    try:
        return Sampler(
            temperature=_number(text, given, "T", 0.0 if searches else 1.0),
            top_p=_number(text, given, "top_p", 1.0),
            num_beams=beam,
            length_penalty=_number(text, given, "length_penalty", 1.0),
            best_of=_whole(text, given, "best_of"),
            by=str(given.get("by", "mean_log_prob")),
            calculator=bool(calculator),
            guidance_weight=_number(text, given, "guided", 0.0),
        )
    except UserError as error:
        raise UserError(str(error).replace("sampler:", f"sampler {_shown(text)}:", 1)) from None


def parse_samplers(items: Iterable[str | Mapping[str, Any] | Sampler]) -> list[Sampler]:
    """Samplers without repetition, in their order.

    Raises:
        UserError: as `parse_sampler`, and for none at all.

    Example:
        >>> [sampler.name for sampler in parse_samplers(["greedy", "T=1", "T=1.0"])]
        ['greedy', 'T=1.0']
    """
    samplers = list(dict.fromkeys(parse_sampler(item) for item in items))
    if not samplers:
        raise UserError(f"no sampler: write one or more of {SYNTAX}")
    return samplers


def _pairs(text: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(text, str):
        parts = [part.strip() for part in text.split(",")]
        items: list[tuple[str, Any]] = []
        for part in parts:
            key, equals, value = part.partition("=")
            items.append((key.strip(), value.strip() if equals else True))
    elif isinstance(text, Mapping):
        items = [(str(key), value) for key, value in text.items()]
    else:
        raise UserError(f"sampler {text!r}: is no text; write {SYNTAX}")
    given: dict[str, Any] = {}
    for key, value in items:
        name = _ALIASES.get(key, key)
        if name not in (*_KEYS, *_FLAGS):
            close = difflib.get_close_matches(key, [*_KEYS, *_FLAGS, *_ALIASES], n=1)
            hint = f"did you mean {close[0]}?" if close else f"write {SYNTAX}"
            raise UserError(f"sampler {_shown(text)}: {key!r} is unknown; {hint}")
        if name in given:
            raise UserError(f"sampler {_shown(text)}: {key} is given twice")
        if name in _FLAGS and not isinstance(value, bool):
            raise UserError(f"sampler {_shown(text)}: {name} stands alone, without a value")
        if name not in _FLAGS and (isinstance(value, bool) or value == ""):
            raise UserError(f"sampler {_shown(text)}: {key} needs a value, such as {key}={_example(name)}")
        given[name] = value
    return given


def _example(name: str) -> str:
    return {"T": "0.5", "top_p": "0.9", "length_penalty": "0.6", "by": "sum_log_prob", "guided": "0.5"}.get(name, "4")


def _number(text: Any, given: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(given.get(name, default))
    except (TypeError, ValueError):
        raise UserError(f"sampler {_shown(text)}: {name} is {given[name]!r}, not a number") from None


def _whole(text: Any, given: Mapping[str, Any], name: str) -> int:
    value = _number(text, given, name, 1)
    if not value.is_integer():
        raise UserError(f"sampler {_shown(text)}: {name} is {given[name]!r}, not a whole number")
    return int(value)


def _shown(text: Any) -> str:
    return text if isinstance(text, str) else ",".join(f"{k}={v}" for k, v in text.items())
