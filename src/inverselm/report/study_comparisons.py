"""The sections of a study's page that compare: its verdict, and Dense-Path REINFORCE against every control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .page import Page, table_fragment
from .study_figures import Figure, short_sampler, size_title
from .study_forest import Difference, Forest
from .study_panels import limits
from .study_parts import Made, heading, say, show
from .study_tables import VERDICT_ALIGN, verdict_table
from .study_words import headline, safe, size_block

if TYPE_CHECKING:
    from ..study.verdicts import Verdict

NOT_SHOWN = "not shown"


def verdict(made: Made, page: Page) -> None:
    """What the study shows, in sentences, a table and a chart."""
    study = made.study
    heading(page, "verdict", "Verdict")
    page.html(headline(study, made.verdicts))
    for size in study.sizes:
        page.html(f"<h3>{safe(size_title(study, size)).capitalize()}</h3>" if len(study.sizes) > 1 else "")
        page.html(size_block(study, size, made.verdicts))
    if not made.verdicts:
        return
    say(
        page,
        "How this is decided: every group of methods, and the reference, is taken at the variant and sampler that are "
        f"best on validation data, and measured on test. Differences in {study.main} are paired over prompts and "
        f"seeds; brackets are {1 - made.settings['alpha']:.0%} intervals, and p is after Holm's correction over all "
        f"{len(made.verdicts)} comparisons of this verdict. A difference is shown if the interval leaves out 0 and the "
        f"corrected p is below {made.settings['alpha']:g}.",
    )
    against_reference = [v for v in made.verdicts if v.duel.against == "reference"]
    bold = {(n, 2) for n, v in enumerate(made.verdicts) if v.comparison.shown}
    page.table(*verdict_table(study, made.verdicts), align=VERDICT_ALIGN, highlight=bold)
    forests = [_forest(made, size, against_reference) for size in study.sizes]
    _show_forests(made, page, [f for f in forests if f is not None], "verdict", "Every group against the reference")


def _forest(made: Made, size: str, verdicts: Sequence[Verdict]) -> Forest | None:
    here = [v for v in verdicts if v.duel.size == size]
    rows: list[Difference | str] = []
    for role, title in (("method", "Methods"), ("control", "Controls")):
        of_role = [difference(made, v) for v in here if v.duel.role == role]
        rows += [title, *of_role] if of_role else []
    return Forest(*_titles(made, size), rows, made.study.lower_is_better) if here else None


def _titles(made: Made, size: str) -> tuple[str, str]:
    reference = made.study.methods[made.study.reference].label
    return size_title(
        made.study, size
    ).capitalize(), f"difference in {made.study.main} from {reference} at its best sampler"


def _show_forests(made: Made, page: Page, forests: Sequence[Forest], name: str, title: str) -> None:
    xlim = limits([x for forest in forests for x in forest.xs])
    show(made, page, Figure(name, title, [replace(forest, xlim=xlim) for forest in forests], columns=2))


def dense_path(made: Made, page: Page) -> bool:
    """Dense-Path REINFORCE against the reference and every control."""
    study, found = made.study, made.against_each
    if not found:
        return made.skip("Dense-Path REINFORCE", "no method of `dpr` can be compared yet")
    heading(page, "dense_path", "Dense-Path REINFORCE against every control")
    known = {(v.duel.size, v.duel.pick, v.duel.other) for v in made.verdicts}
    new = {(v.duel.size, v.duel.pick, v.duel.other) for v in found} - known
    say(
        page,
        "Differences on test, paired over prompts and seeds, intervals as in the verdict; each side at the variant "
        "that is best on valid with that sampler, or with its best sampler. p-values are after Holm over the "
        f"{len(new)} comparisons of this section that the verdict does not hold; those that it holds are repeated as "
        "they are there. Strong: a difference is shown. The table has the lengths.",
    )
    forests = [f for size in study.sizes if (f := _forest_against_each(made, size)) is not None]
    _show_forests(made, page, forests, "dense_path", "Dense-Path REINFORCE against the reference and every control")
    page.details(
        "Table of these comparisons, with lengths", table_fragment(*verdict_table(study, found), align=VERDICT_ALIGN)
    )
    return True


def _forest_against_each(made: Made, size: str) -> Forest | None:
    study = made.study
    rows: list[Difference | str] = []
    here = [v for v in made.against_each if v.duel.size == size]
    for at in dict.fromkeys(v.duel.at for v in here):
        chosen = [v for v in here if v.duel.at == at]
        title = "Best samplers" if at == "best" else f"Both {'greedy' if at == 'greedy' else f'at {at}'}"
        picks = {v.duel.pick for v in chosen}
        if len(picks) == 1:
            pick = picks.pop()
            label = study.methods[pick.method].label
            title += f": {label}" + (f", {short_sampler(pick.sampler)}" if at == "best" else "")
        rows += [title, *(difference(made, v, of_other=True) for v in chosen)]
    title = size_title(study, size).capitalize()
    return (
        Forest(title, f"difference in {study.main} from what is named", rows, study.lower_is_better) if here else None
    )


def difference(made: Made, verdict: Verdict, *, of_other: bool = False) -> Difference:
    """A verdict as a row of a forest; `of_other` names and colours it after what it is compared with."""
    duel, found = verdict.duel, verdict.comparison
    pick = duel.other if of_other else duel.pick
    label = made.study.methods[pick.method].label
    several = of_other and len({v.duel.group for v in made.against_each}) > 1
    name = f"{duel.group} against {label}" if several else label
    name = f"{name}, {short_sampler(pick.sampler)}" if duel.at == "best" else name
    word = verdict.outcome if found.shown else NOT_SHOWN
    return Difference(name, *found.difference, made.figures.looks[pick.method], found.shown, word)
