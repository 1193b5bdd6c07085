"""A causal LM's own forward pass with the soft-Q head in the place of its output layer.

The model runs as it is, through whatever wraps it (DDP, FSDP2, PEFT, autocast, activation checkpointing, mixture-of-
experts losses). Only its output layer is stood in for: it hands over the hidden states and returns a few rows of probe
numbers. What the model does to those afterwards (a cap, a scale) is read off them in each call, so no model family is
known by name; a model that does anything else is told apart. Then the layer is called, with the soft-Q head as its
forward: its hooks see a normal call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .head import unwrap
from .instead import Switch, instead
from .probes import probe_rows, read_probes
from .tiles import HeadSpec

_UNFIT: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_SHARDING = ("torch.distributed.", "deepspeed.")  # their hooks take whatever a layer returns


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
    _check_wrappers(model)
    inner = cast(Any, unwrap(model))
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if layer is None:
        raise SoftHeadError("it names no output layer")
    if inner in _UNFIT:
        raise SoftHeadError(_UNFIT[inner])
    parts = _parts(layer)
    inside = [part for part in parts.modules() if part is not layer]
    if any(_is_replaced(part) for part in (layer, *inside)):
        raise SoftHeadError("its output layer's forward was replaced")
    if _hooks(layer, "_backward") or any(_hooks(part, "_forward", "_backward") for part in inside):
        raise SoftHeadError("its output layer carries hooks that would not run")
    if any(not str(hook.__module__).startswith(_SHARDING) for hook in layer._forward_hooks.values()):
        raise SoftHeadError("its output layer carries hooks that expect logits")
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
        SoftHeadError: the output layer is of an unknown kind, or the model does more with it than scale and cap.
    """
    layer, inner = output_layer(model), unwrap(model)
    if forward_kwargs.get("labels") is not None:
        raise SoftHeadError("labels ask it for a loss of its own")
    computed: list[tuple[Tensor, ...]] = []
    refused: list[str] = []

    def soft(*args: Any, **kwargs: Any) -> Any:
        call, outputs = _probed(inner, layer, own, args, kwargs)

        def project(hidden: Tensor, *more: Any, **named: Any) -> tuple[Tensor, ...]:
            if more or named:
                raise SoftHeadError("its output layer is called in a way of its own")
            hidden, weight, bias = _operands(layer, hidden)
            if type(weight) not in (Tensor, nn.Parameter):
                raise _unfit(inner, f"its output weight is a {type(weight).__name__}")
            dtype = call.cast_to if call.cast_to and weight.dtype != torch.float64 else weight.dtype
            dtype = torch.promote_types(torch.float32, weight.dtype) if float32 else dtype
            spec = replace(call.spec, temperature=temperature, dtype=dtype)
            computed.append(compute(Projection(hidden, weight, bias, spec)))
            return computed[-1]

        with instead(layer, "forward", project):
            result = layer(call.hidden)
        outputs.logits = _uncast(result, *computed)
        return outputs

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return soft(*args, **kwargs)
        except SoftHeadError as reason:  # told below: PEFT and FSDP2 would not clean up behind an exception
            refused.append(str(reason))
        return own(*args, **kwargs)

    try:
        with instead(inner, "forward", forward) as own:
            outputs = model(**forward_kwargs)
    except Exception as error:
        if refused or not computed or isinstance(error, torch.OutOfMemoryError):
            raise
        raise SoftHeadError(f"what is around it raises a {type(error).__name__} without logits") from error
    if refused:
        raise SoftHeadError(refused[0])
    return outputs, _uncast(getattr(outputs, "logits", None), *computed)


def _unfit(inner: nn.Module, reason: str) -> SoftHeadError:
    """Remember that this model needs the dense reference, so that it need not be run to find out again."""
    _UNFIT[inner] = reason
    return SoftHeadError(reason)


def _uncast(found: Any, *computed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What wrappers and hooks made of the numbers (DDP's see the gradients pass); but FSDP2's casts are undone."""
    if not computed or not isinstance(found, tuple) or len(found) != len(computed[0]):
        raise SoftHeadError("something around it makes its own use of it or of its logits")
    return tuple(f if f.dtype == c.dtype else c for f, c in zip(found, computed[0], strict=True))


class _Call(NamedTuple):
    """What was seen of the call of an output layer; `spec` is what the model did to its result."""

    hidden: Tensor
    cast_to: torch.dtype | None
    probes: Tensor
    spec: HeadSpec = HeadSpec()


def _probed(inner: nn.Module, layer: nn.Module, own: Callable[..., Any], args: Any, kwargs: Any) -> tuple[_Call, Any]:
    """Run the model's own forward with probes for logits.

    Raises:
        SoftHeadError: the model does something to them that is neither a scale nor a cap.
    """
    grad, weight = torch.is_grad_enabled(), _parts(layer).linear.weight
    vocab = getattr(weight, "ds_shape", weight.shape)[0]  # DeepSpeed gathers weights in the real call only
    seen: list[_Call] = []
    strange: list[str] = []

    def stand_in(hidden: Tensor, *more: Any, **named: Any) -> Tensor:
        if more or named:
            strange.append("its output layer is called in a way of its own")
        device = hidden.device
        cast_to = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        probes = probe_rows(vocab, torch.promote_types(torch.float32, weight.dtype), device)
        probes = probes.expand(*[1] * (hidden.dim() - 2), *probes.shape).requires_grad_(grad)
        seen.append(_Call(hidden, cast_to, probes))
        return probes.clone()

    try:
        with instead(layer, "_call_impl", stand_in, once=False):  # its hooks are to see the real call only
            outputs = own(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if not seen:
            raise
        raise _unfit(inner, f"it raises a {type(error).__name__} on probes in the place of logits") from error
    if strange:
        raise SoftHeadError(strange[0])
    if len(seen) != 1:
        raise _unfit(inner, f"it calls its output layer {len(seen)} times")
    spec = read_probes(getattr(outputs, "logits", None), seen[0].probes)
    if spec is None:
        raise _unfit(inner, "it does more to its logits than to scale and cap them")
    return seen[0]._replace(spec=spec), outputs


def _check_wrappers(model: nn.Module) -> None:
    """Refuse wrappers whose call is not the model's own forward as it stands.

    Raises:
        SoftHeadError: torch.compile, or DataParallel.
    """
    while True:
        if isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):
            raise SoftHeadError(f"it is wrapped by {type(model).__name__}")
        if model._compiled_call_impl is not None:
            raise SoftHeadError("it is compiled")
        inner = getattr(model, "module", None)
        if isinstance(inner, nn.Module):
            model = inner
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = cast(Any, model).get_base_model()
        else:
            return


class _Adapter(NamedTuple):
    """What LoRA adds to a layer: scaling * up(down(dropout(x)))."""

    dropout: nn.Module
    down: nn.Linear
    up: nn.Linear
    scaling: float


class _Parts(NamedTuple):
    linear: nn.Linear
    adapters: list[_Adapter]

    def modules(self) -> list[nn.Module]:
        return [self.linear, *(part for adapter in self.adapters for part in adapter[:3])]


def _parts(layer: Any) -> _Parts:
    """A plain linear layer, as it is, or inside PEFT's wrappers: LoRA, or a copy that is trained whole.

    Raises:
        SoftHeadError: any other layer.
    """
    if hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
        names, copies = layer.active_adapters, layer.modules_to_save
        off = layer.disable_adapters or not names or any(name not in copies for name in names)
        return _parts(layer.original_module if off else copies[names[0]])
    if _runs(layer, "peft.tuners.lora.layer", "Linear.forward"):
        if layer.disable_adapters and layer.merged:
            raise SoftHeadError("its output layer carries merged adapters that are disabled")
        off = layer.disable_adapters or layer.merged
        active = [] if off else [name for name in layer.active_adapters if name in layer.lora_A]
        if any(name in layer.lora_variant for name in active):
            raise SoftHeadError("its output layer carries a LoRA variant")
        adapters = [
            _Adapter(layer.lora_dropout[name], layer.lora_A[name], layer.lora_B[name], layer.scaling[name])
            for name in active
        ]
        if not all(_is_linear(part) for adapter in adapters for part in adapter[1:3]):
            raise SoftHeadError("its output layer carries a LoRA variant")
        return _Parts(_parts(layer.base_layer).linear, adapters)
    if not _is_linear(layer):
        raise SoftHeadError(f"its output layer is a {type(layer).__name__}")
    return _Parts(layer, [])


def _runs(layer: Any, module: str, name: str) -> bool:
    """Whether its class (or the one that FSDP2 derived it from) has this forward."""
    forward = type(layer).forward
    return getattr(forward, "__module__", None) == module and getattr(forward, "__qualname__", None) == name


def _is_linear(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward


def _is_replaced(module: nn.Module) -> bool:
    attributes = vars(module)
    replaced = any(
        name in attributes and not isinstance(attributes[name], Switch) for name in ("forward", "_call_impl")
    )
    return replaced or module._compiled_call_impl is not None


def _hooks(module: nn.Module, *kinds: str) -> bool:
    return any(getattr(module, f"{kind}{when}hooks", None) for kind in kinds for when in ("_", "_pre_"))


def _operands(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """hidden, weight and bias whose product is the layer's; adapters as further columns."""
    linear, adapters = _parts(layer)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if not adapters:
        return hidden, weight, bias
    rows, columns = [hidden], [weight]
    for dropout, down, up, scaling in adapters:
        rows.append(down(dropout(hidden.to(down.weight.dtype))) * scaling)
        columns.append(up.weight)
        if up.bias is not None:
            bias = up.bias * scaling if bias is None else bias + up.bias * scaling
    dtype = torch.promote_types(weight.dtype, columns[1].dtype)
    return torch.cat([r.to(dtype) for r in rows], dim=-1), torch.cat([c.to(dtype) for c in columns], dim=1), bias
