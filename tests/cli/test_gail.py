"""`inverselm gail`: from an SFT folder and demonstrations to a folder that the other commands read."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file

from inverselm.cli.main import main
from inverselm.cli.training import gail

from .conftest import SUMS, write_jsonl

CPU = ["--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True", "--report_to", "none"]
FAST = ["--max_steps", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--logging_steps", "1"]
SHORT = ["--max_completion_length", "8", "--max_length", "64"]


def command(folder, *extra, model="sft", data="sums.jsonl"):
    argv = ["gail", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", folder]
    return [*argv, *CPU, *FAST, *SHORT, *extra]


def weights(folder):
    return load_file(folder / "model.safetensors")


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


@pytest.mark.slow
def test_from_sft_to_a_policy_that_other_commands_read(desk, capsys):
    assert main(command("run", "--save_steps", "2")) == 0
    out = capsys.readouterr().out
    assert "Training on the CPU in float32." in out
    assert "Wrote run: the policy and its tokenizer." in out
    lines = out.replace("<held-out prompts>", "prompts.jsonl").splitlines()
    suggested = [shlex.split(line)[1:] for line in lines if line.startswith("  inverselm ")]
    assert [argv[0] for argv in suggested] == ["generate", "generate"]
    for argv in suggested:
        assert main(argv) == 0
    marker = json.loads((desk / "run/inverselm.json").read_text(encoding="utf-8"))
    assert marker == {
        "role": "gail", "sft": "sft", "steps": 4, "critics": "full", "mle_coef": 1.0, "kl_coef": 0.001,
    }  # fmt: skip
    logged = [entry for entry in history(desk / "run") if "loss" in entry]
    assert {"reward_margin", "discriminator_accuracy", "own_length", "own_truncated", "value_loss"} <= set(logged[0])
    before, after = weights(desk / "sft"), weights(desk / "run")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in (desk / "run/checkpoint-2/critics").iterdir()} == {
        "discriminator.safetensors", "discriminator_optimizer.safetensors", "state.json", "value.safetensors",
        "value_optimizer.safetensors",
    }  # fmt: skip
    assert not (desk / "run/critics").exists()
    one = ["--prompt", SUMS[0]["prompt"], "--completion", SUMS[0]["completion"]]
    assert main(["score", "--model_name_or_path", "run", "--reward", "log_prob", *one]) == 0


@pytest.mark.slow
def test_a_stopped_run_resumes(desk, capsys):
    flags = ["--save_steps", "2", "--critics", "head", "--kl_anneal_steps", "3"]
    assert main(command("whole", *flags)) == 0
    shutil.copytree("whole", "run")
    shutil.rmtree("run/checkpoint-4")
    (desk / "run/model.safetensors").unlink()
    assert main(command("run", *flags, "--resume_from_checkpoint", "True")) == 0
    whole, resumed = weights(desk / "whole"), weights(desk / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert main(command("run", *flags)) == 2
    assert "the folder is not empty" in capsys.readouterr().err
    shutil.rmtree("run/checkpoint-2/critics")
    shutil.rmtree("run/checkpoint-4")
    assert main(command("run", *flags, "--resume_from_checkpoint", "True")) == 2
    assert "has no critics to resume with" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters(desk):
    assert main(command("lora", "--use_peft", "True", "--lora_r", "2", "--critics", "head")) == 0
    assert (desk / "lora/adapter_model.safetensors").is_file()
    assert not (desk / "lora/model.safetensors").exists()
    assert main(command("again", "--max_steps", "2", model="lora")) == 0
    assert (desk / "again/adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_collapse_is_said_in_one_line(desk, capsys):
    assert main(command("run", "--collapse_steps", "2", "--collapse_truncated", "0")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("inverselm gail: error: stopped at step 2: the policy has collapsed")
    assert not (desk / "run/model.safetensors").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (command("x", "--critics", "both"), "--critics: invalid choice: 'both'"),
        (command("x", "--td_coef", "0.1"), "unknown flag --td_coef"),
        (command("x", "--packing", "True"), "set packing=False"),
        (command("x", "--gae_lambda", "2"), "gae_lambda must be in [0, 1]"),
        (command("x", "--scratch_config", "tiny.yaml"), "gail starts from an SFT run"),
        (command("x", data="messages.jsonl"), "no chat template"),
        (command("x", data="columns.jsonl"), "columns.jsonl"),
        (command("x", model="noeos"), "no end-of-sequence token"),
        (command("x", model="corrupt"), "is damaged"),
        (command("x", "--max_completion_length", "500"), "no prompt leaves room"),
        (command("sft"), "--output_dir sft"),
    ],
    ids=str,
)
def test_what_is_refused(desk, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(gail, "train_and_save", None)  # never reached
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (desk / "x").exists()


def test_rows_without_a_prompt(desk, capsys):
    write_jsonl(desk / "texts.jsonl", [{"text": "a b"}] * 4)
    assert main(command("x", data="texts.jsonl")) == 2
    assert "gail needs prompt and completion" in capsys.readouterr().err


def test_the_help(capsys):
    assert main(["gail", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--critics", "--mle_coef", "--kl_anneal_steps", "--reward_shift", "--collapse_steps"):
        assert flag in text
    for flag in ("--td_coef", "--objective", "--gem_temperature", "--scratch_config"):
        assert flag not in text
