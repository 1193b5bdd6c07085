"""Self-play, whole: sample from the last iterate, train against the samples, and again; SPIN and GSIL."""

from __future__ import annotations

import copy
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerState
from transformers.utils import logging

from ..errors import UserError
from ..scorers import load_model
from ..scorers.checks import check_tokenizer_has_eos
from ..scorers.frozen import is_encoder_decoder
from ..scorers.markers import MARKER, read_marker, write_marker
from .checkpoints import last_complete_checkpoint
from .loading import make_trainable
from .self_play_config import SelfPlayConfig
from .self_play_rollouts import Demonstration, encode_demonstrations, fingerprint, sample_answers
from .self_play_trainer import SelfPlayTrainer

logger = logging.get_logger(__name__)

RUN = "self_play.json"
ROLE = "selfplay"
_SETTINGS = (
    *("loss_type", "beta", "gsil_scale", "gsil_offset", "seed", "max_length", "max_completion_length"),
    "generation_batch_size",
)
"""What must be the same when a run goes on; `iterations` may be raised."""


def self_play(
    model: Any,
    train_dataset: Iterable[dict[str, Any]],
    args: SelfPlayConfig | None = None,
    *,
    eval_dataset: Iterable[dict[str, Any]] | None = None,
    processing_class: Any = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """SPIN (arXiv 2401.01335) or GSIL (arXiv 2410.10093): several iterations, each against the last iterate's answers.

    Iteration k samples one answer to each demonstration's prompt from the model of iteration k - 1, at temperature 1,
    into `iteration_k/generated.jsonl`, and trains from that model, with it as the reference and a new optimiser. Each
    iteration's folder is a model folder; the last one's model is also in `output_dir` itself.

    With `args.resume_from_checkpoint` a run goes on where it stopped, in the middle of sampling or of training (from
    the newest checkpoint) too, and ends as if it had not been stopped. Raise `iterations` to go on after the end.

    Args:
        model: the SFT model: a folder, a hub name, or a model, which the first iteration then trains in place.
        train_dataset: demonstrations: `prompt` and `completion` (texts or messages), or `messages`.
        args: options.
        eval_dataset: held-out demonstrations, for `eval_strategy`; the iterates answer them too.
        processing_class: the tokenizer; default: the model's.
        peft_config: train an adapter; not with a model that is one already, whose own adapter is trained.
        callbacks: of every iteration's Trainer.
        say: called with a line of text for each stage.

    Returns:
        `args.output_dir`, a folder that every loader and command takes for a model.

    Raises:
        UserError: an encoder-decoder; rows that cannot be used; a folder that holds another run, or settings or data
            that differ from those of the run to go on with.

    Example:
        >>> args = SelfPlayConfig("runs/spin", loss_type="spin", iterations=3, max_completion_length=128)
        >>> folder = self_play("runs/sft", demonstrations, args)
        >>> policy = AutoModelForCausalLM.from_pretrained(folder)
    """
    args = SelfPlayConfig("self-play") if args is None else args
    if not isinstance(args, SelfPlayConfig):
        raise UserError(f"self_play needs a SelfPlayConfig, not {type(args).__name__}.")
    folder = Path(args.output_dir)
    resume = str(args.resume_from_checkpoint).lower() not in ("none", "false", "")
    if not resume and (folder / RUN).exists():
        raise UserError(f"{folder} holds a run of self-play; resume it, remove it, or choose another output_dir.")
    tokenizer = _tokenizer(model, args) if processing_class is None else processing_class
    check_tokenizer_has_eos(tokenizer, str(folder))
    args = _with_positions(copy.copy(args), model)
    lengths = {"max_length": args.max_length, "max_completion_length": args.max_completion_length}
    rows = encode_demonstrations(train_dataset, tokenizer, **lengths)
    held_out = None if eval_dataset is None else encode_demonstrations(eval_dataset, tokenizer, **lengths)
    run = _Run(args, folder, tokenizer, rows, held_out, peft_config, list(callbacks or ()), say or logger.info)
    run.check_settings(model if isinstance(model, (str, Path)) else None)
    for number in range(1, args.iterations + 1):
        start = model if number == 1 else run.iteration(number - 1)
        if read_marker(run.iteration(number)).get("role") != ROLE:
            run.play(number, start)
    run.finish()
    PartialState().wait_for_everyone()
    return folder


def can_resume(folder: str | Path) -> bool:
    """Whether `folder` holds a run of self-play that has begun."""
    return (Path(folder) / RUN).is_file()


@dataclass
class _Run:
    """What all iterations share."""

    args: SelfPlayConfig
    folder: Path
    tokenizer: Any
    rows: list[Demonstration]
    held_out: list[Demonstration] | None
    peft_config: Any
    callbacks: list[Any]
    say: Callable[[str], None]

    def iteration(self, number: int) -> Path:
        return self.folder / f"iteration_{number}"

    @property
    def is_main(self) -> bool:
        return bool(self.args.process_index == 0)

    def check_settings(self, model: str | Path | None) -> None:
        """Keep the run's settings, or compare with those kept."""
        settings = {name: getattr(self.args, name) for name in _SETTINGS} | {"data": fingerprint(self.rows)}
        settings |= {"model": str(model)} if model is not None else {}
        path = self.folder / RUN
        PartialState().wait_for_everyone()  # all have seen whether there is a run already
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            for name, value in settings.items():
                if kept.get(name, value) != value:
                    raise UserError(
                        f"{self.folder} holds a run with {name} {kept[name]!r}, not {value!r}: go on with the same "
                        "settings, or start anew in another output_dir."
                    )
        elif self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)

    def play(self, number: int, start: Any) -> None:
        """One iteration: load, sample, train, save."""
        folder = self.iteration(number)
        title = f"Iteration {number} of {self.args.iterations}"
        args = copy.copy(self.args)
        args.output_dir, args.seed = str(folder), self.args.seed + 1_000_003 * (number - 1)
        args.resume_from_checkpoint = None  # which checkpoint is this iteration's own affair
        model = _load(start, args)
        args.model_init_kwargs = None  # they were for loading
        answers = self._answers(model, self.rows, folder / "generated.jsonl", args, f"{title}: sampling")
        lengths = [len(a["token_ids"]) for a in answers]
        length, cut = sum(lengths) / len(lengths), 1 - sum(a["finished"] for a in answers) / len(answers)
        self.say(f"{title}: {len(answers):,} own answers, {length:.1f} tokens on average, {cut:.1%} truncated.")
        held_out = None
        if self.held_out is not None:
            file = folder / "generated_eval.jsonl"
            held_out = self._answers(model, self.held_out, file, args, f"{title}: sampling, held out")
            held_out = _pairs(self.held_out, held_out)
        trainer = SelfPlayTrainer(
            model,
            args,
            _pairs(self.rows, answers),
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            peft_config=None if hasattr(model, "peft_config") else self.peft_config,
            callbacks=list(self.callbacks),
        )
        _train(trainer, last_complete_checkpoint(folder))
        trainer.save_model(str(folder))
        trainer.save_state()
        if trainer.accelerator.is_main_process:
            (folder / "training_args.bin").unlink(missing_ok=True)  # pickled, and of no use to a model folder
            facts = {"iteration": number, "steps": trainer.state.global_step, **self.facts()}
            write_marker(folder, ROLE, **facts, generated_length=length, generated_truncated=cut)
        trainer.accelerator.wait_for_everyone()
        del trainer, model
        gc.collect()  # trainers refer to themselves: their model and optimiser would stay beside the next ones
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answers(self, model: Any, rows: Any, file: Path, args: SelfPlayConfig, label: str) -> list[dict[str, Any]]:
        return sample_answers(
            model.to(args.device),
            self.tokenizer,
            rows,
            file,
            max_completion_length=args.max_completion_length,
            batch_size=args.generation_batch_size,
            seed=args.seed + (500_009 if "eval" in file.name else 0),
            label=label,
        )

    def facts(self) -> dict[str, Any]:
        """Of the method, for the marker."""
        args = self.args
        own = {"beta": args.beta}
        if args.loss_type != "spin":
            own = {"gsil_scale": args.gsil_scale, "gsil_offset": args.gsil_offset}
        return {"loss_type": args.loss_type, **own}

    def finish(self) -> None:
        """The last iteration's model, in the run's folder."""
        last = self.iteration(self.args.iterations)
        if not self.is_main or read_marker(self.folder).get("iterations") == self.args.iterations:
            return
        skipped = (MARKER, "generated.jsonl", "generated_eval.jsonl")
        for file in sorted(last.iterdir()):
            if file.is_file() and file.name not in skipped:
                temporary = self.folder / f".{file.name}.tmp"
                shutil.copyfile(file, temporary)
                os.replace(temporary, self.folder / file.name)
        kept = read_marker(last)
        facts = {name: kept[name] for name in ("steps", "generated_length", "generated_truncated") if name in kept}
        write_marker(self.folder, ROLE, iterations=self.args.iterations, **self.facts(), **facts)


def _train(trainer: SelfPlayTrainer, checkpoint: Path | None) -> None:
    """Train to the end; a checkpoint at the end is only read (the Trainer would make one step more from it)."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if 0 < state.max_steps <= state.global_step:
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _pairs(rows: Sequence[Demonstration], answers: Sequence[dict[str, Any]]) -> Any:
    """Rows of token ids for the trainer."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [one.prompt_ids for one in rows],
            "chosen_ids": [one.answer_ids for one in rows],
            "rejected_ids": [answer["token_ids"] for answer in answers],
        }
    )


def _load(start: Any, args: SelfPlayConfig) -> Any:
    """The iteration's start, trainable; a model is taken as it is."""
    if not isinstance(start, (str, Path)):
        return start
    options = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    model = load_model(start, dtype=options.get("dtype") or "auto", trust_remote_code=args.trust_remote_code)
    make_trainable(model)
    return model


def _tokenizer(model: Any, args: SelfPlayConfig) -> Any:
    from transformers import AutoTokenizer

    name = str(model) if isinstance(model, (str, Path)) else getattr(model.config, "_name_or_path", "")
    if not name:
        raise UserError("The model has no name to find its tokenizer by: pass processing_class.")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)


def _with_positions(args: SelfPlayConfig, model: Any) -> SelfPlayConfig:
    """`max_length` no longer than the model has positions."""
    from transformers import AutoConfig

    from ..scorers.frozen import adapter_base

    config = getattr(model, "config", None)
    if config is None:
        name = adapter_base(model) or str(model)
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(f"Could not load a model from {name}: {str(error).splitlines()[0]}") from error
    if is_encoder_decoder(model) or getattr(config, "is_encoder_decoder", False):
        raise UserError("Self-play does not train encoder-decoder models.")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        args.max_length = min(positions, args.max_length or positions)
    return args
