"""A file of answers, read row by row from its place on disk: memory grows by some bytes a row, not by the text."""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import IO, Any

from ..errors import UserError
from ..inputs.records import read_records
from .inspector import FILE, stored_reading
from .records import answer_text, check_record, shown, text_fact

KEYS = ("sum", "mean", "min", "tokens")
"""What rows can be sorted by."""

_ORDERS = 8  # sorted and searched lists of rows that are kept
_SNIPPET = 240  # characters of a prompt or an answer in the list
_FACTS = 16  # other columns of a row that are shown
_OWN = {"prompt", "completion", "scored_text", "tokens", "reward", "terminated", "finished", "token_ids", "__line__"}
_READ = (".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz", ".jsonl")
_BAR = 20_000_000  # bytes from which on reading shows a progress bar


class RowFile:
    """Rows with a prompt and a completion, or scored rows as `inverselm score` writes them.

    One pass checks every row and keeps where it begins, the sum, mean and minimum of its rewards and, in a temporary
    file, its text for the search. A .jsonl file is read in place after that; other kinds are copied to a temporary
    file.

    Args:
        source: file, folder or hub dataset, as `--dataset_name`.
        split: split, or a slice such as train[:100].
        need_scores: refuse rows without token rewards.

    Attributes:
        name: `source`.
        scored: how many rows hold token rewards.

    Raises:
        UserError: no such file, or a row that is not usable (named by its line).

    Example:
        >>> rows = RowFile("scored.jsonl")
        >>> worst = rows.order(sort="min", by="file")[0]
        >>> rows.row(worst)["stored"].rewards["file"]
    """

    def __init__(self, source: str, split: str = "train", *, need_scores: bool = False) -> None:
        self.name, self.scored = source, 0
        self._starts, self._text_starts = array("Q"), array("Q")
        self._stats: dict[str, dict[str, array[float]]] = {}
        self._orders: OrderedDict[tuple[Any, ...], Sequence[int]] = OrderedDict()
        self._version = 0
        self._lock = Lock()  # of the file's position, and of the lists that are kept
        path = Path(source).expanduser()
        self._in_place = path.is_file() and path.name.lower().endswith(".jsonl") and split == "train"
        self._data: IO[bytes] = path.open("rb") if self._in_place else tempfile.TemporaryFile()  # noqa: SIM115
        self._text: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._stamp = self._now()
        for where, start, record in self._in_file(path) if self._in_place else self._copied(path, split):
            self._add(where, start, record, need_scores)
        if not self._starts:
            raise UserError(f"{source}: has no rows")
        self._starts.append(self._data.seek(0, 2))
        self._text_starts.append(self._text.tell())
        self._text.flush()
        self._haystack = mmap.mmap(self._text.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._text_starts) - 1

    def _in_file(self, path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
        from tqdm.auto import tqdm

        size = path.stat().st_size
        with tqdm(total=size, desc="Reading rows", unit="B", unit_scale=True, disable=size < _BAR) as bar:
            for (where, record), start in zip(read_records(path), _line_starts(path), strict=False):
                bar.update(start - bar.n)
                yield where, start, record
            bar.update(size - bar.n)

    def _copied(self, path: Path, split: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
        from tqdm.auto import tqdm

        for where, record in tqdm(_records(path, self.name, split), desc="Reading rows", unit="row", delay=1):
            start = self._data.tell()
            self._data.write(json.dumps(record, default=str).encode() + b"\n")
            yield where, start, record
        self._data.flush()

    def _add(self, where: str, start: int, record: dict[str, Any], need_scores: bool) -> None:
        scored = check_record(record, where, need_scores) and bool(record["tokens"])  # none: a row with an `error`
        self._text_starts.append(self._text.tell())
        text = f"{shown(record['prompt'])}\n{answer_text(record)}".replace("\0", " ").casefold()
        self._text.write(text.encode("utf-8", "replace") + b"\0")
        self._starts.append(start)
        if scored:
            self.scored += 1
            rewards = [math.nan if token["reward"] is None else token["reward"] for token in record["tokens"]]
            self._keep(FILE.id, len(self._starts) - 1, rewards)

    def row(self, index: int) -> dict[str, Any]:
        """One row: `prompt` as it is, its text, the answer's text, `add_eos`, `facts` (other columns), `stored`.

        `stored` is the row's `Reading`, None without token rewards.

        Raises:
            UserError: no such row, or the file has changed since it was opened.
        """
        record = self._record(index)
        tokens, stored = record.get("tokens"), None
        if tokens:
            stored = stored_reading(tokens, bool(record.get("terminated", False)))
        facts = {name: text_fact(value) for name, value in record.items() if name not in _OWN and value is not None}
        return {
            "index": index,
            "prompt": record["prompt"],
            "prompt_text": shown(record["prompt"]),
            "completion": answer_text(record),
            "add_eos": record.get("terminated" if stored else "finished", True) is not False,
            "facts": dict(list(facts.items())[:_FACTS]),
            "stored": stored,
        }

    def summary(self, index: int) -> dict[str, Any]:
        """One row for the list: the end of its prompt, the beginning of its answer, its numbers by definition."""
        record = self._record(index)
        prompt, answer = shown(record["prompt"]).strip(), answer_text(record).strip()
        stats = {
            by: {key: _plain(numbers[key][index]) for key in KEYS}
            for by, numbers in list(self._stats.items())  # another thread may add one
            if self.has_stats(by, index)
        }
        return {"index": index, "prompt": prompt[-_SNIPPET:], "completion": answer[:_SNIPPET], "stats": stats}

    def set_stats(self, by: str, index: int, rewards: Sequence[float]) -> None:
        """Keep the sum, mean and minimum of a row's rewards under a definition."""
        with self._lock:
            self._keep(by, index, rewards)

    def _keep(self, by: str, index: int, rewards: Sequence[float]) -> None:
        arrays = self._stats.setdefault(by, {key: array("d") for key in KEYS})
        for numbers in arrays.values():
            numbers.extend([math.nan] * (len(self._starts) - len(numbers)))
        finite = [r for r in rewards if math.isfinite(r)]
        total = math.fsum(finite)
        found = (total, total / len(finite), min(finite)) if finite else (math.nan,) * 3
        for key, value in zip(KEYS, (*found, len(rewards)), strict=True):
            arrays[key][index] = value
        self._version += 1

    def has_stats(self, by: str, index: int) -> bool:
        """Whether the numbers of a row under a definition are known."""
        tokens = self._stats[by]["tokens"] if by in self._stats else ()
        return index < len(tokens) and not math.isnan(tokens[index])

    def order(self, query: str = "", sort: str = "", by: str = FILE.id, descending: bool = False) -> Sequence[int]:
        """Numbers of the rows that contain `query` (in any case), in the file's order or sorted; unknown ones last.

        Args:
            query: text to look for in prompts and answers; "" takes all rows.
            sort: one of `KEYS`; "" keeps the file's order.
            by: the definition whose rewards to sort by.
            descending: the largest first.

        Raises:
            UserError: unknown `sort`.
        """
        if sort and sort not in KEYS:
            raise UserError(f"rows can be sorted by {', '.join(KEYS)}, not by {sort!r}")
        with self._lock:
            key = (query.casefold(), sort, by, descending, self._version if sort else 0)
            if key not in self._orders:
                self._orders[key] = self._ordered(*key[:4])
            self._orders.move_to_end(key)
            while len(self._orders) > _ORDERS:
                self._orders.popitem(last=False)
            return self._orders[key]

    def _ordered(self, query: str, sort: str, by: str, descending: bool) -> Sequence[int]:
        found: Sequence[int] = self._matches(query) if query else range(len(self))
        values = self._stats.get(by, {}).get(sort)
        if values is None:
            return found[::-1] if descending and not sort else found
        values.extend([math.nan] * (len(self) - len(values)))
        known = [i for i in found if not math.isnan(values[i])]
        known.sort(key=values.__getitem__, reverse=descending)
        return array("Q", known + [i for i in found if math.isnan(values[i])])

    def _matches(self, query: str) -> array[int]:
        needle, found, place = query.replace("\0", " ").encode("utf-8", "replace"), array("Q"), 0
        while (place := self._haystack.find(needle, place)) >= 0:
            index = bisect_right(self._text_starts, place) - 1
            found.append(index)
            place = self._text_starts[index + 1]
        return found

    def _record(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise UserError(f"there is no row {index}; the file has {len(self):,}")
        if self._now() != self._stamp:
            raise UserError(f"{self.name} has changed since it was opened: start `inverselm inspect` again")
        with self._lock:
            self._data.seek(self._starts[index])
            line = self._data.read(self._starts[index + 1] - self._starts[index])
        return dict(json.loads(line.partition(b"\n")[0].decode("utf-8-sig")))

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._data.fileno())
        return (state.st_size, state.st_mtime_ns) if self._in_place else (0, 0)

    def close(self) -> None:
        """Let go of the file and of the temporary ones."""
        self._haystack.close()
        self._data.close()
        self._text.close()


def _line_starts(path: Path) -> Iterator[int]:
    """Where the lines that are not blank begin, in bytes."""
    start = 0
    with open(path, "rb") as file:
        for raw in file:
            if not (raw.isspace() or (len(raw) < 100 and not raw.decode("utf-8-sig", "replace").strip())):
                yield start
            start += len(raw)


def _records(path: Path, source: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of any kind of dataset, each with its place."""
    if path.is_file() and path.name.lower().endswith(_READ) and split == "train":
        yield from read_records(path)
        return
    from ..inputs.data import LINE_COLUMN, load_rows
    from ..scoring.tables import is_scored, json_record

    rows = load_rows(source, split=split)
    scored = is_scored(rows.column_names or ())
    for number, row in enumerate(rows, 1):
        yield row.get(LINE_COLUMN) or f"{source}: row {number}", json_record(row) if scored else dict(row)


def _plain(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None
