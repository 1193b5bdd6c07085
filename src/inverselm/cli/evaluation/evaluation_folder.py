"""The folder of an evaluation: run.json, samples/<model>/<sampler>.jsonl, results.json and results.csv."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ...errors import UserError
from ...inputs.fingerprints import file_difference
from ...inputs.preflight import check_output_dir
from ..output import Chunks

if TYPE_CHECKING:
    from ...evaluation.samplers import Sampler
    from ...evaluation.summary import Record, Row

RUN, SAMPLES, RESULTS = "run.json", "samples", ("results.json", "results.csv")


def check_folder(path: str, *, overwrite: bool, resume: bool, inputs: Sequence[str | None]) -> None:
    """Nothing may be lost in the folder, and it must be possible to write there. Changes nothing.

    Raises:
        UserError: it is not empty, is not an evaluation's (with `overwrite`), holds none to resume, or holds an input.
    """
    folder = Path(path).expanduser()
    if overwrite and resume:
        raise UserError("--overwrite starts anew and --resume goes on; pass one of them")
    there = (folder / RUN).is_file()
    if resume and not there:
        raise UserError(f"--resume: {path} holds no evaluation to continue; leave the flag out")
    check_output_dir(path, overwrite=True)
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and overwrite and not there:
        raise UserError(f"--output_dir {path}: holds something else than an evaluation; choose another folder")
    if filled and not overwrite and not resume:
        hint = "pass --resume to continue it, --overwrite to replace it, or choose another folder"
        raise UserError(f"--output_dir {path}: the folder is not empty; {hint if there else 'choose another folder'}")
    for name in filter(None, inputs):
        read = Path(name).expanduser()
        if overwrite and read.exists() and (folder / SAMPLES).resolve() in (read.resolve(), *read.resolve().parents):
            raise UserError(f"--overwrite: {name} lies in {folder / SAMPLES}, which would be removed; move it")


class EvaluationFolder:
    """Where an evaluation is kept, and what it was made with.

    Args:
        path: the folder, checked by `check_folder`.
        facts: `settings` and `data`: what is the same for all pairs of model and sampler.
        models: label -> fingerprint.
        reward: fingerprint of the scorer's models, if there is one.
        baselines: label -> fingerprint of the baseline that guided samplers go away from, if there are any.
        resume: continue; else start anew.

    Raises:
        UserError: it was made with something else.
    """

    def __init__(
        self,
        path: str,
        facts: dict[str, Any],
        models: dict[str, dict[str, str]],
        reward: dict[str, str] | None,
        baselines: dict[str, dict[str, str]],
        resume: bool,
    ) -> None:
        self.path = Path(path).expanduser()
        self.facts: dict[str, Any] = json.loads(json.dumps(facts))
        run = {"inverselm": __version__, **self.facts, "models": models, "reward": reward, "baselines": baselines}
        if resume:
            before = self._read_run()
            self._check_same(run, before)
            run["models"] = {**before["models"], **models}
            run["reward"] = reward or before["reward"]
            run["baselines"] = {**before["baselines"], **baselines}
        self._run = run

    def start(self, overwrite: bool) -> None:
        """Write run.json; with `overwrite`, an earlier evaluation goes first."""
        if overwrite and self.path.is_dir():
            shutil.rmtree(self.path / SAMPLES, ignore_errors=True)
            for name in (RUN, *RESULTS):
                (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.path / RUN, self._run)

    def _read_run(self) -> dict[str, Any]:
        try:
            run = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            return {"models": run["models"], "reward": run["reward"], "baselines": {}, **run}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--resume: {self.path / RUN} is not readable; start anew in another folder") from error

    def _check_same(self, run: dict[str, Any], before: dict[str, Any]) -> None:
        start = f"--resume: {self.path} was made"
        end = "; nothing is mixed: choose another --output_dir, or --overwrite"
        if before.get("inverselm") != __version__:
            raise UserError(f"{start} by inverselm {before.get('inverselm')}, and this is {__version__}{end}")
        for group in ("settings", "data"):
            for name, value in run[group].items():
                earlier = before.get(group, {}).get(name)
                if earlier != value:
                    shown = "other rows" if group == "data" else f"{name} {earlier}, and now it is {value}"
                    raise UserError(f"{start} with {shown}{end}")
        labels = {safe_name(label): label for label in before["models"]}
        for label in run["models"]:
            known = labels.get(safe_name(label), label)
            if known != label:
                samples = self.path / SAMPLES / safe_name(label)
                raise UserError(f"--resume: {samples} has answers of {known!r} where those of {label!r} would be{end}")
        for kind, what in (("models", "model"), ("baselines", "baseline of")):
            for label, fingerprint in run[kind].items():
                if label in before[kind] and (changed := file_difference(fingerprint, before[kind][label])):
                    raise UserError(f"{start} with another {what} '{label}' ({changed} differs){end}")
        if run["reward"] and before["reward"] and (changed := file_difference(run["reward"], before["reward"])):
            raise UserError(f"{start} with another reward ({changed} differs){end}")

    def pair(self, label: str, sampler: Sampler) -> PairFile:
        """The samples of one model under one sampler."""
        return PairFile(self.path / SAMPLES / samples_name(label, sampler.name), label, sampler.name)

    def write_results(self, rows: Sequence[Row], note: str) -> None:
        """results.json and results.csv."""
        main = next(iter(rows[0].metrics))
        content = {"inverselm": __version__, "task": rows[0].task, "main_metric": main, "note": note, **self.facts}
        _write_json(self.path / RESULTS[0], {**content, "rows": [row.as_dict() for row in rows]})
        lines = [row.flat() for row in rows]
        names = list(dict.fromkeys(name for line in sorted(lines, key=len, reverse=True) for name in line))
        temporary = self.path / f"{RESULTS[1]}.tmp"
        with open(temporary, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(lines)
        os.replace(temporary, self.path / RESULTS[1])


class PairFile:
    """Samples of one model under one sampler: finished, half done, or not begun."""

    def __init__(self, path: Path, label: str, sampler: str) -> None:
        self.path, self._names = path, {"model": label, "sampler": sampler}
        self.finished = path.is_file()
        self._chunks: Chunks | None = None

    def begin(self) -> int:
        """Batches that are done already; then `write` continues behind them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = all(Path(f"{self.path}{end}").is_file() for end in (".unfinished", ".unfinished.json"))
        self._chunks = Chunks(str(self.path), self._names, resume=begun)
        return self._chunks.chunks_done

    def write(self, records: Sequence[Record]) -> None:
        """One batch."""
        assert self._chunks is not None, "see begin"
        self._chunks.write(self._names | record for record in records)

    def records(self, expected: int) -> list[Record]:
        """All samples.

        Raises:
            UserError: there are not as many as there should be.
        """
        if self._chunks is not None and not self.finished:
            found = list(self._chunks.records())
        else:
            try:
                with open(self.path, encoding="utf-8") as stream:
                    found = [json.loads(line) for line in stream]
            except ValueError as error:
                raise UserError(f"--resume: {self.path} was changed ({error}); delete it to sample it again") from error
        if len(found) != expected:
            raise UserError(
                f"--resume: {self.path} has {len(found):,} answers in place of {expected:,}; delete it to sample again"
            )
        return found

    def finish(self, records: Sequence[Record]) -> None:
        """Give the file its name, with measured records in the order of the prompts."""
        temporary = Path(f"{self.path}.tmp")
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        os.replace(temporary, self.path)
        for end in (".unfinished", ".unfinished.json"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        self.finished = True


def samples_name(label: str, sampler: str) -> str:
    """The samples file of a model and a sampler, without the comma, which separates files elsewhere.

    >>> samples_name("sft", "T=1.0,top_p=0.9")
    'sft/T=1.0+top_p=0.9.jsonl'
    """
    return f"{safe_name(label)}/{sampler.replace(',', '+')}.jsonl"


def safe_name(label: str) -> str:
    """A label as the name of a folder.

    >>> safe_name("org/model v2")
    'org_model_v2'
    """
    return re.sub(r"[^\w.-]+", "_", label).strip("._") or "model"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
