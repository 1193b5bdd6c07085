"""Which comparisons a study makes, and what they say. Pure: from numbers to verdicts.

A group of methods is represented by the variant and sampler that are best on validation data; the reference, and the
best control, by theirs. What is compared is measured on test data, paired over prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison

BEST = "best"
REFERENCE, BEST_CONTROL = "reference", "best control"
BETTER, WORSE, NONE = "better", "worse", "no difference shown"

Valid = Mapping[tuple[str, str], float]
"""(method, sampler) -> main metric on validation data, mean over seeds."""

Tables = Callable[[str, str, str], tuple[Any, Any]]
"""(size, method, sampler) -> (seeds, prompts, K) numbers to sum over prompts, and (seeds, prompts) lengths."""


@dataclass(frozen=True)
class Pick:
    """A method with a sampler, and its main metric on validation data."""

    method: str
    sampler: str
    valid: float


@dataclass(frozen=True)
class Duel:
    """A comparison to be made.

    Attributes:
        size: of the training set.
        group: that is compared.
        role: of the group.
        pick: what represents it.
        against: "reference", "best control", or the name of a control group.
        other: what represents that.
        at: "best": both sides at the sampler that is best for them; else the sampler of both.
    """

    size: str
    group: str
    role: str
    pick: Pick
    against: str
    other: Pick
    at: str = BEST


@dataclass(frozen=True)
class Verdict:
    """A comparison that was made.

    Attributes:
        duel: of what.
        comparison: with its interval and p-value, corrected over all that were made together.
        length: mean answer length of the pick on test, tokens.
        other_length: of the other side.
    """

    duel: Duel
    comparison: Comparison
    length: float
    other_length: float

    @property
    def outcome(self) -> str:
        """`better`, `worse`, or `no difference shown`."""
        if not self.comparison.shown:
            return NONE
        return BETTER if (self.comparison.difference.value > 0) != self.comparison.lower_is_better else WORSE

    def as_dict(self) -> dict[str, Any]:
        """One flat line, as for a CSV file."""
        duel, found = self.duel, self.comparison
        return {
            "size": duel.size,
            "group": duel.group,
            "role": duel.role,
            "method": duel.pick.method,
            "sampler": duel.pick.sampler,
            "against": duel.against,
            "other_method": duel.other.method,
            "other_sampler": duel.other.sampler,
            "at": duel.at,
            "metric": found.metric,
            "value": found.value,
            "other_value": found.reference_value,
            **_named("difference", found.difference),
            "p": found.p,
            "p_holm": found.p_adjusted,
            "p_prompts": found.p_prompts,
            "p_seeds": found.p_seeds,
            "outcome": self.outcome,
            "length": self.length,
            "other_length": self.other_length,
            **_named("length_difference", found.length),
            "valid": duel.pick.valid,
            "other_valid": duel.other.valid,
            "prompts": found.prompts,
            "seeds": found.seeds,
        }


def best_pick(valid: Valid, methods: Iterable[str], *, lower: bool, sampler: str = BEST) -> Pick | None:
    """The best (method, sampler) on validation data, the first of equals; None if no such method was measured.

    >>> best_pick({("a", "greedy"): 0.5, ("a", "T=1.0"): 0.4, ("b", "greedy"): 0.3}, ["a"], lower=True)
    Pick(method='a', sampler='T=1.0', valid=0.4)
    """
    chosen = set(methods)
    found = [Pick(m, s, v) for (m, s), v in valid.items() if m in chosen and sampler in (BEST, s)]
    return min(found, key=lambda pick: pick.valid if lower else -pick.valid, default=None)


def plan_verdicts(
    size: str, valid: Valid, groups: Mapping[tuple[str, str], Sequence[str]], reference: str, *, lower: bool
) -> list[Duel]:
    """Every group against the reference, and every group of methods against the best control, each at its best."""
    other = best_pick(valid, [reference], lower=lower)
    picks = {key: best_pick(valid, members, lower=lower) for key, members in groups.items()}
    if other is None:
        return []
    duels = [Duel(size, *key, pick, REFERENCE, other) for key, pick in picks.items() if pick is not None]
    controls = [name for (_, role), members in groups.items() if role == "control" for name in members]
    control = best_pick(valid, controls, lower=lower)
    if control is not None:
        methods = [(key, pick) for key, pick in picks.items() if pick is not None and key[1] == "method"]
        duels += [Duel(size, *key, pick, BEST_CONTROL, control) for key, pick in methods]
    return duels


def plan_against_each(
    size: str,
    valid: Valid,
    groups: Mapping[tuple[str, str], Sequence[str]],
    reference: str,
    wanted: Iterable[tuple[str, str]],
    samplers: Sequence[str],
    *,
    lower: bool,
) -> list[Duel]:
    """Wanted groups against the reference and every control, with each of `samplers` ("best": each side its own)."""
    others = {REFERENCE: [reference]} | {name: members for (name, role), members in groups.items() if role == "control"}
    duels = []
    for key in wanted:
        for sampler in samplers:
            pick = best_pick(valid, groups[key], lower=lower, sampler=sampler)
            for against, members in others.items():
                other = best_pick(valid, members, lower=lower, sampler=sampler)
                if pick is not None and other is not None:
                    duels.append(Duel(size, *key, pick, against, other, sampler))
    return duels


def judge(
    duels: Sequence[Duel],
    tables: Tables,
    *,
    metric: str,
    score: Callable[[Any], Any],
    lower: bool,
    n: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
    done: Callable[[], Any] = lambda: None,
) -> list[Verdict]:
    """Make the comparisons (`compare_runs`), and correct their p-values over all of them (Holm).

    Args:
        duels: to be made together.
        tables: the numbers of a method with a sampler on test.
        metric: its name.
        score: from sums over prompts to the metric.
        lower: whether less is better.
        n: resamples, and permutations.
        alpha: level of the tests.
        seed: of the resamples.
        done: called after each comparison.

    Raises:
        UserError: as `compare_runs`.
    """
    from ..evaluation.comparison import adjust, compare_runs

    found = []
    for duel in duels:
        (run, lengths), (other, other_lengths) = (
            tables(duel.size, p.method, p.sampler) for p in (duel.pick, duel.other)
        )
        [comparison] = compare_runs(
            {"other": other, "run": run},
            lengths={"other": other_lengths, "run": lengths},
            metric=metric,
            score=score,
            lower_is_better=lower,
            n=n,
            alpha=alpha,
            seed=seed,
        )
        found.append(Verdict(duel, comparison, float(lengths.mean()), float(other_lengths.mean())))
        done()
    adjusted = adjust([verdict.comparison for verdict in found])
    return [replace(verdict, comparison=comparison) for verdict, comparison in zip(found, adjusted, strict=True)]


def _named(name: str, estimate: Any) -> dict[str, float | None]:
    value, low, high = (None, None, None) if estimate is None else estimate
    return {name: value, f"{name}_low": low, f"{name}_high": high}
