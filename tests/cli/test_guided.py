"""`inverselm generate --guidance_weight`: the guided answers, where the baseline is found, and what is refused."""

import json
import shutil

import pytest
import torch

from inverselm.cli import generate as command
from inverselm.cli.main import main
from inverselm.inference.generate import generate
from inverselm.scorers import load_model
from inverselm.scorers.markers import write_marker

from .conftest import SUMS

ARGV = ["generate", "--model_name_or_path", "sft", "--device", "cpu", "--dataset_name", "prompts.jsonl"]
SHORT = ["--max_new_tokens", "8", "--temperature", "0"]


def lines(path="generations.jsonl"):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def answers(sft, baseline, weight):
    """What the package gives for two folders."""
    from transformers import AutoTokenizer

    rows = generate(
        load_model(sft), AutoTokenizer.from_pretrained("sft"), [row["prompt"] for row in SUMS[:6]], temperature=0,
        max_new_tokens=8, guided_by=load_model(baseline), guidance_weight=weight, progress=False,
    )  # fmt: skip
    return [list(row[0].token_ids) for row in rows]


def test_the_baseline_is_found_or_named(desk):
    shutil.copytree("sft/baseline", "elsewhere")
    assert main([*ARGV, *SHORT, "--guidance_weight", "0.7"]) == 0
    found = lines()
    assert [item["token_ids"] for item in found] == answers("sft", "sft/baseline", 0.7)
    assert {(item["guidance_weight"], item["guided_by"]) for item in found} == {(0.7, "sft/baseline")}
    assert main([*ARGV, *SHORT, "--guidance_weight", "0.7", "--guided_by", "elsewhere", "--overwrite"]) == 0
    assert [item["token_ids"] for item in lines()] == [item["token_ids"] for item in found]
    assert lines()[0]["guided_by"] == "elsewhere"


def test_weight_zero_is_the_model_and_loads_no_baseline(desk, monkeypatch):
    assert main([*ARGV, *SHORT]) == 0
    plain = lines()
    assert not {"guidance_weight", "guided_by"} & set(plain[0])
    real, loaded = command._load, []
    monkeypatch.setattr(command, "_load", lambda *a: loaded.append(real(*a)) or loaded[-1])
    assert main([*ARGV, *SHORT, "--guidance_weight", "0", "--overwrite"]) == 0
    assert [item["token_ids"] for item in lines()] == [item["token_ids"] for item in plain]
    assert lines()[0]["guidance_weight"] == 0.0
    assert loaded[0][1] is None
    assert main([*ARGV, *SHORT, "--guidance_weight", "1.5", "--overwrite"]) == 0
    assert [item["token_ids"] for item in lines()] != [item["token_ids"] for item in plain]


def adapters(base):
    """`lora` with its baseline, adapters of the model in the folder `base`; and both merged."""
    from peft import LoraConfig, get_peft_model

    for seed, name in enumerate(("lora", "lora/baseline")):
        torch.manual_seed(seed)
        model = get_peft_model(load_model(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        model.peft_config["default"].base_model_name_or_path = base
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(name)
        shutil.copy(f"{base}/tokenizer.json", name)
        shutil.copy(f"{base}/tokenizer_config.json", name)
        model.merge_and_unload().save_pretrained(f"merged{seed}")
    write_marker("lora", "sft")
    write_marker("lora/baseline", "baseline")


def test_adapters_share_their_base(desk, monkeypatch):
    adapters("sft")
    real, loaded = command._load, []
    monkeypatch.setattr(command, "_load", lambda *a: loaded.append(real(*a)) or loaded[-1])
    argv = [*ARGV, *SHORT, "--model_name_or_path", "lora", "--guidance_weight", "0.7"]
    assert main(argv) == 0
    (model, baseline), *_ = loaded
    assert baseline.model is model
    assert [item["token_ids"] for item in lines()] == answers("merged0", "merged1", 0.7)
    assert main([*argv, "--guided_by", "merged1", "--overwrite"]) == 0
    assert [item["token_ids"] for item in lines()] == answers("merged0", "merged1", 0.7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guided_by", "sft/baseline"], "--guided_by does nothing without --guidance_weight"),
        (["--guidance_weight", "-2"], "--guidance_weight is -2.0; set it"),
        (["--guidance_weight", "nan"], "--guidance_weight is nan"),
        (["--guidance_weight", "1", "--model_name_or_path", "nobase"], "No baseline found in nobase"),
        (["--guidance_weight", "1", "--model_name_or_path", "samew"], "hold identical weights"),
        (["--guidance_weight", "1", "--model_name_or_path", "othertok"], "different tokenizers"),
        (["--guidance_weight", "1", "--guided_by", "./missing"], "--guided_by ./missing: no such folder"),
        (["--guidance_weight", "1", "--guided_by", " , "], "--guided_by is empty"),
        (["--guidance_weight", "1", "--guided_by", "sft/baseline,sft/baseline"], "takes one baseline"),
    ],
)
def test_what_is_refused(desk, capsys, monkeypatch, flags, message):
    monkeypatch.setattr(command, "_load", None)  # never reached
    assert main([*ARGV, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (desk / "generations.jsonl").exists()


def test_resume_does_not_mix_weights(desk, capsys, monkeypatch):
    monkeypatch.setattr(command, "CHUNK", 1)
    real, calls = command._sample, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    argv = [*ARGV, *SHORT, "--batch_size", "2"]
    assert main([*argv, "--guidance_weight", "0.7", "--output_file", "whole.jsonl"]) == 0
    monkeypatch.setattr(command, "_sample", interrupted)
    assert main([*argv, "--guidance_weight", "0.7"]) == 130
    for other in (["--guidance_weight", "0.8"], []):
        assert main([*argv, *other, "--resume"]) == 2
        assert "another guidance_weight" in capsys.readouterr().err
    assert main([*argv, "--guidance_weight", "0.7", "--resume"]) == 0
    assert lines() == lines("whole.jsonl")
