"""`inverselm extrapolate`: the folder it writes, where the baseline is found, and what is refused."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from inverselm.cli.main import main

ARGV = ["extrapolate", "--model_name_or_path", "sft", "--weight", "0.5", "--output_dir", "out"]


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


def is_extrapolated(out, sft, baseline, weight):
    found, a, b = weights(out), weights(sft), weights(baseline)
    return all((found[n] - a[n] - weight * (a[n] - b[n])).abs().max() < 1e-6 for n in a)


def test_the_baseline_is_found_and_the_result_is_a_model(desk, capsys):
    assert main(ARGV) == 0
    assert is_extrapolated("out", "sft", "sft/baseline", 0.5)
    marker = json.loads((desk / "out/inverselm.json").read_text(encoding="utf-8"))
    assert marker == {"role": "extrapolated", "sft": "sft", "baseline": "sft/baseline", "weight": 0.5}
    out = capsys.readouterr().out
    assert "Wrote out: sft + 0.5 (sft - sft/baseline), with its tokenizer." in out
    assert "inverselm generate --model_name_or_path out --dataset_name <held-out prompts>" in out
    short = ["--max_new_tokens", "4", "--device", "cpu"]
    assert main(["generate", "--model_name_or_path", "out", "--dataset_name", "prompts.jsonl", *short]) == 0
    assert main(["score", "--model_name_or_path", "out", "--prompt", "a", "--completion", "b"]) == 2
    assert "No baseline found in out" in capsys.readouterr().err


def test_a_named_baseline_and_overwriting(desk, capsys):
    shutil.copytree("sft/baseline", "early")
    assert main(ARGV) == 0
    again = [*ARGV, "--baseline", "early", "--weight", "-0.5"]
    assert main(again) == 2
    assert "--output_dir out: holds an extrapolated model; pass --overwrite" in capsys.readouterr().err
    assert is_extrapolated("out", "sft", "early", 0.5)
    assert main([*again, "--overwrite"]) == 0
    assert is_extrapolated("out", "sft", "early", -0.5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight", "-2"], "--weight is -2.0; set it above 0"),
        (["--weight", "inf"], "--weight is inf"),
        (["--model_name_or_path", "nobase"], "No baseline found in nobase"),
        (["--model_name_or_path", "corrupt"], "model.safetensors is damaged"),
        (["--model_name_or_path", "samew"], "hold identical weights"),
        (["--model_name_or_path", "othertok"], "different tokenizers"),
        (["--baseline", "sft/baseline,sft/baseline"], "are extrapolated from one baseline"),
        (["--output_dir", "sft", "--overwrite"], "--output_dir sft: sft is read from there"),
        (["--output_dir", "nobase", "--overwrite"], "not empty, and no extrapolated model"),
        (["--output_dir", "file"], "--output_dir file: is a file"),
    ],
)
def test_what_is_refused(desk, capsys, monkeypatch, flags, message):
    from inverselm.inference import extrapolate

    monkeypatch.setattr(extrapolate, "write_full", None)  # never reached
    assert main([*ARGV, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (desk / "out").exists()


@pytest.mark.parametrize("flag", ["--weight", "--output_dir", "--model_name_or_path"])
def test_what_must_be_given(desk, capsys, flag):
    at = ARGV.index(flag)
    assert main([*ARGV[:at], *ARGV[at + 2 :]]) == 2
    assert f"pass {flag}" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(desk, capsys, monkeypatch):
    from inverselm.inference import extrapolate_full

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(extrapolate_full, "_combined", stop)
    assert main(ARGV) == 130
    assert "inverselm extrapolate: stopped. Nothing was written." in capsys.readouterr().err
    assert not list(desk.glob("*out*"))
