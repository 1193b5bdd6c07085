"""The input of `inverselm score`: looked through once, checked and cut into shards, without holding its rows."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...inputs import data, demonstrations
from ...inputs.demonstrations import LINE_COLUMN, check_demonstrations
from ...inputs.records import read_records
from ...inputs.schema import Schema
from ...scoring.shards import Cutter, DatasetTables, JsonlTables, ParquetTables, Shard, Tables

if TYPE_CHECKING:
    import pyarrow as pa

_SHOW_BYTES = 2**26  # a bar from here on


@dataclass(frozen=True)
class Survey:
    """What is known of an input after a look through it: plain data, that another process can read it by.

    Attributes:
        source: as the user named it, local paths made absolute.
        split: of it.
        kind: "jsonl", "parquet" or, of all else, "dataset".
        files: absolute paths; sizes in bytes and SHA-256 of each.
        schema: Arrow schema of the rows, serialised, base64.
        shards: in order.
        rows: how many in all.
        conversational: prompts are messages.
        allow_empty: completions may be empty: a model answered with EOS alone.
    """

    source: str
    split: str
    kind: str
    files: list[str]
    sizes: list[int]
    sha256: list[str]
    schema: str
    shards: list[Shard]
    rows: int
    conversational: bool
    allow_empty: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for the same rows: content, not names or times."""
        return {"sha256": self.sha256, "split": self.split if self.kind == "dataset" else "", "rows": self.rows}

    def arrow_schema(self) -> pa.Schema:
        """Of the rows."""
        import pyarrow as pa

        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.schema)))

    def open(self) -> Tables:
        """A reader of the shards."""
        if self.kind == "dataset":
            return DatasetTables(lambda: data.load_rows(self.source, split=self.split), [LINE_COLUMN])
        kind = JsonlTables if self.kind == "jsonl" else ParquetTables
        return kind(self.files, self.sizes, self.arrow_schema())

    def where(self, shard: Shard, i: int) -> str:
        """Names a row in a message."""
        name = Path(self.files[shard.file]).name if self.kind != "dataset" else self.source
        return f"{name}: row {shard.first + i + 1}"


def survey(source: str, split: str, size: int, *, check: bool = True) -> Survey:
    """Look through an input: every row is read and checked, none is kept.

    JSON Lines (also .gz) and Parquet are read as streams. Other formats, slices of a split, saved datasets and the
    hub's go through `datasets`, which maps what is large into memory.

    Args:
        source, split: as of `load_rows`.
        size: rows of a shard.
        check: refuse rows that are no prompt and answer; else only their columns must be there.

    Raises:
        UserError: as `load_rows` and `check_demonstrations`; rows of messages.
    """
    path = Path(source).expanduser()
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    if not path.exists() or saved or not re.fullmatch(r"[\w.-]+", split):
        return _of_dataset(source, split, size, check, path if path.exists() else None)
    files = data._files(path, split)
    family = data._family(files[0])
    if family == "Parquet":
        return _of_parquet(source, split, files, size, check)
    if family == "CSV" or any(data_is_list(file) for file in files):
        return _of_dataset(source, split, size, check, path)
    return _of_jsonl(source, split, files, size, check)


def data_is_list(file: Path) -> bool:
    """Whether a .json file is one list, which cannot be read as a stream."""
    from ...inputs.records import _starts_with_bracket

    return ".jsonl" not in file.name.lower() and _starts_with_bracket(file)


def _of_jsonl(source: str, split: str, files: list[Path], size: int, check: bool) -> Survey:
    schema, cutter = Schema(), Cutter(size)
    for number, file in enumerate(files):
        before = cutter.rows
        for where, record, offset in _shown(_with_offsets(file), f"Reading {file.name}", [file]):
            schema.add(record, where)
            cutter.row(number, offset)
        if cutter.rows == before:
            raise UserError(f"{file}: has no rows")
    names = schema.columns

    def rows(columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for file in files:
            for where, record in read_records(file):
                yield {name: where if name == LINE_COLUMN else record.get(name) for name in columns}

    arrow = schema.features().arrow_schema.remove_metadata()
    return _survey("jsonl", source, split, files, arrow, cutter, _Stream([*names, LINE_COLUMN], rows, files), check)


def _of_parquet(source: str, split: str, files: list[Path], size: int, check: bool) -> Survey:
    import pyarrow.parquet as pq

    cutter, first = Cutter(size), None
    for number, file in enumerate(files):
        try:
            with pq.ParquetFile(file) as opened:
                schema, count = opened.schema_arrow.remove_metadata(), opened.metadata.num_rows
        except Exception as error:  # Arrow and OS errors alike
            raise UserError(f"{file}: not a readable Parquet file ({data._one_line(error)})") from error
        first = schema if first is None else first
        if schema != first:
            raise UserError(f"{file}: columns or types differ from {files[0].name}; make them the same")
        cutter.rows_of_file(number, count)
    assert first is not None
    if not cutter.rows:
        raise UserError(f"{source}: has no rows")

    def rows(columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        read = [name for name in columns if name != LINE_COLUMN]
        for file in files:
            number = 0
            with pq.ParquetFile(file, pre_buffer=False) as opened:
                for batch in opened.iter_batches(1000, columns=read, use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield {**row, LINE_COLUMN: f"{file}: row {number}"}

    stream = _Stream([*first.names, LINE_COLUMN], rows, files)
    return _survey("parquet", source, split, files, first, cutter, stream, check)


def _of_dataset(source: str, split: str, size: int, check: bool, path: Path | None) -> Survey:
    rows = data.load_rows(source, split=split)
    cutter = Cutter(size)
    cutter.rows_of_file(0, len(rows))
    if path is None:
        files = []
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = [path]
    schema = rows.with_format("arrow")[:1].schema.remove_metadata()
    if LINE_COLUMN in schema.names:
        schema = schema.remove(schema.get_field_index(LINE_COLUMN))
    found = _survey("dataset", source if path is None else str(path), split, files, schema, cutter, rows, check)
    return found if files else Survey(**{**vars(found), "sha256": [str(getattr(rows, "_fingerprint", ""))]})


def _survey(
    kind: str, source: str, split: str, files: list[Path], schema: pa.Schema, cutter: Cutter, rows: Any, check: bool
) -> Survey:
    if kind != "dataset" and LINE_COLUMN in schema.names:
        raise UserError(f"{source}: the column name '{LINE_COLUMN}' is reserved; rename the column")
    sampled = "finished" in schema.names  # by `inverselm generate`: a model may answer with EOS alone
    columns = demonstrations._columns(rows.column_names, source, "answers", "text")
    if columns == ["prompt", "completion"] and not check:
        first = next((v for v in _values(rows, "prompt") if v is not None), None)
        found = "conversational-prompt-completion" if isinstance(first, list) else "prompt-completion"
    else:
        found = check_demonstrations(rows, source, need="answers", allow_empty=sampled)
    if found == "messages":
        name = "messages" if "messages" in schema.names else "conversations"
        raise UserError(
            f"{source}: score needs 'prompt' and 'completion'; split '{name}': all but the last message are "
            "the prompt, the last one the completion"
        )
    return Survey(
        source=str(Path(source).expanduser().absolute()) if files else source,
        split=split,
        kind=kind,
        files=[str(file.absolute()) for file in files],
        sizes=[file.stat().st_size for file in files],
        sha256=[_sha256(file) for file in files],
        schema=base64.b64encode(schema.serialize().to_pybytes()).decode(),
        shards=cutter.shards(),
        rows=cutter.rows,
        conversational=found.startswith("conversational"),
        allow_empty=sampled,
    )


class _Stream:
    """As much of `datasets.Dataset` as `check_demonstrations` asks for, read anew at each pass."""

    def __init__(self, names: list[str], rows: Callable[[Sequence[str]], Iterator[dict[str, Any]]], files: Any) -> None:
        self.column_names, self._rows, self._files = names, rows, files

    def select_columns(self, columns: list[str]) -> _Stream:
        return _Stream(columns, self._rows, self._files)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows(self.column_names)

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for row in _shown(self._rows(self.column_names), "Checking rows", self._files):
            yield {name: [value] for name, value in row.items()}


def _values(rows: Any, name: str) -> Iterator[Any]:
    for row in rows.select_columns([name]):
        yield row[name]


def _with_offsets(file: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Records with the place they were read at and the byte they begin at (0 in a compressed file)."""
    if file.name.lower().endswith(".gz"):
        for where, record in read_records(file):
            yield where, record, 0
        return
    number, offset, length = 0, 0, 0
    with open(file, "rb") as stream:
        for where, record in read_records(file):
            wanted = int(where.rpartition(" ")[2])
            while number < wanted:
                offset, length = offset + length, len(stream.readline())
                number += 1
            yield where, record, offset


def _shown(rows: Iterator[Any], label: str, files: Sequence[Path]) -> Iterator[Any]:
    from tqdm.auto import tqdm

    small = sum(file.stat().st_size for file in files) < _SHOW_BYTES
    yield from tqdm(rows, desc=label, unit="row", file=sys.stderr, disable=small)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
