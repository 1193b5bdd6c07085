"""Slot errors of a text against a meaning representation `name[The Eagle], eatType[coffee shop], ...`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .e2e import UNCOUNTED, group_of, groups_in, plain

_SLOT = re.compile(r"([A-Za-z][\w ]*?)\s*\[([^\[\]]*)\]")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|[_\s]+")
_NEGATED = r"(?:\bno[tn]?\b|n't\b|\bnever\b|\bun)[\s-]*(?:[\w']+[\s-]+){0,3}?"

Meaning = tuple[tuple[str, str], ...]


class SlotErrors(NamedTuple):
    """Counts of one text: values of the meaning that it does not say, values it says that are none, values to say."""

    missing: int
    hallucinated: int
    slots: int


def parse_meaning(text: str) -> Meaning:
    """(slot, value) pairs of a meaning representation; empty if there is none.

    Example:
        >>> parse_meaning("name[The Eagle], familyFriendly[yes]")
        (('name', 'The Eagle'), ('familyFriendly', 'yes'))
    """
    pairs = ((slot.strip(), value.strip()) for slot, value in _SLOT.findall(text))
    return tuple(dict.fromkeys(pair for pair in pairs if pair[1]))


class SlotMatcher:
    """Finds the values of slots in texts.

    - Slots of E2E with rules (`inverselm.evaluation.tasks.e2e.RULES`), if the meanings have them: a value is said by
      any wording of its group, and "cheap" and "less than £20" are one group.
    - Other slots with the values yes and no: the slot's own words ("has parking" for `hasParking`), negated for no.
    - All other values, names above all: verbatim, but for case, accents and a leading "the".

    Verbatim values are looked for first, longest first, and are then taken out of the text: the "Indian" of "Raja
    Indian Cuisine" is no food. A value of another group, or a known verbatim value, that the meaning does not hold is
    hallucinated, whichever slot it came from: a wrong value is one missing and one hallucinated.

    Args:
        meanings: all meanings of a task, whose verbatim values are then known.

    Example:
        >>> meaning = parse_meaning("name[The Eagle], food[French], familyFriendly[no]")
        >>> SlotMatcher([meaning]).errors("The Eagle serves French food to families.", meaning)
        SlotErrors(missing=1, hallucinated=1, slots=3)
    """

    def __init__(self, meanings: Iterable[Meaning]) -> None:
        pairs = {pair for meaning in meanings for pair in meaning}
        values = {_bare(value) for slot, value in pairs if _kind(slot, value) == "verbatim"} - {""}
        longest = sorted(values, key=lambda value: (-len(value), value))
        self._verbatim = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)") if longest else None
        yes_no = {slot for slot, value in pairs if _kind(slot, value) == "boolean"}
        self._boolean = {slot: _said(slot) for slot in sorted(yes_no)}
        self._ruled = sorted({_key(slot) for slot, value in pairs if _kind(slot, value) == "rule"})

    def errors(self, text: str, meaning: Meaning) -> SlotErrors:
        """Slot errors of one text."""
        wanted = {_canonical(slot, value) for slot, value in meaning}
        found = self._found(plain(text))
        return SlotErrors(len(wanted - found), len(found - wanted - UNCOUNTED), len(wanted))

    def _found(self, text: str) -> set[tuple[str, str]]:
        found = set()
        if self._verbatim is not None:
            found |= {("", match.group()) for match in self._verbatim.finditer(text)}
            text = self._verbatim.sub(" _ ", text)
        for slot in self._ruled:
            found |= {(slot, group[0]) for group in groups_in(slot, text)}
        for slot, (said, denied) in self._boolean.items():
            if said.search(text):
                found.add((_key(slot), "no" if denied.search(text) else "yes"))
        return found


def _key(slot: str) -> str:
    return re.sub(r"[_\s]+", "", slot).lower()


def _kind(slot: str, value: str) -> str:
    if group_of(_key(slot), value) is not None:
        return "rule"
    return "boolean" if plain(value) in ("yes", "no") else "verbatim"


def _canonical(slot: str, value: str) -> tuple[str, str]:
    """Two pairs are the same if they are said alike; of verbatim values the slot cannot be told."""
    group = group_of(_key(slot), value)
    if group is not None:
        return _key(slot), group[0]
    return (_key(slot), plain(value)) if _kind(slot, value) == "boolean" else ("", _bare(value))


def _bare(value: str) -> str:
    return plain(value).removeprefix("the ").strip()


def _said(slot: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    words = [re.escape(plain(word)) for word in _CAMEL.split(slot) if word]
    if len(words) > 1 and words[0] in ("has", "is", "allows", "accepts"):
        words = words[1:]
    phrase = r"[\s-]+".join(words)
    return re.compile(rf"\b{phrase}"), re.compile(rf"{_NEGATED}{phrase}")
