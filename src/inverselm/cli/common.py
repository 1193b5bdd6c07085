"""What the training commands share: the output folder, the data, lengths, resuming, and how a run stops."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..inputs.data import (
    check_demonstrations,
    check_output_dir,
    has_splits,
    load_rows,
    report_lengths,
    training_columns,
)
from ..scorers.markers import BASELINE_FOLDER, MARKER, read_marker

_RESULTS = ("adapter_config.json", "adapter_model.safetensors", "model*.safetensors", "model.safetensors.index.json")


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


def check_run_folder(args: Any, overwrite: bool, reads: Sequence[str | None], multiple_of: int = 1) -> str | None:
    """Check the output folder, and find the checkpoint to resume from. Changes nothing.

    Args:
        args: the training arguments.
        overwrite: allow a folder that is not empty.
        reads: models that the run reads.
        multiple_of: resume only from checkpoints whose step divides by it.

    Raises:
        UserError: see `check_output_dir`; a model that the run reads lies in a folder to be overwritten; no complete
            checkpoint to resume from.
    """
    from ..training.checkpoints import last_complete_checkpoint

    resume = resume_flag(args.resume_from_checkpoint)
    check_output_dir(args.output_dir, overwrite=overwrite, resume=resume or False)
    folder = Path(args.output_dir).expanduser().resolve()
    for name in filter(None, reads):
        model = Path(name).expanduser()
        if not resume and model.is_dir() and (model.resolve() == folder or folder in model.resolve().parents):
            raise UserError(f"--output_dir {args.output_dir}: the run reads {name} in it; choose another")
    if resume is not True:
        return resume
    newest = last_complete_checkpoint(args.output_dir, multiple_of=multiple_of)
    if newest is None:
        raise UserError(f"--resume_from_checkpoint: no complete checkpoint in {args.output_dir}; start anew")
    return str(newest)


def clear_run_folder(args: Any, overwrite: bool) -> None:
    """With `overwrite`, remove what an earlier run left in the output folder; call it last before training."""
    from accelerate import PartialState

    state = PartialState()
    folder = Path(args.output_dir).expanduser()
    if overwrite and not resume_flag(args.resume_from_checkpoint) and state.is_main_process and folder.is_dir():
        kept = (f for f in folder.glob(f"{BASELINE_FOLDER}-*") if read_marker(f).get("role") == "baseline")
        for old in [*folder.glob("checkpoint-*"), folder / BASELINE_FOLDER, *kept]:
            if old.is_dir():
                shutil.rmtree(old)
        for pattern in (*_RESULTS, MARKER, "trainer_state.json"):
            for old in folder.glob(pattern):
                old.unlink()
    state.wait_for_everyone()


def load_checked(
    data: Any, need: str, text_field: str = "text", split: str | None = None, name: str = "", eos: str | None = None
) -> Any:
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
    found = check_demonstrations(rows, name, need=need, text_field=text_field, eos_token=eos)
    return training_columns(rows, found, text_field=text_field), found


def load_eval(data: Any, training: Any, need: str, text_field: str = "text", eos: str | None = None) -> Any:
    """Held-out rows if the run evaluates, else None.

    Raises:
        UserError: as `load_checked`, and if there are none: the training rows are not held out.
    """
    if str(getattr(training.eval_strategy, "value", training.eval_strategy)) == "no":
        return None
    if not data.eval_dataset_name and not has_splits(data.dataset_name):
        raise UserError(
            f"--eval_strategy: {data.dataset_name} has no held-out split; name other rows with --eval_dataset_name"
        )
    return load_checked(data, need, text_field, data.dataset_test_split, data.eval_dataset_name or "", eos)[0]


def lengths_line(tokenizer: Any, rows: Any, found: str, training: Any) -> str:
    """One line on rows longer than `max_length` (see `report_lengths`).

    Raises:
        UserError: no row would be left to train on.
    """
    pairs = list(_tokenised(tokenizer, rows, found, training.dataset_text_field))
    limit = training.max_length
    longer = sum(len(ids) > limit for ids, _ in pairs) if limit else 0
    if longer and (training.packing or training.truncation_mode == "keep_end"):
        fate = "the end of each is cut"
        if training.packing and training.packing_strategy != "bfd":
            fate = "each is split"
        elif not training.packing:
            fate = "the beginning of each is cut (truncation_mode=keep_end)"
        verb = "rows are" if longer > 1 else "row is"
        return f"{longer:,} of {len(pairs):,} {verb} longer than max_length={limit} tokens: {fate}; raise --max_length."
    return report_lengths([ids for ids, _ in pairs], [prompt for _, prompt in pairs], limit)


def _tokenised(tokenizer: Any, rows: Any, found: str, text_field: str) -> Iterator[tuple[Sequence[int], int]]:
    from tqdm.auto import tqdm

    with tqdm(total=len(rows), desc="Measuring rows", unit="row", disable=len(rows) < 20_000) as bar:
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
            bar.update(min(1000, len(rows) - start))


def _tokenised_chat(tokenizer: Any, chunk: dict[str, list[Any]]) -> Iterator[tuple[Sequence[int], int]]:
    def ids(messages: Any, prompt: bool = False) -> list[int]:
        encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=prompt)
        return list(encoded["input_ids"])

    if "messages" in chunk:
        yield from ((ids(messages), 0) for messages in chunk["messages"])
    else:
        for prompt, completion in zip(chunk["prompt"], chunk["completion"], strict=True):
            yield ids(prompt + completion), len(ids(prompt, prompt=True))


def check_chat_template(tokenizer: Any, found: str, name: str, hint: str = "use text, or a model with one") -> None:
    """Conversations need a chat template.

    Raises:
        UserError: there is none.
    """
    if (found.startswith("conversational") or found == "messages") and not tokenizer.chat_template:
        raise UserError(f"{name}: the rows are conversations, but the tokenizer has no chat template; {hint}")


def train(trainer: Any, resume: str | None) -> None:
    """Train; Ctrl-C says how to go on.

    Raises:
        KeyboardInterrupt: with a line for the user.
    """
    from transformers.utils.logging import disable_progress_bar

    from ..training.checkpoints import last_complete_checkpoint

    disable_progress_bar()  # of writing shards, which breaks the training bar
    try:
        trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt as error:
        newest = last_complete_checkpoint(trainer.args.output_dir)
        if newest is None:
            raise KeyboardInterrupt(
                "No checkpoint was written yet (see --save_steps): start anew with --overwrite_output_dir."
            ) from error
        raise KeyboardInterrupt(
            f"The same command with --resume_from_checkpoint True continues from {newest}."
        ) from error


def shell(*words: Any) -> str:
    """A command line to copy."""
    return "  inverselm " + " ".join(w if w.startswith("<") else shlex.quote(w) for w in map(str, words))


def quiet_libraries() -> None:
    """Drop warnings that concern how libraries call each other, not the user's run."""
    for text in (".*use_reentrant.*", ".*pin_memory.*", ".*lr_scheduler.step.*"):
        warnings.filterwarnings("ignore", message=text)
    logging.getLogger("transformers.tokenization_utils_base").addFilter(_not_of_length)
    if not sys.stderr.isatty():
        import datasets
        from transformers.utils.logging import disable_progress_bar

        datasets.disable_progress_bars()
        disable_progress_bar()


def _not_of_length(record: logging.LogRecord) -> bool:
    """No word of transformers on rows longer than the model's positions: the commands count, cut or refuse them."""
    return not str(record.msg).startswith("Token indices sequence length")
