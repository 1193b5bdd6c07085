"""`inverselm generate`: its lines, its measures, room in the model, and how it goes on."""

import json

import pytest

from inverselm.cli import generate
from inverselm.cli.main import main
from inverselm.evaluation.metrics import compute_metrics

from .conftest import SUMS, write_jsonl

ARGV = ["generate", "--model_name_or_path", "sft", "--device", "cpu", "--dataset_name", "prompts.jsonl"]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def test_lines_and_measures(desk, capsys):
    argv = [*ARGV, "--max_new_tokens", "6", "--num_return", "2", "--output_file", "out.jsonl", "--batch_size", "4"]
    assert main([*argv, "--metrics", "exact_match", "diversity", "--seed", "3", "--top_p", "0.9"]) == 0
    items = lines("out.jsonl")
    assert [item["prompt"] for item in items] == [row["prompt"] for row in SUMS[:6] for _ in range(2)]
    assert [item["sample"] for item in items] == [0, 1] * 6
    for item in items:
        assert item["reference"] in {row["completion"] for row in SUMS}
        assert (item["max_new_tokens"], item["seed"], item["top_p"], item["temperature"]) == (6, 3, 0.9, 1.0)
        assert 1 <= len(item["token_ids"]) <= 6
        assert item["finished"] == (item["token_ids"][-1] == 0), "EOS has id 0 here"
    out = capsys.readouterr().out
    cut = sum(not item["finished"] for item in items) / 12
    assert f"Wrote out.jsonl: 12 answers to 6 prompts; {cut:.1%} truncated." in out
    texts = [[items[2 * i]["completion"], items[2 * i + 1]["completion"]] for i in range(6)]
    measured = compute_metrics(["exact_match", "diversity"], texts, [row["completion"] for row in SUMS[:6]])
    for name, value in measured.items():
        assert f"  {name}: {value:.4g}\n" in out
    assert "Next:\n  inverselm score" in out
    assert main([*argv[:-2], "--batch_size", "4", "--overwrite", "--seed", "3", "--top_p", "0.9"]) == 0
    assert [item["completion"] for item in lines("out.jsonl")] == [item["completion"] for item in items]


def test_greedy_answers_do_not_depend_on_the_batch(desk):
    for size, name in (("2", "a.jsonl"), ("8", "b.jsonl")):
        argv = [*ARGV, "--max_new_tokens", "5", "--temperature", "0", "--batch_size", size, "--output_file", name]
        assert main(argv) == 0
    assert [i["token_ids"] for i in lines("a.jsonl")] == [i["token_ids"] for i in lines("b.jsonl")]


def test_the_default_length_fits_the_model(desk, capsys):
    assert main(ARGV) == 0
    out = capsys.readouterr().out
    length = lines("generations.jsonl")[0]["max_new_tokens"]
    assert f"Answers have at most {length} tokens: the model has 96 positions." in out
    assert 50 < length < 96
    write_jsonl(desk / "long.jsonl", [SUMS[0], {"prompt": "7 " * 200}])
    assert main([*ARGV[:-1], "long.jsonl", "--overwrite"]) == 2
    err = capsys.readouterr().err
    assert "long.jsonl: prompt 2 has" in err
    assert "96 positions; shorten it" in err


def test_the_calculator_is_used(desk, monkeypatch):
    seen = []
    from inverselm.inference import generate as inference

    real = inference.generate
    monkeypatch.setattr(inference, "generate", lambda *a, **k: seen.append(k["logits_processor"]) or real(*a, **k))
    from inverselm.evaluation.gsm8k import CalculatorLogitsProcessor

    assert main([*ARGV, "--max_new_tokens", "4", "--calculator"]) == 0
    assert main([*ARGV, "--max_new_tokens", "4", "--overwrite"]) == 0
    assert seen == [CalculatorLogitsProcessor, None]


def test_ctrl_c_and_resume(desk, capsys, monkeypatch):
    monkeypatch.setattr(generate, "CHUNK", 1)
    argv = [*ARGV, "--max_new_tokens", "5", "--batch_size", "2", "--metrics", "exact_match"]
    assert main([*argv, "--output_file", "whole.jsonl"]) == 0
    whole = capsys.readouterr().out
    real, calls = generate._sample, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(generate, "_sample", interrupted)
    assert main(argv) == 130
    assert "--resume continues generations.jsonl." in capsys.readouterr().err
    assert main(argv) == 2
    assert "--resume continues it, --overwrite starts anew" in capsys.readouterr().err
    assert main([*argv, "--resume", "--temperature", "0.5"]) == 2
    assert "another temperature" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert len(calls) == 4, "of three chunks one was done, one interrupted"
    assert lines("generations.jsonl") == lines("whole.jsonl")
    assert capsys.readouterr().out == whole.replace("whole", "generations")


@pytest.mark.parametrize("chunks", [1, 3])
def test_chunks_have_different_seeds(desk, monkeypatch, chunks):
    monkeypatch.setattr(generate, "CHUNK", 1)
    write_jsonl(desk / "same.jsonl", [{"prompt": SUMS[0]["prompt"]}] * 6)
    argv = [*ARGV[:-1], "same.jsonl", "--max_new_tokens", "12", "--batch_size", str(6 // chunks)]
    assert main(argv) == 0
    assert len({item["completion"] for item in lines("generations.jsonl")}) == 6
