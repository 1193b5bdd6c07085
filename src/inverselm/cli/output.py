"""JSONL files that appear when they are complete, and whose unfinished part a later run can continue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError


def check_output_file(path: str, *, overwrite: bool, inputs: Sequence[str | None] = (), flag: str = "") -> None:
    """It must be possible to write `path`, and nothing may be lost. Creates nothing.

    Raises:
        UserError: it exists, is a folder or an input, or its folder is missing or not writable.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{flag}{path}: is a folder; name a file")
    if any(name and Path(name).exists() and target.exists() and target.samefile(name) for name in inputs):
        raise UserError(f"{flag}{path}: is the file that is read; name another one")
    if target.exists() and not overwrite:
        raise UserError(f"{flag}{path}: exists; pass --overwrite, or name another file")
    parent = target.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{flag}{path}: its folder does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{flag}{path}: no permission to write in {parent}")


def check_no_unfinished(path: str, *, resume: bool, overwrite: bool) -> None:
    """What an interrupted run of `Chunks` wrote is thrown away only if asked for.

    Raises:
        UserError: there is such a part, and neither flag.
    """
    if Path(f"{path}.unfinished.json").exists() and not (resume or overwrite):
        raise UserError(f"{path}: an interrupted run began it; --resume continues it, --overwrite starts anew")


class Chunks:
    """Writes chunk after chunk to `<path>.unfinished`, and renames it at the end.

    A file beside it holds the settings of the run, so that `resume` refuses to mix two runs.

    Args:
        path: of the finished file.
        settings: what must be the same for a resumed run.
        resume: continue an unfinished file.

    Raises:
        UserError: nothing to resume, or another run's.
    """

    def __init__(self, path: str, settings: dict[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.part, self.note = Path(f"{path}.unfinished"), Path(f"{path}.unfinished.json")
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.chunks_done, self._offset, self._written = 0, 0, False
        self.facts: dict[str, Any] = {}
        if resume:
            self._read_note()

    def _read_note(self) -> None:
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            settings, chunks, offset = note["settings"], note["chunks"], note["bytes"]
            size = self.part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--resume: there is no unfinished {self.path} to continue; leave the flag out") from error
        different = [name for name in self.settings if settings.get(name) != self.settings[name]]
        if different or size < offset:
            what = f"with another {different[0]}" if different else "and was changed since"
            raise UserError(f"--resume: the unfinished {self.path} was written {what}; leave the flag out")
        self.chunks_done, self._offset, self._written = chunks, offset, True
        self.facts = note.get("facts", {})

    def write(self, records: Iterable[dict[str, Any]], facts: dict[str, Any] | None = None) -> None:
        """Append one chunk; what a kill leaves behind it is cut off on resume.

        Args:
            records: of the chunk.
            facts: JSON values about what is written so far, which a resumed run finds in `facts`.
        """
        with open(self.part, "r+b" if self._written else "wb") as stream:
            stream.seek(self._offset)
            stream.truncate()
            for item in records:
                stream.write(json.dumps(item, ensure_ascii=False).encode() + b"\n")
            self._offset = stream.tell()
        self.chunks_done, self._written = self.chunks_done + 1, True
        note = {"settings": self.settings, "chunks": self.chunks_done, "bytes": self._offset}
        if facts is not None:
            self.facts = note["facts"] = dict(facts)
        temporary = Path(f"{self.note}.tmp")
        temporary.write_text(json.dumps(note), encoding="utf-8")
        os.replace(temporary, self.note)

    def records(self) -> Iterator[dict[str, Any]]:
        """What is written so far."""
        if self._written:
            with open(self.part, encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def finish(self) -> None:
        """Give the file its name."""
        if not self._written:
            self.part.write_bytes(b"")
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what was written."""
        for path in (self.part, self.note):
            path.unlink(missing_ok=True)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C says how to go on."""
        try:
            yield
        except KeyboardInterrupt as error:
            if self._written:
                raise KeyboardInterrupt(f"The same command with --resume continues {self.path}.") from error
            raise KeyboardInterrupt("Nothing was written.") from error


def in_chunks(total: int, size: int, done: int, label: str, unit: str) -> Iterator[range]:
    """Ranges of row numbers from chunk `done` on, with a progress bar over the rows."""
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=min(total, done * size), desc=label, unit=unit) as bar:
        for start in range(done * size, total, size):
            rows = range(start, min(total, start + size))
            yield rows
            bar.update(len(rows))
