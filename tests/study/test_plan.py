"""From a study to stages: order, flags, and what changes a stage's identity."""

import dataclasses
import json
from pathlib import Path

import pytest

from helpers.study_spec import STUDY, changed
from inverselm import UserError
from inverselm.study import identity
from inverselm.study.identity import code_hash, data_hash, digest, environment
from inverselm.study.plan import Stage, clear, plan_stages, stage_record, to_argv
from inverselm.study.runner import time_left
from inverselm.study.spec import parse_spec

NOW = {"code": "c", "data": {"train": "t"}}


def plan(study=STUDY, folder="out", now=NOW):
    return {stage.key: stage for stage in plan_stages(parse_spec(study), folder, environment=now)}


def identities(study=STUDY, folder="out", now=NOW):
    return {key: stage.identity for key, stage in plan(study, folder, now).items()}


def differing(before, after):
    return {key for key in before if before[key] != after[key]}


def test_every_stage_comes_after_what_it_needs():
    stages = list(plan().values())
    # 2 seeds x (5 methods at 8 rows, 4 at all), guided without training
    assert len(stages) == 2 * ((4 * 3 + 2) + (3 * 3 + 2))
    seen = set()
    for stage in stages:
        assert set(stage.needs) <= seen
        seen.add(stage.key)
    assert plan()["8/dpr/seed3/train"].needs == ("8/sft/seed3/train",)
    assert plan()["8/guided/seed3/valid"].needs == ("8/sft/seed3/train",)
    assert "all/dpr/seed3/train" not in plan()


def test_command_lines():
    stages = plan()
    sft = stages["8/sft/seed3/train"].argv(resume=False)
    assert sft[0] == "sft"
    pairs = {sft[i]: sft[i + 1] for i in range(1, len(sft), 2)}
    assert pairs["--dataset_train_split"] == "train[:8]"
    assert pairs["--seed"] == "3"
    assert pairs["--output_dir"] == "out/runs/8/sft/seed3/model"
    assert sft[-2:] == ["--overwrite_output_dir", "True"]
    assert stages["8/sft/seed3/train"].argv(resume=True)[-2:] == ["--resume_from_checkpoint", "True"]
    assert "--dataset_train_split" not in stages["all/sft/seed3/train"].argv(resume=False)
    assert stages["8/dpr/seed5/train"].flags["model_name_or_path"] == "out/runs/8/sft/seed5/model"
    guided = stages["8/guided/seed3/test"]
    assert guided.flags["samplers"] == ["greedy,guided=0.5", "T=1.0,guided=0.5"]
    assert guided.flags["model_name_or_path"] == "out/runs/8/sft/seed3/model"
    assert guided.flags["dataset_name"] == "test.jsonl"
    assert guided.flags["labels"] == "guided"


def test_held_out_rows_and_the_folder_of_the_origin():
    study = changed(("training", "finetune", "eval_strategy"), "steps")
    study["methods"]["dpr"]["baseline"] = "{from}/baseline-25"
    stages = plan(study)
    assert stages["8/sft/seed3/train"].flags["eval_dataset_name"] == "valid.jsonl"
    assert stages["8/dpr/seed3/train"].flags["baseline"] == "out/runs/8/sft/seed3/model/baseline-25"
    assert "eval_dataset_name" not in plan()["8/sft/seed3/train"].flags


def test_identity_follows_what_a_result_depends_on():
    before = identities()
    assert before == identities()
    assert before == identities(folder="moved")
    assert len(set(before.values())) == len(before)
    for now in ({**NOW, "code": "d"}, {**NOW, "data": {"train": "u"}}):
        assert differing(before, identities(now=now)) == set(before)
    rate = differing(before, identities(changed(("methods", "iq", "td_coef"), 0.6)))
    assert rate == {key for key in before if "/iq/" in key}
    # what starts from SFT changes with it
    sft = differing(before, identities(changed(("methods", "sft", "learning_rate"), 0.5)))
    assert sft == {key for key in before if "/iq/" not in key}
    size = differing(before, identities(changed(("sizes", "8"), {"max_steps": 5})))
    assert {key.split("/")[0] for key in size} == {"8"}
    assert "8/long/seed3/train" in size  # its origin
    assert differing(before, identities(changed(("methods", "iq", "label"), "new"))) == set()


def test_further_samplers_continue_an_evaluation(tmp_path):
    stage = plan(folder=str(tmp_path))["8/sft/seed3/valid"]
    more = plan(changed(("evaluation", "samplers"), ["greedy", "T=1", "T=0.5"]), str(tmp_path))["8/sft/seed3/valid"]
    assert stage.identity == more.identity
    assert stage_record(stage) is None
    stage.record.parent.mkdir(parents=True)
    stage.record.write_text(json.dumps({"identity": stage.identity, "samplers": ["greedy", "T=1.0"]}))
    assert stage_record(stage)
    assert stage_record(more) is None
    other = dataclasses.replace(stage, identity="other")
    with pytest.raises(UserError, match="nothing is mixed"):
        stage_record(other)
    (stage.output).mkdir()
    clear(other)
    assert stage_record(other) is None
    assert not stage.output.exists()
    stage.record.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not readable"):
        stage_record(stage)


def test_rewards_stage_reads_the_references_answers():
    study = {**STUDY, "rewards": {"sampler": "T=1.0", "metric": "-wer", "num_bootstrap": 50}}
    stage = plan(study)["8/rewards/seed3/rewards"]
    assert set(stage.needs) == {"8/sft/seed3/train", "8/iq/seed3/train", "8/sft/seed3/valid"}
    assert stage.flags["q_function"] == ["iq=out/runs/8/iq/seed3/model"]
    assert stage.flags["num_bootstrap"] == 50
    assert stage.scores["answers"] == "out/runs/8/sft/seed3/valid/samples/sft/T=1.0.jsonl"
    assert stage.scores["metric"] == "-wer"
    with pytest.raises(UserError, match="not one of the study's"):
        plan({**STUDY, "rewards": {"sampler": "T=0.9"}})


def test_flags_as_words():
    assert to_argv({"a": [1, 2], "b": None, "c": {"x": 1}, "d": False, "e": []}) == [
        "--a",
        "1",
        "2",
        "--c",
        '{"x": 1}',
        "--d",
        "False",
    ]


def test_hashes(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("1", encoding="utf-8")
    one, folder = data_hash(str(file)), data_hash(str(tmp_path))
    assert one != folder
    file.write_text("2", encoding="utf-8")
    assert data_hash(str(file)) != one
    assert data_hash(str(tmp_path)) != folder
    assert data_hash("org/name") == "hub:org/name"
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert environment()["code"] == code_hash()
    assert environment()["torch"].startswith("2.")


def test_what_no_number_comes_from_is_where_it_is_said_to_be():
    """A module that is moved or renamed would silently count as code that numbers come from."""
    root = Path(identity.__file__).parents[1]
    sources = [path.relative_to(root).as_posix() for path in root.rglob("*.py")]
    for prefix in identity._ASIDE:
        assert any(name.startswith(prefix) for name in sources), prefix


def test_time_left():
    def stage(key):
        size, method, seed, kind = key.split("/")
        return Stage(kind, method, size, int(seed[4:]), None, "sft", {})

    todo = [stage("8/sft/seed1/train"), stage("8/iq/seed0/train")]
    assert time_left(todo, {}, 2) is None
    assert time_left(todo, {"8/sft/seed0/valid": 9.0}, 2) is None
    # its own kind of run, else the mean of all training
    done = {"8/sft/seed0/train": 10.0, "all/sft/seed0/train": 30.0}
    assert time_left(todo, done, 2) == (10.0 + 20.0) / 2
    assert time_left([], done, 2) == 0.0
