"""Checks before a run: the output folder, tokenizers, checkpoints, and rows longer than `max_length`."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inverselm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = (
    "Hello, world!",
    "  two  spaces\n\nand\tlines ",
    "12 + 345 = 357",
    "Ünïcödé, 漢字 and 🙂",
    "def f(x):\n    return x",
)
_SPECIAL = ("bos_token", "eos_token", "unk_token")
_BLOCK = 2**20


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
    elif not (Path(resume).expanduser() / "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {resume}: not a training checkpoint (it has no trainer_state.json)")


def check_tokenizer_has_eos(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """The end-of-sequence token ends every answer, so there must be one and it must be a token of its own.

    Raises:
        UserError: no EOS token, or one that the tokenizer does not know.
    """
    hint = 'set "eos_token" in its tokenizer_config.json'
    if tokenizer.eos_token is None:
        raise UserError(f"{name}: the tokenizer has no end-of-sequence token; {hint}")
    if tokenizer.eos_token not in tokenizer.get_vocab():
        raise UserError(f"{name}: the end-of-sequence token {tokenizer.eos_token!r} is not in the vocabulary; {hint}")


def check_same_tokenizer(a: "PreTrainedTokenizerBase", b: "PreTrainedTokenizerBase", name_a: str, name_b: str) -> None:
    """Token rewards compare two models token by token, so both must cut text into the same ids.

    Compared are the vocabularies, the BOS, EOS and unknown tokens and the ids of a few probe texts. The padding token
    may differ: it is never a state or an action.

    Raises:
        UserError: names the first difference.
    """
    difference = _vocab_difference(a.get_vocab(), b.get_vocab(), name_a, name_b)
    for kind in () if difference else _SPECIAL:
        left, right = getattr(a, kind), getattr(b, kind)
        if left != right:
            difference = f"the {kind} is {left!r} in {name_a} but {right!r} in {name_b}"
            break
    for probe in () if difference else _PROBES:
        left, right = a.encode(probe), b.encode(probe)
        if left != right:
            difference = f"{probe!r} becomes {left} in {name_a} but {right} in {name_b}"
            break
    if difference:
        raise UserError(f"{name_a} and {name_b} have different tokenizers: {difference}; use models that share one")


def _vocab_difference(a: dict[str, int], b: dict[str, int], name_a: str, name_b: str) -> str:
    if a == b:
        return ""
    differing = [token for token in {**a, **b} if a.get(token) != b.get(token)]
    token = min(differing, key=lambda t: (min(a.get(t, len(a) + len(b)), b.get(t, len(a) + len(b))), t))
    if token not in a or token not in b:
        has, lacks = (name_a, name_b) if token in a else (name_b, name_a)
        return f"{lacks} lacks the token {token!r} of {has} (vocabularies of {len(a):,} and {len(b):,} tokens)"
    return f"the token {token!r} has id {a[token]} in {name_a} but {b[token]} in {name_b}"


def check_different_checkpoints(sft_path: str | Path, baseline_path: str | Path) -> None:
    """The reward is the difference of two checkpoints, so two equal ones would reward nothing.

    Local folders are compared by their safetensors files (and, for adapters, by the base model they name).

    Raises:
        UserError: the same path or hub name, or identical weights.
    """
    sft, baseline = Path(sft_path).expanduser(), Path(baseline_path).expanduser()
    fix = "every reward would be zero; pass an earlier checkpoint as the baseline"
    if str(sft_path) == str(baseline_path) or (sft.exists() and sft.resolve() == baseline.resolve()):
        raise UserError(f"the SFT model and the baseline are the same, {sft_path}: {fix}")
    if sft.is_dir() and baseline.is_dir() and _same_weights(sft, baseline):
        raise UserError(f"{sft_path} and {baseline_path} hold identical weights: {fix}")


def _same_weights(a: Path, b: Path) -> bool:
    names = sorted(file.name for file in a.glob("*.safetensors"))
    if not names or names != sorted(file.name for file in b.glob("*.safetensors")) or _base_model(a) != _base_model(b):
        return False
    return all(_same_file(a / name, b / name) for name in names)


def _same_file(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as left, b.open("rb") as right:
        while block := left.read(_BLOCK):
            if block != right.read(_BLOCK):
                return False
    return True


def _base_model(folder: Path) -> str | None:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") if file.is_file() else None


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
        return f"{prefix}all {total:,} rows fit into max_length={max_length} tokens (the longest has {longest:,})."
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
