"""`inverselm selfplay`, as a user runs it."""

import json
import shlex

import pytest

from inverselm.cli.main import main

from .conftest import write_jsonl

CPU = ["--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True", "--report_to", "none"]
FAST = ["--max_steps", "2", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--iterations", "2"]
SHORT = ["--max_completion_length", "8"]


def argv(folder="spin", model="sft", data="sums.jsonl", *extra):
    names = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", folder]
    return ["selfplay", *names, *CPU, *FAST, *SHORT, *extra]


def marker(folder):
    return json.loads((folder / "inverselm.json").read_text(encoding="utf-8"))


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_from_an_sft_model_to_answers(desk, capsys):
    assert main(argv("spin")) == 0
    out = capsys.readouterr().out
    assert "Training on the CPU in float32." in out
    assert "Iteration 1 of 2: 24 own answers," in out
    assert "Wrote spin: the policy of iteration 2 and its tokenizer" in out
    assert marker(desk / "spin")["role"] == "selfplay"
    assert weights(desk / "spin") == weights(desk / "spin/iteration_2") != weights(desk / "spin/iteration_1")
    out = out.replace("<held-out prompts>", "prompts.jsonl")
    suggested = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  inverselm ")]
    assert [words[:3] for words in suggested] == [["generate", "--model_name_or_path", m] for m in ("spin", "sft")]
    assert main(suggested[0]) == 0
    scored = ["--dataset_name", "spin/iteration_2/generated.jsonl", "--output_file", "own.jsonl"]
    assert main(["score", "--model_name_or_path", "sft", *scored]) == 0
    rows = [json.loads(line) for line in (desk / "own.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["terminated"] for row in rows] == [row["finished"] for row in rows]
    capsys.readouterr()

    assert main(argv("spin")) == 2
    assert "the folder is not empty" in capsys.readouterr().err
    before = weights(desk / "spin/iteration_2")
    assert main(argv("spin", "sft", "sums.jsonl", "--resume_from_checkpoint", "True", "--iterations", "3")) == 0
    assert weights(desk / "spin/iteration_2") == before
    assert marker(desk / "spin")["iterations"] == 3
    again = ["--overwrite_output_dir", "True", "--loss_type", "gsil_brier", "--iterations", "1"]
    assert main(argv("spin", "sft", "sums.jsonl", *again)) == 0
    assert not (desk / "spin/iteration_2").exists()
    assert marker(desk / "spin")["loss_type"] == "gsil_brier"


@pytest.mark.slow
def test_an_adapter_and_held_out_rows(desk, capsys):
    more = ["--use_peft", "True", "--lora_r", "2", "--eval_strategy", "epoch", "--eval_dataset_name", "sums.jsonl"]
    assert main(argv("lora", "sft", "sums.jsonl", *more, "--loss_type", "gsil_bernoulli")) == 0
    assert (desk / "lora/adapter_model.safetensors").is_file()
    generate = ["generate", "--model_name_or_path", "lora", "--dataset_name", "prompts.jsonl", "--max_new_tokens", "4"]
    assert main(generate) == 0
    assert main(argv("more", "lora", "sums.jsonl", "--use_peft", "True")) == 2
    assert "starts as an adapter already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (argv("x", "nowhere"), "nowhere"),
        (argv("x", "sft", "columns.jsonl"), "rename 'question' to 'prompt' and 'answer' to 'completion'"),
        (argv("x", "sft", "prompts.jsonl"), "needs the columns"),
        (argv("x", "sft", "talk.jsonl"), "no chat template"),
        (argv("x", "noeos"), "no end-of-sequence token"),
        (argv("x", "corrupt"), "damaged"),
        (argv("x", "sft", "sums.jsonl", "--loss_type", "dpo"), "loss_type"),
        (argv("x", "sft", "sums.jsonl", "--iterations", "0"), "iterations must be 1 or more"),
        (argv("x", "sft", "sums.jsonl", "--beta", "0"), "beta must be above 0"),
        (argv("x", "sft", "sums.jsonl", "--max_completion_length", "96"), "no prompt leaves room"),
        (argv("x", "sft", "sums.jsonl", "--scratch_config", "tiny.yaml"), "starts from an SFT run"),
        (argv("x", "sft", "sums.jsonl", "--resume_from_checkpoint", "True"), "x holds no run of selfplay"),
        (argv("x", "sft", "sums.jsonl", "--resume_from_checkpoint", "sft"), "pass True"),
        (argv("x", "sft", "sums.jsonl", "--label_smoothing", "0.1"), "label_smoothing belongs to DPO"),
    ],
)
def test_bad_input_ends_in_one_line(given, message, desk, capsys):
    assert main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("inverselm selfplay: error: ")
    assert message in error.splitlines()[-1]
    assert not (desk / "x").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(desk, capsys, monkeypatch):
    from inverselm.training.self_play_trainer import SelfPlayTrainer

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SelfPlayTrainer, "train", stop)
        assert main(argv("spin")) == 130
    assert "--resume_from_checkpoint True continues it" in capsys.readouterr().err
    write_jsonl(desk / "other.jsonl", [{"prompt": "Question:", "completion": " 1"}])
    assert main(argv("spin", "sft", "other.jsonl", "--resume_from_checkpoint", "True")) == 2
    assert "holds a run with data" in capsys.readouterr().err
    assert main(argv("spin", "sft", "sums.jsonl", "--resume_from_checkpoint", "True")) == 0
    assert marker(desk / "spin")["iterations"] == 2


def test_help(capsys):
    assert main(["selfplay", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--gsil_offset" in out
    assert "--scratch_config" not in out
    assert "TRL's DPOConfig" in out
