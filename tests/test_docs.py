"""What is public is documented, and what the documents name exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PUBLIC = (
    "",
    ".token_mdp",
    ".objectives",
    ".tabular",
    ".scorers",
    ".training",
    ".report",
    ".evaluation",
    ".inference",
    ".study",
)


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_is_in_the_reference(room):
    reference = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", reference))
    names = [n for n in importlib.import_module(f"inverselm{room}").__all__ if not n.startswith("__")]
    assert names
    assert [name for name in names if name not in words] == []


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_exists_and_has_a_docstring(room):
    module = importlib.import_module(f"inverselm{room}")
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and not name.startswith("__"):
            assert value.__doc__, name


def test_links_between_documents_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_import_is_light():
    import subprocess
    import sys

    code = "import sys, inverselm; print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
