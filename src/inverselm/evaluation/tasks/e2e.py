"""How the slots of the E2E restaurant data are said in English: one pattern for each group of values.

Texts are compared in `plain` form. Values of one group mean the same in that data ("cheap", "less than £20"), so that
each may be said as any other.
"""

from __future__ import annotations

import re
import unicodedata

_KIN = r"(?:famil(?:y|ies)|kids?|child(?:ren)?s?)"
_WORDS = r"(?:(?!and\b|but\b)[\w']+[\s-]+)"
_NOT = r"(?:\bno[tn]?\b(?! only)|n't\b|\bcannot\b|\bnever\b|\bnor\b|\bwithout\b|\bun(?=family|kid|child))"
_NOT_FOR_KIN = (
    rf"{_NOT}[\s-]*{_WORDS}{{0,4}}?{_KIN}\b|\b{_KIN}[\s-]+(?:friendly\s+)?(?:(?:is|are|should|were|be)\s+)?"
    rf"(?:{_NOT}|unfriendly|unwelcome|prohibited|forbidden)|\badults?[\s-]only|\bonly (?:for )?adults|"
    r"\bfor adults\b(?! (?:as well|too|and))|\badult (?:establishment|venue|restaurant|pub|coffee|place)"
)
_RATED = r"(?:rat(?:ed|ings?|es?)|reviews?|reviewed|scores?|scored|scoring|rank(?:ed|ing|s)?|recommended|regarded)"
_GAP = r"(?:\w+ ){0,4}?"
_PRICE = r"(?:pric(?:e|es|ed|ing|y)|costs?|end)"


_CHEAP = (
    rf"\bcheap|\binexpensive|\baffordabl|\blow(?:er|ly)?[ -]+{_PRICE}\b"
    rf"|\b{_PRICE} (?:range )?{_GAP}low(?:er)?\b(?! (?:customer|rat))"
    r"|\b(?:less than|under|below|up to|beneath) [£$]? ?20\b|[£$]? ?20 or (?:less|under|below)"
)
_MODERATE = (
    rf"\b(?:moderate(?:ly)?|reasonabl[ey])\b(?! (?:customer )?{_RATED})"
    rf"|(?<!than )(?<!than-)(?<!below )(?<!above )\b(?:mid|middle|medium|average)[ -]?(?:range )?{_PRICE}"
    r"|\bmid(?:dle)?[ -]range|[£$]? ?20 ?(?:-|to|and) ?[£$]? ?25\b"
)
_EXPENSIVE = (
    rf"(?<!in)(?<!moderately )expensive|\bprice?y\b|\bcostly\b|\b(?:high(?:er|ly)?|upper)[ -]+{_PRICE}\b"
    rf"|\b{_PRICE} (?:range )?{_GAP}high(?:er)?\b(?! (?:customer|rat))"
    r"|\b(?:more than|over|above|upwards of|starting at|start at|at least) [£$]? ?30\b"
    r"|[£$]? ?30 (?:or|and) (?:more|up|over|above)"
)


def _rating(words: str, digit: str, word: str) -> str:
    number = rf"(?:{digit}|{word})"
    out_of = rf"\b{number}[ -]?(?:stars? )?(?:out of|out|of|/)[ -]?(?:5|five)\b"
    stars = rf"(?<!of )(?<!out )(?<!/)\b{number}[ -]stars?\b"
    before = rf"\b(?:{words})[ -]+(?:customer[ -]+)?{_RATED}\b(?! {_GAP}(?:\d|one|three|five) out)"
    after = rf"\b{_RATED} {_GAP}(?:{words})\b(?! (?:of|pric|expens|cost|cheap))"
    return f"{out_of}|{stars}|{before}|{after}"


RULES: dict[str, dict[tuple[str, ...], str]] = {
    "eattype": {
        ("coffee shop",): r"\bcoffee[ -]?(?:shops?|houses?|bars?|places?)\b|\bcafes?\b",
        ("pub",): r"\bpubs?\b",
        ("restaurant",): r"\brestaurants?\b|\beater(?:y|ies)\b|\bdiners?\b|\bbistros?\b",
    },
    "food": {
        ("chinese",): r"\bchinese\b",
        ("english",): r"\benglish\b|\bbritish\b(?! pound)",
        ("fast food",): r"\bfast[ -]?foods?\b|\bburgers?\b",
        ("french",): r"\bfrench\b",
        ("indian",): r"\bindian\b",
        ("italian",): r"\bitalian\b|\bpasta\b|\bpizzas?\b",
        ("japanese",): r"\bjapanese\b|\bsushi\b",
    },
    "area": {
        ("city centre",): r"\b(?:city|town)(?:'s)?[ -]?cent(?:re|er)|\bcent(?:re|er) of (?:the )?(?:city|town)"
        r"|\bdowntown\b|\bin the cent(?:re|er)\b|\bcentral(?:ly)?\b",
        ("riverside",): r"\briver",
    },
    "pricerange": {
        ("cheap", "less than £20"): _CHEAP,
        ("moderate", "£20-25"): _MODERATE,
        ("high", "more than £30"): _EXPENSIVE,
    },
    "customerrating": {
        ("low", "1 out of 5"): _rating("low|lowly|lower|poor|poorly|bad|badly", "1", "one"),
        ("average", "3 out of 5"): _rating("average|averagely|medium|moderate|moderately|decent", "3", "three"),
        ("high", "5 out of 5"): _rating("high|highly|higher|top|well|excellent|great|good|very good", "5", "five"),
    },
    "familyfriendly": {
        ("no",): _NOT_FOR_KIN,
        ("yes",): rf"\b{_KIN}\b|\ball ages\b|\ball age groups\b",
    },
}
"""slot -> group of values -> how any of them is said. The first group found wins in `familyfriendly`."""

EXCLUSIVE = ("familyfriendly",)
"""Slots in which a group found hides those after it: who is not family friendly mentions families too."""

UNCOUNTED = {("eattype", "restaurant")}
"""Never hallucinated: every place of that data is a restaurant in its references."""


def plain(text: str) -> str:
    """Lower case, without accents, typographic quotes and dashes, or repeated white space.

    Example:
        >>> plain("Café  Rouge – “The Mill”")
        'cafe rouge - "the mill"'
    """
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c)).casefold()
    for old, new in (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("–", "-"), ("—", "-")):
        text = text.replace(old, new)
    return re.sub(r"\s+", " ", text).strip()


def group_of(slot: str, value: str) -> tuple[str, ...] | None:
    """The group of values that a value belongs to; None where there is no rule (values are then said verbatim)."""
    wanted = plain(value)
    return next((group for group in RULES.get(slot, {}) if wanted in map(plain, group)), None)


def groups_in(slot: str, text: str) -> list[tuple[str, ...]]:
    """The groups of a slot's values that a text (in plain form) says."""
    found = [group for group, pattern in PATTERNS[slot].items() if pattern.search(text)]
    return found[:1] if slot in EXCLUSIVE else found


PATTERNS = {slot: {group: re.compile(rule) for group, rule in rules.items()} for slot, rules in RULES.items()}
