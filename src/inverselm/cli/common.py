"""What the training commands share: checks before anything is loaded, models and tokenizers, closing words."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..scorers.markers import BASELINE_FOLDER
from .data import check_demonstrations, check_output_dir, load_rows, report_lengths, training_columns


def say(text: str) -> None:
    """A line for the user, from the main process alone."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(text, flush=True)


def resume_flag(value: str | None) -> str | bool | None:
    """`--resume_from_checkpoint True` is the newest complete checkpoint; anything else a path."""
    if value is None or value.lower() in ("false", "none", ""):
        return None
    return True if value.lower() in ("true", "auto", "last") else value


def prepare_output_dir(args: Any, overwrite: bool) -> None:
    """Check the output folder; with `overwrite` remove the checkpoints of the run that was there.

    Raises:
        UserError: see `check_output_dir`.
    """
    from accelerate import PartialState

    check_output_dir(args.output_dir, overwrite=overwrite, resume=resume_flag(args.resume_from_checkpoint) or False)
    if overwrite and not args.resume_from_checkpoint and PartialState().is_main_process:
        for old in [*Path(args.output_dir).glob("checkpoint-*"), Path(args.output_dir) / BASELINE_FOLDER]:
            if old.is_dir():
                shutil.rmtree(old)


def load_checked(data: Any, need: str, text_field: str = "text", split: str | None = None, name: str = "") -> Any:
    """Rows of the training data, every row checked, in the columns TRL reads; and the format found.

    Raises:
        UserError: no dataset named, or a row that cannot be used.
    """
    name = name or data.dataset_name or ""
    if not name:
        raise UserError("no data: pass --dataset_name <file, folder or hub dataset>")
    rows = load_rows(
        name, split=split or data.dataset_train_split, config=data.dataset_config, streaming=data.dataset_streaming
    )
    found = check_demonstrations(rows, name, need=need, text_field=text_field)
    return training_columns(rows, found, text_field=text_field), found


def load_eval(data: Any, training: Any, need: str, text_field: str = "text") -> Any:
    """Held-out rows if the run evaluates, else None."""
    if str(getattr(training.eval_strategy, "value", training.eval_strategy)) == "no":
        return None
    if data.eval_dataset_name:
        return load_checked(data, need, text_field, "train", data.eval_dataset_name)[0]
    return load_checked(data, need, text_field, data.dataset_test_split)[0]


def load_tokenizer(name: str | None, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        UserError: no name given, or nothing that loads.
    """
    from transformers import AutoTokenizer

    if not name:
        raise UserError("no model: pass --model_name_or_path <folder or hub name>, or --scratch_config <yaml>")
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().exists():
        raise UserError(f"--model_name_or_path {name}: no such folder")
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"--model_name_or_path {name}: no tokenizer found ({str(error).splitlines()[0]})") from error


def lengths_line(tokenizer: Any, rows: Any, found: str, max_length: int | None, text_field: str = "text") -> str:
    """One line on rows longer than `max_length` (see `report_lengths`)."""
    pairs = list(_tokenised(tokenizer, rows, found, text_field))
    return report_lengths([ids for ids, _ in pairs], [prompt for _, prompt in pairs], max_length)


def _tokenised(tokenizer: Any, rows: Any, found: str, text_field: str) -> Iterator[tuple[Sequence[int], int]]:
    for start in range(0, len(rows), 1000):
        chunk = rows[start : start + 1000]
        if found == "prompt-completion":
            texts = [p + c for p, c in zip(chunk["prompt"], chunk["completion"], strict=True)]
            whole, prompts = tokenizer(texts)["input_ids"], tokenizer(chunk["prompt"])["input_ids"]
            yield from (([*ids, tokenizer.eos_token_id], len(p)) for ids, p in zip(whole, prompts, strict=True))
        elif found == "text":
            yield from (([*ids, tokenizer.eos_token_id], 0) for ids in tokenizer(chunk[text_field])["input_ids"])
        else:
            yield from _tokenised_chat(tokenizer, chunk)


def _tokenised_chat(tokenizer: Any, chunk: dict[str, list[Any]]) -> Iterator[tuple[Sequence[int], int]]:
    def ids(messages: Any, prompt: bool = False) -> list[int]:
        return list(
            tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=prompt)[
                "input_ids"
            ]
        )

    if "messages" in chunk:
        yield from ((ids(messages), 0) for messages in chunk["messages"])
    else:
        for prompt, completion in zip(chunk["prompt"], chunk["completion"], strict=True):
            yield ids(prompt + completion), len(ids(prompt, prompt=True))


def check_chat_template(tokenizer: Any, found: str, name: str) -> None:
    """Conversations need a chat template.

    Raises:
        UserError: there is none.
    """
    if (
        found in ("messages", "conversational-prompt-completion", "conversational-prompt")
        and not tokenizer.chat_template
    ):
        raise UserError(
            f"{name}: the data are conversations, but the tokenizer has no chat template; pass --chat_template_path"
        )


def quiet_libraries() -> None:
    """Drop warnings that concern how libraries call each other, not the user's run."""
    import warnings

    for text in (".*use_reentrant.*", ".*pin_memory.*", ".*lr_scheduler.step.*"):
        warnings.filterwarnings("ignore", message=text)
    if not sys.stderr.isatty():
        import datasets

        datasets.disable_progress_bars()
