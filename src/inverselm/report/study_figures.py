"""From a study's numbers to its charts: small multiples, one panel per group of methods, the reference in each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .drawing import COLORS, DASHES, Look
from .study_drawing import looks
from .study_panels import Dot, Line, Panel, aligned, limits

if TYPE_CHECKING:
    from ..study.contents import Study

NAN = math.nan
_IN_A_PANEL = 5  # variants, beside the reference
_OWN_Q = re.compile(r"Q - (?:[\d.]+ )?V', sum")
_LEVELS = {
    "dense, sum": ("dense reward", COLORS[2], DASHES[3]),
    "log-likelihood, sum": ("log-likelihood", COLORS[3], DASHES[1]),
    "log-likelihood, mean": ("mean log-likelihood", COLORS[1], DASHES[1]),
    "length": ("length", COLORS[5], DASHES[2]),
    "random": ("random", COLORS[6], DASHES[2]),
}


@dataclass(frozen=True)
class Figure:
    """Charts that belong together: side by side in the page, in one PNG.

    Attributes:
        name: of the PNG file, without its end.
        title: of the PNG.
        charts: of the same width.
        caption: what is shown and how, for page and PNG; plain text.
    """

    name: str
    title: str
    charts: Sequence[Any]
    caption: str = ""
    columns: int = field(default=3, kw_only=True)


def short_sampler(name: str) -> str:
    """A sampler in few characters.

    >>> short_sampler("T=1.0,top_p=0.9"), short_sampler("beam=4,length_penalty=0.6"), short_sampler("greedy")
    ('T=1 p=.9', 'beam 4 lp .6', 'greedy')
    """
    names = {"top_p": "p=", "beam": "beam ", "length_penalty": "lp ", "best_of": "best of ", "T": "T=", "by": ""}
    parts = []
    for part in name.split(","):
        key, equals, value = part.partition("=")
        try:
            number = f"{float(value):g}"
            value = number.removeprefix("0") if number.startswith("0.") else number
        except ValueError:
            pass
        parts.append(f"{names.get(key, f'{key}=')}{value}" if equals else key)
    return " ".join(parts)


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest of the seeds; NaN if one of them is not defined.

    >>> over_seeds([1.0, 2.0, 6.0])
    (3.0, 1.0, 6.0)
    """
    if not values or not all(map(math.isfinite, values)):
        return NAN, NAN, NAN
    low, high = (min(values), max(values)) if len(values) > 1 else (NAN, NAN)
    return sum(values) / len(values), low, high


def direction(study: Study) -> str:
    """The main metric with what is better of it."""
    return f"{study.main} ({'lower' if study.lower_is_better else 'higher'} is better)"


def size_title(study: Study, size: str) -> str:
    """`3,000 training rows`."""
    rows = study.rows_of(size)
    return f"{size} training rows" if rows is None else f"{rows:,} training rows"


class Figures:
    """The charts of a study.

    Args:
        study: from `load_study`.
        best: (size, method) -> the sampler that is best for it on validation data.
    """

    def __init__(self, study: Study, best: Mapping[tuple[str, str], str]) -> None:
        self.study, self.best = study, best
        self.looks = looks(study.reference, [name for name in study.methods if name != study.reference])

    def front(self, size: str, x: str, calculator: bool = False) -> list[Panel]:
        """The main metric against `x` ("self_bleu" or "entropy"), a dot per sampler, by group."""
        samplers = [name for name in self.study.samplers if name.endswith("calculator") == calculator]

        def make(method: str) -> Line | None:
            dots = []
            for sampler in samplers:
                across, up = (
                    over_seeds(self.study.values(size, method, "test", sampler, name)) for name in (x, self.study.main)
                )
                label = short_sampler(sampler.removesuffix(",calculator"))
                dots.append(Dot(across[0], up[0], *across[1:], *up[1:], label=label))
            return self._line(method, sorted(dots, key=lambda dot: dot.x))

        xlabel = {"self_bleu": "Self-BLEU (lower: more diverse)", "entropy": "entropy (nats per token)"}[x]
        return self._by_group(size, make, xlabel, direction(self.study))

    def temperature(self, size: str, calculator: bool = False) -> list[Panel]:
        """The main metric against temperature; greedy is 0."""

        def make(method: str) -> Line | None:
            dots = []
            for sampler in self.study.samplers_of(method):
                heat = temperature_of(sampler.removesuffix(",calculator"))
                if heat is not None and sampler.endswith("calculator") == calculator:
                    y, low, high = over_seeds(self.study.values(size, method, "test", sampler, self.study.main))
                    dots.append(Dot(heat, y, y_low=low, y_high=high))
            return self._line(method, sorted(dots, key=lambda dot: dot.x))

        panels = self._by_group(size, make, "temperature (0 = greedy)", direction(self.study))
        return panels if len({dot.x for p in panels for line in p.lines for dot in line.shown}) > 1 else []

    def sizes(self, sampler: str | None) -> list[Panel]:
        """The main metric against the size of the training set; None: each method at its best sampler."""
        rows = {size: self.study.rows_of(size) for size in self.study.sizes}
        known = {size: count for size, count in rows.items() if count}

        def make(method: str) -> Line | None:
            dots = []
            for size, count in sorted(known.items(), key=lambda item: item[1]):
                chosen = sampler if sampler is not None else self.best.get((size, method))
                if chosen is not None and chosen in self.study.samplers_of(method):
                    y, low, high = over_seeds(self.study.values(size, method, "test", chosen, self.study.main))
                    dots.append(Dot(count, y, y_low=low, y_high=high))
            return self._line(method, dots)

        ticks = {float(count): f"{count:,}" for count in known.values()}
        xlabel = "training rows (log scale)"
        panels = self._by_group(None, make, xlabel, direction(self.study), logx=True, ticks=ticks)
        return panels if len(known) > 1 else []

    def curves(self, size: str) -> list[Panel]:
        """Validation loss over steps: the mean over seeds, and each seed faintly."""

        def make(method: str) -> Line | None:
            seeds = [curve for seed in self.study.seeds if (curve := self._curve(size, method, seed))]
            common = sorted(set.intersection(*(set(curve) for curve in seeds))) if seeds else []
            mean = [Dot(step, sum(curve[step] for curve in seeds) / len(seeds)) for step in common]
            thin = [sorted(curve.items()) for curve in seeds] if len(seeds) > 1 else []
            line = self._line(method, mean)
            return None if line is None else Line(line.name, line.look, mean, thin, markers=len(mean) < 3)

        panels = self._by_group(size, make, "optimiser step", "validation loss (nats per token)")
        late = [y for p in panels for line in p.lines for y in _late(line)]
        return [replace(panel, ylim=limits(late)) for panel in panels]

    def _curve(self, size: str, method: str, seed: int) -> dict[float, float]:
        cell = self.study.cells.get((size, method, seed))
        found = {}
        for entry in cell.history if cell is not None else ():
            value = entry.get("eval_nll", entry.get("eval_loss"))
            if isinstance(value, int | float) and math.isfinite(value) and "step" in entry:
                found[float(entry["step"])] = float(value)
        return found

    def rewards(self, size: str) -> list[Panel]:
        """Rank correlation of accumulated rewards with the metric against lambda, beside the controls."""
        panels = []
        titles = {"overall": "Over all answers", "within": "Among the answers to one prompt"}
        for measure, title in titles.items():
            table = reward_table(self.study, size).get(measure, {})
            own = next((values for name, values in table.items() if _OWN_Q.fullmatch(name)), None)
            lines = []
            for (_, _), members in self.study.groups.items():
                dots = []
                for name in members:
                    weight = self.study.methods[name].flags.get(size, {}).get("td_coef")
                    if f"{name}, sum" in table and weight is not None:
                        y, low, high = over_seeds(table[f"{name}, sum"])
                        dots.append(Dot(float(weight), y, y_low=low, y_high=high))
                if dots:
                    y, low, high = over_seeds(own or [])
                    dots = sorted([Dot(0.0, y, y_low=low, y_high=high), *dots], key=lambda dot: dot.x)
                    lines.append(Line(f"Q − γV′: {self.study.methods[members[0]].group}", self.looks[members[0]], dots))
            levels = {
                name: (Look(color, "", dash), over_seeds(table[key])[0])
                for key, (name, color, dash) in _LEVELS.items()
                if key in table and math.isfinite(over_seeds(table[key])[0])
            }
            if any(line.shown for line in lines):
                panels.append(
                    Panel(
                        title,
                        "λ (td_coef; 0 is the reference)",
                        f"Spearman with {reward_score(self.study)}",
                        lines,
                        levels,
                    )
                )
        return aligned(panels)

    def _line(self, method: str, dots: Sequence[Dot]) -> Line | None:
        line = Line(self.study.methods[method].label, self.looks[method], dots)
        return line if line.shown else None

    def _by_group(
        self, size: str | None, make: Callable[[str], Line | None], xlabel: str, ylabel: str, **more: Any
    ) -> list[Panel]:
        """A panel per group: its variants, and the reference in front."""
        panels = []
        reference = make(self.study.reference)
        first = [reference] if reference is not None else []
        for (group, role), members in self.study.groups.items():
            there = [name for name in members if size is None or size in self.study.methods[name].sizes]
            lines = [line for name in there if (line := make(name)) is not None]
            parts = [lines[start : start + _IN_A_PANEL] for start in range(0, len(lines), _IN_A_PANEL)]
            for number, part in enumerate(parts, 1):
                title = self.study.methods[members[0]].label if len(members) == 1 else group
                title += f" ({number}/{len(parts)})" if len(parts) > 1 else ""
                title += " (control)" if role == "control" else ""
                panels.append(Panel(title, xlabel, ylabel, [*first, *part], control=role == "control", **more))
        if not panels and first:
            panels.append(Panel(self.study.methods[self.study.reference].label, xlabel, ylabel, first, **more))
        return aligned(panels)


def _late(line: Line) -> list[float]:
    """A curve's values after the first fifth of its steps, where curves are still apart."""
    points = [point for thin in line.thin for point in thin] or [(dot.x, dot.y) for dot in line.shown]
    last = max(x for x, _ in points)
    return [y for x, y in points if x >= last / 5]


def temperature_of(sampler: str) -> float | None:
    """The temperature of plain sampling, 0 for greedy; None for top-p, beam search and best-of-n.

    >>> temperature_of("greedy"), temperature_of("T=0.5"), temperature_of("T=1.0,top_p=0.9")
    (0.0, 0.5, None)
    """
    if sampler == "greedy":
        return 0.0
    found = re.fullmatch(r"T=([\d.]+)", sampler)
    return float(found[1]) if found else None


def reward_table(study: Study, size: str) -> dict[str, dict[str, list[float]]]:
    """measure -> reward -> its correlation per seed, of the seeds that have it; NaN where it is not defined."""
    found: dict[str, dict[str, list[float]]] = {}
    for (of_size, _), content in study.rewards.items():
        for measure, rewards in (content.get("correlation") or {}).get("values", {}).items() if of_size == size else ():
            for name, estimate in rewards.items():
                value = estimate.get("value")
                found.setdefault(measure, {}).setdefault(name, []).append(NAN if value is None else float(value))
    return found


def reward_score(study: Study) -> str:
    """What rewards are correlated with, `−wer` for a metric that was turned around."""
    name = str((study.facts.get("rewards") or {}).get("metric") or study.main)
    return f"−{name[1:]}" if name.startswith("-") else name


def negative_is_good(study: Study) -> bool:
    """Whether a good reward has a negative correlation with that."""
    name = str((study.facts.get("rewards") or {}).get("metric") or study.main)
    return study.metrics.get(name) == "low"
