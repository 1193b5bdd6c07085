"""Which of the waiting rows are scored together: little padding, shared prompts, and nobody left behind."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def choose(
    lengths: Sequence[int],
    groups: Sequence[Hashable] | None = None,
    *,
    max_rows: int,
    max_tokens: int,
    max_padding: float = 1.0,
) -> list[int]:
    """Which rows to score next: the one that waits longest, and those that go well with it.

    As many rows of its group (answers to its prompt) as fit come first, then other groups as a whole, then single rows;
    each time those nearest in length. A batch costs its number of rows times its longest row. What is not tokens of
    rows is padding, but for the rows of a group, whose prompt is read once: they count as long as the longest of them.

    Args:
        lengths: tokens of each waiting row, in order of arrival.
        groups: rows of equal groups share work.
        max_rows: rows of a batch, at most.
        max_tokens: cost of a batch, at most; a single row may cost more.
        max_padding: share of the cost that may be padding, at most.

    Returns:
        Indices into `lengths`, 0 first; empty if nothing waits.

    Example:
        >>> choose([10, 99, 11, 12], max_rows=3, max_tokens=100)
        [0, 2, 3]
    """
    if not lengths:
        return []
    (_, *others), *rest = _members(groups if groups is not None else range(len(lengths)))
    chosen, longest = [0], lengths[0]
    for i in sorted(others, key=lambda i: abs(lengths[i] - lengths[0])):
        wide = max(longest, lengths[i])
        if len(chosen) < max_rows and (len(chosen) + 1) * wide <= max_tokens:
            chosen.append(i)
            longest = wide
    first, tokens = longest, len(chosen) * longest
    units = [(rows, max(lengths[i] for i in rows)) for rows in rest]
    for rows, length in sorted(units, key=lambda unit: (len(unit[0]) == 1, abs(unit[1] - first))):
        count, wide = len(chosen) + len(rows), max(longest, length)
        fits = count <= max_rows and count * wide <= max_tokens
        if fits and count * wide - tokens - len(rows) * length <= max_padding * count * wide:
            chosen += rows
            longest, tokens = wide, tokens + len(rows) * length
    return chosen


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    """The rows of each group, groups in the order of their oldest row."""
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return list(members.values())
