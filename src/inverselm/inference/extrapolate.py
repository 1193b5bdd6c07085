"""Weight extrapolation: theta_SFT + w (theta_SFT - theta_baseline), from checkpoint folders, without any training."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..errors import UserError
from ..scorers.frozen import adapter_base
from ..scorers.markers import MARKER, read_marker, write_marker
from ..scorers.token_reward import _checked_tokenizer
from .extrapolate_full import SHARD_BYTES, write_full
from .extrapolate_lora import extrapolated_adapter
from .guided import check_weight

_COPIED = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe", ".py")
_NOT_COPIED = (MARKER, "adapter_config.json", "trainer_state.json", "_results.json", ".index.json")


def extrapolate(
    sft: str | Path,
    baseline: str | Path,
    weight: float,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> Path:
    """Write the checkpoint theta_SFT + w (theta_SFT - theta_baseline): a control for training beyond the SFT model.

    Computed in float32, tensor by tensor, and written in the SFT model's dtype, with its tokenizer and configuration.
    Memory holds one output file at a time, however large the models are. w = 0 gives the SFT model's own weights,
    w = -1 the baseline's (but for rounding), -0.5 their average.

    Two LoRA adapters of one base give an adapter of the summed ranks whose product is (1 + w) s B A - w s' B' A'
    exactly: extrapolating A and B each would not extrapolate their product. An adapter and the base it was trained on
    give the adapter scaled by 1 + w.

    Args:
        sft: the SFT model: a folder or hub name, sharded or not, or a LoRA adapter.
        baseline: an earlier checkpoint of the same kind; of an adapter also its base model.
        weight: w, at least -1.
        output_dir: a new or empty folder. It appears when it is complete.
        overwrite: replace a folder that an earlier extrapolation wrote; no other.
        trust_remote_code: run a tokenizer's own Python code.
        shard_bytes: largest output file.
        progress: show a progress bar.

    Returns:
        `output_dir`.

    Raises:
        UserError: a bad weight; models of different kinds, tensors, shapes or tokenizers, or with equal weights;
            quantised weights; adapters that are not plain LoRA; an output folder in use or too small a disk.

    Example:
        >>> extrapolate("runs/sft", "runs/sft/baseline", 0.5, "runs/sft-w0.5")
    """
    check_weight(weight)
    output = check_target(output_dir, [sft, baseline], overwrite).resolve()  # a link, or `.`, has no name to replace
    _checked_tokenizer(sft, [baseline], None, trust_remote_code)
    folders = [_folder(sft), _folder(baseline)]
    bases = [adapter_base(folder) for folder in folders]
    kind = _kind(sft, baseline, folders, bases)
    unfinished = output.with_name(f".{output.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        if kind == "full":
            write_full(folders[0], folders[1], weight, unfinished, shard_bytes=shard_bytes, progress=progress)
        else:
            tensors, config = extrapolated_adapter(folders[0], folders[1] if kind == "adapters" else None, weight)
            save_file(tensors, unfinished / "adapter_model.safetensors", metadata={"format": "pt"})
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (unfinished / "adapter_config.json").write_text(text, encoding="utf-8")
        _copy_rest(folders[0], unfinished)
        write_marker(unfinished, "extrapolated", sft=str(sft), baseline=str(baseline), weight=weight)
        if output.exists():
            shutil.rmtree(output)
        os.replace(unfinished, output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Path(output_dir).expanduser()


def check_target(output_dir: str | Path, reads: list[str | Path], overwrite: bool) -> Path:
    """The output folder: new, empty, or (with `overwrite`) written by an earlier extrapolation. Creates nothing.

    Raises:
        UserError: it is none of that, lies in the way of a model that is read, or cannot be written.
    """
    folder = Path(output_dir).expanduser()
    for name in map(Path, map(str, reads)):
        if name.is_dir() and folder.resolve() in (name.resolve(), *name.resolve().parents):
            raise UserError(f"{output_dir}: {name} is read from there; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{output_dir}: is a file; choose a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if read_marker(folder).get("role") != "extrapolated":
            raise UserError(f"{output_dir}: the folder is not empty, and no extrapolated model; choose another")
        if not overwrite:
            raise UserError(f"{output_dir}: holds an extrapolated model; pass --overwrite, or choose another folder")
    parent = next(p for p in folder.absolute().parents if os.path.lexists(p))
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{output_dir}: no permission to write in {parent}; choose another folder")
    return folder


def _folder(source: str | Path) -> Path:
    """A local folder, or what the hub's cache (or the hub) has of a name."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", *(f"*{end}" for end in _COPIED)]))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no such folder, and not loadable from the hub ({_first_line(error)})") from error


def _kind(sft: Any, baseline: Any, folders: list[Path], bases: list[str | None]) -> str:
    if bases == [None, None]:
        return "full"
    if bases[0] is not None and bases[1] == bases[0]:
        return "adapters"
    own = Path(str(bases[0])).expanduser()
    if bases[1] is None and (str(baseline) == bases[0] or (own.is_dir() and own.resolve() == folders[1].resolve())):
        return "adapter and base"
    what = ["a full model" if base is None else f"an adapter of {base}" for base in bases]
    raise UserError(
        f"{sft} is {what[0]}, {baseline} {what[1]}: merge adapters into their base first (PEFT's merge_and_unload)"
    )


def _copy_rest(source: Path, output: Path) -> None:
    """Configurations, tokenizer and the model's own code; nothing of a training run."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _COPIED and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, output / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, output / templates.name)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(" .:") if text else type(error).__name__
