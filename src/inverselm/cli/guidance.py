"""Guided decoding on the command line: which baseline a model is guided by, and how both are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..inputs.models import check_reward_models

if TYPE_CHECKING:
    from ..scorers import FrozenLM


def check_guidance(name: str, guided_by: str | None, trust_remote_code: bool = False) -> str:
    """The baseline that decoding is to go away from.

    Args:
        name: the model's folder or hub name, checked already by `check_model`.
        guided_by: what `--guided_by` names; None finds the baseline in the model's folder.
        trust_remote_code: run a checkpoint's own Python code.

    Raises:
        UserError: no baseline, several, or one that does not fit.
    """
    names = check_reward_models(name, guided_by, trust_remote_code, "--guided_by")
    if len(names) > 1:
        raise UserError(f"--guided_by {guided_by}: guided decoding takes one baseline")
    return names[0]


def load_guided(
    name: str, baseline: str | None, *, device: str, dtype: str, trust_remote_code: bool
) -> tuple[Any, FrozenLM | None]:
    """The model and its baseline (None without one), which share their base if both are adapters of it."""
    from ..scorers import load_adapters, load_model
    from ..scorers.frozen import FrozenLM, adapter_base

    loading: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    names = [name] if baseline is None else [name, baseline]
    bases = {adapter_base(each) for each in names}
    if len(names) == 2 and len(bases) == 1 and None not in bases:
        model, other = load_adapters(names, device=device, **loading)
        return model.model, other
    model, *others = (load_model(each, **loading).to(device) for each in names)
    return model, FrozenLM(others[0]) if others else None
