"""A folder of scored shards: each file appears whole or not at all, and a manifest says what they were made of."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .rows import ScoredRow
from .shards import Shard
from .tables import record, score_table

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "_manifest.json"
_COUNTS = "_counts"
FORMATS = ("parquet", "jsonl")


@dataclass(frozen=True)
class Piece:
    """Some rows of a shard.

    Attributes:
        rows: the input rows to write.
        numbers: their numbers in the input, from 0.
        scored: the scores of all rows that were read.
        kept: which of them are written.
    """

    rows: pa.Table
    numbers: list[int]
    scored: list[ScoredRow]
    kept: list[int]

    @property
    def written(self) -> list[ScoredRow]:
        """The scores of `rows`."""
        return [self.scored[i] for i in self.kept]


class ShardFolder:
    """Where the shards of a run are written, by any number of processes, each shard by whoever has it.

    A shard is written under a temporary name of its own, synced to the disk and renamed: two processes with the same
    shard write the same file, and a killed one leaves nothing that counts. `_manifest.json` holds what the run was
    made of; names that begin with an underscore are not data to readers of folders.

    Args:
        folder: of one run.
        kind: "parquet" or "jsonl".
        shards: how many there are.
        schema: of the Parquet files, from `output_schema`.
        errors: JSON records have the key `error`.
    """

    def __init__(
        self, folder: str | Path, kind: str, shards: int, schema: pa.Schema | None = None, *, errors: bool = True
    ) -> None:
        self.folder, self.kind, self.shards = Path(folder), kind, shards
        self.schema, self.errors = schema, errors

    def part(self, number: int) -> Path:
        """The file of a shard."""
        width = max(5, len(str(self.shards)))
        return self.folder / f"part-{number:0{width}d}-of-{self.shards:0{width}d}.{self.kind}"

    def is_done(self, number: int) -> bool:
        """Whether a shard's file is there, and whole."""
        return self.part(number).is_file()

    def begin(self, identity: dict[str, Any], *, resume: bool, name: str) -> None:
        """Make the folder ready: new, or to be continued. One process calls it before any shard is written.

        Args:
            identity: JSON values that must be equal for a resumed run: "settings", "input", "models", ...
            resume: go on with the shards that are there; else what an earlier run left is removed.
            name: of the output, for messages.

        Raises:
            UserError: nothing to resume, or what was begun is another run's.
        """
        identity = json.loads(json.dumps(identity))
        if resume:
            before = self.read_manifest(self.folder)
            if before is None:
                raise UserError(f"--resume: there is no unfinished {name} to continue; leave the flag out")
            what = difference(identity, before["identity"])
            if what:
                raise UserError(f"--resume: the unfinished {name} was written with another {what}; leave the flag out")
            self._remove_leftovers()
            return
        if self.folder.is_dir():
            self._remove_leftovers()
            (self.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder / _COUNTS, ignore_errors=True)
            for old in self.folder.glob("part-*-of-*.*"):
                old.unlink()
        (self.folder / _COUNTS).mkdir(parents=True, exist_ok=True)
        self._write_manifest({"identity": identity, "complete": False})

    @staticmethod
    def read_manifest(folder: str | Path) -> dict[str, Any] | None:
        """What a folder was made of, or None if no run was begun there."""
        try:
            found = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("identity"), dict) else None

    def write(self, shard: Shard, pieces: Iterable[Piece]) -> dict[str, int]:
        """Write one shard, piece by piece, and return its counts.

        `rows` and `tokens` count what has scores, `long`, `empty` and `unusable` what has none.
        """
        counts = {"rows": 0, "tokens": 0}
        write = self._write_parquet if self.kind == "parquet" else self._write_jsonl
        with replacing(self.part(shard.number)) as temporary:
            write(temporary, _counted(pieces, counts))
            with replacing(self._count_file(shard.number)) as note:
                note.write_text(json.dumps(counts), encoding="utf-8")
        return counts

    def _write_parquet(self, path: Path, pieces: Iterable[Piece]) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(path, self.schema, compression="zstd") as writer:
            for piece in pieces:
                writer.write_table(score_table(piece.rows, piece.written, piece.numbers, self.schema))

    def _write_jsonl(self, path: Path, pieces: Iterable[Piece]) -> None:
        with open(path, "wb") as stream:
            for piece in pieces:
                for row, scores in zip(piece.rows.to_pylist(), piece.written, strict=True):
                    text = json.dumps(record(row, scores, errors=self.errors), ensure_ascii=False, default=str)
                    stream.write(text.encode() + b"\n")

    def counts(self) -> dict[str, int]:
        """Rows, tokens, and rows without scores by reason, of all shards that are done."""
        found: dict[str, int] = {"rows": 0, "tokens": 0}
        for number in range(self.shards):
            for name, count in json.loads(self._count_file(number).read_text(encoding="utf-8")).items():
                found[name] = found.get(name, 0) + count
        return found

    def finish(self) -> dict[str, int]:
        """Check that every shard is there, and close the manifest. Called by one process, after all have ended."""
        manifest = self.read_manifest(self.folder)
        assert manifest is not None
        missing = [number for number in range(self.shards) if not self.is_done(number)]
        if missing:
            raise UserError(f"{self.part(missing[0])}: is missing; --resume scores it")
        if manifest["complete"]:
            totals: dict[str, int] = manifest["counts"]
            return totals
        totals = self.counts()
        self._remove_leftovers()
        self._write_manifest({**manifest, "complete": True, "counts": totals})
        shutil.rmtree(self.folder / _COUNTS, ignore_errors=True)
        return totals

    def merge(self, target: str | Path) -> None:
        """One file of all shards in order; then the folder is gone."""
        with replacing(Path(target)) as temporary:
            if self.kind == "jsonl":
                with open(temporary, "wb") as stream:
                    for number in range(self.shards):
                        with open(self.part(number), "rb") as part:
                            shutil.copyfileobj(part, stream, 2**20)
            else:
                import pyarrow.parquet as pq

                with pq.ParquetWriter(temporary, self.schema, compression="zstd") as writer:
                    for table in self.tables():
                        writer.write_table(table)
        shutil.rmtree(self.folder)

    def tables(self) -> Iterator[pa.Table]:
        """The Parquet shards in order, one row group at a time."""
        import pyarrow.parquet as pq

        for number in range(self.shards):
            with pq.ParquetFile(self.part(number), pre_buffer=False) as part:
                for group in range(part.metadata.num_row_groups):
                    yield part.read_row_group(group, use_threads=False)

    def _count_file(self, number: int) -> Path:
        return self.folder / _COUNTS / f"{number:05d}.json"

    def _write_manifest(self, content: dict[str, Any]) -> None:
        with replacing(self.folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _remove_leftovers(self) -> None:
        for old in [*self.folder.glob(".*.tmp"), *(self.folder / _COUNTS).glob(".*.tmp")]:
            old.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; synced and renamed at the end, removed after an error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the name itself survives a power cut
    finally:
        os.close(folder)


def difference(now: Any, before: Any, name: str = "") -> str:
    """The first place at which two JSON values differ, as words; empty if they do not."""
    if isinstance(now, dict) and isinstance(before, dict):
        for key in sorted({*now, *before}):
            found = difference(now.get(key), before.get(key), key if name in ("", "settings") else f"{name}: {key}")
            if found:
                return found
        return ""
    return "" if now == before else name


def _counted(pieces: Iterable[Piece], counts: dict[str, int]) -> Iterator[Piece]:
    for piece in pieces:
        count_rows(piece.scored, counts)
        yield piece


def count_rows(scored: Iterable[ScoredRow], counts: dict[str, int]) -> None:
    """Add rows with scores, their tokens, and rows without by reason."""
    for row in scored:
        counts[row.reason or "rows"] = counts.get(row.reason or "rows", 0) + 1
        counts["tokens"] = counts.get("tokens", 0) + (len(row.scored.tokens) if row.scored else 0)
