"""Answers of two runs, and `inverselm judge` on them, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inverselm.cli.main import main

PROMPTS = 24


def rows(
    name: str, seed: int = 0, prompts: int = PROMPTS, samples: int = 1, shift: int = 0, **more: Any
) -> list[dict[str, Any]]:
    """Answers of different lengths, as `inverselm generate` writes them."""
    rng = np.random.default_rng(seed)
    return [
        {"prompt": f"What is {i}?", "completion": f"{name}{k} " + "x" * int(rng.integers(1, 60) + shift), "sample": k,
         "finished": True, "temperature": 1.0, "token_ids": [1, 2], "reference": f"it is {i}", **more}
        for i in range(prompts)
        for k in range(samples)
    ]  # fmt: skip


def write(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def prepare(folder: Path, monkeypatch: Any) -> Path:
    """`a.jsonl` and, with longer answers and in another order, `b.jsonl` in a working directory; no key at hand."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write(folder / "a.jsonl", rows("a", 1))
    write(folder / "b.jsonl", rows("b", 2, shift=10)[::-1])
    return folder


def command(server: Any, *more: str, runs: tuple[str, ...] | list[str] = ("a=a.jsonl", "b=b.jsonl")) -> list[str]:
    url = getattr(server, "url", server)
    return ["judge", "--runs", *runs, "--judge_url", url, "--judge_model", "m", "--num_samples", "200", *more]


def results(folder: str = "judged") -> dict[str, Any]:
    return json.loads(Path(folder, "judge.json").read_text(encoding="utf-8"))


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def fails(capsys: Any, argv: list[str]) -> str:
    """The one line that a user's error is."""
    assert main(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]
