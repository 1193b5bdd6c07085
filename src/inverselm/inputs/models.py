"""Are the checkpoints there, whole, and fit for each other? Checked before any weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError


def check_model(name: str | None, flag: str = "--model_name_or_path", trust_remote_code: bool = False) -> Any:
    """The configuration of a model (an adapter's base), after a look at its files; no weights are loaded.

    A local folder needs a readable config.json (or adapter_config.json and its base) and undamaged safetensors files.

    Raises:
        UserError: no such folder or hub model, no or damaged weights.
    """
    if not name:
        raise UserError(f"no model: pass {flag} <folder or hub name>")
    folder = Path(name).expanduser()
    what = f"{flag} {name}"
    if folder.is_file():
        raise UserError(f"{what}: is a file; name the model's folder")
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"{what}: no such folder")
        return _config(name, f"{what}: no such folder, and not loadable from the hub", trust_remote_code)
    if (folder / "adapter_config.json").is_file():
        base = _adapter_base(folder, what)
        _check_weights(folder, what, "adapter_model.safetensors")
        return check_model(base, f"{what}: is an adapter of another model:", trust_remote_code)
    if not (folder / "config.json").is_file():
        raise UserError(f"{what}: is no model folder (it has no config.json)")
    _check_weights(folder, what, "*.safetensors")
    return _config(name, f"{what}: its config.json is not usable", trust_remote_code)


def _config(name: str, problem: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{problem} ({first_line(error)})") from error


def _adapter_base(folder: Path, what: str) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{what}: its adapter_config.json is not readable ({first_line(error)})") from error
    if not base:
        raise UserError(f"{what}: its adapter_config.json names no base model; set base_model_name_or_path")
    return str(base)


def _check_weights(folder: Path, what: str, pattern: str) -> None:
    from safetensors import safe_open

    files = sorted(folder.glob(pattern))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        hint = "; save the model with safe_serialization=True" if pickled else ""
        raise UserError(f"{what}: has no weights in safetensors files{hint}")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            needed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{what}: {index.name} is not readable ({first_line(error)})") from error
        missing = sorted(needed - {file.name for file in files})
        if missing:
            raise UserError(f"{what}: {missing[0]} is missing; copy the folder again")
    for file in files:
        try:
            with safe_open(file, framework="numpy"):  # reads the header, and compares it with the file's size
                pass
        except Exception as error:  # SafetensorError is not public, and OSError
            raise UserError(f"{what}: {file.name} is damaged ({first_line(error)}); copy or save it again") from error


def check_reward_models(
    sft: str, baselines: str | None, trust_remote_code: bool = False, flag: str = "--baseline"
) -> list[str]:
    """The baselines of an SFT model, after checking that both exist, differ and share a tokenizer with EOS.

    Args:
        sft: folder or hub name, checked already by `check_model`.
        baselines: comma-separated folders or names; None finds the one kept in the SFT folder.
        trust_remote_code: run a checkpoint's own Python code.
        flag: what the baselines are named with.

    Raises:
        UserError: no baseline, or one that does not fit.
    """
    from ..scorers.checks import check_different_checkpoints, check_tokenizer_has_eos
    from ..scorers.markers import find_baseline

    if baselines is None:
        if not Path(sft).expanduser().is_dir():
            raise UserError(f"--model_name_or_path {sft}: a hub model brings no baseline; name one with {flag}")
        names = [str(find_baseline(sft, flag))]
    else:
        names = [name.strip() for name in baselines.split(",") if name.strip()]
        if not names:
            raise UserError(f"{flag} is empty; name an earlier checkpoint of the SFT run, or leave the flag out")
    tokenizer = load_tokenizer(sft, trust_remote_code=trust_remote_code)
    check_tokenizer_has_eos(tokenizer, sft)
    for name in names:
        check_model(name, flag, trust_remote_code)
        check_different_checkpoints(sft, name)
        check_shared_tokenizer(tokenizer, sft, name, trust_remote_code)
    return names


def check_shared_tokenizer(tokenizer: Any, sft: str, other: str, trust_remote_code: bool) -> None:
    """Another checkpoint of the run has the same tokenizer, or none of its own (mid-run adapters).

    Raises:
        UserError: names the first difference.
    """
    from transformers import AutoTokenizer

    from ..scorers.checks import check_same_tokenizer

    try:
        own = AutoTokenizer.from_pretrained(other, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return
    check_same_tokenizer(tokenizer, own, sft, other)


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint that `check_model` accepted.

    Raises:
        UserError: nothing that loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"--model_name_or_path {name}: no tokenizer found ({first_line(error)})") from error


def positions_of(config: Any) -> int | None:
    """How many positions a model has; None if its configuration sets no limit."""
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def check_packages(model_args: Any, training: Any) -> None:
    """Optional packages that flags ask for.

    Raises:
        UserError: one is not installed.
    """
    from importlib.util import find_spec

    wanted = {
        "--use_vllm": ("vllm", getattr(training, "use_vllm", False)),
        "--load_in_8bit": ("bitsandbytes", model_args.load_in_8bit),
        "--load_in_4bit": ("bitsandbytes", model_args.load_in_4bit),
        "--use_liger_kernel": ("liger_kernel", training.use_liger_kernel),
    }
    for flag, (package, asked) in wanted.items():
        if asked and find_spec(package) is None:
            raise UserError(f"{flag}: needs the package {package}, which is not installed")


def resolve_device(name: str | None) -> str:
    """The device of `--device`; without it the GPU if there is one.

    Raises:
        UserError: no such device on this machine.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not available on this machine ({first_line(error)})") from error
    return name


def check_positive(args: Any, names: Sequence[str]) -> None:
    """Counts of 1 or more.

    Raises:
        UserError: one is not.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; set it to 1 or more")


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without what a user cannot use."""
    text = str(error).strip().splitlines()
    return text[0].rstrip(" .:") if text else type(error).__name__
