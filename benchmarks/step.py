"""Whole optimiser steps of small Llama- and Qwen-shaped models: IQLearnTrainer beside TRL's SFTTrainer.

    trl      SFTTrainer, loss_type "nll" (its default)
    mle      IQLearnTrainer, td_coef 0: the same loss
    iqlearn  IQLearnTrainer, td_coef 0.1 from the first step

Every contestant trains its own copy of one model with AdamW, on the same tokenised rows, collator and batches. In each
repeat every one is given a short run of the trainer's own train(), in rotating order; a callback takes the time from
the beginning of each step to its end: forward, backward, clipping, optimiser. Start-up, logging and what lies between
steps are left out. The losses of trl and mle are checked to agree. Gradient checkpointing, which only makes the rest of
the model slower, is off unless asked for. Bars: iqlearn / trl <= 0.75, iqlearn / mle <= 1.03.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from common import Bar, Progress, environment, finish, interleaved, parse, parser, size, table

CONTESTANTS: dict[str, dict[str, Any]] = {"trl": {}, "mle": {"td_coef": 0.0}, "iqlearn": {"td_coef": 0.1}}
BARS = {"trl": 0.75, "mle": 1.03}
SHAPES = ("llama:512x32000", "qwen:256x151936:tied")
SPECIAL = 3  # ids below are the tokenizer's


@dataclass(frozen=True)
class Shape:
    """A model's family, sizes, and whether its output layer is its embedding."""

    family: str
    hidden: int
    vocab: int
    tied: bool

    @classmethod
    def parse(cls, text: str) -> Shape:
        """FAMILY:HIDDENxVOCAB, or FAMILY:HIDDENxVOCAB:tied."""
        family, *rest = text.split(":")
        if family not in ("llama", "qwen") or len(rest) not in (1, 2) or rest[1:] not in ([], ["tied"]):
            raise argparse.ArgumentTypeError(f"{text!r} is not llama:HxV or qwen:HxV, with :tied behind it or without")
        return cls(family, *size(rest[0]), bool(rest[1:]))

    def __str__(self) -> str:
        return f"{self.family}:{self.hidden}x{self.vocab}{':tied' if self.tied else ''}"

    def model(self, layers: int, length: int, seed: int = 0) -> Any:
        """Made from its config, random weights."""
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen": (Qwen3Config, Qwen3ForCausalLM),
        }[self.family]
        heads = max(2, self.hidden // 64)
        config = config_class(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            head_dim=self.hidden // heads,
            max_position_embeddings=max(length, 512),
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
        torch.manual_seed(seed)
        return model_class(config)


def arguments() -> argparse.Namespace:
    options = parser(__doc__, repeats=3, seconds=60, modes=("float32", "autocast"))
    add = options.add_argument
    add("--models", nargs="+", default=list(SHAPES), metavar="FAMILY:HxV[:tied]", help="llama or qwen")
    add("--layers", type=int, default=4, help="of each model")
    add("--rows", type=int, default=4, help="sequences of a batch")
    add("--length", type=int, default=256, help="tokens of each sequence")
    add("--prompt", nargs="+", type=float, default=[0.0], help="shares of each row that have no labels")
    add("--steps", type=int, default=2, help="of each short run")
    add("--gradient-checkpointing", action="store_true", help="as is TRL's default")
    args = parse(options)
    try:
        args.models = [Shape.parse(text) for text in args.models]
    except argparse.ArgumentTypeError as error:
        options.error(f"--models: {error}")
    if "bfloat16" in args.modes:
        options.error("--modes: weights in bfloat16 are not trained here; take float32 or autocast")
    return args


def tokenizer() -> Any:
    """EOS 0, padding 1. The rows are ids already; trainers want one nevertheless."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def dataset(shape: Shape, prompt: float, args: argparse.Namespace) -> Any:
    """The rows of a run's batches: random ids that end with EOS."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIAL, shape.vocab, (args.rows * args.steps, args.length), generator=generator)
    ids[:, -1] = 0
    labels = ids.clone()
    labels[:, : round(prompt * args.length)] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


class Runs:
    """One contestant: its trainer, to be run again and again."""

    def __init__(
        self, name: str, model: Any, rows: Any, mode: str, folder: str, args: argparse.Namespace, **options: Any
    ) -> None:
        from transformers import PrinterCallback
        from trl import SFTConfig, SFTTrainer

        from inverselm import IQLearnConfig, IQLearnTrainer

        trainer_class, config_class = (SFTTrainer, SFTConfig) if name == "trl" else (IQLearnTrainer, IQLearnConfig)
        if name != "trl":
            options |= {"mle_warmup_steps": 0, "td_anneal_steps": 0}
        config = config_class(
            folder,
            use_cpu=True,
            bf16=mode == "autocast",
            per_device_train_batch_size=args.rows,
            max_steps=args.steps,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            gradient_checkpointing=args.gradient_checkpointing,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **options,
        )
        self.clock = _clock()
        self.trainer = trainer_class(
            model, args=config, train_dataset=rows, processing_class=tokenizer(), callbacks=[self.clock]
        )
        self.trainer.remove_callback(PrinterCallback)

    def run(self, steps: int) -> list[float]:
        """Seconds of each step of one short run."""
        self.clock.seconds = []
        self.trainer.args.max_steps = steps
        self.trainer.train()
        return self.clock.seconds

    def first_loss(self) -> float:
        """Logged by the first step of the last run."""
        return next(entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry)


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Seconds from the beginning of each step to its end."""

        seconds: list[float]
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)

    return Clock()


def measure(shape: Shape, mode: str, prompt: float, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times of all contestants, and the first losses.

    Raises:
        RuntimeError: SFTTrainer and IQLearnTrainer without a temporal difference disagree.
    """
    model, rows = shape.model(args.layers, args.length), dataset(shape, prompt, args)
    contestants = {
        name: Runs(name, copy.deepcopy(model), rows, mode, folder, args, **options)
        for name, options in CONTESTANTS.items()
    }
    losses = {}
    for name, runs in contestants.items():  # the warm-up
        runs.run(1)
        losses[name] = runs.first_loss()
    if not math.isclose(losses["trl"], losses["mle"], rel_tol=1e-4 if mode == "float32" else 5e-3):
        raise RuntimeError(f"{shape}, {mode}: the same loss, and yet {losses}")
    short_runs = {name: partial(runs.run, args.steps) for name, runs in contestants.items()}
    times = interleaved(short_runs, repeats=args.repeats, seconds=args.seconds, own_clock=True)
    return {"times": times, "first_loss": losses}


def main() -> None:
    args, where = arguments(), environment()
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)
    plan = list(product(args.models, args.modes, args.prompt))
    work = lambda shape: shape.vocab * (shape.hidden + 400.0)
    progress = Progress("step", sum(work(shape) for shape, _, _ in plan))
    rows: list[dict[str, Any]] = []
    ratio_table, time_table, bars = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for shape, mode, prompt in plan:
            progress.at(f"{shape}, {mode}, prompt {prompt:g}", work(shape))
            found = measure(shape, mode, prompt, folder, args)
            times = found["times"]
            ratios = [Bar.of(f"iqlearn/{name}", times["iqlearn"], times[name], bar) for name, bar in BARS.items()]
            bars += ratios
            label = {"model": str(shape), "prompt": prompt, "mode": mode}
            ratio_table.append({**label, **{bar.name: bar for bar in ratios}})
            time_table.append({**label, **{f"{name}, s": t for name, t in times.items()}})
            rows.append(
                {
                    **label,
                    "layers": args.layers,
                    "tokens": args.rows * args.length,
                    "seconds": {name: t.as_dict() for name, t in times.items()},
                    "first_loss": found["first_loss"],
                    "bars": [bar.as_dict() for bar in ratios],
                }
            )
    tables = {
        "A step: ratios of medians (min..max, step by step), and their bars": table(ratio_table),
        "A step: medians (min..max)": table(time_table),
    }
    finish("step", args, where, tables, bars, rows=rows)


if __name__ == "__main__":
    main()
