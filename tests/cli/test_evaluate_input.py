"""`inverselm evaluate`: bad input ends in one line, and nothing is lost."""

import pytest

from inverselm.cli.main import main

from .evaluate_bench import ARGV, argv


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


def test_a_metric_called_as_a_column_is_refused_before_sampling(desk, capsys):
    (desk / "own.py").write_text("def length(completion, references, row):\n    return len(completion)\n")
    assert main(argv("--task", "own.py:length", out="new")) == 2
    assert "the metric 'length' has the name of a column of the results; rename it" in capsys.readouterr().err
    assert not (desk / "new").exists()
