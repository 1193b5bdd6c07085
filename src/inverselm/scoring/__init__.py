"""Scoring at scale: input of any size in shards, each written whole or not at all, by any number of processes."""

from .folder import Piece, ShardFolder
from .rows import RowScorer, ScoredRow
from .run import ShardWorker
from .shards import Cutter, DatasetTables, JsonlTables, ParquetTables, Shard
from .tables import METADATA_KEY, SCHEMA_VERSION, output_schema, read_facts

__all__ = [
    "METADATA_KEY",
    "SCHEMA_VERSION",
    "Cutter",
    "DatasetTables",
    "JsonlTables",
    "ParquetTables",
    "Piece",
    "RowScorer",
    "ScoredRow",
    "Shard",
    "ShardFolder",
    "ShardWorker",
    "output_schema",
    "read_facts",
]
