"""The Python of the tutorials runs, from top to bottom, on tiny models made on the spot."""

import json
import re
from pathlib import Path

import pytest

from helpers.data import sums, text_tokenizer, tiny_for

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
PAGES = sorted(TUTORIALS.glob("*.md"))
LEFT = {"heatmap": ["heatmap.html"], "rerank": [], "grpo": []}


def blocks(page):
    """Its Python, each block with the line that it begins on."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in found]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What a tutorial begins with: an SFT folder with its baseline, and the data."""
    from inverselm.scorers.markers import write_marker

    tokenizer = text_tokenizer()
    for seed, name, role in ((0, "runs/sft", "sft"), (1, "runs/sft/baseline", "baseline")):
        tiny_for(tokenizer, seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        write_marker(tmp_path / name, role)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_tutorials_and_each_has_python():
    assert {page.stem for page in PAGES} == set(LEFT)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert blocks(page)
        assert text.count("```") == 2 * len(blocks(page)), f"{page.name}: a block that is not run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial(page, folder, capsys):
    names = {"__name__": "tutorial"}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), names)
    assert capsys.readouterr().out.strip()
    for name in LEFT[page.stem]:
        assert (folder / name).stat().st_size > 1000
