"""`inverselm evaluate`: its rows and files, how it goes on, what it refuses to mix."""

import csv
import json
import shutil

import pytest

from helpers.processes import kill, start, wait_for
from inverselm.cli import evaluation_folder
from inverselm.cli.evaluate import default_labels
from inverselm.cli.fingerprints import model_fingerprint
from inverselm.cli.main import main
from inverselm.evaluation import evaluate
from inverselm.evaluation.sampling import Runner

from .conftest import SUMS, write_jsonl

SHORT = ["--device", "cpu", "--max_new_tokens", "5", "--batch_size", "4", "--num_samples", "2"]
ARGV = ["evaluate", "--model_name_or_path", "sft", "--dataset_name", "prompts.jsonl", "--task", "exact_match", *SHORT]


def argv(*more, out="out"):
    return [*ARGV, "--output_dir", out, *more]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def tree(folder):
    """Every file's content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stopping(monkeypatch, at):
    """Ctrl-C in the `at`-th batch from now; counts the batches that were sampled."""
    real, calls = Runner.run, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Runner, "run", interrupted)
    return calls


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


def test_ctrl_c_and_resume(desk, capsys, monkeypatch):
    more = ["--samplers", "greedy", "T=1.0", "best_of=3", "--labels", "it"]
    assert main(argv(*more, out="whole")) == 0
    whole = capsys.readouterr().out
    calls = stopping(monkeypatch, at=4)  # of 2 + 3 + 6 batches
    assert main(argv(*more)) == 130
    assert "The same command with --resume continues out." in capsys.readouterr().err
    assert sorted(p.name for p in (desk / "out/samples/it").iterdir()) == [
        "T=1.0.jsonl.unfinished",
        "T=1.0.jsonl.unfinished.json",
        "greedy.jsonl",
    ]
    assert not (desk / "out/results.json").exists()
    assert main(argv(*more)) == 2
    assert "the folder is not empty; pass --resume to continue it" in capsys.readouterr().err
    assert main(argv(*more, "--resume")) == 0
    assert len(calls) == 4 + 2 + 6, "one batch of the half-done pair is kept"
    assert tree(desk / "out") == tree(desk / "whole")
    assert capsys.readouterr().out == whole.replace("whole", "out")
    assert main(argv(*more, "--resume")) == 0
    assert len(calls) == 12, "all is done"
    assert tree(desk / "out") == tree(desk / "whole")


@pytest.mark.slow
def test_a_killed_process_is_continued(desk, capsys):
    write_jsonl(desk / "many.jsonl", [{"prompt": s["prompt"], "answer": s["completion"]} for s in SUMS])
    more = ["--dataset_name", "many.jsonl", "--samplers", "greedy", "T=1.0", "--max_new_tokens", "40"]
    assert main(argv(*more, out="whole")) == 0
    process = start("-m", "inverselm", *argv(*more), log=desk / "log")
    try:
        wait_for(desk / "out/samples/sft/T=1.0.jsonl.unfinished.json", process, desk / "log")
    finally:
        kill(process)
    assert (desk / "out/samples/sft/T=1.0.jsonl.unfinished").exists(), "killed in the middle of a pair"
    assert main(argv(*more, "--resume")) == 0
    assert tree(desk / "out") == tree(desk / "whole")


def test_what_a_kill_leaves_behind_is_no_sample(desk, capsys, monkeypatch):
    assert main(argv("--samplers", "T=1.0", out="whole")) == 0
    calls = stopping(monkeypatch, at=3)
    assert main(argv("--samplers", "T=1.0")) == 130
    with open("out/samples/sft/T=1.0.jsonl.unfinished", "a", encoding="utf-8") as stream:
        stream.write('{"example": 0, "half a')
    assert main(argv("--samplers", "T=1.0", "--resume")) == 0
    assert len(calls) == 4
    assert tree(desk / "out") == tree(desk / "whole")
    # killed between the first batch and its note; and after the finished file got its name
    assert main(argv("--samplers", "T=1.0", out="early")) == 0
    (desk / "early/samples/sft/T=1.0.jsonl").rename(desk / "early/samples/sft/T=1.0.jsonl.unfinished")
    assert main(argv("--samplers", "T=1.0", "--resume", out="early")) == 0
    assert tree(desk / "early") == tree(desk / "whole")


def test_more_models_and_samplers_may_come(desk, monkeypatch):
    assert main(argv("--samplers", "greedy")) == 0
    calls = stopping(monkeypatch, at=-1)
    more = ["--model_name_or_path", "sft", "sft/baseline", "--samplers", "greedy", "beam=2"]
    assert main(argv(*more, "--resume")) == 0
    assert len(calls) == 3 + 2 + 3, "greedy of the first model was there"
    assert set(json.loads((desk / "out/run.json").read_text())["models"]) == {"sft", "baseline"}
    assert len(json.loads((desk / "out/results.json").read_text())["rows"]) == 4
    assert main(argv(*more, out="whole")) == 0
    assert tree(desk / "out") == tree(desk / "whole")
    assert main(argv("--samplers", "greedy", "--resume")) == 0
    assert set(json.loads((desk / "out/run.json").read_text())["models"]) == {"sft", "baseline"}, "still known"


def test_nothing_is_mixed(desk, capsys, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree("sft", name)
    first = argv("--model_name_or_path", "a", "--samplers", "greedy")
    assert main(first) == 0
    before = tree(desk / "out")

    def refused(*more):
        capsys.readouterr()
        assert main([*first, "--resume", *more]) == 2
        assert tree(desk / "out") == before
        return capsys.readouterr().err

    assert "out was made with seed 0, and now it is 1; nothing is mixed" in refused("--seed", "1")
    assert "with batch_size 4, and now it is 8" in refused("--batch_size", "8")
    assert "with num_samples 2, and now it is 3" in refused("--num_samples", "3")
    assert "with max_new_tokens 5, and now it is 6" in refused("--max_new_tokens", "6")
    assert "with dtype auto, and now it is bfloat16" in refused("--dtype", "bfloat16")
    assert "with other rows" in refused("--dataset_split", "train[:5]")
    assert "with another model 'a' (model.safetensors differs)" in refused(
        "--model_name_or_path", "sft/baseline", "--labels", "a"
    )
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_folder, "__version__", "9.9")
        assert ", and this is 9.9; nothing is mixed" in refused()
    same = ["--model_name_or_path", "b", "--labels", "a"]
    assert main([*first, "--resume", *same]) == 0, "a copy of the files is the same model"
    weights = desk / "a/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "another model 'a' (model.safetensors differs)" in refused()
    rows = lines("prompts.jsonl")
    (desk / "prompts.jsonl").unlink()
    write_jsonl(desk / "prompts.jsonl", [{**row, "answer": row["answer"] + "!"} for row in rows])
    assert "with other rows" in refused(*same)


def test_a_changed_task_measures_the_same_samples_anew(desk, capsys, monkeypatch):
    (desk / "own.py").write_text("def size(completion, references, row):\n    return len(completion)\n")
    more = ["--task", "own.py:size", "--samplers", "T=1.0"]
    assert main(argv(*more)) == 0
    before = lines("out/samples/sft/T=1.0.jsonl")
    assert [r["metrics"] for r in before] == [{"size": float(len(r["completion"]))} for r in before]
    calls = stopping(monkeypatch, at=-1)
    (desk / "own.py").write_text("def size(completion, references, row):\n    return -len(completion)\n")
    assert main(argv(*more, "--resume")) == 0
    after = lines("out/samples/sft/T=1.0.jsonl")
    assert after == [{**r, "metrics": {"size": -r["metrics"]["size"]}} for r in before]
    assert not calls
    assert main(argv("--samplers", "T=1.0", "--resume")) == 0
    assert json.loads((desk / "out/results.json").read_text())["main_metric"] == "exact_match"
    assert not calls


def test_a_failing_function_loses_no_samples(desk, capsys, monkeypatch):
    source = "def f(completion, references, row):\n    return {}\n"
    (desk / "own.py").write_text(source.format("1 / (completion in references)"))
    more = ["--task", "own.py:f", "--samplers", "greedy"]
    assert main(argv(*more)) == 2
    assert "--task f: failed on" in capsys.readouterr().err
    (desk / "own.py").write_text(source.format("1.0"))
    calls = stopping(monkeypatch, at=-1)
    assert main(argv(*more, "--resume")) == 0
    assert not calls, "all had been sampled"


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


def test_another_reward_is_not_mixed_in(desk, capsys):
    more = ["--samplers", "best_of=2,by=sum_reward"]
    assert main(argv("--samplers", "greedy")) == 0
    assert main(argv(*more, "--resume", "--reward", "sft")) == 0, "the first reward of the folder"
    shutil.copytree("sft", "moved")
    assert main(argv(*more, "--resume", "--reward", "moved")) == 0
    capsys.readouterr()
    assert main(argv(*more, "--resume", "--reward", "sft/baseline:sft")) == 2
    assert "with another reward (0 model.safetensors differs)" in capsys.readouterr().err
    assert main(argv("--samplers", "greedy", "--resume")) == 0
    assert json.loads((desk / "out/run.json").read_text())["reward"]["kind"] == "log_ratio", "still known"


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


def test_overwrite_replaces_an_evaluation_and_nothing_else(desk, capsys):
    assert main(argv("--samplers", "greedy", "T=1.0")) == 0
    (desk / "out/notes.txt").write_text("mine")
    assert main(argv("--samplers", "greedy", "--overwrite", "--seed", "5")) == 0
    assert [p.name for p in (desk / "out/samples/sft").iterdir()] == ["greedy.jsonl"]
    assert (desk / "out/notes.txt").exists()
    (desk / "other").mkdir()
    (desk / "other/thesis.txt").write_text("mine")
    capsys.readouterr()
    assert main(argv("--overwrite", out="other")) == 2
    assert "holds something else than an evaluation" in capsys.readouterr().err
    again = argv("--overwrite", "--dataset_name", "out/samples/sft/greedy.jsonl")
    assert main(again) == 2
    assert "lies in out/samples, which would be removed" in capsys.readouterr().err
    assert (desk / "out/samples/sft/greedy.jsonl").exists()


def test_changed_samples_are_noticed(desk, capsys):
    assert main(argv("--samplers", "greedy")) == 0
    file = desk / "out/samples/sft/greedy.jsonl"
    content = file.read_text().splitlines(keepends=True)
    file.write_text("".join(content[:-1]))
    assert main(argv("--samplers", "greedy", "--resume")) == 2
    assert "has 5 answers in place of 6; delete it" in capsys.readouterr().err
    file.write_text("".join(content)[:-20])
    assert main(argv("--samplers", "greedy", "--resume")) == 2
    assert "greedy.jsonl was changed" in capsys.readouterr().err
    file.unlink()
    assert main(argv("--samplers", "greedy", "--resume")) == 0
    assert file.read_text() == "".join(content)


CASES = [
    ("--model_name_or_path ./none", "./none: no such folder"),
    ("--model_name_or_path sft corrupt", "corrupt: model.safetensors is damaged"),
    ("--model_name_or_path noeos", "no end-of-sequence token"),
    ("--model_name_or_path sft sft", "the label 'sft' stands for two models"),
    ("--labels a b", "--labels names 2 of 1 models"),
    ("--dataset_name none.jsonl", "none.jsonl: no such file"),
    ("--dataset_name columns.jsonl", "rename 'question' to 'prompt'"),
    ("--dataset_name talk.jsonl", "no chat template"),
    ("--reference_column target", "line 1: has no reference: it needs 'target', but has 'answer'"),
    ("--task gsm8k", "prompts.jsonl: line 1: the reference answer ' It is 5.' is not a number"),
    ("--task poetry", "unknown task 'poetry'"),
    ("--task none.py:f", "--task none.py:f: no such file none.py"),
    ("--samplers beam=4,T=1", "sampler beam=4,T=1: beam search does not sample"),
    ("--samplers T=hot", "T is 'hot', not a number"),
    ("--samplers best_of=4,by=sum_reward", "chooses by a reward; pass --reward <SFT folder>"),
    ("--reward sft", "--reward has no part in these samplers"),
    ("--samplers best_of=4,by=sum_reward --reward nobase", "No baseline found in nobase"),
    ("--samplers best_of=4,by=sum_reward --reward sft:", "write SFT or SFT:BASELINE"),
    ("--samplers best_of=4,by=sum_reward --reward sft:sft", "are the same, sft"),
    ("--samplers best_of=4,by=sum_reward --reward othertok", "have different tokenizers"),
    ("--samplers greedy,calculator --calculator with", "leave one of them out"),
    ("--samplers beam=2 --calculator with", "beam search does not work with --calculator with"),
    ("--calculator sometimes", "invalid choice: 'sometimes'"),
    ("--max_new_tokens 90", "prompts.jsonl: line 2: the prompt has 13 tokens|or lower --max_new_tokens to"),
    ("--max_new_tokens 0", "--max_new_tokens is 0"),
    ("--num_samples 0", "--num_samples is 0"),
    ("--batch_size -1", "--batch_size is -1"),
    ("--output_dir file", "--output_dir file: is a file"),
    ("--output_dir sft", "--output_dir sft: the folder is not empty; choose another folder"),
    ("--resume", "--resume: new holds no evaluation to continue"),
    ("--resume --overwrite", "--overwrite starts anew and --resume goes on"),
    ("--device cuda:99", "--device cuda:99: not available"),
    ("--sampler greedy", "unknown flag --sampler (did you mean --samplers?)"),
]


@pytest.mark.parametrize(("flags", "message"), CASES)
def test_bad_input_ends_in_one_line_and_writes_nothing(desk, capsys, flags, message):
    before = sorted(p.name for p in desk.iterdir())
    assert main([*argv(out="new"), *flags.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("inverselm evaluate: error: ")
    for part in message.split("|"):
        assert part in captured.err
    assert sorted(p.name for p in desk.iterdir()) == before


@pytest.mark.parametrize("missing", ["--model_name_or_path", "--dataset_name", "--task"])
def test_what_must_be_named(desk, capsys, missing):
    at = ARGV.index(missing)
    assert main([*ARGV[:at], *ARGV[at + 2 :]]) == 2
    assert f"pass {missing}" in capsys.readouterr().err


def test_a_task_of_ones_own_that_is_a_class(desk):
    (desk / "own.py").write_text(
        "from inverselm.evaluation.tasks import Task, mean_of\n\n\nclass Mine(Task):\n"
        "    def measure(self, text, example):\n        return {'long': float(len(text))}\n\n"
        "    def metrics(self, samples):\n        return (mean_of('long', 'low'),)\n"
    )
    assert main(argv("--task", "own.py:Mine", "--samplers", "greedy")) == 0
    results = json.loads((desk / "out/results.json").read_text())
    assert results["rows"][0]["better"] == {"long": "low"}
