"""The benchmark scripts run in tiny sizes, write what they promise, and their contestants compute the same."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.processes import environment

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("common", "heads", "head", "step", "scoring")


@pytest.fixture
def modules(monkeypatch):
    """The shared modules, importable as the scripts import them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def common(modules):
    return modules("common")


@pytest.fixture
def heads(modules):
    return modules("heads")


def run(script, tmp_path, *options):
    """The JSON and the table of a script, checked for what all of them hold."""
    path = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARKS / script), "--threads", "1", "--json", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(path.read_text())
    assert report["benchmark"] == script.removesuffix(".py")
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert {"date", "cpu", "threads"} <= report["environment"].keys()
    assert report["settings"]["threads"] == 1
    assert " left: " in done.stderr
    return report, done.stdout


def seconds(rows, repeats):
    """Contestants of the rows, after checking their times."""
    assert rows
    for row in rows:
        for times in row["seconds"].values():
            assert 0 < times["min"] <= times["median"] <= times["max"]
            assert times["repeats"] == repeats
    return {name for row in rows for name in row["seconds"]}


# ---- what they share -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt", [0.0, 0.5])
@pytest.mark.parametrize("mode", ["float32", "autocast", "bfloat16"])
def test_the_contestants_do_the_same_work(heads, mode, prompt):
    """NLL and its gradients, over the labelled tokens; the IQLearn loss has another gradient."""
    inputs = heads.Case(hidden=16, vocab=50, prompt=prompt, mode=mode, rows=2, length=8, device="cpu").inputs()
    found = {}
    for name in ("iqlearn", "mle", "trl", "full"):
        inputs.forget()
        nll = heads.CONTESTANTS[name](inputs)
        found[name] = (nll, inputs.hidden.grad, inputs.weight.grad)
        assert inputs.hidden.grad.dtype == inputs.weight.grad.dtype == heads.MODES[mode][0]
    near = 1e-4 if mode == "float32" else 2e-2
    distance = lambda a, b: float((a.float() - b.float()).norm() / b.float().norm())
    for name in ("mle", "trl"):
        for ours, theirs in zip(found[name], found["full"], strict=True):
            assert distance(ours, theirs) < near
    assert distance(found["iqlearn"][0], found["full"][0]) < near
    assert all(distance(found["iqlearn"][k], found["full"][k]) > 0.1 for k in (1, 2))
    labelled = int((inputs.labels[:, 1:] != -100).sum())
    assert inputs.case.operations == 6 * labelled * 16 * 50


def test_trl_is_called_as_its_trainer_calls_it(heads, monkeypatch):
    """The outputs that SFTTrainer asks its head for."""
    from trl.trainer import sft_trainer, utils

    asked, add = [], utils.add_fused_lm_head
    spy = lambda model, **options: asked.append(options) or add(model, **options)
    monkeypatch.setattr(utils, "add_fused_lm_head", spy)
    heads.trl(heads.Case(8, 20, 0.0, "float32", 1, 4, "cpu").inputs())
    (options,) = asked
    source = Path(sft_trainer.__file__).read_text()
    assert f"outputs=({', '.join(repr(x) for x in options['outputs'])})".replace("'", '"') in source


def test_contestants_that_disagree_are_not_timed(modules, heads, monkeypatch):
    head = modules("head")
    case = heads.Case(8, 20, 0.0, "float32", 1, 4, "cpu")
    head.warm_up(case, ["mle", "full"], 1)
    full = heads.CONTESTANTS["full"]
    monkeypatch.setitem(heads.CONTESTANTS, "full", lambda inputs: full(inputs) + 0.01)
    with pytest.raises(RuntimeError, match="NLL differ"):
        head.warm_up(case, ["mle", "full"], 1)


def test_rewards_are_checked_against_bare_passes(modules):
    from inverselm import TokenReward

    scoring = modules("scoring")
    models = [scoring.Shape("llama", 32, 50, tied=False).model(1, 16, seed).eval() for seed in (0, 1)]
    rows = [([5, 6], [7, 8, 0]), ([9], [10, 11])]
    scores = TokenReward.from_checkpoints(*models, tokenizer=scoring.tokenizer()).score_ids(*zip(*rows, strict=True))
    scoring.check(models, rows, scores, "float32")
    with pytest.raises(RuntimeError, match="differ from those of bare passes"):
        scoring.check(models[::-1], rows, scores, "float32")


def test_bare_batches_hold_no_padding(modules):
    rows = [([5], [6, 0]), ([7, 8], [0]), ([9], [0]), ([3, 4, 5], [0]), ([4], [3, 0])]
    batches = modules("scoring").without_padding(rows, 2)
    assert [batch.shape for batch in batches] == [(1, 4), (2, 3), (1, 3), (1, 2)]
    assert sorted(row for batch in batches for row in batch.tolist()) == sorted([*p, *a] for p, a in rows)


def test_every_repeat_runs_everyone_in_rotating_order(common):
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = common.interleaved(runs, repeats=4, between=lambda: order.append("-"))
    assert "".join(order).replace("-", "") == "abc" + "bca" + "cab" + "abc"
    assert order[::2] == ["-"] * 12
    assert {name: len(t.seconds) for name, t in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_no_repeat_begins_after_the_limit(common):
    runs = {"a": lambda: time.sleep(0.02), "b": lambda: time.sleep(0.02)}
    for limit, expected in ((0.03, 1), (60.0, 3)):
        times = common.interleaved(runs, repeats=3, seconds=limit)
        assert [len(t.seconds) for t in times.values()] == [expected, expected]
        assert all(t.median >= 0.02 for t in times.values())


def test_own_clocks_and_ratios(common):
    clock = {"ours": iter([[1.0, 3.0], [2.0, 4.0]]), "theirs": iter([[2.0, 2.0], [8.0, 4.0]])}
    runs = {name: lambda values=values: next(values) for name, values in clock.items()}
    times = common.interleaved(runs, repeats=2, own_clock=True)
    assert times["ours"].as_dict() == {"median": 2.5, "min": 1.0, "max": 4.0, "repeats": 4}
    bar = common.Bar.of("ours/theirs", times["ours"], times["theirs"], 0.8)
    assert (bar.value, bar.spread, bar.met) == (2.5 / 3.0, (0.25, 1.5), False)
    assert str(bar) == "0.83 (0.25..1.50) <= 0.80 MISSED"
    assert str(common.Bar("x", 0.5, 0.5)) == "0.50 <= 0.50 ok"
    assert str(common.Bar("x", 0.5)) == "0.50"


def test_progress_tells_the_time_left(common, monkeypatch, capsys):
    now = iter([0.0, 0.0, 20.0, 150.0])
    monkeypatch.setattr(common.time, "monotonic", lambda: next(now))
    progress = common.Progress("head", 40.0)
    for label, work in (("a", 10.0), ("b", 20.0), ("c", 10.0)):
        progress.at(label, work)
    assert capsys.readouterr().err.splitlines() == [
        "head:   0% after 0 s: a",
        "head:  25% after 20 s, 60 s left: b",
        "head:  75% after 2 min, 50 s left: c",
    ]


def test_tables_line_up(common):
    text = common.table([{"a": 1, "b": "xx"}, {"a": 100, "c": 0.5}])
    assert text.splitlines() == ["a    b   c", "1    xx", "100      0.5"]


# ---- the scripts -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_head(tmp_path):
    sizes = ["--sizes", "16x64", "8x16384", "--rows", "4", "--memory-vocab", "16384", "--modes", "float32"]
    others = ["--repeats", "2", "--contestants", "iqlearn", "mle", "full", "--peak-tflops", "1"]
    report, text = run("head.py", tmp_path, *sizes, *others)
    assert seconds(report["time"], 2) == {"iqlearn", "mle", "full"}
    assert len(report["time"]) == 2 * 2  # sizes, prompts
    for row in report["time"]:
        bar = next(bar for bar in row["bars"] if bar["name"] == "iqlearn/full")
        assert bar["limit"] == {0.0: 1.0, 0.5: 0.55}[row["prompt"]]
        assert bar["met"] == (bar["value"] <= bar["limit"])
        assert bar["value"] == pytest.approx(row["seconds"]["iqlearn"]["median"] / row["seconds"]["full"]["median"])
        assert row["fraction_of_peak"]["full"] == row["tflops"]["full"] > 0
    assert "bars met." in text
    logits = 4 * 255 * 16384 * 4  # bytes
    (single,) = report["memory"]
    assert 2 * logits < single["bytes"]["full"] < 6 * logits  # logits, their softmax and gradient
    assert 0 < single["bytes"]["iqlearn"] < single["bytes"]["full"]


@pytest.mark.slow
def test_step(tmp_path):
    options = ["--models", "llama:32x300", "qwen:32x300:tied", "--layers", "1", "--rows", "2", "--length", "16"]
    report, _ = run("step.py", tmp_path, *options, "--modes", "autocast", "--repeats", "2", "--steps", "2")
    assert seconds(report["rows"], 4) == {"trl", "mle", "iqlearn"}  # two steps in each of two repeats
    assert [row["model"] for row in report["rows"]] == ["llama:32x300", "qwen:32x300:tied"]
    for row in report["rows"]:
        assert {bar["name"]: bar["limit"] for bar in row["bars"]} == {"iqlearn/trl": 0.75, "iqlearn/mle": 1.03}
        assert row["first_loss"]["iqlearn"] > row["first_loss"]["mle"] + 0.01  # the temporal difference is on


@pytest.mark.slow
def test_scoring(tmp_path):
    options = ["--size", "32x300", "--layers", "1", "--answers", "4", "--per-prompt", "1", "2", "--repeats", "2"]
    lengths = ["--prompt-length", "4", "8", "--answer-length", "2", "8", "--modes", "float32"]
    report, _ = run("scoring.py", tmp_path, *options, *lengths)
    assert seconds(report["rows"], 2) == {"bare", "reward"}
    assert [row["per_prompt"] for row in report["rows"]] == [1, 2]
    assert all(row["bars"][0]["limit"] == 2.1 for row in report["rows"])


@pytest.mark.slow
def test_growth(tmp_path):
    options = ["--hidden", "8", "--length", "8", "--first-tokens", "8", "--held-tokens", "16", "--doublings", "2"]
    sizes = ["--first-vocab", "32", "--held-vocab", "64", "--repeats", "2", "--modes", "float32"]
    report, text = run("growth.py", tmp_path, *options, *sizes)
    assert seconds(report["rows"], 2) == {"iqlearn"}
    assert [(row["axis"], row["x"]) for row in report["rows"]] == [
        ("tokens", 8), ("tokens", 16), ("tokens", 32), ("vocab", 32), ("vocab", 64), ("vocab", 128),
    ]  # fmt: skip
    first, second = report["rows"][:2]
    assert first["relative_per_unit"] == 1.0
    ratio = second["seconds"]["iqlearn"]["median"] / first["seconds"]["iqlearn"]["median"]
    assert second["relative_per_unit"] == pytest.approx(ratio / 2)
    assert text.count("Largest deviation from linear") == 2
