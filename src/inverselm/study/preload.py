"""What every stage needs, imported once in the server that their processes are forked from."""

import datasets
import peft
import torch
import transformers
import trl

from ..cli.evaluation import evaluate
from ..cli.training import dpr, finetune, gail, selfplay
from ..evaluation import sampling, sweep

__all__ = [
    "datasets",
    "dpr",
    "evaluate",
    "finetune",
    "gail",
    "peft",
    "sampling",
    "selfplay",
    "sweep",
    "torch",
    "transformers",
    "trl",
]
