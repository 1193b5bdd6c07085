"""Load the rows of a subcommand from a file, a folder or the hub, or stop with one clear line.

The checks that the subcommands share are re-exported here: `check_demonstrations` and `training_columns` (rows),
`check_output_dir`, `count_too_long` and `report_lengths`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverselm.errors import UserError
from inverselm.inputs.demonstrations import LINE_COLUMN, check_demonstrations, training_columns
from inverselm.inputs.preflight import (
    check_output_dir,
    count_too_long,
    report_lengths,
)
from inverselm.inputs.records import read_records
from inverselm.inputs.schema import Schema

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

__all__ = [
    "LINE_COLUMN",
    "check_demonstrations",
    "check_output_dir",
    "count_too_long",
    "has_splits",
    "load_rows",
    "report_lengths",
    "training_columns",
]

IN_MEMORY_BYTES = 200 * 2**20  # larger files go through the memory-mapped cache of `datasets`
_FAMILIES = {"jsonl": "JSON", "json": "JSON", "csv": "CSV", "tsv": "CSV", "parquet": "Parquet"}
_SUFFIXES = ".jsonl, .json, .csv, .tsv (each also with .gz) or .parquet"
_SPLIT_FILE = re.compile(r"(train|training|validation|valid|val|dev|test|testing|eval)(?![a-z])")


def load_rows(
    source: str, *, split: str = "train", config: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """Load rows from a file, a folder or the hub.

    Args:
        source: a .jsonl, .json, .csv, .tsv (each also .gz) or .parquet file; a folder with such files of one kind, or
            one written by `save_to_disk`; or the name of a dataset on the hub. What exists locally comes first.
        split: split to take; a slice like "train[:100]" works everywhere. In a folder whose files are named after
            splits (train.jsonl, test.jsonl) it chooses the files; a single file is its own split.
        config: configuration of a hub dataset; an error with local files.
        streaming: return an `IterableDataset` (hub datasets are then not downloaded first).

    Returns:
        The rows. Those of local JSON, CSV and Parquet files carry the column `LINE_COLUMN` ("train.jsonl: line 17"),
        which `check_demonstrations` uses in messages and `training_columns` removes.

    Raises:
        UserError: nothing at `source`, unreadable or empty file, a broken line, mixed types in a column, no such split.

    Example:
        >>> rows = load_rows("data/sums.jsonl", split="train[:100]")  # doctest: +SKIP
        >>> rows.column_names  # doctest: +SKIP
        ['prompt', 'completion', '__line__']
    """
    path = Path(source).expanduser()
    if not source.strip():
        raise UserError("no dataset given: pass a file, a folder or the name of a hub dataset")
    if not path.exists():
        return _from_hub(source, split, config, streaming)
    if config is not None:
        raise UserError(
            f"{source}: a configuration ('{config}') only applies to hub datasets, and this is a local path"
        )
    name = split.partition("[")[0]
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{source}: a local path takes one split such as 'train' or 'train[:100]', not '{split}'")
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        dataset = _saved(path, name)
    else:
        dataset = _from_files(path, _files(path, name))
    if len(dataset) == 0:
        raise UserError(f"{source}: has no rows")
    dataset = _slice(dataset, source, split)
    return dataset.to_iterable_dataset() if streaming else dataset


def has_splits(source: str) -> bool:
    """Whether a name of a split means anything in `source`: not in a single file, nor in a folder of unnamed files."""
    path = Path(source).expanduser()
    if not path.exists():
        return True
    if path.is_file() or (path / "state.json").exists():
        return False
    if (path / "dataset_dict.json").exists():
        return True
    files = _data_files(path) or _data_files(path / "data")
    return any(_SPLIT_FILE.match(file.name.lower()) for file in files)


def _from_hub(name: str, split: str, config: str | None, streaming: bool) -> Any:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or _family(Path(name)):
        raise UserError(f"{name}: no such file or folder")
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, name=config, split=split, streaming=streaming)
    except Exception as error:  # the libraries below raise a dozen kinds, all of them about this name
        reason = _one_line(error)
        raise UserError(f"{name}: not a local file or folder, and not loadable from the hub ({reason})") from error
    if not streaming and len(dataset) == 0:
        raise UserError(f"{name}: split '{split}' has no rows")
    return dataset


def _saved(path: Path, split: str) -> "Dataset":
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # damaged metadata or Arrow files
        raise UserError(f"{path}: not a readable `save_to_disk` folder ({_one_line(error)})") from error
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise UserError(f"{path}: has no split '{split}'; its splits are {_listed(dataset)}")
    return dataset[split]


def _files(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        if not _family(path):
            raise UserError(f"{path}: unknown kind of file; use {_SUFFIXES}")
        return [path]
    if (path / "config.json").exists():
        raise UserError(f"{path}: is a model folder (it has a config.json), not a dataset")
    files = _data_files(path) or _data_files(path / "data")
    if not files:
        raise UserError(f"{path}: no data files in this folder; use {_SUFFIXES}")
    if any(_SPLIT_FILE.match(file.name.lower()) for file in files):
        chosen = [file for file in files if re.match(rf"{re.escape(split)}(?=[-.]|_\d)", file.name)]
        if not chosen:
            raise UserError(f"{path}: no file of split '{split}'; it has {_listed(file.name for file in files)}")
        files = chosen
    families = {_family(file): file.name for file in files}
    if len(families) > 1:
        raise UserError(f"{path}: mixes kinds of files ({_listed(families.values())}); name one file, or keep one kind")
    return files


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.is_file() and _family(f) and not f.name.startswith((".", "_")))


def _from_files(source: Path, files: list[Path]) -> "Dataset":
    size = sum(file.stat().st_size * (5 if file.suffix.lower() == ".gz" else 1) for file in files)
    if _family(files[0]) == "Parquet":
        from datasets import concatenate_datasets

        parts = [_parquet(file, in_memory=size <= IN_MEMORY_BYTES) for file in files]
        for file, part in zip(files, parts, strict=True):
            if part.features != parts[0].features:
                raise UserError(f"{file}: columns or types differ from {files[0].name}; make them the same")
        return concatenate_datasets(parts)
    return _records(source, files, in_memory=size <= IN_MEMORY_BYTES)


def _parquet(file: Path, *, in_memory: bool) -> "Dataset":
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        pq.ParquetFile(file).close()
        dataset = Dataset(InMemoryTable(pq.read_table(file))) if in_memory else Dataset.from_parquet(str(file))
    except Exception as error:  # Arrow, OS and `datasets` errors alike
        raise UserError(f"{file}: not a readable Parquet file ({_one_line(error)})") from error
    if LINE_COLUMN in dataset.column_names:
        raise UserError(f"{file}: the column name '{LINE_COLUMN}' is reserved; rename the column")
    return dataset.add_column(LINE_COLUMN, [f"{file}: row {i}" for i in range(1, len(dataset) + 1)])


def _records(source: Path, files: list[Path], *, in_memory: bool) -> "Dataset":
    from datasets import Value

    schema = Schema()
    for file in files:
        where = None
        for where, record in read_records(file):
            schema.add(record, where)
        if where is None:
            raise UserError(f"{file}: has no rows")
    if LINE_COLUMN in schema.columns:
        raise UserError(f"{source}: the column name '{LINE_COLUMN}' is reserved; rename the column")
    features = schema.features()
    features[LINE_COLUMN] = Value("string")
    build = _in_memory if in_memory else _cached
    return build(source, files, schema.columns, features)


def _in_memory(source: Path, files: list[Path], columns: list[str], features: "Features") -> "Dataset":
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rows = _filled(files, columns)
    schema = features.arrow_schema
    chunks = []
    while chunk := list(islice(rows, 10_000)):
        chunks.append(pa.Table.from_pylist(chunk, schema=schema))
    return Dataset(InMemoryTable(pa.concat_tables(chunks)))


def _cached(source: Path, files: list[Path], columns: list[str], features: "Features") -> "Dataset":
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    stamp = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    # tuples: `from_generator` would take lists for shards and split them
    arguments = {"files": tuple(files), "columns": tuple(columns), "stamp": stamp}
    try:
        return Dataset.from_generator(_filled, features=features, gen_kwargs=arguments)
    except (OSError, DatasetGenerationError) as error:
        reason = _one_line(error.__cause__ or error)
        raise UserError(
            f"{source}: cannot be cached ({reason}); set HF_DATASETS_CACHE to a folder with room"
        ) from error


def _filled(files: Sequence[Path], columns: Sequence[str], stamp: Any = None) -> Iterator[dict[str, Any]]:
    """Records with every column present; `stamp` only makes the cache notice an edited file."""
    for file in files:
        for where, record in read_records(file):
            yield {**{name: record.get(name) for name in columns}, LINE_COLUMN: where}


def _slice(dataset: "Dataset", source: str, split: str) -> "Dataset":
    name, bracket, _ = split.partition("[")
    if not bracket:
        return dataset
    from datasets import ReadInstruction

    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    except Exception as error:  # the parser raises AssertionError as well as ValueError
        raise UserError(f"{source}: cannot take split '{split}' of {len(dataset)} rows ({_one_line(error)})") from error
    rows = range(part.from_ or 0, len(dataset) if part.to is None else part.to)
    if not rows:
        raise UserError(f"{source}: split '{split}' of {len(dataset)} rows is empty")
    return dataset.select(rows)


def _family(path: Path) -> str | None:
    name = path.name.lower()
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    family = _FAMILIES.get(suffix) if "." in name else None
    return None if family == "Parquet" and name.endswith(".gz") else family


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _listed(names: Iterable[str]) -> str:
    names = [f"'{name}'" for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
