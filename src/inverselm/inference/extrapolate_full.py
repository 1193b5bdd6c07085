"""Weight extrapolation of full models: tensor by tensor, from safetensors files to safetensors files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import UserError

SHARD_BYTES = 2 * 2**30
"""Written files hold at most so many bytes (or a single tensor): what is kept in memory at a time."""

_BLOCK = 2**25  # elements of one tensor that are computed at a time
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def write_full(
    sft: Path, baseline: Path, weight: float, output: Path, *, shard_bytes: int = SHARD_BYTES, progress: bool = False
) -> None:
    """Write the weights sft + w (sft - baseline) of two folders of full models into a third.

    Raises:
        UserError: tensors that are missing, of other shapes or quantised; a disk that is too small.
    """
    a, b = _Checkpoint(sft), _Checkpoint(baseline)
    names = _shared_names(a, b)
    sizes = {name: a.layout[name][1].itemsize * torch.Size(a.layout[name][0]).numel() for name in names}
    free = shutil.disk_usage(output).free
    if free < sum(sizes.values()):
        raise UserError(f"{output.parent}: has {free / 2**30:.1f} GiB left, needs {sum(sizes.values()) / 2**30:.1f}")
    shards = _shards(sizes, shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else ["model.safetensors"]
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="Extrapolating", disable=not progress) as bar:
        for file, shard in zip(files, shards, strict=True):
            tensors = {}
            for name in shard:
                tensors[name] = _combined(a, b, name, weight)
                bar.update(sizes[name])
            save_file(tensors, output / file, metadata={"format": "pt"})
    if len(files) > 1:
        where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (output / "model.safetensors.index.json").write_text(text, encoding="utf-8")


class _Checkpoint:
    """The tensors of a full model's folder, read where they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        index = folder / "model.safetensors.index.json"
        try:
            if index.is_file():
                self.files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            else:
                self.files = dict.fromkeys(self._file("model.safetensors").keys(), "model.safetensors")
            self.layout = {name: self._layout(name) for name in self.files}
            self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{folder}: no whole model in safetensors files ({error})") from error
        if "quantization_config" in self.config:
            raise UserError(f"{folder}: is quantised; extrapolate the weights it was made from")

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]

    def _layout(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        part = self._file(self.files[name]).get_slice(name)
        shape = tuple(part.get_shape())
        first = part[:1] if shape and 0 not in shape else self.tensor(name)
        return shape, first.dtype

    def tensor(self, name: str) -> Tensor:
        return self._file(self.files[name]).get_tensor(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._file(self.files[name]).get_slice(name)[start:stop]

    def without_copies(self, extra: set[str]) -> set[str]:
        """Those of the names that are no copies of tied weights: of another tensor of this very checkpoint."""
        copies = set()
        if _tied(self.config):
            for name in extra:
                others = (o for o in self.files if o not in extra and self.layout[o] == self.layout[name])
                copies |= {name} if any(torch.equal(self.tensor(name), self.tensor(o)) for o in others) else set()
        return extra - copies


def _tied(config: dict[str, Any]) -> bool:
    from transformers import AutoConfig

    try:
        whole = AutoConfig.for_model(**config)
    except (ValueError, KeyError, TypeError):  # a model type of its own code
        return bool(config.get("tie_word_embeddings"))
    return bool(getattr(whole.get_text_config(), "tie_word_embeddings", False))


def _shared_names(a: _Checkpoint, b: _Checkpoint) -> list[str]:
    """The tensors of both, after a look at kinds, names and shapes."""
    kinds = [str(c.config.get("model_type")) for c in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{a.folder} is a {kinds[0]} model, {b.folder} a {kinds[1]} model; use checkpoints of one run")
    left, right = set(a.files), set(b.files)
    for one, other, extra in ((a, b, left - right), (b, a, right - left)):
        missing = sorted(one.without_copies(extra))
        if missing:
            raise UserError(f"{other.folder} lacks {missing[0]} of {one.folder}; use checkpoints of one run")
    names = [name for name in a.files if name in right]
    for name in names:
        (shape, dtype), (other, _) = a.layout[name], b.layout[name]
        if shape != other:
            raise UserError(f"{name} is {shape} in {a.folder} but {other} in {b.folder}; use checkpoints of one run")
        if dtype.is_floating_point and dtype not in _FLOATS:
            raise UserError(f"{a.folder}: {name} is {dtype}; extrapolate the weights it was made from")
    return names


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most `limit` bytes (or one name)."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _combined(a: _Checkpoint, b: _Checkpoint, name: str, weight: float) -> Tensor:
    shape, dtype = a.layout[name]
    if not dtype.is_floating_point:
        kept = a.tensor(name)
        if not torch.equal(kept, b.tensor(name)):
            raise UserError(f"{name} holds {dtype} numbers, which differ between {a.folder} and {b.folder}")
        return kept
    if not shape:
        return combined(a.tensor(name), b.tensor(name), weight)
    out = torch.empty(shape, dtype=dtype)
    step = max(1, _BLOCK // max(1, out[:1].numel()))
    for start in range(0, shape[0], step):
        stop = min(shape[0], start + step)
        out[start:stop] = combined(a.rows(name, start, stop), b.rows(name, start, stop), weight)
    return out


def combined(sft: Tensor, baseline: Tensor, weight: float) -> Tensor:
    """sft + w (sft - baseline), computed in float32 (float64 for float64), in the dtype of `sft`."""
    exact = torch.promote_types(sft.dtype, torch.float32)
    own = sft.to(exact)
    return (own + weight * (own - baseline.to(exact))).to(sft.dtype)
