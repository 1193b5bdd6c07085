"""The columns of scored Parquet files, and records of JSON Lines; version 1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rows import ScoredRow

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
METADATA_KEY = b"inverselm.scores"
"""Key of a Parquet file's metadata; its value is a JSON object that holds `version`."""


def own_fields() -> list[pa.Field]:
    """The columns that scoring adds, in order; docs/how-to/score.md says what each means."""
    import pyarrow as pa

    return [
        pa.field("input_row", pa.int64(), nullable=False),
        pa.field("scored_text", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("starts", pa.list_(pa.int32())),
        pa.field("ends", pa.list_(pa.int32())),
        pa.field("rewards", pa.list_(pa.float32())),
        pa.field("values", pa.list_(pa.float32())),
        pa.field("reward", pa.float64()),
        pa.field("terminated", pa.bool_()),
        pa.field("error", pa.string()),
    ]


def output_schema(rows: pa.Schema, facts: dict[str, Any]) -> pa.Schema:
    """The schema of scored rows: their own columns (but those that scoring writes anew), then those of scoring.

    Args:
        rows: schema of the input.
        facts: JSON values for the metadata, beside the version.
    """
    import pyarrow as pa

    own = own_fields()
    names = {field.name for field in own}
    metadata = {METADATA_KEY: json.dumps({"version": SCHEMA_VERSION, **facts}, sort_keys=True).encode()}
    return pa.schema([*(field for field in rows if field.name not in names), *own], metadata=metadata)


def score_table(rows: pa.Table, scored: Sequence[ScoredRow], numbers: Sequence[int], schema: pa.Schema) -> pa.Table:
    """Input rows beside their scores.

    Args:
        rows: the input rows, one for each of `scored`.
        scored: their scores.
        numbers: the number of each row in the input, from 0.
        schema: from `output_schema`.
    """
    import pyarrow as pa

    done = [row.scored for row in scored]
    tokens = lambda name: [None if s is None else [getattr(token, name) for token in s.tokens] for s in done]
    columns: dict[str, list[Any]] = {
        "input_row": list(numbers),
        "scored_text": [None if s is None else s.text for s in done],
        "token_ids": tokens("token_id"),
        "starts": tokens("start"),
        "ends": tokens("end"),
        "rewards": tokens("reward"),
        "values": [None if row.values is None else list(row.values) for row in scored],
        "reward": [None if s is None else s.total for s in done],
        "terminated": [None if s is None else s.terminated for s in done],
        "error": [row.error or None for row in scored],
    }
    arrays = [
        pa.array(columns[field.name], type=field.type) if field.name in columns else rows.column(field.name)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def record(row: dict[str, Any], scored: ScoredRow, *, errors: bool = False) -> dict[str, Any]:
    """The JSON record of a scored row: its own columns, `scored_text`, `tokens`, `reward`, `terminated`.

    Args:
        row: the input row.
        scored: its scores.
        errors: add `error`, null where nothing is wrong.
    """
    found = scored.scored
    own = {
        "scored_text": None if found is None else found.text,
        "tokens": [] if found is None else [token._asdict() for token in found.tokens],
        "reward": None if found is None else found.total,
        "terminated": None if found is None else found.terminated,
    }
    return {**row, **own, **({"error": scored.error or None} if errors else {})}


def records_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Scored rows of a Parquet table as the JSON records of the same rows."""
    yield from map(json_record, table.to_pylist())


def is_scored(names: Sequence[str]) -> bool:
    """Whether columns are those of scored rows."""
    return {field.name for field in own_fields()} <= set(names)


def json_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A scored row of a Parquet file as the JSON record of the same row."""
    own = {field.name: row[field.name] for field in own_fields()}
    ids, starts, ends, rewards = (own[name] or [] for name in ("token_ids", "starts", "ends", "rewards"))
    text = own["scored_text"]
    tokens = [
        {"token_id": i, "text": text[a:b], "start": a, "end": b, "reward": r}
        for i, a, b, r in zip(ids, starts, ends, rewards, strict=True)
    ]
    tail = {name: own[name] for name in ("reward", "terminated", "error")}
    return {**{k: v for k, v in row.items() if k not in own}, "scored_text": text, "tokens": tokens, **tail}


def read_facts(path: str | Path) -> dict[str, Any]:
    """What a scored Parquet file says of itself: `version`, the reward, the models, the input.

    Raises:
        ValueError: no file that scoring wrote.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path}: has no {METADATA_KEY.decode()} in its metadata: `inverselm score` did not write it")
    facts: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    return facts
