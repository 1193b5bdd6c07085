"""`inverselm evaluate`: its rows and files, for models and samplers of every kind."""

import csv
import json
import shutil

import pytest

from inverselm.cli.evaluation.evaluate import default_labels
from inverselm.cli.main import main
from inverselm.evaluation import evaluate
from inverselm.inputs.fingerprints import model_fingerprint

from .conftest import write_jsonl
from .evaluate_bench import SHORT, argv, lines


def test_one_row_for_each_model_and_sampler(desk, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    samplers = ["greedy", "top_p=0.9"]
    more = ["--model_name_or_path", "sft", "sft/baseline", "--samplers", *samplers, "--seed", "3"]
    assert main(argv(*more)) == 0
    out = capsys.readouterr().out
    with open("out/results.csv", encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(r["model"], r["sampler"]) for r in table] == [
        (model, sampler) for model in ("sft", "baseline") for sampler in ("greedy", "T=1.0,top_p=0.9")
    ]
    results = json.loads((desk / "out/results.json").read_text())
    assert (results["task"], results["main_metric"], results["settings"]["seed"]) == ("exact_match", "exact_match", 3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained("sft"), AutoTokenizer.from_pretrained("sft")
    expected = evaluate(
        model, tokenizer, lines("prompts.jsonl"), task="exact_match", samplers=samplers, num_samples=2,
        max_new_tokens=5, batch_size=4, seed=3, progress=False,
    )  # fmt: skip
    for row, found, flat in zip(expected, results["rows"], table, strict=False):
        assert found["metrics"] == {name: value._asdict() for name, value in row.metrics.items()}
        for name in ("entropy", "length", "length_ratio", "truncated", "self_bleu"):
            assert found[name] == getattr(row, name)
            assert flat[name] == ("" if found[name] is None else str(found[name]))
        samples = lines(f"out/samples/sft/{row.sampler.replace(',', '+')}.jsonl")
        assert [{k: v for k, v in s.items() if k not in ("model", "sampler")} for s in samples] == row.records
        assert {(s["model"], s["sampler"]) for s in samples} == {("sft", row.sampler)}
        assert f"sft       {row.sampler:<15}  0.000 [0.000, 0.000]" in out
    assert results["rows"][0]["self_bleu"] is None
    assert "6 prompts; [95% interval over prompts]" in out
    assert "n-grams up to 4, 2 samples per prompt" in out
    assert "inverselm compare --runs sft=out/samples/sft/greedy.jsonl baseline=out/samples/baseline/greedy.jsonl" in out
    assert main(argv(out="one")) == 0
    assert "inverselm score --model_name_or_path <SFT folder> --dataset_name one/" in capsys.readouterr().out


def test_config_file_and_labels(desk, capsys):
    (desk / "e.yaml").write_text(
        "model_name_or_path: [sft, sft/baseline]\nlabels: [half way, full]\ntask: exact_match\nsamplers:\n"
        "  - greedy\n  - {T: 0.5, top_p: 0.9}\n  - T=0.5,top_p=0.9\ndataset_name: prompts.jsonl\noutput_dir: out\n"
    )
    assert main(["evaluate", "--config", "e.yaml", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "The samplers are greedy T=0.5,top_p=0.9: equal ones run once." in out
    assert sorted(p.name for p in (desk / "out/samples").iterdir()) == ["full", "half_way"]
    assert [line.split("  ")[0] for line in out.splitlines()[2:6]] == ["half way", "half way", "full", "full"]
    (desk / "e.yaml").write_text("model_name_or_path: sft\nsamplers: greedy T=0.5\ntask: exact_match\n")
    assert main(["evaluate", "--config", "e.yaml", "--dataset_name", "prompts.jsonl", *SHORT]) == 0
    assert len(list((desk / "evaluation/samples/sft").iterdir())) == 2


def test_default_labels_tell_models_apart():
    assert default_labels(["runs/sft", "runs/iq/"]) == ["sft", "iq"]
    assert default_labels(["a/x/sft", "b/x/sft", "c"]) == ["a/x/sft", "b/x/sft", "c"]
    assert default_labels(["org/model"]) == ["model"]


def test_gsm8k_runs_with_and_without_the_calculator(desk, capsys):
    write_jsonl(desk / "g.jsonl", [{"prompt": "2+3", "answer": "#### 5"}])
    more = ["--dataset_name", "g.jsonl", "--task", "gsm8k"]
    assert main(argv(*more, "--samplers", "greedy", "beam=2")) == 0
    out = capsys.readouterr().out
    assert "Without the calculator only: beam=2." in out
    names = [row["sampler"] for row in json.loads((desk / "out/results.json").read_text())["rows"]]
    assert names == ["greedy", "greedy,calculator", "beam=2"]
    assert main(argv(*more, "--samplers", "greedy", "--calculator", "without", out="w")) == 0
    assert main(argv(*more, "--samplers", "greedy,calculator", "T=0.5", out="own")) == 0
    names = [row["sampler"] for row in json.loads((desk / "own/results.json").read_text())["rows"]]
    assert names == ["greedy,calculator", "T=0.5"]
    assert main(argv("--samplers", "greedy", out="no")) == 0
    assert len(json.loads((desk / "no/results.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("reward", "kind"), [("sft", "log_ratio"), ("sft:sft/baseline", "log_ratio"), ("iq", "bellman")]
)
def test_best_of_n_by_a_token_reward(desk, reward, kind):
    from inverselm.scorers import QFunctionReward, TokenReward
    from inverselm.scorers.markers import write_marker

    shutil.copytree("sft/baseline", "iq")
    write_marker("iq", "iqlearn", gamma=0.9)
    assert main(argv("--samplers", "best_of=3,by=sum_reward", "--reward", reward)) == 0
    if kind == "bellman":
        scorer = QFunctionReward.from_checkpoint("iq", kind="bellman", gamma=0.9)
    else:
        scorer = TokenReward.from_checkpoints("sft", "sft/baseline")
    samples = lines("out/samples/sft/best_of=3+T=1.0+by=sum_reward.jsonl")
    prompts = [scorer.tokenizer(s["prompt"])["input_ids"] for s in samples]
    sums = [float(s.rewards.sum()) for s in scorer.score_ids(prompts, [s["token_ids"] for s in samples])]
    assert [s["score"] for s in samples] == pytest.approx(sums, abs=1e-4)
    for i in range(0, 18, 3):
        group = samples[i : i + 3]
        [best] = [s for s in group if s["chosen"]]
        assert best["score"] == max(s["score"] for s in group)
    fingerprint = json.loads((desk / "out/run.json").read_text())["reward"]
    assert fingerprint["kind"] == kind


def test_adapters(desk, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shutil.copytree("sft", "base")
    base = AutoModelForCausalLM.from_pretrained("base")
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained("adapter")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"base/{file}", f"adapter/{file}")
    assert main(argv("--model_name_or_path", "base", "adapter", "--samplers", "greedy")) == 0
    one, two = (lines(f"out/samples/{name}/greedy.jsonl") for name in ("base", "adapter"))
    assert [s["log_prob"] for s in one] != [s["log_prob"] for s in two]
    known = json.loads((desk / "out/run.json").read_text())["models"]["adapter"]
    assert {"adapter_model.safetensors", "base model.safetensors"} <= set(known)
    shutil.copy("sft/baseline/model.safetensors", "base/model.safetensors")
    more = ["--model_name_or_path", "adapter", "--samplers", "greedy", "--resume"]
    assert main(argv(*more)) == 2
    assert "another model 'adapter' (base model.safetensors differs)" in capsys.readouterr().err


def test_fingerprints_are_of_contents(desk):
    shutil.copytree("sft", "copy")
    before = model_fingerprint("copy", None)
    assert before == model_fingerprint("sft", None)
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(before)
    assert "inverselm.json" not in before
    (desk / "copy/tokenizer_config.json").write_text("{}")
    assert model_fingerprint("copy", None) != before
    config = type("Config", (), {"_commit_hash": "abc"})
    assert model_fingerprint("org/model", config) == {"hub": "org/model", "commit": "abc"}


def test_repeated_prompts_have_several_references(desk, capsys):
    rows = [{"prompt": "name[Cotto], food[Thai]", "completion": c} for c in ("Cotto is Thai.", "Thai food at Cotto.")]
    write_jsonl(desk / "e2e.jsonl", [*rows, {"prompt": "name[Aromi]", "completion": "Aromi"}])
    assert main(argv("--dataset_name", "e2e.jsonl", "--task", "data_to_text", "--samplers", "greedy")) == 0
    assert "3 rows are 2 prompts with 3 references." in capsys.readouterr().out
    assert [s["references"] for s in lines("out/samples/sft/greedy.jsonl")] == [
        ["Cotto is Thai.", "Thai food at Cotto."],
        ["Aromi"],
    ]
    write_jsonl(desk / "list.jsonl", [{"prompt": "x", "references": ["a", "b"]}, {"prompt": "y", "references": ["c"]}])
    assert main(argv("--dataset_name", "list.jsonl", "--task", "translation", "--samplers", "greedy", out="o")) == 0
    assert [s["references"] for s in lines("o/samples/sft/greedy.jsonl")] == [["a", "b"], ["c"]]


def test_the_default_length_fits_all_models(desk, capsys):
    bare = [part for part in argv("--samplers", "greedy") if part not in ("--max_new_tokens", "5")]
    assert main(bare) == 0
    out = capsys.readouterr().out
    length = json.loads((desk / "out/run.json").read_text())["settings"]["max_new_tokens"]
    assert f"Answers have at most {length} tokens: the models have room for no more." in out
    assert 50 < length < 96
    shutil.copytree("sft", "short")
    config = json.loads((desk / "short/config.json").read_text())
    (desk / "short/config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    assert main([*bare, "--model_name_or_path", "sft", "short", "--output_dir", "two"]) == 0
    assert json.loads((desk / "two/run.json").read_text())["settings"]["max_new_tokens"] == length - 56


def test_a_task_of_ones_own_that_is_a_class(desk):
    (desk / "own.py").write_text(
        "from inverselm.evaluation.tasks import Task, mean_of\n\n\nclass Mine(Task):\n"
        "    def measure(self, text, example):\n        return {'long': float(len(text))}\n\n"
        "    def metrics(self, samples):\n        return (mean_of('long', 'low'),)\n"
    )
    assert main(argv("--task", "own.py:Mine", "--samplers", "greedy")) == 0
    results = json.loads((desk / "out/results.json").read_text())
    assert results["rows"][0]["better"] == {"long": "low"}
