"""The policy and its reward from checkpoints, sharing one base in memory where they are adapters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..scorers import FrozenLM, TokenReward, load_model
from ..scorers.frozen import adapter_base
from ..scorers.markers import find_baseline


def load_policy_and_reward(
    sft: str | Path,
    baseline: str | Path | Sequence[str | Path] | None = None,
    *,
    policy: str | Path | None = None,
    dtype: Any = "auto",
    device: Any = "cpu",
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[nn.Module, TokenReward]:
    """What DensePathTrainer needs, from the checkpoints of an SFT run.

    If they are adapters of one base, policy ("default", trainable), SFT model ("sft") and baselines are adapters on
    that one base in memory, and only the policy is saved. Otherwise each is a model of its own.

    Args:
        sft: folder of the SFT model.
        baseline: one or several earlier checkpoints; None finds the one kept in `sft`.
        policy: where the policy starts; None starts it at the SFT model.
        dtype: of loaded weights, as in transformers.
        device: where frozen models are put (the trainer places the policy).
        trust_remote_code: run a checkpoint's own Python code.
        options: of TokenReward.

    Raises:
        UserError: as TokenReward.from_checkpoints.
    """
    baselines = (
        [find_baseline(sft)] if baseline is None else [baseline] if isinstance(baseline, (str, Path)) else baseline
    )
    start = sft if policy is None else policy
    loading = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    folders = [start, sft, *baselines]
    bases = {adapter_base(folder) for folder in folders}
    if len(bases) > 1 or None in bases:
        trained = load_model(start, **loading)
        make_trainable(trained)
        reward = TokenReward.from_checkpoints(sft, list(baselines), device=device, **loading, **options)
        return trained, reward
    shared: Any = load_model(start, **loading)
    names = ["sft", *(f"sft_baseline{i or ''}" for i in range(len(baselines)))]
    for folder, name in zip([sft, *baselines], names, strict=True):
        shared.load_adapter(str(folder), adapter_name=name)
    shared.set_adapter("default")
    shared.save_pretrained = partial(shared.save_pretrained, selected_adapters=["default"])
    make_trainable(shared)
    frozen = [FrozenLM(shared, name, str(folder)) for name, folder in zip(names, [sft, *baselines], strict=True)]
    return shared, TokenReward.from_frozen(sft, baselines, frozen, trust_remote_code=trust_remote_code, **options)


def make_trainable(model: nn.Module) -> None:
    """All parameters of a full model; of a PeftModel those of its active adapter."""
    if not hasattr(model, "peft_config"):
        model.requires_grad_(True)
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default" in name)
