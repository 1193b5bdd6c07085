"""The controls on the command line: further baselines, early stopping, DFT, and DPR on controlled rewards."""

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from inverselm.cli.main import main
from inverselm.cli.training import dpr, finetune
from inverselm.cli.training.baselines import BaselineArguments, check_baselines, set_late_baselines_aside
from inverselm.errors import UserError
from inverselm.scorers.markers import write_marker

from .conftest import SUMS, write_jsonl

SCRATCH = ["--scratch_config", "tiny.yaml", "--dataset_name", "sums.jsonl", "--max_length", "64", "--report_to", "none"]
CPU = ["--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True"]
FAST = ["--max_steps", "8", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4"]
DPR = ["dpr", "--model_name_or_path", "sft", "--dataset_name", "prompts.jsonl", "--output_dir", "policy", *CPU]
SHORT = ["--max_steps", "2", "--max_completion_length", "6", "--report_to", "none", "--logging_steps", "1"]


def sft(folder, *extra):
    return ["sft", *SCRATCH, *CPU, *FAST, "--output_dir", folder, *extra]


def marker(folder):
    return json.loads((folder / "inverselm.json").read_text(encoding="utf-8"))


def same(a, b):
    a, b = (load_file(folder / "model.safetensors") for folder in (a, b))
    return all((a[name] == b[name]).all() for name in a)


def log(folder):
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


@pytest.mark.slow
def test_further_baselines_and_the_average(desk, capsys):
    flags = ["--extra_baseline_fractions", "0.25", "0.75", "--ema_baseline_decay", "0.5", "--save_steps", "2"]
    assert main(sft("run", *flags)) == 0
    run = desk / "run"
    assert marker(run)["baseline"] == "baseline"
    assert marker(run)["more_baselines"] == ["baseline-25", "baseline-75", "baseline-ema"]
    for name, step in (("baseline", 4), ("baseline-25", 2), ("baseline-75", 6)):
        assert same(run / name, run / f"checkpoint-{step}")
    out = capsys.readouterr().out
    assert "Wrote run/baseline: the baseline of its dense reward.\nWrote run/baseline-25: another baseline.\n" in out
    assert "run/baseline-ema: another baseline, the average of the weights (0.4% of it is where the run began)." in out
    score = ["score", "--model_name_or_path", "run", "--prompt", "2+2=", "--completion", " 4"]
    totals = set()
    for baseline in ([], ["run/baseline-25"], ["run/baseline-75"], ["run/baseline-ema"]):
        assert main([*score, *(["--baseline", *baseline] if baseline else [])]) == 0
        totals.add(capsys.readouterr().out.split("sum of")[0].split()[-1])
    assert len(totals) == 4
    # a run anew leaves none of them behind
    (run / "baseline-notes").mkdir()
    assert main(sft("run", "--overwrite_output_dir")) == 0
    assert {folder.name for folder in run.glob("baseline*")} == {"baseline", "baseline-notes"}
    assert "more_baselines" not in marker(run)


@pytest.mark.slow
def test_a_stopped_run_resumes_with_its_average(desk, capsys, monkeypatch):
    flags = ["--ema_baseline_decay", "0.5", "--extra_baseline_fractions", "0.75", "--save_steps", "2"]
    assert main(sft("whole", *flags)) == 0
    shutil.copytree("whole", "run")
    for name in ("checkpoint-6", "checkpoint-8", "baseline-75", "baseline-ema"):
        shutil.rmtree(f"run/{name}")
    (desk / "run/model.safetensors").unlink()
    (desk / "run/checkpoint-6").mkdir()  # a kill while it was being written
    shutil.copy("whole/checkpoint-6/ema.safetensors", "run/checkpoint-6")
    assert main(sft("run", *flags, "--resume_from_checkpoint", "True")) == 0
    for name in (".", "baseline", "baseline-75", "baseline-ema"):
        assert same(desk / "run" / name, desk / "whole" / name)


@pytest.mark.slow
def test_early_stopped_sft(desk, capsys):
    """As docs/how-to/controls.md has it; the validation loss is best early on, before the baseline."""
    write_jsonl(desk / "valid.jsonl", [{**row, "completion": " zqxjkv" * 3} for row in SUMS[:4]])
    flags = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    flags += ["--load_best_model_at_end", "True", "--metric_for_best_model", "eval_loss"]
    argv = sft("run", "--eval_dataset_name", "valid.jsonl", *flags, "--max_steps", "40", "--learning_rate", "3e-2")
    assert main(argv) == 0
    losses = {entry["step"]: entry["eval_loss"] for entry in log(desk / "run") if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert same(desk / "run", desk / "run" / f"checkpoint-{best}")
    assert best < 20, losses
    facts = marker(desk / "run")
    assert (facts["best_step"], facts["steps"]) == (best, 40)
    assert "baseline" not in facts
    assert marker(desk / "run/baseline")["role"] == "late_baseline"
    out = capsys.readouterr().out
    assert f"is that of step {best}: no later than run/baseline (step 20)" in out
    assert "inverselm dpr" not in out
    score = ["score", "--model_name_or_path", "run", "--prompt", "2+2=", "--completion", " 4"]
    assert main(score) == 2
    assert "No baseline found in run" in capsys.readouterr().err
    assert main([*score, "--baseline", "run/checkpoint-40"]) == 0


@pytest.mark.slow
def test_every_baseline_later_than_the_best_checkpoint_is_set_aside(desk, capsys):
    """The best step is early: only the baseline of step 2 is an earlier checkpoint."""
    write_jsonl(desk / "valid.jsonl", [{**row, "completion": " It was zqxjkv."} for row in SUMS[:4]])
    flags = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"]
    flags += ["--load_best_model_at_end", "True", "--metric_for_best_model", "eval_loss"]
    flags += ["--extra_baseline_fractions", "0.05", "0.75", "--ema_baseline_decay", "0.5"]
    argv = sft("run", "--eval_dataset_name", "valid.jsonl", *flags, "--max_steps", "40", "--learning_rate", "1e-2")
    assert main(argv) == 0
    run, out = desk / "run", capsys.readouterr().out
    best = marker(run)["best_step"]
    assert 2 < best < 20
    roles = {folder.name: marker(folder)["role"] for folder in run.glob("baseline*")}
    late = "late_baseline"
    assert roles == {"baseline": late, "baseline-5": "baseline", "baseline-75": late, "baseline-ema": late}
    assert marker(run)["more_baselines"] == ["baseline-5"]
    assert marker(run / "baseline-75")["best_step"] == best
    assert "no later than run/baseline (step 20), run/baseline-75 (step 30), run/baseline-ema (up to step 40)" in out
    assert "Wrote run/baseline-5: another baseline." in out
    assert "Wrote run/baseline-75" not in out


@pytest.mark.slow
def test_dft(desk):
    assert main(sft("dft", "--loss_type", "dft", "--logging_steps", "1")) == 0
    assert main(sft("nll", "--logging_steps", "1")) == 0
    first = [next(entry["loss"] for entry in log(desk / name) if "loss" in entry) for name in ("dft", "nll")]
    assert 0 < first[0] < 0.1 * first[1], "of a random model, p is about 1/300"
    assert marker(desk / "dft")["role"] == "sft"
    assert main(["score", "--model_name_or_path", "dft", "--prompt", "2+2=", "--completion", " 4"]) == 0


@pytest.mark.slow
def test_continued_sft_with_as_many_tokens(desk):
    """As docs/how-to/controls.md has it: what DPR read and wrote is in its log, beside what a step of SFT reads."""
    assert main(sft("run", "--logging_steps", "1")) == 0
    argv = [word if word != "sft" else "run" for word in DPR]
    assert main([*argv, *SHORT]) == 0
    per_step = [e["num_tokens"] for e in log(desk / "run") if "num_tokens" in e][-1] / 8
    steps = round([e["num_tokens"] for e in log(desk / "policy") if "num_tokens" in e][-1] / per_step)
    assert steps >= 1
    more = ["--max_steps", str(steps), "--baseline_fraction", "0", "--logging_steps", "1", "--learning_rate", "1e-2"]
    data = ["--dataset_name", "sums.jsonl", "--max_length", "64", "--per_device_train_batch_size", "4"]
    more += ["--report_to", "none", "--output_dir", "continued", *data]
    assert main(["sft", "--model_name_or_path", "run", *CPU, *more]) == 0
    assert not same(desk / "continued", desk / "run")
    found, wanted = ([e["num_tokens"] for e in log(desk / n) if "num_tokens" in e][-1] for n in ("continued", "policy"))
    assert abs(found - wanted) <= per_step


@pytest.mark.slow
@pytest.mark.parametrize("control", ["shuffled_sequences", "log_prob_only"])
def test_dpr_on_a_controlled_reward(desk, capsys, control):
    assert main([*DPR, *SHORT, "--reward_control", control]) == 0
    assert marker(desk / "policy")["reward_control"] == control
    assert f"Control: the reward is {control}, not the dense reward." in capsys.readouterr().out
    assert main([*DPR, *SHORT, "--output_dir", "plain"]) == 0
    assert "reward_control" not in marker(desk / "plain")
    assert not same(desk / "policy", desk / "plain")
    rewards = [next(e["reward"] for e in log(desk / name) if "reward" in e) for name in ("policy", "plain")]
    assert (rewards[0] == pytest.approx(rewards[1], rel=1e-3)) == (control == "shuffled_sequences")
    assert control != "log_prob_only" or rewards[0] < 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (sft("x", "--extra_baseline_fractions", "0.25", "1.0"), "--extra_baseline_fractions holds 1.0"),
        (sft("x", "--extra_baseline_fractions", "0.25", "0.25"), "names a fraction twice"),
        (sft("x", "--extra_baseline_fractions", "0.95"), "--extra_baseline_fractions 0.95 of 8 optimiser steps is the"),
        (sft("x", "--baseline_fraction", "0.95"), "--baseline_fraction 0.95 of 8 optimiser steps is the end"),
        (sft("x", "--ema_baseline_decay", "1"), "--ema_baseline_decay is 1.0"),
        (sft("x", "--ema_baseline_decay", "0.9", "--fsdp", "full_shard"), "does not support sharded weights"),
        ([*DPR, "--reward_control", "shuffled"], "--reward_control: invalid choice"),
        (
            [*DPR, "--reward_control", "shuffled_sequences", "--per_device_eval_batch_size", "1",
             "--num_generations_eval", "1", "--eval_strategy", "steps", "--eval_steps", "1"],
            "needs two answers at a time; raise --per_device_eval_batch_size",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(desk, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(finetune, "train", None)  # never reached
    monkeypatch.setattr(dpr, "train_and_save", None)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (desk / "x").exists()
    assert not (desk / "policy").exists()


@pytest.mark.parametrize(
    ("best", "late"),
    [
        (None, []),
        (8, []),
        (7, ["baseline-ema"]),
        (4, ["baseline", "baseline-ema"]),
        (2, ["baseline", "baseline-25", "baseline-ema"]),
    ],
)
def test_which_baselines_are_late(tmp_path, best, late):
    """A run of 8 steps: a baseline has to be earlier than the best step, an average to hold nothing from after it."""
    for name, facts in (("baseline", {"step": 4}), ("baseline-25", {"step": 2}), ("baseline-ema", {"step": 8})):
        (tmp_path / name).mkdir()
        write_marker(tmp_path / name, "baseline", **facts, **({"ema_decay": 0.5} if "ema" in name else {}))
    args = SimpleNamespace(output_dir=str(tmp_path), load_best_model_at_end=best is not None)
    process = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    trainer = SimpleNamespace(args=args, state=SimpleNamespace(best_global_step=best), accelerator=process)
    lines = set_late_baselines_aside(trainer, BaselineArguments(extra_baseline_fractions=[0.25]))
    assert sorted(f.name for f in tmp_path.iterdir() if marker(f)["role"] == "late_baseline") == late
    assert bool(lines) == bool(late)
    assert all(name in lines[0] for name in late)


@pytest.mark.parametrize(("given", "found"), [(0.25, [0.25]), ("0.25", [0.25]), ([0.25, "0.75"], [0.25, 0.75])])
def test_fractions_of_a_config_file(given, found):
    """YAML has one number where the command line has a list."""
    data = BaselineArguments(extra_baseline_fractions=given)
    check_baselines(data, None)
    assert data.extra_baseline_fractions == found
    with pytest.raises(UserError, match="extra_baseline_fractions holds 'half', which is no number"):
        check_baselines(BaselineArguments(extra_baseline_fractions=["half"]), None)


def test_a_baseline_set_aside_is_not_found(desk, capsys):
    shutil.copytree("sft", "late")
    write_marker(desk / "late/baseline", "late_baseline", step=4)
    score = ["score", "--model_name_or_path", "late", "--prompt", "2+2=", "--completion", " 4"]
    assert main(score) == 2
    assert "No baseline found in late" in capsys.readouterr().err
    assert main([*score, "--baseline", "late/baseline"]) == 0
