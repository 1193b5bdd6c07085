"""The contestants of head.py: heads that turn hidden states, a weight and labels into a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from common import MODES, autocast
from torch import Tensor, nn
from torch.nn import functional as F

from inverselm.objectives import iqlearn, mle
from inverselm.token_mdp import HeadSpec, TokenBatch, head_loss

EOS = 2


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    hidden: int
    vocab: int
    prompt: float
    mode: str
    rows: int
    length: int
    device: str
    tile: int | None = None
    chunk_size: int | None = None

    @property
    def label(self) -> dict[str, Any]:
        return {"H": self.hidden, "V": self.vocab, "prompt": self.prompt, "mode": self.mode}

    def __str__(self) -> str:
        return f"{self.hidden}x{self.vocab} {self.mode}, prompt {self.prompt:g}"

    @property
    def operations(self) -> float:
        """Of the products that cross-entropy of the labelled tokens needs: 6 n H V."""
        labelled = self.length - max(1, round(self.prompt * self.length))
        return 6.0 * self.rows * labelled * self.hidden * self.vocab

    @property
    def work(self) -> float:
        """Of one repeat, roughly: products, and passes over the logits."""
        return self.rows * self.length * self.vocab * (self.hidden + 400.0)

    def inputs(self, rows: int | None = None) -> Inputs:
        """Made in place: a temporary would raise the memory mark before the call."""
        generator = torch.Generator(self.device).manual_seed(0)
        rows, dtype = rows or self.rows, MODES[self.mode][0]
        make = lambda *shape: torch.empty(*shape, dtype=dtype, device=self.device)
        hidden = make(rows, self.length, self.hidden).normal_(generator=generator)
        weight = make(self.vocab, self.hidden).normal_(std=0.05, generator=generator)
        ids = torch.randint(EOS + 1, self.vocab, (rows, self.length), generator=generator, device=self.device)
        ids[:, -1] = EOS
        labels = ids.clone()
        labels[:, : round(self.prompt * self.length)] = -100
        return Inputs(self, hidden.requires_grad_(), nn.Parameter(weight), ids, labels)


@dataclass(frozen=True)
class Inputs:
    """What every contestant gets."""

    case: Case
    hidden: Tensor
    weight: nn.Parameter
    ids: Tensor
    labels: Tensor

    def forget(self) -> None:
        """Free the gradients."""
        self.hidden.grad = self.weight.grad = None


# ---- contestants: each runs forward and backward, and returns its mean NLL -------------------------------------------
def soft_head(inputs: Inputs, objective: Callable[..., Any]) -> Tensor:
    case = inputs.case
    spec = HeadSpec(dtype=torch.float32 if case.mode == "float32" else torch.bfloat16)
    if case.tile:
        spec = replace(spec, tile=case.tile)
    with autocast(case.mode, case.device):
        batch = TokenBatch.from_labels(inputs.ids, inputs.labels, eos_token_ids=[EOS])
        (loss, metrics), _ = head_loss(
            inputs.hidden, inputs.weight, batch, objective, spec=spec, entropy="log", chunk_size=case.chunk_size
        )
    loss.backward()
    return metrics["nll"]


class Backbone(nn.Module):
    """A model that has its last hidden states already, for TRL to put its head on."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.config.get_text_config = lambda: self.config
        self.states = inputs.hidden
        self.head = nn.Linear(1, 1, bias=False, device="meta")
        self.head.weight = inputs.weight

    def base_model(self, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.states)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def trl(inputs: Inputs) -> Tensor:
    from trl.trainer.utils import add_fused_lm_head

    model = Backbone(inputs)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # SFTTrainer's choice, at its chunk size
    with autocast(inputs.case.mode, inputs.case.device):
        loss = model(labels=inputs.labels, fused_lm_head=True).loss
    loss.backward()
    return loss.detach()


def full(inputs: Inputs) -> Tensor:
    with autocast(inputs.case.mode, inputs.case.device):
        logits = F.linear(inputs.hidden[:, :-1], inputs.weight).float()
        loss = F.cross_entropy(logits.flatten(0, 1), inputs.labels[:, 1:].flatten(), ignore_index=-100)
    del logits
    loss.backward()
    return loss.detach()


def liger(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    with autocast(inputs.case.mode, inputs.case.device):
        rows, labels = inputs.hidden[:, :-1].flatten(0, 1), inputs.labels[:, 1:].flatten()
        loss = LigerFusedLinearCrossEntropyLoss()(inputs.weight, rows, labels)
    loss.backward()
    return loss.detach()


CONTESTANTS: dict[str, Callable[[Inputs], Tensor]] = {
    "iqlearn": partial(soft_head, objective=partial(iqlearn, td_coef=0.1)),
    "mle": partial(soft_head, objective=mle),
    "trl": trl,
    "full": full,
    "liger": liger,
}
