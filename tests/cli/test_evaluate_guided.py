"""`inverselm evaluate --samplers guided=0.5`: its answers, the baseline it finds, what a resumed run does not mix."""

import json
import shutil
from pathlib import Path

import pytest

from inverselm.cli.main import main
from inverselm.evaluation.sampling import Runner

from .evaluate_bench import argv
from .test_guided import adapters

GUIDED = ["--samplers", "greedy", "greedy,guided=0.7"]


def ids(path):
    """Token ids by prompt."""
    with open(path, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return {row["prompt"]: row["token_ids"] for row in rows}


def run_of(out="out"):
    return json.loads(Path(out, "run.json").read_text(encoding="utf-8"))


def test_answers_are_those_of_generate(desk):
    shutil.copytree("sft/baseline", "elsewhere")
    assert main(argv(*GUIDED)) == 0
    generate = ["generate", "--model_name_or_path", "sft", "--device", "cpu", "--dataset_name", "prompts.jsonl"]
    generate += ["--max_new_tokens", "5", "--temperature", "0"]
    assert main([*generate, "--guidance_weight", "0.7", "--output_file", "guided.jsonl"]) == 0
    assert main([*generate, "--output_file", "plain.jsonl"]) == 0
    assert ids("out/samples/sft/greedy+guided=0.7.jsonl") == ids("guided.jsonl")
    assert ids("out/samples/sft/greedy.jsonl") == ids("plain.jsonl") != ids("guided.jsonl")
    plain, guided = json.loads((desk / "out/results.json").read_text())["rows"]
    assert (guided["settings"]["guidance_weight"], guided["settings"]["guided_by"]) == (0.7, "sft/baseline")
    assert (plain["settings"]["guidance_weight"], plain["settings"]["guided_by"]) == (0.0, None)
    assert main(argv(*GUIDED, "--guided_by", "elsewhere", out="named")) == 0
    assert ids("named/samples/sft/greedy+guided=0.7.jsonl") == ids("guided.jsonl")
    assert run_of("named")["baselines"] == run_of()["baselines"], "a copy is the same baseline"


def test_adapters_share_their_base(desk, monkeypatch):
    adapters("sft")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"sft/{file}", "merged0")
    real, runners = Runner.__init__, []
    monkeypatch.setattr(Runner, "__init__", lambda self, *args: runners.append(self) or real(self, *args))
    assert main(argv(*GUIDED, "--model_name_or_path", "lora")) == 0
    [runner] = runners
    assert runner.baseline.model is runner.model
    assert main(argv(*GUIDED, "--model_name_or_path", "merged0", "--guided_by", "merged1", out="whole")) == 0
    for name in ("greedy", "greedy+guided=0.7"):
        assert ids(f"out/samples/lora/{name}.jsonl") == ids(f"whole/samples/merged0/{name}.jsonl")
    assert any(name.startswith("base ") for name in run_of()["baselines"]["lora"])


def test_each_model_has_its_baseline(desk, capsys):
    shutil.copytree("sft", "other")
    shutil.move("other/baseline", "apart")
    shutil.copy("sft/baseline/model.safetensors", "other/model.safetensors")
    shutil.copy("sft/model.safetensors", "apart/model.safetensors")
    both = ["--model_name_or_path", "sft", "other"]
    assert main(argv(*GUIDED, *both)) == 2
    assert "No baseline found in other" in capsys.readouterr().err
    assert main(argv(*GUIDED, *both, "--guided_by", "sft/baseline", "apart")) == 0
    baselines = run_of()["baselines"]
    assert baselines["sft"] == run_of()["models"]["other"]
    assert baselines["other"] == run_of()["models"]["sft"]
    rows = json.loads((desk / "out/results.json").read_text())["rows"]
    assert [row["settings"]["guided_by"] for row in rows] == [None, "sft/baseline", None, "apart"]


def test_another_baseline_is_not_mixed_in(desk, capsys):
    shutil.copytree("sft", "mine")
    model = ["--model_name_or_path", "mine", "--labels", "it"]
    assert main(argv(*model, "--samplers", "greedy")) == 0
    assert run_of()["baselines"] == {}
    assert main(argv(*model, *GUIDED, "--resume")) == 0, "the first baseline of the folder"
    known = run_of()["baselines"]
    assert main(argv(*model, "--samplers", "greedy", "--resume")) == 0
    assert run_of()["baselines"] == known, "still known"
    weights = desk / "mine/baseline/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    capsys.readouterr()
    assert main(argv(*model, *GUIDED, "--resume")) == 2
    assert "with another baseline of 'it' (model.safetensors differs); nothing is mixed" in capsys.readouterr().err
    assert main(argv(*model, *GUIDED, "--resume", "--guided_by", "sft/baseline")) == 0


def test_only_what_is_missing_loads_a_baseline(desk, monkeypatch):
    real, baselines = Runner.__init__, []
    monkeypatch.setattr(
        Runner, "__init__", lambda self, *args: real(self, *args) or baselines.append(self.baseline is not None)
    )
    assert main(argv(*GUIDED)) == 0
    (desk / "out/samples/sft/greedy.jsonl").unlink()
    assert main(argv(*GUIDED, "--resume")) == 0
    (desk / "out/samples/sft/greedy+guided=0.7.jsonl").unlink()
    assert main(argv(*GUIDED, "--resume")) == 0
    assert main(argv(*GUIDED, "--resume")) == 0
    assert baselines == [True, False, True]


def test_an_evaluation_of_an_earlier_version_goes_on(desk):
    assert main(argv("--samplers", "greedy")) == 0
    run = {name: value for name, value in run_of().items() if name != "baselines"}
    (desk / "out/run.json").write_text(json.dumps(run))
    assert main(argv(*GUIDED, "--resume")) == 0
    assert set(run_of()["baselines"]) == {"sft"}


def test_a_config_file_and_the_calculator(desk, capsys):
    (desk / "g.jsonl").write_text('{"prompt": "2+3", "answer": "#### 5"}\n')
    (desk / "e.yaml").write_text("samplers:\n  - {T: 0.5, guided: 0.5}\nguided_by: sft/baseline\ntask: gsm8k\n")
    bare = [part for part in argv() if part not in ("--task", "exact_match")]
    assert main([*bare, "--config", "e.yaml", "--dataset_name", "g.jsonl"]) == 0
    names = [row["sampler"] for row in json.loads((desk / "out/results.json").read_text())["rows"]]
    assert names == ["T=0.5,guided=0.5", "T=0.5,calculator,guided=0.5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--samplers greedy --guided_by sft/baseline", "--guided_by has no part in these samplers"),
        ("--samplers guided=0 --guided_by sft/baseline", "--guided_by has no part in these samplers"),
        ("--samplers guided=-2", "sampler guided=-2: guided is -2.0; set it to a number of at least -1"),
        ("--samplers guided=1 --model_name_or_path nobase", "or name a checkpoint with --guided_by."),
        ("--samplers guided=1 --model_name_or_path samew", "hold identical weights"),
        ("--samplers guided=1 --model_name_or_path othertok", "different tokenizers"),
        ("--samplers guided=1 --guided_by ./missing", "--guided_by ./missing: no such folder"),
        ("--samplers guided=1 --guided_by sft sft/baseline", "--guided_by names 2 baselines of 1 models"),
        ("--samplers guided=1 --guided_by sft/baseline,sft/baseline", "guided decoding takes one baseline"),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(desk, capsys, flags, message):
    before = sorted(p.name for p in desk.iterdir())
    assert main([*argv(out="new"), *flags.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(p.name for p in desk.iterdir()) == before
