"""The report of a study: one self-contained page, a PNG of every figure, and its tables as CSV and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError

from .page import Page, write_whole

if TYPE_CHECKING:
    from ..study.answers import Answers
    from ..study.contents import Study
    from ..study.verdicts import Duel, Verdict
    from .study_parts import Made

FILES = ("results.csv", "verdicts.csv", "verdicts.json")
"""Written beside the page."""

FIGURES = "figures"


def study_page(
    study: Study | str | Path,
    output_file: str | Path,
    *,
    png_dir: str | Path | None = None,
    heatmaps: int = 3,
    num_resamples: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
    task: str | None = None,
    progress: bool = True,
) -> Path:
    """Write the report of a study, whole or in part done, and return the page's path.

    Every group of methods is taken at the variant and sampler that are best on validation data and compared on test
    with the reference at its best sampler (arXiv 2409.01369's fronts, read as one number), and groups of methods with
    the best control. Paired over prompts and seeds (`compare_runs`), p-values after Holm over all of these.

    Args:
        study: a study's folder, or what `load_study` returned.
        output_file: the page; results.csv, verdicts.csv and verdicts.json are written beside it.
        png_dir: folder for the figures; default: `figures` beside the page.
        heatmaps: answers to show with token rewards; 0 loads no model.
        num_resamples: bootstrap resamples, and permutations, of each comparison.
        alpha: level of the tests.
        seed: of the resamples.
        task: `file.py:name` of a task of one's own, if its metrics are no means; its code is run.
        progress: show a bar, on stderr.

    Raises:
        UserError: no study, cells of different versions, files that do not belong together, a missing package.

    Example:
        >>> study_page("runs/cmudict", "runs/cmudict/report.html")  # doctest: +SKIP
    """
    from ..study.answers import Answers
    from ..study.collect import load_study
    from .drawing import matplotlib
    from .study_figures import Figures
    from .study_heatmaps import study_heatmaps
    from .study_parts import Made
    from .study_tables import OTHERS, result_records, write_csv

    matplotlib()
    found = load_study(study) if isinstance(study, str | Path) else study
    _check_scipy(found)
    target = Path(output_file).expanduser()
    answers = Answers(found, task)
    verdicts, against_each = study_verdicts(
        found, answers, num_resamples=num_resamples, alpha=alpha, seed=seed, progress=progress
    )
    settings = {"num_resamples": num_resamples, "alpha": alpha, "seed": seed}
    write_csv(
        target.with_name(FILES[0]), result_records(found), ["method", "split", "sampler", *found.metrics, *OTHERS]
    )
    heat, note = (None, "") if heatmaps < 1 else study_heatmaps(found, answers, heatmaps)
    folder = Path(png_dir).expanduser() if png_dir is not None else target.with_name(FIGURES)
    made = Made(found, verdicts, against_each, Figures(found, best_samplers(found)), heat, note, settings, folder)
    page = _page(made, progress)
    _remove_old_figures(target.with_name(FILES[2]), folder, made.written)
    _write_verdicts(target, made)
    return page.write(target)


def _remove_old_figures(record: Path, folder: Path, written: Sequence[str]) -> None:
    """Figures of an earlier report in the same folders, which this one does not have, would be taken for its own."""
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        old = before["figures"] if before["png_dir"] == _relative(folder, record) else []
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in old:
        if isinstance(name, str) and Path(name).name == name and name.endswith(".png") and name not in written:
            (folder / name).unlink(missing_ok=True)


def _page(made: Made, progress: bool) -> Page:
    """The verdict, what it rests on, how it was made; figures are written as PNG on the way."""
    from tqdm.auto import tqdm

    from . import study_comparisons, study_sections

    facts = made.study.facts
    sections = {
        "fronts": ("Quality against diversity", study_sections.fronts),
        "temperature": ("temperature", study_sections.temperature),
        "sizes": ("training-set size", study_sections.sizes),
        "curves": ("learning curves", study_sections.curves),
        "rewards": ("rewards against the metric", study_sections.rewards),
        "timing": ("cost", study_sections.timing),
        "dense_path": ("Dense-Path REINFORCE", study_comparisons.dense_path),
        "heatmaps": ("token rewards", study_sections.heatmaps),
        "tables": ("all numbers", study_sections.tables),
        "made": ("how it was made, and what is missing", study_sections.identity),
    }
    page, rest = (
        Page(str(facts.get("title") or facts["name"]), f"Study {facts['name']}, task {facts['task']}"),
        Page(""),
    )
    links = []
    with tqdm(total=len(sections) + 1, desc="Drawing", unit="section", disable=not progress) as bar:
        study_comparisons.verdict(made, page)
        bar.update()
        for anchor, (title, section) in sections.items():
            if section(made, rest):
                links.append(f"[{title}](#{anchor})")
            bar.update()
    page.text(f"Below: {', '.join(links)}.")
    if str(facts.get("notes") or "").strip():
        page.text(str(facts["notes"]))
    return page.html(rest.body)


def best_samplers(study: Study) -> dict[tuple[str, str], str]:
    """(size, method) -> the sampler that is best for it on validation data."""
    from ..study.verdicts import best_pick

    found = {}
    for size in study.sizes:
        valid = study.valid_means(size)
        for name in study.methods:
            pick = best_pick(valid, [name], lower=study.lower_is_better)
            if pick is not None:
                found[size, name] = pick.sampler
    return found


def study_verdicts(
    study: Study,
    answers: Answers,
    *,
    num_resamples: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[Verdict], list[Verdict]]:
    """The verdicts of a study, and those on Dense-Path REINFORCE against the reference and every control.

    Returns:
        The verdicts, Holm-corrected together; and the second ones, corrected over those that are not among the first.
    """
    from tqdm.auto import tqdm

    from ..study.verdicts import judge, plan_against_each, plan_verdicts

    first: list[Duel] = []
    second: list[Duel] = []
    lower = study.lower_is_better
    for size in study.sizes:
        valid, groups = study.valid_means(size), study.groups
        first += plan_verdicts(size, valid, groups, study.reference, lower=lower)
        wanted = dense_path_groups(study)
        samplers = [*(name for name in ("greedy", "T=1.0") if name in study.samplers), "best"]
        second += plan_against_each(size, valid, groups, study.reference, wanted, samplers, lower=lower)
    known = {_contents(duel) for duel in first}
    new = list({_contents(duel): duel for duel in second if _contents(duel) not in known}.values())
    options: dict[str, Any] = {"n": num_resamples, "alpha": alpha, "seed": seed, "lower": lower}
    options |= {"metric": study.main, "score": answers.metric(1).score}

    def tables(size: str, method: str, sampler: str) -> tuple[Any, Any]:
        return answers.tables(size, method, sampler, study.seeds_of(size))

    with tqdm(total=len(first) + len(new), desc="Comparing", unit="pair", disable=not progress) as bar:
        verdicts, others = (judge(duels, tables, done=bar.update, **options) for duels in (first, new))
    by_contents = {_contents(verdict.duel): verdict for verdict in (*verdicts, *others)}
    return verdicts, [replace(by_contents[_contents(duel)], duel=duel) for duel in second]


def dense_path_groups(study: Study) -> list[tuple[str, str]]:
    """The groups of methods that Dense-Path REINFORCE trained."""
    return [
        key
        for key, members in study.groups.items()
        if key[1] == "method" and any(study.methods[name].command == "dpr" for name in members)
    ]


def _contents(duel: Duel) -> tuple[str, Any, Any]:
    """What is compared, whatever it is called."""
    return duel.size, duel.pick, duel.other


def _check_scipy(study: Study) -> None:
    if len(study.seeds) > 1:
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise UserError("comparing several seeds needs scipy: pip install 'inverselm[eval]'") from error


def _relative(folder: Path, file: Path) -> str:
    """A folder as seen from a file beside it, so that both can be moved."""
    return os.path.relpath(folder.resolve(), file.resolve().parent)


def _write_verdicts(target: Path, made: Made) -> None:
    from .study_tables import write_csv

    study, verdicts, others = made.study, made.verdicts, made.against_each
    records = [{"part": part, **record} for part, record in _records(study, verdicts, others)]
    write_csv(target.with_name(FILES[1]), records, ["part", "size", "group"])
    content = {
        "study": study.facts["name"],
        "reference": study.reference,
        "metric": study.main,
        "better": study.metrics[study.main],
        "identity": study.facts["identity"],
        "settings": made.settings,
        "missing": list(study.missing),
        "verdicts": [record for part, record in _records(study, verdicts, [])],
        "dense_path": [record for part, record in _records(study, [], others)],
        "png_dir": _relative(made.png_dir, target),
        "figures": made.written,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(target.with_name(FILES[2]), text.encode("utf-8", "replace"))


def _records(
    study: Study, verdicts: Sequence[Verdict], others: Sequence[Verdict]
) -> Iterable[tuple[str, dict[str, Any]]]:
    for part, found in (("verdict", verdicts), ("dense_path", others)):
        for verdict in found:
            yield part, {"rows": study.rows_of(verdict.duel.size), **verdict.as_dict()}
