"""Checkpoints by role: a small `inverselm.json` beside the weights says what a folder is.

Later commands find an SFT run's baseline by it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import UserError

MARKER = "inverselm.json"
BASELINE_FOLDER = "baseline"


def write_marker(folder: str | Path, role: str, **facts: Any) -> None:
    """Write `inverselm.json` into a checkpoint folder, atomically."""
    path = Path(folder) / MARKER
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"role": role, **facts}, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_marker(folder: str | Path) -> dict[str, Any]:
    """The marker of a checkpoint folder; empty if there is none.

    Raises:
        UserError: the file is there but is no JSON object.
    """
    path = Path(folder) / MARKER
    if not path.is_file():
        return {}
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is unreadable ({error}); delete it or write it again.") from error
    if not isinstance(marker, dict):
        raise UserError(f"{path} holds no JSON object; delete it or write it again.")
    return marker


def find_baseline(sft: str | Path, flag: str = "--baseline") -> Path:
    """The baseline checkpoint that belongs to an SFT folder (or to a `checkpoint-N` folder of that run).

    A folder with a marker of its own is no checkpoint of the run around it: a policy or an extrapolated model kept in
    an SFT folder has no baseline there.

    Args:
        sft: the folder.
        flag: that names a baseline in place of this one, for the message.

    Raises:
        UserError: there is none; the message says how to make or name one.
    """
    folder = Path(sft)
    for run in (folder,) if read_marker(folder) else (folder, folder.parent):
        candidate = run / BASELINE_FOLDER
        if read_marker(candidate).get("role") == "baseline":
            return candidate
    raise UserError(
        f"No baseline found in {folder}: it needs {BASELINE_FOLDER}/ with {MARKER}, as `inverselm sft` leaves it. "
        f"Train with `inverselm sft`, add BaselineCheckpointCallback to your trainer, or name a checkpoint with {flag}."
    )
