"""A causal LM's own forward pass with the soft-Q head in the place of its output layer.

The model runs as it is, through whatever wraps it (DDP, FSDP2, PEFT, autocast, activation checkpointing, mixture-of-
experts losses). Only its output layer is stood in for: it hands over the hidden states and returns a few probe numbers.
What the model does to those afterwards (a cap, a scale) is read off the probes, so no model family is known by name.
Then the layer is called again, with the soft-Q head as its forward: its hooks see a normal call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .head import unwrap
from .tiles import HeadSpec

_PROBES = (2.0**-10, 1.0, 30.0, 1e6)
_SPECS: WeakKeyDictionary[nn.Module, HeadSpec | None] = WeakKeyDictionary()


class SoftHeadError(Exception):
    """This model's output layer is none that the soft-Q head can stand in for; the message says why."""


class Projection(NamedTuple):
    """What an output layer computes: logits = cap(scale (hidden weight^T + bias))."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    spec: HeadSpec


def output_layer(model: nn.Module) -> nn.Module:
    """The output layer of a (wrapped) causal LM.

    Raises:
        SoftHeadError: there is none, or it is of an unknown kind.
    """
    if isinstance(model, nn.DataParallel) or _is_compiled(model):
        raise SoftHeadError(f"it is wrapped by {type(model).__name__}")
    inner = cast(Any, unwrap(model))
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if layer is None:
        raise SoftHeadError("it names no output layer")
    if inner in _SPECS and _SPECS[inner] is None:
        raise SoftHeadError("it does more to its logits than to scale and cap them")
    if "forward" in vars(layer) or "forward" in vars(_parts(layer).linear):
        raise SoftHeadError("its output layer's forward was replaced")
    return cast(nn.Module, layer)


def run_with_head(
    model: nn.Module,
    compute: Callable[[Projection], tuple[Tensor, ...]],
    *,
    temperature: float = 1.0,
    float32: bool = False,
    **forward_kwargs: Any,
) -> tuple[Any, tuple[Tensor, ...]]:
    """Run `model` with `compute` as its head; returns its output, without logits, and the tensors `compute` returned.

    Args:
        model: a causal or encoder-decoder LM, wrapped or not.
        compute: from the last hidden states (B, S, H) and the layer that projects them to a tuple of tensors.
        temperature: of the policy softmax(Q / temperature).
        float32: products in float32, whatever autocast says; else in autocast's dtype or the weight's.
        forward_kwargs: of the model's forward.

    Raises:
        SoftHeadError: the output layer is of an unknown kind.
    """
    layer, inner = output_layer(model), unwrap(model)
    original = inner.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen: list[tuple[Tensor, torch.dtype | None]] = []

        def stand_in(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            device = hidden.device.type
            cast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            seen.append((hidden, cast_to))
            return torch.tensor(_PROBES, device=hidden.device).repeat(*hidden.shape[:-1], 1)

        with _forward_of(layer, stand_in):
            outputs = original(*args, **kwargs)
        spec = _spec_of(inner, outputs, seen)
        hidden, cast_to = seen[0]

        def project(hidden: Tensor) -> tuple[Tensor, ...]:
            hidden, weight, bias = _operands(layer, hidden)
            dtype = torch.promote_types(torch.float32, weight.dtype) if float32 else cast_to or weight.dtype
            projection = Projection(
                hidden, weight, bias, HeadSpec(spec.scale, spec.softcap, temperature, dtype, spec.tile)
            )
            return compute(projection)

        with _forward_of(layer, project):
            outputs.logits = layer(hidden)
        return outputs

    with _forward_of(inner, forward):
        outputs = model(**forward_kwargs)
    return outputs, outputs.logits


def _spec_of(inner: nn.Module, outputs: Any, seen: list[Any]) -> HeadSpec:
    if inner not in _SPECS:
        _SPECS[inner] = _read_probes(getattr(outputs, "logits", None)) if len(seen) == 1 else None
    spec = _SPECS[inner]
    if spec is None:
        raise SoftHeadError("it does more to its logits than to scale and cap them")
    return spec


def _read_probes(logits: Any) -> HeadSpec | None:
    """Scale and cap from what became of the probes; None if it was anything else."""
    if not isinstance(logits, Tensor) or logits.size(-1) != len(_PROBES) or logits.requires_grad:
        return None
    answers = logits.reshape(-1, len(_PROBES))[0].tolist()
    scale = answers[0] / _PROBES[0]
    if all(math.isclose(a, scale * p, rel_tol=1e-5) for a, p in zip(answers, _PROBES, strict=True)):
        return HeadSpec(scale=scale)
    cap = answers[-1]
    if not cap > 0.0:
        return None
    if all(
        math.isclose(a, cap * math.tanh(scale * p / cap), rel_tol=1e-4) for a, p in zip(answers, _PROBES, strict=True)
    ):
        return HeadSpec(scale=scale, softcap=cap)
    return None


def _is_compiled(model: nn.Module) -> bool:
    while True:
        if hasattr(model, "_orig_mod"):
            return True
        inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return False
        model = inner


class _Parts(NamedTuple):
    linear: nn.Linear
    adapters: list[tuple[nn.Module, nn.Module, nn.Module, float]]  # dropout, down, up, scaling


def _parts(layer: Any) -> _Parts:
    """A plain linear layer, as it is, or inside PEFT's wrappers: LoRA, or a copy that is trained whole.

    Raises:
        SoftHeadError: any other layer.
    """
    if hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
        active = [] if layer.disable_adapters else [a for a in layer.active_adapters if a in layer.modules_to_save]
        return _parts(layer.modules_to_save[active[0]] if active else layer.original_module)
    if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
        active = (
            [] if layer.disable_adapters or layer.merged else [a for a in layer.active_adapters if a in layer.lora_A]
        )
        if (layer.disable_adapters and layer.merged) or any(a in getattr(layer, "lora_variant", {}) for a in active):
            raise SoftHeadError("its output layer carries a LoRA variant")
        terms = [(layer.lora_dropout[a], layer.lora_A[a], layer.lora_B[a], layer.scaling[a]) for a in active]
        return _Parts(_parts(layer.base_layer).linear, terms)
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise SoftHeadError(f"its output layer is a {type(layer).__name__}")
    if type(layer.weight) not in (Tensor, nn.Parameter):
        raise SoftHeadError(f"its output weight is a {type(layer.weight).__name__}")
    return _Parts(layer, [])


def _operands(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """hidden, weight and bias whose product is the layer's; adapters as further columns."""
    linear, adapters = _parts(layer)
    weight, bias = linear.weight, linear.bias
    rows, columns = [hidden], [weight]
    for dropout, down, up, scaling in adapters:
        low = down(dropout(hidden.to(cast(Any, down).weight.dtype))) * scaling
        rows.append(low)
        columns.append(cast(Any, up).weight)
        extra = cast(Any, up).bias
        if extra is not None:
            bias = extra * scaling if bias is None else bias + extra * scaling
    if not adapters:
        return hidden, weight, bias
    dtype = torch.promote_types(weight.dtype, columns[1].dtype)
    return torch.cat([r.to(dtype) for r in rows], dim=-1), torch.cat([c.to(dtype) for c in columns], dim=1), bias


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward` in the place of the module's own, for a while."""
    attributes = vars(module)
    before = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before
