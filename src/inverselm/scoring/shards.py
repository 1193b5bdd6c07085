"""The input of a scoring run as shards, and readers that take one shard at a time without loading the rest."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from ..errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 256  # rows that pyarrow decodes at once


@dataclass(frozen=True)
class Shard:
    """Rows that are scored and written as one: all of them or none.

    Attributes:
        number: place in the order of the output, from 0.
        file: which of the input's files the rows are in; a shard lies in one file.
        first: number of its first row in that file, from 0.
        rows: how many rows.
        before: rows of the input before it, over all files.
        offset: byte of the file at which its first row begins (JSON Lines that are not compressed; else 0).
    """

    number: int
    file: int
    first: int
    rows: int
    before: int
    offset: int = 0


class Tables(Protocol):
    """What reads shards."""

    def tables(self, shard: Shard, size: int) -> Iterator[pa.Table]:
        """The rows of a shard in order, in tables of `size` rows (the last may have fewer)."""
        ...


class Cutter:
    """Cuts rows that are counted one by one, or by file, into shards.

    Example:
        >>> cutter = Cutter(2)
        >>> for offset in (0, 10, 20): cutter.row(0, offset)
        >>> [(s.number, s.first, s.rows, s.offset) for s in cutter.shards()]
        [(0, 0, 2, 0), (1, 2, 1, 20)]
    """

    def __init__(self, size: int) -> None:
        self.size, self.rows = size, 0
        self._starts: list[tuple[int, int, int, int]] = []  # file, first, before, offset
        self._file, self._in_file = -1, 0

    def row(self, file: int, offset: int = 0) -> None:
        """One more row of a file that begins at a byte; files come in order."""
        if file != self._file:
            self._file, self._in_file = file, 0
        if self._in_file % self.size == 0:
            self._starts.append((file, self._in_file, self.rows, offset))
        self._in_file, self.rows = self._in_file + 1, self.rows + 1

    def rows_of_file(self, file: int, rows: int) -> None:
        """All rows of a file at once."""
        self._starts += [(file, first, self.rows + first, 0) for first in range(0, rows, self.size)]
        self.rows += rows

    def shards(self) -> list[Shard]:
        """What was counted so far, in order."""
        ends = [start[2] for start in self._starts[1:]] + [self.rows]
        return [
            Shard(number, file, first, end - before, before, offset)
            for number, ((file, first, before, offset), end) in enumerate(zip(self._starts, ends, strict=True))
        ]


class JsonlTables:
    """Shards of JSON Lines files, also compressed with gzip.

    A plain file is read from the shard's byte on. A compressed one is read from its beginning once, as long as shards
    are asked for in order.

    Args:
        files: paths.
        sizes: their sizes in bytes when they were cut into shards.
        schema: Arrow types of the rows; missing keys become null.

    Raises:
        UserError: a file is not the one that was cut into shards.
    """

    def __init__(self, files: Sequence[str], sizes: Sequence[int], schema: pa.Schema) -> None:
        self.files, self.sizes, self.schema = files, sizes, schema
        self._stream: IO[bytes] | None = None
        self._file, self._position = -1, 0

    def tables(self, shard: Shard, size: int) -> Iterator[pa.Table]:
        """See `Tables`."""
        import pyarrow as pa

        path = self.files[shard.file]
        try:
            lines, left = self._lines(shard), shard.rows
            while left:
                records = [json.loads(line) for line in islice(lines, min(size, left))]
                if not records:
                    raise ValueError("it has fewer rows")
                left -= len(records)
                yield pa.Table.from_pylist(records, schema=self.schema)
        except UserError:
            raise
        except (
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            raise UserError(f"{path}: changed since the run began ({error}); start anew") from error

    def _lines(self, shard: Shard) -> Iterator[str]:
        path = self.files[shard.file]
        _check_size(path, self.sizes[shard.file])
        if path.lower().endswith(".gz"):
            if self._stream is None or self._file != shard.file or self._position > shard.first:
                self._reopen(gzip.open(path, "rb"), shard.file, 0)  # noqa: SIM115
        else:
            stream = open(path, "rb")  # noqa: SIM115
            stream.seek(shard.offset)
            self._reopen(stream, shard.file, shard.first)
        assert self._stream is not None
        for raw in self._stream:
            line = raw.decode("utf-8-sig")
            if not line.strip():
                continue
            self._position += 1
            if self._position > shard.first:
                yield line

    def _reopen(self, stream: Any, file: int, position: int) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._file, self._position = stream, file, position


class ParquetTables:
    """Shards of Parquet files: row groups before a shard are not read, those it lies in are decoded piece by piece.

    Args:
        files: paths of files with one schema.
        sizes: their sizes in bytes when they were cut into shards.
        schema: of the rows, without metadata.

    Raises:
        UserError: a file is not the one that was cut into shards.
    """

    def __init__(self, files: Sequence[str], sizes: Sequence[int], schema: pa.Schema) -> None:
        self.files, self.sizes, self.schema = files, sizes, schema
        self._cursor: _Cursor | None = None
        self._file = -1

    def tables(self, shard: Shard, size: int) -> Iterator[pa.Table]:
        """See `Tables`."""
        import pyarrow as pa

        path = self.files[shard.file]
        _check_size(path, self.sizes[shard.file])
        try:
            cursor, left = self._at(shard), shard.rows
            while left:
                batches = cursor.take(min(size, left))
                if not batches:
                    raise ValueError("it has fewer rows")
                left -= sum(map(len, batches))
                yield pa.Table.from_batches(batches).replace_schema_metadata(None).cast(self.schema)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: changed since the run began ({error}); start anew") from error

    def _at(self, shard: Shard) -> _Cursor:
        import pyarrow.parquet as pq

        if self._cursor is None or self._file != shard.file or self._cursor.position != shard.first:
            file = pq.ParquetFile(self.files[shard.file], pre_buffer=False)
            group, begins = 0, 0
            while begins + file.metadata.row_group(group).num_rows <= shard.first:
                begins += file.metadata.row_group(group).num_rows
                group += 1
            here = self._cursor is not None and self._file == shard.file
            if not (here and begins <= self._cursor.position <= shard.first):
                groups = list(range(group, file.metadata.num_row_groups))
                batches = file.iter_batches(_BATCH, row_groups=groups, use_threads=False)
                self._cursor, self._file = _Cursor(batches, begins), shard.file
            while self._cursor.position < shard.first:
                if not self._cursor.take(min(_BATCH, shard.first - self._cursor.position)):
                    raise ValueError("it has fewer rows")
        return self._cursor


class _Cursor:
    """A place in a stream of record batches, which gives as many rows as are asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch], position: int) -> None:
        self._batches, self.position = iter(batches), position
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> list[pa.RecordBatch]:
        """The next rows; fewer at the end."""
        out = []
        while rows:
            if self._rest is None or not len(self._rest):
                self._rest = next(self._batches, None)
                if self._rest is None:
                    break
            part = self._rest.slice(0, rows)
            self._rest = self._rest.slice(len(part))
            out.append(part)
            rows -= len(part)
            self.position += len(part)
        return out


class DatasetTables:
    """Shards of a `datasets.Dataset`, which is memory-mapped where it is large.

    Args:
        load: gives the dataset, when it is first needed.
        leave_out: columns that are not part of the rows.
    """

    def __init__(self, load: Callable[[], Any], leave_out: Sequence[str] = ()) -> None:
        self._load, self._leave_out = load, leave_out
        self._dataset: Any = None

    def tables(self, shard: Shard, size: int) -> Iterator[pa.Table]:
        """See `Tables`."""
        if self._dataset is None:
            self._dataset = self._load().with_format("arrow")
        for start in range(shard.first, shard.first + shard.rows, size):
            table = self._dataset[start : min(start + size, shard.first + shard.rows)]
            names = [name for name in table.column_names if name not in self._leave_out]
            yield table.select(names).replace_schema_metadata(None)


def _check_size(path: str, size: int) -> None:
    try:
        now = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if now != size:
        raise UserError(f"{path}: changed since the run began (its size); start anew")
