"""What a study says, in sentences: HTML with every text from outside escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .heatmap import visible_text
from .study_figures import size_title

if TYPE_CHECKING:
    from ..study.contents import Study
    from ..study.verdicts import Verdict


def safe(text: Any) -> str:
    """Escaped, and nothing invisible."""
    return escape(visible_text(str(text)), quote=True)


def number(value: float | None, *, sign: bool = False) -> str:
    """Four digits and a real minus sign; a dash for what is not defined.

    >>> number(-0.01234567), number(1.0, sign=True), number(float("nan"))
    ('−0.01235', '+1', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.4g}".replace("-", "−")


def decimals(estimate: Any) -> int:
    """How many decimals of an estimate say something: two digits of the width of its interval.

    >>> decimals((0.0123, -0.041, 0.064)), decimals((12.0, 3.0, 21.0))
    (2, 0)
    """
    _, low, high = estimate
    width = high - low
    if not math.isfinite(width) or width <= 0:
        return 2
    return max(0, min(6, 1 - math.floor(math.log10(width))))


def fixed(value: float | None, places: int, *, sign: bool = False) -> str:
    """So many decimals and a real minus sign; a dash for what is not defined.

    >>> fixed(-0.0004, 2, sign=True), fixed(3.14159, 2)
    ('+0.00', '3.14')
    """
    if value is None or not math.isfinite(value):
        return "–"
    rounded = round(value, places) + 0.0  # no minus zero
    return f"{rounded:{'+' if sign else ''}.{places}f}".replace("-", "−")


def interval(estimate: Any) -> str:
    """`−0.021 [−0.033, −0.009]`, or a dash."""
    if estimate is None:
        return "–"
    places = decimals(estimate)
    value, low, high = (fixed(bound, places, sign=True) for bound in estimate)
    return f"{value} [{low}, {high}]"


def p_value(p: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def headline(study: Study, verdicts: Sequence[Verdict]) -> str:
    """A paragraph: is any method better than the reference, and does any beat the best control?"""
    reference = safe(study.methods[study.reference].label)
    ours = [v for v in verdicts if v.duel.role == "method" and v.duel.against == "reference"]
    if not ours:
        return f"<p>No method can be compared with {reference} yet: see what is missing, below.</p>"
    first = _winners(study, ours, f"than {reference} at its best sampler")
    rivals = [v for v in verdicts if v.duel.against == "best control"]
    if not rivals:
        return f"<p>{first} The study has no finished control to compare with.</p>"
    return f"<p>{first} {_winners(study, rivals, 'than the best control')}</p>"


def _winners(study: Study, verdicts: Sequence[Verdict], end: str) -> str:
    """Who is better, size by size, and who is worse."""
    sizes = list(dict.fromkeys(v.duel.size for v in verdicts))

    def names(outcome: str, size: str) -> list[str]:
        chosen = [v.duel for v in verdicts if (v.outcome, v.duel.size) == (outcome, size)]
        return [f"<strong>{safe(group_name(study, duel.group, duel.role))}</strong>" for duel in chosen]

    better, parts = {size: found for size in sizes if (found := names("better", size))}, []
    for size, found in better.items():
        parts.append(f"with {safe(size_title(study, size))} {joined(found)} {_are(found)} better {end}")
    rest = [safe(size_title(study, size)) for size in sizes if size not in better]
    if better and rest:
        parts.append(f"with {joined(rest)} no method is shown to be")
    elif rest:
        parts.append(f"no method is shown to be better {end}")
    worse = {size: found for size in sizes if (found := names("worse", size))}
    for size, found in worse.items():
        parts.append(f"with {safe(size_title(study, size))} {joined(found)} {_are(found)} worse")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def group_name(study: Study, group: str, role: str) -> str:
    """A group's name: the label of its method, if it has one alone."""
    members = study.groups.get((group, role), [])
    return study.methods[members[0]].label if len(members) == 1 else group


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def size_block(study: Study, size: str, verdicts: Sequence[Verdict]) -> str:
    """What was found at one size: a sentence on the reference, one for each method, one for the controls."""
    here = [v for v in verdicts if v.duel.size == size]
    reference = study.methods[study.reference]
    seeds = study.seeds_of(size)
    if not seeds:
        return f"<p>No seed of {safe(reference.label)} is evaluated at this size yet, so nothing is compared.</p>"
    parts = []
    against = [v for v in here if v.duel.against == "reference"]
    if against:
        first, planned = against[0], "" if len(seeds) == len(study.seeds) else f" of {len(study.seeds)} planned"
        better = "lower" if study.lower_is_better else "higher"
        parts.append(
            f"<p>{safe(reference.label)} at its best sampler, {safe(first.duel.other.sampler)}: {safe(study.main)} "
            f"{_value(first, first.comparison.reference_value)} ({better} is better), {fixed(first.other_length, 1)} "
            f"tokens an answer; {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}{planned}, "
            f"{first.comparison.prompts:,} prompts. Against that:</p>"
        )
        methods = [f"<li>{sentence(study, v)}</li>" for v in against if v.duel.role == "method"]
        controls = [v for v in against if v.duel.role == "control"]
        methods += [f"<li>Controls, {_controls(study, controls)}</li>"] if controls else []
        parts.append(f"<ul>{''.join(methods)}</ul>")
    rivals = [v for v in here if v.duel.against == "best control"]
    if rivals:
        other = rivals[0].duel.other
        parts.append(
            f"<p>Against the best control, {safe(study.methods[other.method].label)} with {safe(other.sampler)} "
            f"({_value(rivals[0], rivals[0].comparison.reference_value)}):</p>"
        )
        parts.append(f"<ul>{''.join(f'<li>{sentence(study, verdict)}</li>' for verdict in rivals)}</ul>")
    return "".join(parts) + _notes(study, size)


def _notes(study: Study, size: str) -> str:
    """What limits the tests of a size."""
    left_out = [
        f"{safe(method.label)} ({len(study.seeds_of(size, method.name))} of {len(study.seeds)} seeds)"
        for method in study.methods.values()
        if size in method.sizes and not study.comparable(size, method.name)
    ]
    notes = [f"Not finished, and left out of the tests: {joined(left_out)}."] if left_out else []
    count = len(study.seeds_of(size))
    if count == 1:
        notes.append("With one seed this compares these runs, not the methods.")
    elif count == 2:
        notes.append("Two seeds say little about how much seeds differ: the intervals may be too narrow.")
    return f"<p>{' '.join(notes)}</p>" if notes else ""


def _controls(study: Study, verdicts: Sequence[Verdict]) -> str:
    """The controls by outcome."""
    parts = []
    for outcome in dict.fromkeys(v.outcome for v in verdicts):
        names = []
        for verdict in (v for v in verdicts if v.outcome == outcome):
            pick, found = verdict.duel.pick, verdict.comparison.length
            more = f", {length(verdict)}" if found is not None and found.shown else ""
            shown = f"{_value(verdict, verdict.comparison.value)} with {safe(pick.sampler)}{more}"
            names.append(f"{safe(study.methods[pick.method].label)} ({shown})")
        parts.append(f"<strong>{outcome}</strong>: {joined(names)}")
    return f"{'; '.join(parts)}."


def _value(verdict: Verdict, value: float) -> str:
    return fixed(value, decimals(verdict.comparison.difference))


def sentence(study: Study, verdict: Verdict) -> str:
    """One comparison: what was chosen, what came out, and the difference in length."""
    duel, found = verdict.duel, verdict.comparison
    name = f"{safe(study.methods[duel.pick.method].label)} with {safe(duel.pick.sampler)}"
    return (
        f"{name}: <strong>{verdict.outcome}</strong>, {_value(verdict, found.value)}, a difference of "
        f"{interval(found.difference)}, {p_value(found.p_adjusted)}; {length(verdict)}."
    )


def length(verdict: Verdict) -> str:
    """The difference in answer length, in words."""
    found = verdict.comparison.length
    if found is None:
        return "lengths are not known"
    if not found.shown:
        return "no difference in length shown"
    return f"{fixed(abs(found.value), decimals(found))} tokens {'longer' if found.value > 0 else 'shorter'}"
