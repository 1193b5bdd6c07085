"""Rows of a task file as examples: a prompt, and everything that answers to it are compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from .tasks import Task

_LINE = "__line__"  # where a row of a local file came from


@dataclass(frozen=True)
class Example:
    """One prompt of a task.

    Attributes:
        prompt: text, or a list of chat messages.
        references: texts, one or more.
        row: the columns of its (first) row.
        where: the row's place, for messages: "test.jsonl: line 17".
        texts: what a good answer looks like as a whole, for lengths; empty if the rows hold bare results only.
    """

    prompt: Any
    references: tuple[str, ...]
    row: Mapping[str, Any]
    where: str = "the row"
    texts: tuple[str, ...] = ()


def read_examples(
    rows: Iterable[Mapping[str, Any]], task: Task, *, reference_column: str | None = None, source: str = "rows"
) -> list[Example]:
    """Rows as examples, in order; repeated prompts become one example with several references.

    A reference is a text, a number, a list of messages (the last one counts) or a list of texts. It is read from the
    first of the task's `reference_columns` that a row fills. Rows with equal prompts are one example if the other
    columns that the task reads agree too; references are kept once, in order.

    Args:
        rows: mappings with a `prompt` and a reference.
        task: says which columns it reads.
        reference_column: read references from this column.
        source: name for messages.

    Raises:
        UserError: no row, a row without prompt or reference, or one that the task cannot use.
    """
    names = (reference_column,) if reference_column else task.reference_columns
    found: dict[str, Example] = {}
    for number, row in enumerate(rows, 1):
        where = str(row.get(_LINE) or f"{source}: row {number}")
        prompt = row.get("prompt")
        if not isinstance(prompt, str | list) or not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise UserError(f"{where}: 'prompt' is missing or empty; give it text, or a list of messages")
        values = {key: value for key, value in row.items() if key != _LINE}
        name, references = _references(values, names, where)
        texts = references if name in ("references", "reference", "completion") else _whole(values, where)
        key = _key(prompt, values, task.columns, names)
        earlier = found.get(key)
        if earlier is not None:
            references = tuple(dict.fromkeys(earlier.references + references))
            texts = tuple(dict.fromkeys(earlier.texts + texts))
            values, where = dict(earlier.row), earlier.where
        found[key] = Example(prompt, references, values, where, texts)
    if not found:
        raise UserError(f"{source}: has no rows")
    return list(found.values())


def content_hash(examples: Sequence[Example]) -> str:
    """A hash of what is asked and what it is compared with, in order.

    Other columns do not count: metrics that read them can be computed anew from the same answers.
    """
    digest = hashlib.sha256()
    for example in examples:
        item = [example.prompt, example.references, example.texts]
        digest.update(json.dumps(item, ensure_ascii=False, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _key(prompt: Any, row: Mapping[str, Any], columns: Sequence[str] | None, references: Sequence[str]) -> str:
    skip = {"prompt", "completion", *references}
    names = [name for name in row if name not in skip] if columns is None else columns
    read = {name: row.get(name) for name in names}
    return json.dumps([prompt, read], ensure_ascii=False, sort_keys=True, default=str)


def _references(row: Mapping[str, Any], names: Sequence[str], where: str) -> tuple[str, tuple[str, ...]]:
    for name in names:
        if row.get(name) is not None:
            return name, _texts(row[name], name, where)
    there = ", ".join(f"'{name}'" for name in row if name != "prompt") or "no other column"
    wanted = " or ".join(f"'{name}'" for name in names)
    raise UserError(
        f"{where}: has no reference: it needs {wanted}, but has {there}; rename a column, or pass --reference_column"
    )


def _whole(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    return () if row.get("completion") is None else _texts(row["completion"], "completion", where)


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    """One reference, several of them, or an answer as messages."""
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content", value[-1].get("value"))
        if isinstance(value, list):
            value = "".join(str(part.get("text") or "") for part in value if isinstance(part, Mapping))
    if isinstance(value, list | tuple):
        if not value:
            raise UserError(f"{where}: '{name}' is an empty list; give it a reference, or remove the row")
        return tuple(dict.fromkeys(_text(item, name, where) for item in value))
    return (_text(value, name, where),)


def _text(value: Any, name: str, where: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: the reference in '{name}' is {type(value).__name__}, not text")
    if not value.strip():
        raise UserError(f"{where}: the reference in '{name}' is empty; give it text, or remove the row")
    return value
