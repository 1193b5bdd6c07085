"""The training commands on encoder-decoder models: their flags, and how long their rows are."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from trl import SFTConfig

from ...errors import UserError
from ...training.seq2seq import Seq2SeqIQLearnConfig
from ...training.seq2seq_data import row_limits
from .losses import gem_temperature_flag, loss_type_flag, set_objective

_TD = ("td_coef", "gamma", "mle_warmup_steps", "td_anneal_steps", "entropy_coef")
_PEERS = ("objective", "gem_temperature")
_RARE = ("bf16", "logging_steps", "model_init_kwargs", "trust_remote_code", "dataset_num_proc", "pad_to_multiple_of")


@dataclass
class Seq2SeqFlags(Seq2SeqIQLearnConfig):
    """Seq2SeqIQLearnConfig with what the commands ask of SFTConfig beside it."""

    dataset_text_field: ClassVar[str] = "text"
    chat_template_path: ClassVar[None] = None
    packing: ClassVar[bool] = False
    objective: str = field(default="iqlearn", init=False)
    gem_temperature: float | None = field(default=None, init=False)


@dataclass
class Seq2SeqSFTFlags(Seq2SeqFlags):
    """The same for `inverselm sft`, which has no temporal difference."""

    td_coef: float = field(default=0.0, metadata={"help": "Of `inverselm iqlearn`."})
    loss_type: str = loss_type_flag()
    gem_temperature: float | None = gem_temperature_flag()

    def __post_init__(self) -> None:
        set_objective(self)
        super().__post_init__()
        if self.td_coef or self.entropy_coef:
            raise UserError("--td_coef and --entropy_coef are flags of `inverselm iqlearn`; leave them out of `sft`")


FLAGS = {"sft": Seq2SeqSFTFlags, "iqlearn": Seq2SeqFlags}
HIDDEN = {"sft": (*_TD, "objective", *_RARE), "iqlearn": (*_RARE, *_PEERS)}


def names_encoder_decoder(argv: Sequence[str]) -> bool:
    """Whether the flags, or their --config file, name an encoder-decoder model. What is wrong with them comes later."""
    from ...inputs.models import check_model

    given = _given(argv)
    name, remote = given.get("model_name_or_path"), str(given.get("trust_remote_code", False)).lower() == "true"
    try:
        return bool(name) and bool(check_model(str(name), trust_remote_code=remote).is_encoder_decoder)
    except UserError:
        return False


def check_flags(command: str, argv: Sequence[str]) -> None:
    """Flags of the command that only a decoder-only model has.

    Raises:
        UserError: there is one; says what to use in its place, if there is something.
    """
    known = {f.name for f in dataclasses.fields(FLAGS[command])}
    foreign = {f.name for f in dataclasses.fields(SFTConfig)} - known
    flags = [word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")]
    for name in [*flags, *_given(argv)]:
        if name in foreign:
            hint = "; set --max_source_length and --max_target_length" if name == "max_length" else "; leave it out"
            raise UserError(f"--{name}: means nothing to an encoder-decoder model{hint}")


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """What the --config file says, and --model_name_or_path and --trust_remote_code, which win over it."""
    import yaml

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _give_up  # type: ignore[method-assign]
    for name in ("model_name_or_path", "trust_remote_code"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", const="true")
    parser.add_argument("--config")
    try:
        flags = vars(parser.parse_known_args(list(argv))[0])
        path = flags.pop("config")
        content: Any = {}
        if path:
            with open(path, encoding="utf-8") as stream:
                content = yaml.safe_load(stream)
    except (UserError, OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    content = content if isinstance(content, dict) else {}
    return {**content, **{name: value for name, value in flags.items() if value is not None}}


def _give_up(message: str) -> NoReturn:
    raise UserError(message)


def check_rows(found: str, name: str) -> None:
    """An encoder-decoder needs to know where the answer begins.

    Raises:
        UserError: rows of messages, or of one text.
    """
    if found in ("messages", "text"):
        hint = "split 'text' into the two" if found == "text" else "all but the last message are the prompt"
        raise UserError(f"{name}: an encoder-decoder model needs the columns 'prompt' and 'completion'; {hint}")


def check_loading(model_args: Any) -> None:
    """What is not supported.

    Raises:
        UserError: a quantised model.
    """
    for flag in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, flag):
            raise UserError(f"--{flag}: not supported with an encoder-decoder model; leave it out")


def lengths_line(tokenizer: Any, rows: Iterable[dict[str, Any]], training: Any, config: Any) -> str:
    """One line on prompts and answers that are cut."""
    from ...scorers.seq2seq import encode_seq2seq_pair

    pairs = [encode_seq2seq_pair(tokenizer, row["prompt"], row["completion"]) for row in rows]
    source, target = row_limits(config, training)
    prompts, answers = ([len(ids) for ids in column] for column in zip(*pairs, strict=True))
    parts = []
    if cut := sum(source is not None and n > source for n in prompts):
        parts.append(
            f"{cut:,} of {len(pairs):,} prompts ({cut / len(pairs):.1%}) are longer than {source:,} tokens "
            "(--max_source_length): their end is cut."
        )
    if cut := sum(target is not None and n > target for n in answers):
        parts.append(
            f"{cut:,} of {len(pairs):,} answers ({cut / len(pairs):.1%}) are longer than {target:,} tokens "
            "(--max_target_length): they are cut, and treated as truncated (no EOS, value bootstrapped)."
        )
    longest = f"the longest prompt has {max(prompts):,} tokens, the longest answer {max(answers):,}"
    return " ".join(parts) or f"nothing of the {len(pairs):,} rows is cut: {longest}."
