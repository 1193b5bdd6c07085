"""Run a trainer for a few steps on the processor, and compare runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from helpers.data import tiny_for

QUIET = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
}


def arguments(config: type, folder: str | Path, **options: Any) -> Any:
    """A quiet config on the processor: 3 steps of SGD, whose weights compare to float tolerance, unless told."""
    defaults = {"per_device_train_batch_size": 4, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05}
    return config(str(folder), **{**QUIET, **defaults, **options})


def make(trainer: type, args: Any, rows: Sequence[dict], tokenizer: Any, model: Any = None, **kwargs: Any) -> Any:
    """The trainer of a tiny llama (or of `model`) on the rows."""
    model = tiny_for(tokenizer) if model is None else model
    return trainer(model, args=args, train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer, **kwargs)


def steps(trainer: Any, key: str = "loss") -> list[dict[str, float]]:
    """What was logged at each step."""
    return [entry for entry in trainer.state.log_history if key in entry]


def assert_same_steps(
    a: Any, b: Any, keys: Sequence[str] = ("loss", "grad_norm"), rel: float = 1e-5, abs_tol: float = 1e-6
) -> None:
    """The same numbers were logged at every step."""
    left, right = steps(a), steps(b)
    assert len(left) == len(right) > 0
    for i, (x, y) in enumerate(zip(left, right, strict=True)):
        for key in keys:
            assert math.isclose(x[key], y[key], rel_tol=rel, abs_tol=abs_tol), (i, key, x[key], y[key])


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module, atol: float = 1e-6) -> None:
    """The two models hold the same weights."""
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def weights_moved(before: torch.nn.Module, after: torch.nn.Module) -> float:
    """Largest change of any weight."""
    old = dict(before.named_parameters())
    return max((p - old[n]).abs().max().item() for n, p in after.named_parameters() if n in old)
