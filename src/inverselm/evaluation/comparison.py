"""Is one run better than another? Paired by prompt and seed, with an interval, a p-value and the difference in length.

Every metric here is a function of sums over prompts (`mean_score` of values and counts, BLEU of n-gram counts), so that
a resample of prompts costs one matrix product and one evaluation of that function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..errors import UserError
from .results import Estimate
from .statistics import holm, permutation_p, scipy_stats, sign_flips

Score = Callable[[Any], Any]
_CHUNK = 2_000_000  # weights held in memory at once


def mean_score(sums: Any) -> Any:
    """(..., 2) sums of values and of their counts -> (...) means."""
    return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Comparison:
    """A run against the first one, by one metric.

    Attributes:
        run: its name.
        reference: name of the first run.
        metric: name of the metric.
        value: of the run, mean over seeds.
        reference_value: of the first run.
        difference: value - reference_value, with its interval.
        p: two-sided: `p_prompts`, or the larger of the two where there are several seeds.
        p_adjusted: after Holm's correction over all comparisons that were made together.
        p_prompts: sign-flip test over prompts: are these runs exchangeable on prompts like these?
        p_seeds: t test over prompts and seeds: are the methods? None for one seed.
        prompts: number of prompts.
        seeds: number of pairs of runs.
        lower_is_better: of the metric.
        alpha: level of the test; the interval is a 1 - alpha one.
        length: the run's mean answer length minus the first run's, with its interval; None if lengths are not known.
    """

    run: str
    reference: str
    metric: str
    value: float
    reference_value: float
    difference: Estimate
    p: float
    p_adjusted: float
    p_prompts: float
    p_seeds: float | None
    prompts: int
    seeds: int
    lower_is_better: bool
    alpha: float
    length: Estimate | None = None

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the interval leaves out 0, and the adjusted p is below alpha."""
        return self.difference.shown and self.p_adjusted < self.alpha

    @property
    def verdict(self) -> str:
        """`better by 6 [1, 11], p = 0.02`, `worse by ..` or `no difference shown (..)`."""
        value, low, high = self.difference
        p = "p < 0.001" if self.p_adjusted < 0.001 else f"p = {self.p_adjusted:.2g}"
        if not self.shown:
            return f"no difference shown ({value:+.4g} [{low:+.4g}, {high:+.4g}], {p})"
        better = (value > 0) != self.lower_is_better
        small, large = sorted((abs(low), abs(high)))
        return f"{'better' if better else 'worse'} by {abs(value):.4g} [{small:.4g}, {large:.4g}], {p}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        length = None if self.length is None else self.length._asdict()
        found = {**asdict(self), "difference": self.difference._asdict(), "length": length}
        return {**found, "shown": self.shown, "verdict": self.verdict}


def compare_runs(
    runs: Mapping[str, Any],
    *,
    lengths: Mapping[str, Any] | None = None,
    metric: str = "value",
    score: Score | None = None,
    lower_is_better: bool = False,
    n: int = 10_000,
    alpha: float = 0.05,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every run with the first one, on the same prompts.

    The interval is a percentile bootstrap over prompts. With several seeds it resamples prompts and seeds, and is then
    scaled about the difference to the width of a t interval, whose error and degrees of freedom come from the crossed
    design (seeds by prompts; Satterthwaite): resampling three seeds alone is far too narrow. A seed effect no larger
    than the noise is taken for noise.

    The p-value is that of a two-sided sign-flip test: under the null the two runs could be swapped on any prompt (on
    all its seeds). With several seeds it is the larger of that and of the t test over prompts and seeds; with one seed
    nothing can be said about methods, only about these runs. Holm's correction is over the runs given.

    Args:
        runs: name -> values by prompt, (prompts,) or (seeds, prompts), higher is better; row s of all runs belongs
            together. With `score`: (seeds, prompts, K) numbers to be summed over prompts.
        lengths: name -> mean answer lengths, (prompts,) or (seeds, prompts).
        metric: name, for the result.
        score: a function of (..., K) sums over prompts that gives (...) metrics, such as corpus BLEU.
        lower_is_better: what "better" means.
        n: resamples, and permutations (all of them, if there are at most as many).
        alpha: level of the test.
        seed: of resamples and permutations.

    Raises:
        UserError: fewer than two runs, different shapes, a number that is not finite, scipy missing (several seeds).

    Example:
        >>> [found] = compare_runs({"sft": [0, 0, 1, 0, 1, 0, 0, 0], "iqlearn": [1, 1, 1, 1, 1, 1, 0, 1]})
        >>> found.verdict
        'no difference shown (+0.625 [+0.25, +0.875], p = 0.062)'
    """
    tables = _tables(runs, 2 if score is None else 3, "runs")
    if len(tables) < 2:
        raise UserError("comparing needs at least two runs: {first: values, other: values}")
    if n < 1 or not 0 < alpha < 1:
        raise UserError(f"comparing needs n >= 1 and 0 < alpha < 1: n is {n}, alpha is {alpha}")
    if score is None:
        tables = {name: np.stack([table, np.ones_like(table)], axis=-1) for name, table in tables.items()}
    measure = mean_score if score is None else score
    sizes = None if lengths is None else _lengths(lengths, tables)
    first, *others = tables
    found = []
    for name in others:
        pair = _Pair(tables[name], tables[first], measure, n, alpha, seed)
        length = None
        if sizes is not None:
            length = _Pair(sizes[name], sizes[first], mean_score, n, alpha, seed).estimate()
        p_prompts, p_seeds = pair.p_prompts(), pair.p_seeds()
        p = p_prompts if p_seeds is None else max(p_prompts, p_seeds)
        seeds, prompts = tables[first].shape[:2]
        found.append(
            Comparison(
                run=name,
                reference=first,
                metric=metric,
                value=float(pair.by_seed[0].mean()),
                reference_value=float(pair.by_seed[1].mean()),
                difference=pair.estimate(),
                p=p,
                p_adjusted=p,
                p_prompts=p_prompts,
                p_seeds=p_seeds,
                prompts=prompts,
                seeds=seeds,
                lower_is_better=lower_is_better,
                alpha=alpha,
                length=length,
            )
        )
    return adjust(found)


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm's correction over all of them."""
    adjusted = holm([c.p for c in comparisons])
    return [replace(c, p_adjusted=p) for c, p in zip(comparisons, adjusted, strict=True)]


class _Pair:
    """Two runs, (seeds, prompts, K) each, by one metric."""

    def __init__(self, run: Any, reference: Any, score: Score, n: int, alpha: float, seed: int) -> None:
        self.tables, self.score, self.n, self.alpha, self.seed = (run, reference), score, n, alpha, seed
        self.seeds, self.prompts = run.shape[:2]
        self.by_seed = [score(table.sum(axis=1)) for table in self.tables]
        self.difference = float((self.by_seed[0] - self.by_seed[1]).mean())

    def estimate(self) -> Estimate:
        """The difference with its interval."""
        drawn = self._bootstrap()
        low, high = np.quantile(drawn, [self.alpha / 2, 1 - self.alpha / 2])
        if self.seeds > 1 and drawn.std() > 0:
            error, freedom = self._error()
            t = scipy_stats().t.ppf(1 - self.alpha / 2, freedom)
            z = scipy_stats().norm.ppf(1 - self.alpha / 2)
            scale = t * error / (z * drawn.std())
            low, high = (self.difference + scale * (bound - self.difference) for bound in (low, high))
        return Estimate(self.difference, float(low), float(high))

    def _bootstrap(self) -> Any:
        rng = np.random.default_rng(self.seed)
        step = max(1, _CHUNK // self.prompts)
        drawn = []
        for start in range(0, self.n, step):
            size = min(step, self.n - start)
            prompts = rng.multinomial(self.prompts, np.full(self.prompts, 1 / self.prompts), size=size).astype(float)
            seeds = rng.multinomial(self.seeds, np.full(self.seeds, 1 / self.seeds), size=size) / self.seeds
            run, reference = (self.score(_sums(prompts, table)) for table in self.tables)
            drawn.append(((run - reference) * seeds).sum(axis=1))
        return np.concatenate(drawn)

    def p_prompts(self) -> float:
        """Sign-flip test: swap the two runs on random prompts."""
        run, reference = self.tables
        whole = [table.sum(axis=1) for table in self.tables]
        flips, exact = sign_flips(self.prompts, self.n, self.seed)
        permuted = []
        for swap in flips:
            moved = _sums(swap, reference - run)
            permuted.append((self.score(whole[0] + moved) - self.score(whole[1] - moved)).mean(axis=1))
        return permutation_p(self.difference, np.concatenate(permuted), exact)

    def p_seeds(self) -> float | None:
        """t test with the error of prompts and seeds together."""
        if self.seeds == 1:
            return None
        error, freedom = self._error()
        if error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return float(2 * scipy_stats().t.sf(abs(self.difference) / error, freedom))

    def _error(self) -> tuple[float, float]:
        """Standard error of the difference over seeds and prompts, and its degrees of freedom."""
        pseudo = np.zeros((self.seeds, self.prompts))
        for sign, table, whole in zip((1, -1), self.tables, self.by_seed, strict=True):
            without = self.score(table.sum(axis=1, keepdims=True) - table)  # leave one prompt out
            pseudo += sign * (self.prompts * whole[:, None] - (self.prompts - 1) * without)
        return two_way_error(pseudo)


def two_way_error(values: Any) -> tuple[float, float]:
    """Standard error of the mean of a (seeds, prompts) table, both taken for samples, and its degrees of freedom.

    Seed and prompt effects and their interaction, estimated by mean squares (crossed random effects); Satterthwaite's
    degrees of freedom. A seed effect whose mean square does not exceed the interaction's is left out.
    """
    seeds, prompts = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    of_seeds, of_prompts = prompts * rows.var(ddof=1), seeds * columns.var(ddof=1)
    rest = values - rows[:, None] - columns[None] + values.mean()
    both = (seeds - 1) * (prompts - 1)
    noise = (rest**2).sum() / both
    of_prompts = max(of_prompts, noise)
    if of_seeds <= noise:
        return math.sqrt(of_prompts / values.size), float(prompts - 1)
    total = of_seeds + of_prompts - noise
    spread = of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1) + noise**2 / both
    return math.sqrt(total / values.size), float(total**2 / spread)


def _sums(weights: Any, table: Any) -> Any:
    """(r, P) weights of prompts and an (S, P, K) table -> (r, S, K) sums."""
    seeds, prompts, size = table.shape
    return (weights @ table.transpose(1, 0, 2).reshape(prompts, -1)).reshape(-1, seeds, size)


def _tables(given: Mapping[str, Any], dimensions: int, what: str) -> dict[str, Any]:
    """Arrays of one shape with (seeds, prompts) in front."""
    tables: dict[str, Any] = {}
    for name, values in given.items():
        try:
            table = np.asarray(values, dtype=float)
        except (TypeError, ValueError) as error:
            raise UserError(f"{what}[{name!r}]: the seeds have different prompts; give the same ones") from error
        table = table[None] if table.ndim == dimensions - 1 else table
        if table.ndim != dimensions or not table.size:
            raise UserError(f"{what}[{name!r}] has shape {table.shape}; give (prompts,) or (seeds, prompts) numbers")
        if not np.isfinite(table).all():
            raise UserError(f"{what}[{name!r}] has a number that is not finite; leave the prompt out of all runs")
        tables[name] = table
    shapes = {name: table.shape for name, table in tables.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{what} must have the same seeds and prompts, in the same order; their shapes are {shapes}")
    if tables and next(iter(tables.values())).shape[1] < 2:
        raise UserError("comparing needs at least two prompts")
    return tables


def _lengths(lengths: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    sizes = _tables(lengths, 2, "lengths")
    for name, table in tables.items():
        if name not in sizes or sizes[name].shape != table.shape[:2]:
            raise UserError(f"lengths[{name!r}] must be (seeds, prompts), as the run is")
    return {name: np.stack([size, np.ones_like(size)], axis=-1) for name, size in sizes.items()}
