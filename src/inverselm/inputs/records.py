"""Records of JSON, JSON Lines and CSV files, each with the line it starts on.

Python's own `json` and `csv` read them, so that a mistake is reported with its line and no value is converted.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inverselm.errors import UserError

Record = tuple[str, dict[str, Any]]

_NAMES = {str: "text", bool: "true/false", int: "a number", float: "a number", list: "a list", type(None): "null"}


def read_records(path: Path) -> Iterator[Record]:
    """Yield `(where, record)` for every record of a file; `where` reads "train.jsonl: line 17".

    The name decides the format: .jsonl, .json (one list of objects, or one object per line), .csv, .tsv, each also
    with .gz. Blank lines are skipped. CSV values stay text ("007" is not 7); CSV needs a header line.

    Raises:
        UserError: unreadable file, not UTF-8, broken JSON or CSV, a record that is not an object, ragged CSV rows.

    Example:
        >>> list(read_records(Path("sums.jsonl")))  # doctest: +SKIP
        [('sums.jsonl: line 1', {'prompt': '1+1=', 'completion': '2'})]
    """
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind in ("csv", "tsv"):
        return _csv_records(path, "," if kind == "csv" else "\t")
    if kind == "json" and _starts_with_bracket(path):
        return _json_list_records(path)
    return _json_line_records(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, _decode(raw, f"{path}: line {number}", first=number == 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _decode(raw: bytes, where: str, *, first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise UserError(
            f"{where}: not UTF-8 (byte 0x{byte:02x} at position {error.start + 1}); save the file as UTF-8"
        ) from error


def _no_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _json_line_records(path: Path) -> Iterator[Record]:
    hint = "; a .json file holds one list of objects, or one object per line" if ".json" in path.suffixes else ""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            value = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno}){hint}") from error
        except RecursionError as error:
            raise UserError(f"{where}: the JSON is nested too deeply") from error
        yield where, _object(value, where)


def _json_list_records(path: Path) -> Iterator[Record]:
    text = "".join(line for _, line in _lines(path))

    def broken(reason: str, position: int) -> UserError:
        return UserError(f"{path}: line {1 + text.count(chr(10), 0, position)}: not valid JSON ({reason})")

    position = _skip(text, text.index("[") + 1)
    mark, number, counted = ",", 1, 0
    if text[position : position + 1] == "]":
        mark, position = "]", _skip(text, position + 1)
    while mark == ",":
        number, counted = number + text.count("\n", counted, position), position
        where = f"{path}: line {number}"
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise broken(error.msg, max(error.pos, position)) from error
        except RecursionError as error:
            raise UserError(f"{where}: the JSON is nested too deeply") from error
        yield where, _object(value, where)
        position = _skip(text, position)
        mark = text[position : position + 1]
        if mark not in (",", "]") or not mark:
            raise broken("expected ',' or ']' after an item of the list", position)
        position = _skip(text, position + 1)
    if position < len(text):
        raise broken("text after the end of the list", position)


def _starts_with_bracket(path: Path) -> bool:
    return next((line.lstrip()[0] == "[" for _, line in _lines(path) if line.strip()), False)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where}: {_NAMES[type(value)]} where an object such as {{"prompt": ...}} is needed')
    return value


def _csv_records(path: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default refuses long answers
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}: line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{where}: not valid CSV ({error})") from error
        if not fields:
            continue
        if header is None:
            header = _header(fields, where)
        elif len(fields) != len(header):
            raise UserError(
                f"{where}: {len(fields)} values for {len(header)} columns ({', '.join(header)}); "
                "quote values that contain the separator or a line break"
            )
        else:
            yield where, dict(zip(header, fields, strict=True))


def _header(fields: list[str], where: str) -> list[str]:
    for index, name in enumerate(fields):
        if not name.strip():
            raise UserError(f"{where}: column {index + 1} of the header has no name (a saved row index? leave it out)")
        if name in fields[:index]:
            raise UserError(f"{where}: the header names the column '{name}' twice")
    return fields
