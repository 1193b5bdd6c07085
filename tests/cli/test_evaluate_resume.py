"""`inverselm evaluate --resume`: to the same answers, whatever stopped it; and what it refuses to mix."""

import json
import shutil

import pytest

from helpers.processes import kill, start, wait_for
from inverselm.cli.evaluation import evaluation_folder
from inverselm.cli.main import main

from .conftest import SUMS, write_jsonl
from .evaluate_bench import argv, lines, stopping, tree


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


def test_labels_of_one_folder_are_not_mixed(desk, capsys):
    """Two labels whose samples would lie in the same folder."""
    assert main(argv("--labels", "half way", "--samplers", "greedy")) == 0
    before = tree(desk / "out")
    other = ["--model_name_or_path", "sft/baseline", "--labels", "half_way", "--samplers", "greedy"]
    capsys.readouterr()
    assert main(argv(*other, "--resume")) == 2
    assert "has answers of 'half way' where those of 'half_way' would be" in capsys.readouterr().err
    assert tree(desk / "out") == before
