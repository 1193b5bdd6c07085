"""The studies that ship: their data scripts on small made-up files, and every flag they name."""

import csv
import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from inverselm.cli.study import check_flags
from inverselm.study.plan import plan_stages
from inverselm.study.spec import read_spec

RECIPES = Path(__file__).parents[2] / "recipes"


def prepare(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", RECIPES / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_cmudict_is_split_by_word(tmp_path, monkeypatch):
    module = prepare("cmudict")
    monkeypatch.setattr(module, "VALID", 1)
    monkeypatch.setattr(module, "TEST", 2)
    lines = [
        "; no comment sign of this format",
        "a.b. EY1 B IY1",
        "cat K AE1 T # animal",
        "don't D OW1 N T",
        "read R EH1 D",
        "read(2) R IY1 D",
        "read(3) R IY1 D",
        "tea T IY1",
        "",
    ]
    with gzip.open(tmp_path / "cmudict.dict.gz", "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines))
    module.main(str(tmp_path / "cmudict.dict.gz"), str(tmp_path / "out"))
    parts = {name: rows(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "valid", "test")}
    words = {name: {row["prompt"] for row in part} for name, part in parts.items()}
    assert (len(words["valid"]), len(words["test"]), len(words["train"])) == (1, 2, 1)
    assert set.union(*words.values()) == {"c a t =", "d o n ' t =", "r e a d =", "t e a ="}
    said = {row["prompt"]: row.get("references", []) for name in ("valid", "test") for row in parts[name]}
    for row in parts["train"]:
        said.setdefault(row["prompt"], []).append(row["completion"].strip())
    assert said["r e a d ="] == ["R EH1 D", "R IY1 D"]  # a repeated pronunciation once
    assert said["c a t ="] == ["K AE1 T"]


@pytest.mark.parametrize("packed", [False, True])
def test_e2e_keeps_all_references_of_a_meaning(tmp_path, monkeypatch, packed):
    module = prepare("e2e_nlg")
    monkeypatch.setattr(module, "MEANINGS", {"valid": 2})
    for name, meanings in (("trainset", 4), ("devset", 3), ("testset_w_refs", 2)):
        path = tmp_path / (f"{name}.csv.gz" if packed else f"{name}.csv")
        with gzip.open(path, "wt", newline="") if packed else open(path, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["mr", "ref"])
            writer.writerows([f"name[{name} {i}]", f"It  is\n{i}, {k}."] for i in range(meanings) for k in range(3))
    module.main(str(tmp_path), str(tmp_path / "out"))
    parts = {name: rows(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "valid", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 12, "valid": 6, "test": 6}
    assert {row["completion"] for row in parts["test"]} == {f" It is {i}, {k}." for i in range(2) for k in range(3)}
    assert all(row["prompt"] == f"{row['mr']} =>" for row in parts["valid"])
    assert len({row["mr"] for row in parts["valid"]}) == 2


@pytest.mark.parametrize("name", ["cmudict/study", "cmudict/confirm", "e2e_nlg/study", "multi30k/study"])
def test_the_studies_say_nothing_unknown(name):
    spec = read_spec(RECIPES / f"{name}.yaml")
    check_flags(spec)
    stages = plan_stages(spec, "out", environment={})
    assert len(spec.seeds) >= 3
    assert {stage.kind for stage in stages} - {"rewards"} == {"train", "valid", "test"}
    for stage in stages:
        if stage.flags.get("scratch_config"):
            assert (RECIPES.parent / stage.flags["scratch_config"]).is_file()
