"""The YAML of a study: defaults, which flags win, and what is refused."""

import pytest
import yaml

from helpers.study_spec import STUDY, changed
from inverselm import UserError
from inverselm.study.spec import parse_spec, read_spec


def test_defaults_and_roles():
    spec = parse_spec(STUDY)
    assert list(spec.sizes) == ["8", "all"]
    assert spec.seeds == (3, 5)
    assert [s.name for s in spec.samplers] == ["greedy", "T=1.0"]
    assert {name: method.role for name, method in spec.methods.items()} == {
        "sft": "reference",
        "iq": "method",
        "long": "control",
        "dpr": "method",
        "guided": "method",
    }
    assert spec.methods["iq"].group == "iqlearn"
    assert spec.methods["dpr"].group == "dpr"
    assert spec.methods["guided"].guided == 0.5
    assert spec.methods["sft"].label == "SFT"
    assert spec.methods["iq"].label == "iq"


def test_flags_from_general_to_particular():
    spec = parse_spec(STUDY)
    flags = {name: spec.flags(method, "8") for name, method in spec.methods.items()}
    assert flags["sft"] == {"scratch_config": "tiny.yaml", "learning_rate": 0.01, "max_steps": 4}
    assert flags["iq"] == {"scratch_config": "tiny.yaml", "learning_rate": 0.02, "max_steps": 4, "td_coef": 0.5}
    assert flags["long"] == {"learning_rate": 0.01, "max_steps": 9}  # starts from a model: none from scratch
    assert flags["dpr"] == {"max_steps": 3, "kl_coef": 4}  # the size's own flag; max_steps of fine-tuning is not its
    assert spec.methods["dpr"].runs_at("8")
    assert not spec.methods["dpr"].runs_at("all")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("task",), None, "'task' is missing"),
        (("data", "test"), None, "'test' is missing"),
        (("data", "testt"), "x", "did you mean test"),
        (("seedz",), [1], "did you mean seeds"),
        (("seeds",), [1, 1], "names a seed twice"),
        (("seeds",), ["a"], "whole numbers"),
        (("sizes",), [0], "neither a number of rows nor 'all'"),
        (("sizes",), [], "a list of row counts"),
        (("training", "sfft"), {}, "did you mean sft"),
        (("reference",), "sff", "not one of the methods"),
        (("methods", "iq", "command"), "iqlern", "choose sft, iqlearn"),
        (("methods", "dpr", "from"), None, "needs the method it starts from"),
        (("methods", "dpr", "from"), "nobody", "'nobody' is not one of the methods"),
        (("methods", "dpr", "from"), "guided", "has no model of its own"),
        (("methods", "dpr", "sizes"), [9], "size 9 is not one"),
        (("methods", "dpr", "seed"), 1, "seed is set by the study"),
        (("methods", "guided", "guided"), None, "write both"),
        (("methods", "guided", "kl_coef"), 1, "there is none"),
        (("methods", "iq", "role"), "hero", "choose reference, method, control"),
        (("methods", "iq", "role"), "reference", "the reference is sft"),
        (("methods", "sft", "sizes"), ["8"], "the reference runs at every size"),
        (("methods", "sft", "from"), "long", "goes in a circle"),
        (("methods", "a/b"), {"command": "sft"}, "name of a folder"),
        (("methods", "iq"), [1], "must be a mapping"),
        (("evaluation", "samplers"), ["T=x"], "not a number"),
    ],
)
def test_refused(path, value, message):
    with pytest.raises(UserError, match=message):
        parse_spec(changed(path, value))


def test_errors_name_the_file(tmp_path):
    file = tmp_path / "study.yaml"
    with pytest.raises(UserError, match="cannot be read"):
        read_spec(file)
    file.write_text("a: [1", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        read_spec(file)
    file.write_text(yaml.safe_dump(changed(("task",), None)), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{file}: 'task' is missing"):
        read_spec(file)
    file.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    assert read_spec(file) == parse_spec(STUDY)
