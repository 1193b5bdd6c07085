"""One answer of the last iterate to each demonstration's prompt, written in parts, so that a kill loses one part."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import UserError
from ..inference.generate import generate
from ..scorers.text import encode_pair

logger = logging.get_logger(__name__)

PART = 4
"""Batches between two saves."""


@dataclass(frozen=True)
class Demonstration:
    """A demonstration as the model reads it; `row` is its place in the data."""

    row: int
    prompt: Any
    prompt_ids: list[int]
    answer_ids: list[int]


def encode_demonstrations(
    rows: Iterable[dict[str, Any]], tokenizer: Any, *, max_length: int | None, max_completion_length: int
) -> list[Demonstration]:
    """Token ids of prompts and answers, split and ended as in SFT.

    A row whose prompt fills `max_length`, or leaves no room in it for an own answer, is left out, with a warning that
    counts them. A longer real answer is cut at `max_length` later, by the collator.

    Args:
        rows: `prompt` and `completion` (texts, or lists of messages), or `messages`: the last one is the answer.
        tokenizer: with an EOS token.
        max_length: tokens of prompt and answer together; None for no limit.
        max_completion_length: of own answers.

    Raises:
        UserError: rows of another form, with tools, or without a prompt; or none is left.
    """
    found, longest, total = [], 0, 0
    for i, row in enumerate(rows):
        total += 1
        prompt, completion = _pair(row, i)
        ids = encode_pair(tokenizer, prompt, completion)
        if not ids.prompt_ids:
            raise UserError(f"row {i + 1}: the prompt has no tokens; self-play needs something to answer")
        if max_length is not None and len(ids.prompt_ids) + max_completion_length > max_length:
            longest = max(longest, len(ids.prompt_ids))
        else:
            found.append(Demonstration(i, prompt, ids.prompt_ids, ids.completion_ids))
    if not found:
        raise UserError(
            f"no prompt leaves room for max_completion_length={max_completion_length} within {max_length} tokens (the "
            f"longest has {longest}); lower it"
            if total
            else "the demonstrations have no rows"
        )
    if len(found) < total:
        logger.warning(
            f"{total - len(found):,} of {total:,} demonstrations are left out: their prompts leave no room for "
            f"{max_completion_length} tokens (max_completion_length) within {max_length}."
        )
    return found


def _pair(row: dict[str, Any], index: int) -> tuple[Any, Any]:
    if row.get("tools"):
        raise UserError(f"row {index + 1}: rows with tools are not supported in self-play; leave the column out")
    if "prompt" in row and "completion" in row:
        return row["prompt"], row["completion"]
    messages = row.get("messages")
    if messages and messages[-1].get("role") == "assistant":
        return messages[:-1], messages[-1:]
    raise UserError(
        f"row {index + 1}: self-play needs 'prompt' and 'completion', or 'messages' that end with the assistant's"
    )


def fingerprint(demonstrations: Sequence[Demonstration]) -> str:
    """Changes with any token."""
    digest = hashlib.sha256()
    for one in demonstrations:
        digest.update(json.dumps([one.prompt_ids, one.answer_ids]).encode())
    return digest.hexdigest()[:16]


def sample_answers(
    model: Any,
    tokenizer: Any,
    demonstrations: Sequence[Demonstration],
    file: Path,
    *,
    max_completion_length: int,
    batch_size: int,
    seed: int,
    label: str = "Sampling",
) -> list[dict[str, Any]]:
    """One answer per demonstration, at temperature 1; reads `file` if it is there, else samples and writes it.

    Until all are there, parts lie in `<file>.parts` and are not sampled again. Each part has a seed of its own, so the
    answers depend neither on where a run was interrupted nor on the number of processes, which share the parts.

    Args:
        model: the last iterate, on its device.
        tokenizer: its tokenizer.
        demonstrations: whose prompts are answered, each once, also where prompts repeat.
        file: JSONL to write: `row`, `prompt`, `completion` (text), `token_ids`, `finished`, one line each.
        max_completion_length: longest answer, in tokens; a longer one is cut, and gets no EOS.
        batch_size: prompts per batch.
        seed: of the sampling.
        label: of the progress bar.

    Returns:
        The records of the file, in the order of the demonstrations.

    Raises:
        UserError: the file is of other demonstrations.
    """
    from accelerate import PartialState

    state = PartialState()
    if not file.is_file():
        parts = file.with_name(f"{file.name}.parts")
        parts.mkdir(parents=True, exist_ok=True)
        size = PART * batch_size
        starts = range(0, len(demonstrations), size)
        paths = [parts / f"{number:06d}.jsonl" for number in range(len(starts))]
        mine = [n for n in range(len(starts)) if n % state.num_processes == state.process_index]
        done = sum(min(size, len(demonstrations) - starts[n]) for n in mine if paths[n].is_file())
        total = sum(min(size, len(demonstrations) - starts[n]) for n in mine)
        hidden = not state.is_main_process
        with tqdm(total=total, initial=done, desc=label, unit="prompt", file=sys.stderr, disable=hidden) as bar:
            for number in mine:
                if paths[number].is_file():
                    continue
                chosen = demonstrations[starts[number] : starts[number] + size]
                answers = generate(
                    model,
                    tokenizer,
                    [one.prompt_ids for one in chosen],
                    max_new_tokens=max_completion_length,
                    batch_size=batch_size,
                    seed=seed + 7919 * number,
                    progress=False,
                )
                _write(paths[number], (_record(one, answer) for one, [answer] in zip(chosen, answers, strict=True)))
                bar.update(len(chosen))
        state.wait_for_everyone()
        if state.is_main_process:
            _write(file, (record for path in paths for record in _read(path)))
            shutil.rmtree(parts)
        state.wait_for_everyone()
    records = _read(file)
    if [record["row"] for record in records] != [one.row for one in demonstrations]:
        raise UserError(f"{file} holds answers to other demonstrations; start anew in another folder")
    return records


def _record(one: Demonstration, answer: Any) -> dict[str, Any]:
    kept = {"row": one.row, "prompt": one.prompt, "completion": answer.text}
    return {**kept, "token_ids": list(answer.token_ids), "finished": answer.finished}


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def _read(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
