"""Frozen language models: whole models, or adapters that share one base in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..token_mdp import (
    Projection,
    SoftHeadError,
    TokenBatch,
    TokenStats,
    head_kl,
    head_stats,
    project,
    state_kl,
    stats_from_logits,
    token_logits,
)
from ..token_mdp.of_models import fall_back
from .prefix import CannotShareError, PrefixedBatch

ACTIVE = "<active>"
"""As an adapter: whatever is active in the model."""


@dataclass(frozen=True)
class FrozenLM:
    """A language model that is only read: in evaluation mode, without gradients, one adapter (or none) of it active.

    Attributes:
        model: the (causal or encoder-decoder) LM, or the PeftModel that holds the adapter.
        adapter: adapter name; None for the base with adapters off; `ACTIVE` for the model as it stands.
        name: for messages.
    """

    model: nn.Module
    adapter: Any = ACTIVE
    name: str = "model"

    def read(self, batch: TokenBatch) -> FrozenOutputs:
        """Run the model on a batch.

        Raises:
            CannotShareError: a batch with shared prompts, and a model that cannot continue one prompt in several ways.
        """
        with torch.no_grad(), _evaluating(self.model), _with_adapter(self.model, self.adapter):
            try:
                if isinstance(batch, PrefixedBatch) and batch.prefixes is not None:
                    return FrozenOutputs(batch, batch.prefixes.project(self.model, batch))
                return FrozenOutputs(batch, project(self.model, batch))
            except SoftHeadError as reason:
                if isinstance(batch, PrefixedBatch):
                    raise CannotShareError from reason
                fall_back(reason)
                outputs, first = token_logits(self.model, batch)
                return FrozenOutputs(batch, None, outputs.logits, first)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class FrozenOutputs:
    """What a frozen model says of a batch: hidden states with their output layer, or (of unusual layers) logits."""

    batch: TokenBatch
    projection: Projection | None
    logits: Tensor | None = None
    first_column: int = 0

    def stats(self, *, entropy: bool = False) -> TokenStats:
        """TokenStats of the batch, without gradient."""
        with torch.no_grad():
            if self.projection is None:
                return stats_from_logits(
                    self.logits, self.batch, first_column=self.first_column, entropy=entropy, greedy=True
                )
            hidden, weight, bias, spec = self.projection
            return head_stats(hidden, weight, self.batch, bias=bias, spec=spec, entropy=entropy)

    def kl(self, other: FrozenOutputs) -> Tensor:
        """KL(self || other) at the state of every action, (B, T), nats."""
        if self.projection is not None and other.projection is not None:
            hidden, weight, bias, spec = self.projection
            other_hidden, other_weight, other_bias, other_spec = other.projection
            return head_kl(
                hidden,
                weight,
                other_hidden,
                other_weight,
                self.batch,
                bias=bias,
                spec=spec,
                other_bias=other_bias,
                other_spec=other_spec,
            )
        first = max(self.first_column, other.first_column)
        return state_kl(self._logits(first), other._logits(first), self.batch, first_column=first)

    def _logits(self, first: int) -> Tensor:
        if self.projection is None:
            return self.logits[:, first - self.first_column :]
        hidden, weight, bias, spec = self.projection
        logits = nn.functional.linear(hidden[:, first:].float(), weight.float(), None if bias is None else bias.float())
        logits = logits * spec.scale
        return spec.softcap * torch.tanh(logits / spec.softcap) if spec.softcap else logits


def load_frozen(
    source: Any, *, name: str, device: Any = None, dtype: Any = "auto", trust_remote_code: bool = False
) -> FrozenLM:
    """A FrozenLM from a folder or hub name (full model or adapter), a model, a (model, adapter) pair or a FrozenLM."""
    if isinstance(source, FrozenLM):
        return source
    if isinstance(source, tuple):
        return FrozenLM(source[0], source[1], name)
    if isinstance(source, nn.Module):
        return FrozenLM(source, ACTIVE, name)
    model = load_model(source, dtype=dtype, trust_remote_code=trust_remote_code)
    model.requires_grad_(False)
    return FrozenLM(model if device is None else model.to(device), ACTIVE, name)


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model reads prompts by an encoder of its own."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def load_model(source: Any, *, dtype: Any = "auto", trust_remote_code: bool = False) -> nn.Module:
    """A causal or encoder-decoder LM from a folder or hub name; an adapter comes on its base. safetensors only.

    Raises:
        UserError: nothing there that loads.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    base = adapter_base(source)
    kwargs: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    name = str(source) if base is None else base
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(name, **kwargs)
        if base is None:
            return model
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(source))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Could not load a model from {source}: {reason}") from error


def adapter_base(source: Any) -> str | None:
    """The base model that an adapter folder names; None if `source` is not a local adapter folder.

    Raises:
        UserError: the folder's adapter_config.json names no base.
    """
    path = Path(str(source)) / "adapter_config.json"
    if not path.is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{path} names no base model: set base_model_name_or_path to the model it was trained on.")
    return str(base)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _with_adapter(model: Any, adapter: Any) -> Iterator[None]:
    if adapter == ACTIVE:
        yield
        return
    # switching adapters makes PEFT set requires_grad: on for the active one, off for the others
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    previous = model.active_adapter
    try:
        if adapter is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(adapter)
            yield
    finally:
        model.set_adapter(previous)
        for parameter, flag in trainable:
            parameter.requires_grad_(flag)
