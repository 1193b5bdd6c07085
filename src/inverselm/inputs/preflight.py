"""Checks before a run: the output folder, and rows longer than `max_length`."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from inverselm.errors import UserError


def check_output_dir(path: str | Path, *, overwrite: bool = False, resume: bool | str | Path = False) -> None:
    """Nothing may be lost in `path`, and it must be possible to write there. Creates nothing.

    Args:
        path: output folder; it need not exist.
        overwrite: allow a folder that is not empty.
        resume: continue from the last checkpoint in `path` (True) or from the given checkpoint folder.

    Raises:
        UserError: a file in the way, a folder that is not empty or not writable, nothing to resume from.

    Example:
        >>> check_output_dir("runs/new")
    """
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {path}: is a file; choose a folder")
    parent = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise UserError(f"--output_dir {path}: {parent} is in the way and not a folder; choose another --output_dir")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path}: no permission to write in {parent}; choose another --output_dir")
    if resume:
        _check_resume(folder, resume)
    elif not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"--output_dir {path}: the folder is not empty; pass --overwrite_output_dir to write into it, "
            "--resume_from_checkpoint to continue its run, or choose another --output_dir"
        )


def _check_resume(folder: Path, resume: bool | str | Path) -> None:
    if resume is True:
        if not any(p.is_dir() for p in folder.glob("checkpoint-*")):
            raise UserError(f"--resume_from_checkpoint: {folder} holds no checkpoint-* folder to continue from")
    elif not Path(resume).expanduser().is_dir():
        raise UserError(f"--resume_from_checkpoint {resume}: no such folder; pass True, or a checkpoint folder")
    elif not (Path(resume).expanduser() / "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {resume}: not a training checkpoint (it has no trainer_state.json)")


def count_too_long(lengths: Iterable[int], max_length: int) -> tuple[int, int]:
    """Count the rows longer than `max_length` tokens.

    Returns:
        (rows that are longer, all rows)

    Example:
        >>> count_too_long([3, 9, 5], max_length=4)
        (2, 3)
    """
    longer = total = 0
    for length in lengths:
        longer, total = longer + (length > max_length), total + 1
    return longer, total


def report_lengths(
    token_ids: Iterable[Sequence[int]], prompt_lengths: Iterable[int], max_length: int | None, *, name: str = ""
) -> str:
    """Say in one line what `max_length` cuts off and what it drops.

    Args:
        token_ids: ids of prompt and completion together, one sequence per row, before truncation.
        prompt_lengths: how many of them are the prompt (0 for rows without one), one per row.
        max_length: the limit of the trainer; None for no limit.
        name: of the data, put in front.

    Raises:
        UserError: no row would be left to train on.
        ValueError: the two iterables differ in length.

    Example:
        >>> report_lengths([[1, 2, 3, 4, 5], [1, 2, 3]], [2, 2], max_length=4)
        '1 of 2 rows (50.0%) is longer than max_length=4 tokens: its answer is cut, kept, and treated as truncated (no EOS, value bootstrapped); raise --max_length to keep it whole.'
    """  # noqa: E501
    pairs = [(len(ids), prompt) for ids, prompt in zip(token_ids, prompt_lengths, strict=True)]
    total, longest = len(pairs), max((length for length, _ in pairs), default=0)
    prefix = f"{name}: " if name else ""
    if max_length is None:
        return f"{prefix}{total:,} rows of at most {longest:,} tokens; no max_length is set, so nothing is cut."
    dropped = sum(prompt >= max_length for _, prompt in pairs)
    cut, _ = count_too_long((length for length, prompt in pairs if prompt < max_length), max_length)
    if total and dropped == total:
        raise UserError(
            f"{prefix}in all {total:,} rows the prompt alone fills max_length={max_length} tokens (the longest row has "
            f"{longest:,}), so nothing is left to train on; raise --max_length"
        )
    if not cut and not dropped:
        whole = f"all {total:,} rows fit" if total > 1 else "the only row fits"
        return f"{prefix}{whole} into max_length={max_length} tokens (the longest has {longest:,})."
    return prefix + " ".join(filter(None, (_cut(cut, total, max_length), _dropped(dropped, total, max_length))))


def _cut(count: int, total: int, max_length: int) -> str:
    if not count:
        return ""
    verb, whose, answers, them = (
        ("is", "its", "answer is", "it") if count == 1 else ("are", "their", "answers are", "them")
    )
    return (
        f"{_share(count, total)} {verb} longer than max_length={max_length} tokens: {whose} {answers} cut, kept, and "
        f"treated as truncated (no EOS, value bootstrapped); raise --max_length to keep {them} whole."
    )


def _dropped(count: int, total: int, max_length: int) -> str:
    if not count:
        return ""
    verb = "is" if count == 1 else "are"
    return (
        f"{_share(count, total)} {verb} dropped: the prompt alone fills max_length={max_length} tokens; "
        "raise --max_length or shorten the prompt."
    )


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} rows ({100 * count / total:.1f}%)"
