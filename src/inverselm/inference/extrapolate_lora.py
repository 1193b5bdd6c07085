"""Extrapolation between LoRA adapters of one base, exact in the product that is added to the base's weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from .extrapolate_full import combined

_PAIRS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}
_HARMLESS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
    *("bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying", "velora_config"),
}
"""Fields of LoraConfig under which an adapter adds scale * B A to a weight, and nothing else."""

_KEEPS_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base's weights alone; PiSSA and its like change them when they are loaded."""


def extrapolated_adapter(sft: Path, baseline: Path | None, weight: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of the adapter that adds (1 + w) s B A - w s' B' A' to each weight.

    A of the result is A over A', its B is (1 + w) s B beside -w s' B': one adapter of the summed ranks, with scale 1.
    What an adapter holds in full (biases, `modules_to_save`) is extrapolated as it is.

    Args:
        sft: folder of the SFT adapter.
        baseline: folder of the baseline, an adapter of the same base with the same modules; None for the base itself.
        weight: w.

    Raises:
        UserError: an adapter that is not plain LoRA, or two of different modules or shapes.
    """
    config, own = _read(sft)
    other_config, other = _read(baseline) if baseline is not None else (config, None)
    _check_match(sft, baseline, own, other)
    out: dict[str, Tensor] = {}
    for name, tensor in own.items():
        module, kind = _parts(name)
        if kind in _PAIRS:
            partner = name.replace(kind, _PAIRS[kind])
            a, b = tensor.float(), own[partner].float() * ((1 + weight) * _scale(config, module, tensor.size(0)))
            if other is not None:
                a = torch.cat([a, other[name].float()], dim=0)
                scale = -weight * _scale(other_config, module, other[name].size(0))
                b = torch.cat([b, other[partner].float() * scale], dim=1)
            out[name], out[partner] = a.to(tensor.dtype).contiguous(), b.to(own[partner].dtype).contiguous()
        elif kind not in _PAIRS.values():
            assert other is not None
            out[name] = combined(tensor, other[name], weight)
    return {name: out[name] for name in own}, _config(config, 1 if other is None else 2)


def _config(config: dict[str, Any], times: int) -> dict[str, Any]:
    """Ranks multiplied, and every scale 1."""
    ranks = {pattern: times * rank for pattern, rank in (config.get("rank_pattern") or {}).items()}
    changes = {"r": times * config["r"], "lora_alpha": times * config["r"], "rank_pattern": ranks}
    changes |= {"alpha_pattern": dict(ranks), "use_rslora": False, "init_lora_weights": True}
    return {**config, **changes}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    fix = "merge it into its base first (PEFT's merge_and_unload)"
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder}: is a {config.get('peft_type')} adapter, not LoRA; {fix}")
    odd = [name for name, value in config.items() if name not in _HARMLESS and value]
    if odd:
        raise UserError(f"{folder}: its {odd[0]} makes it more than plain LoRA; {fix}")
    start = config.get("init_lora_weights", True)
    if start not in _KEEPS_BASE:
        raise UserError(f"{folder}: init_lora_weights={start!r} changes the base's weights; {fix}")
    try:
        return config, load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: has no readable adapter_model.safetensors ({error})") from error


def _check_match(sft: Path, baseline: Path | None, own: dict[str, Tensor], other: dict[str, Tensor] | None) -> None:
    if other is None:
        full = [name for name in own if _parts(name)[1] not in (*_PAIRS, *_PAIRS.values())]
        if full:
            raise UserError(f"{sft}: holds {full[0]} in full; merge it into its base first (PEFT's merge_and_unload)")
        return
    differing = sorted(set(own) ^ set(other)) or [n for n in own if own[n].shape != other[n].shape]
    if differing:
        raise UserError(f"{sft} and {baseline} differ in {differing[0]}; use adapters of one run")


def _parts(name: str) -> tuple[str, str]:
    """'base_model.model.layers.0.q_proj.lora_A.weight' -> ('layers.0.q_proj', 'lora_A')."""
    parts = name.removeprefix("base_model.model.").split(".")
    for kind in (*_PAIRS, *_PAIRS.values()):
        if kind in parts:
            return ".".join(parts[: parts.index(kind)]), kind
    return ".".join(parts), ""


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies B A with: alpha / r, or alpha / sqrt(r)."""
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
