"""Reading a study's folder: what is there, what is missing, and nothing of another version."""

import doctest
import json
import math

import pytest

from helpers.study import Plan, cell_of, planted, write_json, write_study
from inverselm.errors import UserError
from inverselm.study import collect, contents, load_study

TWO = {"sft": {"role": "reference"}, "a": {}}


def small(folder, **more):
    """Two methods, two seeds, one sampler."""
    options = {"seeds": (0, 1), "samplers": ("greedy",), "prompts": 4, **more}
    return write_study(folder, Plan(options.pop("methods", TWO), lambda *_: 0.5, **options))


def change(path, **more):
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, content | more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("whole"), planted())


def test_examples_in_docstrings():
    assert doctest.testmod(contents).failed == doctest.testmod(collect).failed == 0


def test_a_whole_study(whole):
    study = load_study(whole)
    assert study.missing == ()
    assert (study.main, study.lower_is_better, study.reference) == ("wer", True, "sft")
    assert study.groups == {
        ("iq", "method"): ["a"],
        ("b", "method"): ["b"],
        ("c", "method"): ["c"],
        ("d", "method"): ["d1", "d2"],
        ("control", "control"): ["control"],
    }
    assert study.rows_of("3000") == 3000
    assert (study.methods["b"].command, study.methods["b"].origin) == ("dpr", "sft")
    assert study.methods["a"].flags["3000"] == {"td_coef": 0.1}
    assert set(study.rewards) == {("3000", 0), ("3000", 1), ("3000", 2)}
    assert study.cells["3000", "a", 1].steps == 600


def test_values_are_those_of_results_json(whole):
    study = load_study(whole)
    rows = []
    for seed in range(3):
        content = json.loads((cell_of(whole, "3000", "a", seed) / "test/results.json").read_text(encoding="utf-8"))
        rows += [row for row in content["rows"] if row["sampler"] == "T=1.0"]
    assert study.values("3000", "a", "test", "T=1.0", "wer") == [row["metrics"]["wer"]["value"] for row in rows]
    assert study.values("3000", "a", "test", "T=1.0", "self_bleu") == [row["self_bleu"] for row in rows]
    assert all(map(math.isnan, study.values("3000", "a", "test", "greedy", "self_bleu")))
    means = study.valid_means("3000")
    valid = study.values("3000", "a", "valid", "greedy", "wer")
    assert means["a", "greedy"] == pytest.approx(sum(valid) / 3)
    assert len(means) == 14


def test_guidance_is_the_methods_own(whole):
    study = load_study(whole)
    assert study.samplers == ("greedy", "T=1.0")
    row = study.row("3000", "control", 0, "test", "T=1.0")
    assert row["sampler"] == "T=1.0,guided=0.5"


def test_guided_methods_go_without_best_of_n(tmp_path):
    methods = TWO | {"g": {"role": "control", "command": "none", "guided": 1.0, "from": "sft"}}
    study = load_study(small(tmp_path, methods=methods, samplers=("greedy", "best_of=2,T=1.0")))
    assert study.missing == ()
    assert study.samplers_of("g") == ("greedy",)
    assert study.values("3000", "g", "test", "best_of=2,T=1.0", "wer") == []
    assert ("g", "best_of=2,T=1.0") not in study.valid_means("3000")


def test_what_is_missing_is_said_and_left_out(tmp_path):
    unfinished = (("3000", "a", 1, "test"), ("100", "a", 0, "all"), ("100", "a", 1, "train"))
    study = load_study(small(tmp_path, sizes=("100", "3000"), unfinished=unfinished))
    assert study.missing == (
        "runs/100/a/seed0: not begun",
        "runs/100/a/seed1: train",
        "runs/3000/a/seed1: test",
    )
    assert study.seeds_of("3000", "a") == (0,)
    assert not study.comparable("3000", "a")
    assert {method for method, _ in study.valid_means("3000")} == {"sft"}
    assert len(study.values("3000", "a", "test", "greedy", "wer")) == 1


def test_results_without_a_finished_stage_do_not_count(tmp_path):
    folder = small(tmp_path)
    (cell_of(folder, "3000", "a", 0) / "stages/valid.json").unlink()
    assert load_study(folder).missing == ("runs/3000/a/seed0: valid",)


def test_without_a_seed_of_the_reference_others_are_paired_on_the_rest(tmp_path):
    study = load_study(small(tmp_path, unfinished=(("3000", "sft", 1, "valid"),)))
    assert study.seeds_of("3000") == (0,)
    assert study.comparable("3000", "a")
    row = study.row("3000", "a", 0, "valid", "greedy")
    assert study.valid_means("3000")["a", "greedy"] == row["metrics"]["wer"]["value"]


def test_a_method_of_some_sizes_is_not_missing_at_the_others(tmp_path):
    study = load_study(small(tmp_path, methods=TWO | {"b": {"sizes": ["100"]}}, sizes=("100", "all")))
    assert study.missing == ()
    assert not study.comparable("all", "b")
    assert study.rows_of("all") == 113_000


def test_a_sampler_that_is_missing(tmp_path):
    def edit(facts):
        return facts | {"samplers": ["greedy", "T=0.5"]}

    study = load_study(small(tmp_path, edit=edit))
    assert study.missing[0] == "runs/3000/sft/seed0: sampler T=0.5"
    assert study.seeds_of("3000") == ()


def test_samplers_that_all_have_beside_those_listed(tmp_path):
    def edit(facts):
        return facts | {"samplers": ["greedy"]}

    study = load_study(small(tmp_path, edit=edit, samplers=("greedy", "T=0.5")))
    assert study.samplers == ("greedy", "T=0.5")


def test_metrics_of_a_function_are_those_of_its_results(tmp_path):
    def edit(facts):
        return facts | {"metrics": {}, "task": "mine.py:f"}

    study = load_study(small(tmp_path, edit=edit))
    assert study.metrics == {"wer": "low", "per": "low"}


@pytest.mark.parametrize("stage", ["train", "valid", "test"])
def test_a_cell_of_other_code_is_refused(tmp_path, stage):
    folder = small(tmp_path)
    change(cell_of(folder, "3000", "a", 1) / f"stages/{stage}.json", code="f" * 64)
    with pytest.raises(UserError, match=rf"3000/a/seed1/stages/{stage}.json: was made by other code \(ffffffffffff\)"):
        load_study(folder)


def test_a_cell_that_does_not_say_its_code_is_refused(tmp_path):
    folder = small(tmp_path)
    change(cell_of(folder, "3000", "a", 1) / "stages/train.json", code=None)
    with pytest.raises(UserError, match="other code"):
        load_study(folder)


def test_a_cell_of_other_data_is_refused(tmp_path):
    folder = small(tmp_path)
    change(cell_of(folder, "3000", "a", 0) / "stages/train.json", data={"train": "a" * 64, "valid": "9" * 64})
    with pytest.raises(UserError, match=r"a/seed0/stages/train.json: was made on other data \('valid'\)"):
        load_study(folder)


def test_rewards_of_other_code_are_refused(tmp_path):
    folder = write_study(tmp_path, Plan(TWO, lambda *_: 0.5, seeds=(0,), samplers=("greedy",), prompts=4, rewards=""))
    assert list(load_study(folder).rewards) == [("3000", 0)]
    change(folder / "runs/3000/rewards/seed0/stages/rewards.json", code="f" * 64)
    with pytest.raises(UserError, match="other code"):
        load_study(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("inverselm", "0.0.0", "was made by inverselm 0.0.0, not by"),
        ("data", {"content": "other"}, "a/seed1: its test has other prompts than that of"),
        ("settings", {"num_samples": 9, "max_new_tokens": 32}, "its test has other num_samples"),
        ("settings", {"num_samples": 2, "max_new_tokens": 64}, "its test has other max_new_tokens"),
        ("rows", [{"sampler": "greedy", "metrics": {"per": {"value": 1.0}}}], "lacks 'wer', the study's main metric"),
        ("rows", [{"metrics": {}}], "has a row without sampler or metrics"),
    ],
)
def test_another_evaluation_is_refused(tmp_path, key, value, message):
    folder = small(tmp_path)
    change(cell_of(folder, "3000", "a", 1) / "test/results.json", **{key: value})
    with pytest.raises(UserError, match=message):
        load_study(folder)


def test_broken_files_are_named(tmp_path):
    folder = small(tmp_path)
    (cell_of(folder, "3000", "a", 0) / "stages/train.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"train.json: cannot be read"):
        load_study(folder)
    (folder / "study.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="holds no JSON object"):
        load_study(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: {k: v for k, v in f.items() if k != "identity"}, "has no 'identity'"),
        (lambda f: f | {"reference": "x"}, "the reference 'x' is none of its methods"),
        (lambda f: f | {"sizes": [".."]}, "'..' cannot be the name of a folder"),
        (lambda f: f | {"methods": f["methods"] | {"../b": {}}}, "'../b' cannot be the name of a folder"),
        (lambda f: f | {"methods": f["methods"] | {"b": {"role": "hero"}}}, "'b' has the role 'hero'"),
    ],
)
def test_a_study_json_that_is_none(tmp_path, edit, message):
    with pytest.raises(UserError, match=message):
        load_study(small(tmp_path, edit=edit))


def test_no_study(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        load_study(tmp_path)
