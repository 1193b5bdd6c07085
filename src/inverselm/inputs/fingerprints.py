"""What a model is, by content: so that a resumed evaluation does not mix two models."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PATTERNS = (
    "*.safetensors",
    *("config.json", "generation_config.json", "adapter_config.json"),
    *(
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "*.model",
    ),
)
_BLOCK = 2**22
_SHOW_BYTES = 2**30


def model_fingerprint(name: str, config: Any) -> dict[str, str]:
    """SHA-256 of every file that decides what a model answers; of an adapter, its base's too.

    Weights, configurations and tokenizer count; the folder's name and times do not, so a copy is the same model. A hub
    model is known by its commit.

    Args:
        name: folder or hub name, checked by `check_model`.
        config: what `check_model` returned.

    Returns:
        file (or "commit") -> hash.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {"hub": name, "commit": str(getattr(config, "_commit_hash", None))}
    found = _hashes(sorted({file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()}))
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
        found |= {f"base {key}": value for key, value in model_fingerprint(base, config).items()}
    return found


def file_difference(now: dict[str, str], before: dict[str, str]) -> str:
    """The first file of two fingerprints that differs; empty if none does."""
    for name in sorted({*now, *before}):
        if now.get(name) != before.get(name):
            return name
    return ""


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    from tqdm.auto import tqdm

    total = sum(file.stat().st_size for file in files)
    found = {}
    with tqdm(
        total=total, desc="Hashing", unit="B", unit_scale=True, file=sys.stderr, disable=total < _SHOW_BYTES
    ) as bar:
        for file in files:
            digest = hashlib.sha256()
            with open(file, "rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    bar.update(len(block))
            found[file.name] = digest.hexdigest()
    return found
