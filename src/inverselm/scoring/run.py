"""The loop that every process of a scoring run is in: a shard is read, scored and written, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .folder import Piece, ShardFolder
from .rows import RowScorer, kept_rows
from .shards import Shard, Tables

COLUMNS = ("prompt", "completion", "finished")
"""What scoring reads of a row; everything else passes through."""


class ShardWorker:
    """Scores shards: each file holds the same bytes whoever makes it, and however often.

    Args:
        source: reads the rows of a shard.
        rows: scores them.
        folder: takes the scores.
        size: rows that are in memory at once; batches are made of rows of like length among them.
        on_error: what becomes of rows that cannot be scored: "keep" writes them with their error, "stop" ends the run,
            "skip" leaves out those that are too long or have no token, and stops at any other.
        where: names a row for messages, by shard and number in the shard.
    """

    def __init__(
        self,
        source: Tables,
        rows: RowScorer,
        folder: ShardFolder,
        *,
        size: int,
        on_error: str = "keep",
        where: Callable[[Shard, int], str] = lambda shard, i: f"row {shard.before + i + 1}",
    ) -> None:
        self.source, self.rows, self.folder = source, rows, folder
        self.size, self.on_error, self.where = size, on_error, where

    def __call__(self, shard: Shard, advance: Callable[[int], object] = lambda rows: None) -> dict[str, int]:
        """Score a shard and return its counts; a shard that is there already is left as it is.

        Args:
            shard: which.
            advance: called with the number of rows after each piece.

        Raises:
            UserError: a row that cannot be scored, with "stop" (or "skip"); an input that has changed.
        """
        if self.folder.is_done(shard.number):
            advance(shard.rows)
            return {}
        return self.folder.write(shard, self._pieces(shard, advance))

    def _pieces(self, shard: Shard, advance: Callable[[int], object]) -> Iterator[Piece]:
        done = 0
        for table in self.source.tables(shard, self.size):
            read = [name for name in COLUMNS if name in table.column_names]
            scored = self.rows.score(table.select(read).to_pylist())
            kept = kept_rows(scored, self.on_error, lambda i, done=done: self.where(shard, done + i))
            yield Piece(table.take(kept), [shard.before + done + i for i in kept], scored, kept)
            done += len(scored)
            advance(len(scored))
