"""What a data set is like, as token rewards see it: distributions, duplicates, and the trend of reward with length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .statistics import spearman

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS = 20


@dataclass(frozen=True)
class DataReport:
    """What a data set is like.

    Attributes:
        rows: all of them.
        unscored: reason -> rows that have no reward ("too long", "no token").
        duplicates: rows that repeat the prompt and completion of an earlier row.
        contradictions: prompts with several different completions.
        quantiles: "reward" (sum, nats), "reward per token", "tokens" -> values at `QUANTILES`.
        histograms: the same names -> (edges, counts), `BINS` bins of equal width from the 1% to the 99% quantile; what
            lies outside is counted in the bins at the ends.
        length_correlation: "reward", "reward per token" -> (Spearman, Pearson) with the number of tokens; nan where
            one of them does not vary.
    """

    rows: int
    unscored: dict[str, int]
    duplicates: int
    contradictions: int
    quantiles: dict[str, list[float]]
    histograms: dict[str, tuple[list[float], list[int]]]
    length_correlation: dict[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: nan becomes None."""
        out = asdict(self)
        clean = lambda value: None if math.isnan(value) else value
        out["length_correlation"] = {k: [clean(x) for x in pair] for k, pair in self.length_correlation.items()}
        return out


def data_report(
    token_rewards: Sequence[Sequence[float]],
    keys: Sequence[tuple[Hashable, Hashable]],
    *,
    unscored: Mapping[str, int] | None = None,
) -> DataReport:
    """Counts, distributions and the trend of reward with length.

    Args:
        token_rewards: of the rows that have them.
        keys: prompt and completion of all rows.
        unscored: reason -> rows without rewards.

    Raises:
        UserError: no row with rewards.

    Example:
        >>> data_report([[0.5, -0.1], [0.2]], [("a", "b"), ("a", "c")]).contradictions
        1
    """
    if not token_rewards:
        raise UserError("no row has rewards: there is nothing to report")
    lengths = np.array([len(rewards) for rewards in token_rewards], dtype=float)
    sums = np.array([math.fsum(rewards) for rewards in token_rewards])
    values = {"reward": sums, "reward per token": sums / lengths, "tokens": lengths}
    completions: dict[Hashable, set[Hashable]] = {}
    for prompt, completion in keys:
        completions.setdefault(prompt, set()).add(completion)
    correlation = {}
    for name in ("reward", "reward per token"):
        varies = values[name].std() > 0 and lengths.std() > 0
        pearson = float(np.corrcoef(values[name], lengths)[0, 1]) if varies else math.nan
        correlation[name] = (spearman(values[name], lengths) if varies else math.nan, pearson)
    return DataReport(
        rows=len(keys),
        unscored=dict(unscored or {}),
        duplicates=sum(count - 1 for count in Counter(keys).values()),
        contradictions=sum(len(found) > 1 for found in completions.values()),
        quantiles={name: [float(q) for q in np.quantile(x, QUANTILES)] for name, x in values.items()},
        histograms={name: _histogram(x) for name, x in values.items()},
        length_correlation=correlation,
    )


def _histogram(values: Any) -> tuple[list[float], list[int]]:
    low, high = (float(x) for x in np.quantile(values, [0.01, 0.99]))
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    return [float(edge) for edge in edges], [int(count) for count in counts]
