"""`inverselm sft --loss_type dft` and `gem`: what is trained, what is logged, what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

from inverselm.cli.main import main
from inverselm.cli.training import finetune
from inverselm.cli.training.losses import IQLearnFlags, SFTFlags
from inverselm.training.iqlearn import IQLearnConfig

from .conftest import SUMS, write_jsonl

SCRATCH = ["--scratch_config", "tiny.yaml", "--dataset_name", "sums.jsonl", "--max_length", "64", "--report_to", "none"]
CPU = ["--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True"]
FAST = ["--max_steps", "6", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--logging_steps", "1"]


def sft(folder, *extra):
    return ["sft", *SCRATCH, *CPU, *FAST, "--output_dir", folder, *extra]


def log(folder, key="loss"):
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry for entry in history if key in entry]


def marker(folder):
    return json.loads((folder / "inverselm.json").read_text(encoding="utf-8"))


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_gem(desk, capsys):
    write_jsonl(desk / "valid.jsonl", [{"prompt": "Question: what is 1+1?\nAnswer:", "completion": " It is 2."}])
    held_out = ["--eval_dataset_name", "valid.jsonl", "--eval_strategy", "steps", "--eval_steps", "3"]
    assert main(sft("gem", "--loss_type", "gem", *held_out)) == 0
    out = capsys.readouterr().out
    assert "Wrote gem/baseline: the baseline of its dense reward." in out
    logged, evaluated = log(desk / "gem"), log(desk / "gem", "eval_loss")
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert logged[-1]["nll"] < logged[0]["nll"]
    assert {"gem", "nll", "entropy"} <= set(logged[0])
    assert "td_error" not in logged[0]
    assert {"eval_nll", "eval_gem"} <= set(evaluated[0])
    assert marker(desk / "gem") == {
        "role": "sft", "steps": 6, "base": "tiny.yaml", "loss_type": "gem", "gem_temperature": 0.7,
        "baseline": "baseline",
    } | {"base": marker(desk / "gem")["base"]}  # fmt: skip
    assert main(sft("nll", *held_out)) == 0
    plain = log(desk / "nll")
    assert logged[0]["nll"] == pytest.approx(plain[0]["loss"], rel=1e-4), "the same rows, weights and temperature"
    assert "loss_type" not in marker(desk / "nll")
    assert main(["score", "--model_name_or_path", "gem", "--prompt", "2+2=", "--completion", " 4"]) == 0


@pytest.mark.slow
def test_gem_at_temperature_one_is_plain_sft(desk):
    assert main(sft("one", "--loss_type", "gem", "--gem_temperature", "1")) == 0
    assert main(sft("nll")) == 0
    one, plain = weights(desk / "one"), weights(desk / "nll")
    for name in plain:
        torch.testing.assert_close(one[name], plain[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_dft_logs_the_nll(desk):
    assert main(sft("dft", "--loss_type", "dft")) == 0
    first = log(desk / "dft")[0]
    assert {"probability", "nll"} <= set(first)
    assert 0 < first["loss"] < 0.1 * first["nll"], "of a random model, p is about 1/300"
    assert marker(desk / "dft")["loss_type"] == "dft"
    assert "gem_temperature" not in marker(desk / "dft")


@pytest.mark.slow
def test_a_stopped_run_resumes(desk):
    flags = ["--loss_type", "gem", "--save_steps", "2"]
    assert main(sft("whole", *flags)) == 0
    import shutil

    shutil.copytree("whole", "run")
    for name in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(f"run/{name}")
    (desk / "run/model.safetensors").unlink()
    assert main(sft("run", *flags, "--resume_from_checkpoint", "True")) == 0
    whole, resumed = weights(desk / "whole"), weights(desk / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert marker(desk / "run") == marker(desk / "whole")


@pytest.mark.slow
def test_the_best_checkpoint_by_the_nll_is_the_lowest(desk):
    """transformers takes every metric for one to be raised whose name does not end with "loss"."""
    write_jsonl(desk / "valid.jsonl", [{**row, "completion": " It was zqxjkv."} for row in SUMS[:4]])
    flags = ["--eval_dataset_name", "valid.jsonl", "--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "3"]
    flags += ["--load_best_model_at_end", "True", "--metric_for_best_model", "eval_nll", "--max_steps", "30"]
    assert main(sft("gem", "--loss_type", "gem", *flags)) == 0
    found = {entry["step"]: entry["eval_nll"] for entry in log(desk / "gem", "eval_loss")}
    best = min(found, key=found.get)
    assert max(found, key=found.get) != best != 30
    assert marker(desk / "gem")["best_step"] == best


@pytest.mark.slow
def test_a_recipe(desk):
    (desk / "gem.yaml").write_text("loss_type: gem\ngem_temperature: 0.5\nscratch_config: tiny.yaml\n")
    argv = sft("gem", "--config", "gem.yaml")
    at = argv.index("--scratch_config")
    assert main([*argv[:at], *argv[at + 2 :]]) == 0
    assert marker(desk / "gem")["gem_temperature"] == 0.5


def test_which_trainer_trains(desk, monkeypatch):
    """Plain SFT stays TRL's own; the peers go through the soft head."""
    seen = []
    for name in ("SFTTrainer", "IQLearnTrainer"):

        def stop(*args, kind=name, **kwargs):
            seen.append((kind, kwargs["args"].objective, kwargs["args"].loss_type))
            raise KeyboardInterrupt

        monkeypatch.setattr(finetune, name, stop)
    for flags in ([], ["--loss_type", "dft"], ["--loss_type", "gem"]):
        assert main(sft("x", *flags)) == 130
    assert main(["iqlearn", *sft("x")[1:]]) == 130
    assert seen == [
        ("SFTTrainer", "iqlearn", "nll"),
        ("IQLearnTrainer", "dft", "nll"),
        ("IQLearnTrainer", "gem", "nll"),
        ("IQLearnTrainer", "iqlearn", "nll"),
    ]


def test_what_sft_takes_it_still_takes():
    shared = {"use_cpu": True, "bf16": False}
    assert SFTFlags("x", label_smoothing_factor=0.1, **shared).label_smoothing_factor == 0.1
    flags = SFTFlags("x", loss_type="gem", **shared)
    assert isinstance(flags, IQLearnConfig)
    assert (flags.objective, flags.td_coef, flags.gem_temperature) == ("gem", 0.0, 0.7)
    assert IQLearnFlags("x", **shared).objective == "iqlearn"


def test_the_help_says_which_losses_there_are(capsys):
    assert main(["sft", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--loss_type" in text
    assert "--gem_temperature" in text
    assert "--td_coef" not in text
    assert "--objective" not in text
    assert main(["iqlearn", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--td_coef" in text
    assert "--objective" not in text
    assert "--gem_temperature" not in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (sft("x", "--loss_type", "ppo"), "--loss_type: invalid choice: 'ppo'"),
        (sft("x", "--gem_temperature", "0.5"), "--gem_temperature belongs to --loss_type gem"),
        (sft("x", "--loss_type", "dft", "--gem_temperature", "0.5"), "--gem_temperature belongs to --loss_type gem"),
        (sft("x", "--loss_type", "gem", "--gem_temperature", "0"), "gem_temperature must be above 0"),
        (sft("x", "--loss_type", "gem", "--td_coef", "0.1"), "unknown flag --td_coef"),
        (sft("x", "--loss_type", "gem", "--label_smoothing_factor", "0.1"), "label_smoothing_factor has no meaning"),
        (["iqlearn", *sft("x")[1:], "--objective", "gem"], "unknown flag --objective"),
        (["iqlearn", *sft("x")[1:], "--loss_type", "dft"], "loss_type='dft' is SFTTrainer's"),
    ],
    ids=str,
)
def test_what_is_refused(desk, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(finetune, "train", None)  # never reached
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (desk / "x").exists()
