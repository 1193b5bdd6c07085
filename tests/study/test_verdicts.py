"""The verdicts: chosen on valid, measured on test, paired, corrected over all of them."""

import doctest
import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.study import Plan, cell_of, planted, write_study
from inverselm.errors import UserError
from inverselm.evaluation import compare_runs
from inverselm.report.study_report import study_verdicts
from inverselm.study import load_study, verdicts
from inverselm.study.answers import Answers
from inverselm.study.verdicts import Pick, best_pick, judge, plan_against_each, plan_verdicts

VALID = {
    ("sft", "greedy"): 0.5, ("sft", "T=1.0"): 0.4, ("a1", "greedy"): 0.3, ("a1", "T=1.0"): 0.6, ("a2", "greedy"): 0.3,
    ("a2", "T=1.0"): 0.35, ("x", "greedy"): 0.45, ("x", "T=1.0"): 0.7, ("y", "greedy"): 0.42, ("y", "T=1.0"): 0.41,
}  # fmt: skip
GROUPS = {("a", "method"): ["a1", "a2"], ("x", "control"): ["x"], ("y", "control"): ["y"], ("z", "method"): ["z"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), planted())


@pytest.fixture(scope="module")
def found(folder):
    study = load_study(folder)
    return study_verdicts(study, Answers(study), num_resamples=400, seed=3, progress=False)


def naive(folder, method, sampler):
    """(seeds, prompts) mean wer and length of the test answers, read by hand."""
    wer, length = [], []
    name = sampler + (",guided=0.5" if method == "control" else "")
    for seed in range(3):
        file = cell_of(folder, "3000", method, seed) / f"test/samples/{method}/{name.replace(',', '+')}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        prompts = sorted({row["example"] for row in rows})
        wer.append([np.mean([r["metrics"]["wer"] for r in rows if r["example"] == i]) for i in prompts])
        length.append([np.mean([r["length"] for r in rows if r["example"] == i]) for i in prompts])
    return np.array(wer), np.array(length)


def of(found, group, against="reference"):
    return next(v for v in found[0] if (v.duel.group, v.duel.against) == (group, against))


def test_examples_in_docstrings():
    assert doctest.testmod(verdicts).failed == 0


def test_picks():
    assert best_pick(VALID, ["a1", "a2"], lower=True) == Pick("a1", "greedy", 0.3), "the first of equals"
    assert best_pick(VALID, ["a1", "a2"], lower=True, sampler="T=1.0") == Pick("a2", "T=1.0", 0.35)
    assert best_pick(VALID, ["a1", "a2"], lower=False) == Pick("a1", "T=1.0", 0.6)
    assert best_pick(VALID, ["z"], lower=True) is None


def test_plan_of_the_verdicts():
    duels = plan_verdicts("100", VALID, GROUPS, "sft", lower=True)
    assert [(d.group, d.role, d.against, d.pick.method, d.other.method, d.other.sampler) for d in duels] == [
        ("a", "method", "reference", "a1", "sft", "T=1.0"),
        ("x", "control", "reference", "x", "sft", "T=1.0"),
        ("y", "control", "reference", "y", "sft", "T=1.0"),
        ("a", "method", "best control", "a1", "y", "T=1.0"),
    ]
    without = {key: members for key, members in GROUPS.items() if key[1] == "method"}
    assert {d.against for d in plan_verdicts("100", VALID, without, "sft", lower=True)} == {"reference"}
    assert plan_verdicts("100", VALID, GROUPS, "absent", lower=True) == []


def test_plan_against_each():
    duels = plan_against_each("1", VALID, GROUPS, "sft", [("a", "method")], ["greedy", "best"], lower=True)
    assert [(d.at, d.against, d.pick.method, d.pick.sampler, d.other.method, d.other.sampler) for d in duels] == [
        ("greedy", "reference", "a1", "greedy", "sft", "greedy"),
        ("greedy", "x", "a1", "greedy", "x", "greedy"),
        ("greedy", "y", "a1", "greedy", "y", "greedy"),
        ("best", "reference", "a1", "greedy", "sft", "T=1.0"),
        ("best", "x", "a1", "greedy", "x", "greedy"),
        ("best", "y", "a1", "greedy", "y", "T=1.0"),
    ]


def test_judge_corrects_over_all_that_it_makes():
    rng = np.random.default_rng(0)
    tables = {name: np.stack([rng.random((3, 30)) + shift, np.ones((3, 30))], -1) for name, shift in
              (("sft", 0.0), ("a1", -0.3), ("x", 0.05), ("y", 0.1))}  # fmt: skip
    duels = plan_verdicts("100", VALID, GROUPS, "sft", lower=True)
    count = []
    found = judge(
        duels, lambda size, method, sampler: (tables[method], np.full((3, 30), 5.0)), metric="wer",
        score=lambda sums: sums[..., 0] / sums[..., 1], lower=True, n=300, done=lambda: count.append(1),
    )  # fmt: skip
    assert len(count) == 4
    p = [v.comparison.p for v in found]
    order, running, expected = np.argsort(p), 0.0, [0.0] * 4
    for place, i in enumerate(order):
        running = max(running, min(1.0, (4 - place) * p[i]))
        expected[i] = running
    assert [v.comparison.p_adjusted for v in found] == pytest.approx(expected)
    assert found[0].outcome == "better"
    higher = judge(
        duels[:1], lambda size, method, sampler: (tables[method], np.full((3, 30), 5.0)), metric="accuracy",
        score=lambda sums: sums[..., 0] / sums[..., 1], lower=False, n=300,
    )  # fmt: skip
    assert higher[0].outcome == "worse"


def test_planted_differences_are_found(found):
    assert of(found, "iq").outcome == "better"
    assert of(found, "b").outcome == "no difference shown"
    assert of(found, "c").outcome == "no difference shown"
    assert of(found, "control").outcome == "no difference shown"
    assert of(found, "iq", "best control").outcome == "better"
    assert of(found, "c").comparison.length == pytest.approx((3.0, 3.0, 3.0))
    assert of(found, "c").length == pytest.approx(of(found, "c").other_length + 3)


def test_chosen_on_valid_and_measured_on_test(found, folder):
    verdict = of(found, "d")
    assert (verdict.duel.pick.method, verdict.duel.pick.sampler) == ("d1", "greedy"), "d2 is better, but only on test"
    assert (verdict.duel.other.method, verdict.duel.other.sampler) == ("sft", "T=1.0"), "not its best one on test"
    assert verdict.comparison.value == pytest.approx(naive(folder, "d1", "greedy")[0].mean())
    assert verdict.comparison.reference_value == pytest.approx(naive(folder, "sft", "T=1.0")[0].mean())
    valid = load_study(folder).values("3000", "d1", "valid", "greedy", "wer")
    assert verdict.duel.pick.valid == pytest.approx(sum(valid) / 3)
    assert verdict.outcome == "worse"


@pytest.mark.parametrize(("group", "against"), [("iq", "reference"), ("b", "best control"), ("control", "reference")])
def test_comparisons_are_those_of_compare_runs(found, folder, group, against):
    verdict = of(found, group, against)
    (run, length), (other, other_length) = (
        naive(folder, p.method, p.sampler) for p in (verdict.duel.pick, verdict.duel.other)
    )
    [expected] = compare_runs(
        {"o": other, "r": run}, lengths={"o": other_length, "r": length}, lower_is_better=True, n=400, seed=3
    )
    assert verdict.comparison.difference == pytest.approx(expected.difference)
    assert verdict.comparison.length == pytest.approx(expected.length)
    assert (verdict.comparison.p, verdict.comparison.seeds) == (pytest.approx(expected.p), 3)


def test_holm_is_over_all_verdicts(found):
    p = sorted(v.comparison.p for v in found[0])
    assert len(p) == 5 + 4
    assert min(v.comparison.p_adjusted for v in found[0]) == pytest.approx(min(1.0, 9 * p[0]))


def test_dense_path_against_each(found):
    assert {v.duel.group for v in found[1]} == {"b"}
    assert [(v.duel.at, v.duel.against) for v in found[1]] == [
        (at, against) for at in ("greedy", "T=1.0", "best") for against in ("reference", "control")
    ]
    repeated = next(v for v in found[1] if (v.duel.at, v.duel.against) == ("best", "reference"))
    assert repeated.comparison == of(found, "b").comparison, "as in the verdict, with its correction"
    known = {(v.duel.pick, v.duel.other) for v in found[0]}
    new = {(v.duel.pick, v.duel.other): v.comparison for v in found[1] if (v.duel.pick, v.duel.other) not in known}
    smallest = min(new.values(), key=lambda c: c.p)
    assert smallest.p_adjusted == pytest.approx(min(1.0, len(new) * smallest.p))


def test_as_dict(found):
    record = of(found, "iq").as_dict()
    comparison = of(found, "iq").comparison
    assert record["difference_low"] == comparison.difference.low
    assert (record["p_holm"], record["outcome"], record["seeds"]) == (comparison.p_adjusted, "better", 3)
    json.dumps(record)


def test_methods_with_fewer_seeds_are_left_out(tmp_path):
    plan = Plan(
        {"sft": {"role": "reference"}, "a": {}, "b": {}}, lambda *_: 0.5, samplers=("greedy",), prompts=6,
        unfinished=(("3000", "b", 2, "test"),),
    )  # fmt: skip
    study = load_study(write_study(tmp_path, plan))
    first, second = study_verdicts(study, Answers(study), num_resamples=50, progress=False)
    assert [v.duel.group for v in first] == ["a"]
    assert second == []


def test_a_ratio_is_the_main_metric(tmp_path):
    plan = Plan(
        {"sft": {"role": "reference"}, "a": {}}, lambda *_: 0.5, samplers=("T=1.0",), prompts=6,
        edit=lambda facts: facts | {"metrics": {"per": "low", "wer": "low"}},
    )  # fmt: skip
    study = load_study(write_study(tmp_path, plan))
    table, lengths = Answers(study).tables("3000", "a", "T=1.0", (0, 2))
    assert (table.shape, lengths.shape) == ((2, 6, 2), (2, 6))
    sums = table.sum(axis=1)
    assert (sums[:, 0] / sums[:, 1]).tolist() == pytest.approx(
        [study.values("3000", "a", "test", "T=1.0", "per")[k] for k in (0, 2)]
    )


def test_a_task_of_ones_own(tmp_path):
    (tmp_path / "own.py").write_text(
        "from inverselm.evaluation.tasks.g2p import G2P\nclass Own(G2P):\n    def metrics(self, samples):\n"
        "        return tuple(reversed(super().metrics(samples)))\n",
        encoding="utf-8",
    )
    plan = Plan(
        {"sft": {"role": "reference"}}, lambda *_: 0.5, samplers=("T=1.0",), prompts=6, seeds=(0,),
        edit=lambda facts: facts | {"metrics": {"per": "low", "wer": "low"}, "task": "own.py:Own"},
    )  # fmt: skip
    study = load_study(write_study(tmp_path / "study", plan))
    with pytest.raises(UserError, match="name the task that measured it with --task"):
        Answers(study).tables("3000", "sft", "T=1.0", (0,))
    table, _ = Answers(study, f"{tmp_path}/own.py:Own").tables("3000", "sft", "T=1.0", (0,))
    sums = table[0].sum(axis=0)
    assert sums[0] / sums[1] == pytest.approx(study.values("3000", "sft", "test", "T=1.0", "per")[0])
    wer = load_study(write_study(tmp_path / "mean", replace(plan, edit=lambda facts: facts | {"task": "own.py:Own"})))
    assert Answers(wer).tables("3000", "sft", "T=1.0", (0,))[0].shape == (1, 6, 2), "a mean needs no task"


def test_bleu_is_of_the_corpus(tmp_path):
    pytest.importorskip("sacrebleu")
    plan = Plan(
        {"sft": {"role": "reference"}, "a": {}}, lambda size, method, *_: 0.9 if method == "sft" else 0.1,
        samplers=("T=1.0",), prompts=12, seeds=(0, 1), task="translation",
        edit=lambda facts: facts | {"metrics": {"bleu": "high", "chrf": "high"}},
    )  # fmt: skip
    study = load_study(write_study(tmp_path, plan))
    [verdict], _ = study_verdicts(study, Answers(study), num_resamples=50, progress=False)
    values = study.values("3000", "a", "test", "T=1.0", "bleu")
    assert verdict.comparison.value == pytest.approx(sum(values) / 2)
    assert verdict.comparison.difference.value > 0
    assert not verdict.comparison.lower_is_better


def test_of_best_of_n_the_chosen_answers_count(tmp_path):
    plan = Plan({"sft": {"role": "reference"}}, lambda *_: 0.5, samplers=("best_of=3,T=1.0",), prompts=6, seeds=(0,))
    study = load_study(write_study(tmp_path, plan))
    table, _ = Answers(study).tables("3000", "sft", "best_of=3,T=1.0", (0,))
    assert table[0, :, 1].tolist() == [1.0] * 6


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    plan = Plan({"sft": {"role": "reference"}, "a": {}}, lambda *_: 0.5, samplers=("greedy",), prompts=6, seeds=(0,))
    study = load_study(write_study(tmp_path, plan))
    file = cell_of(tmp_path, "3000", "a", 0) / "test/samples/a/greedy.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def write(changed):
        file.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")

    answers = Answers(study)
    answers.tables("3000", "sft", "greedy", (0,))
    write([rows[0] | {"prompt": "another"}, *rows[1:]])
    with pytest.raises(UserError, match="has other prompts than"):
        answers.tables("3000", "a", "greedy", (0,))
    flipped = rows[0]["metrics"] | {"wer": 1 - rows[0]["metrics"]["wer"]}
    write([rows[0] | {"metrics": flipped}, *rows[1:]])
    with pytest.raises(UserError, match=r"results\.json says"):
        Answers(study).tables("3000", "a", "greedy", (0,))
    write(rows[1:])
    with pytest.raises(UserError, match="is not what results"):
        Answers(study).tables("3000", "a", "greedy", (0,))
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Answers(study).tables("3000", "a", "greedy", (0,))
