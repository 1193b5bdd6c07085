"""`inverselm rewards`: going on, odd rows, and bad input."""

import csv
import shlex

import pytest

from inverselm.cli.evaluation import rewards, rewards_models
from inverselm.cli.main import main
from inverselm.scorers import QFunctionReward

from .conftest import SUMS, write_jsonl
from .rewards_bench import REWARDS, read, values


def test_without_a_baseline_the_rest_is_judged(desk, sampled, capsys):
    argv = ["rewards", "--model_name_or_path", "nobase", "--device", "cpu", "--num_bootstrap", "20"]
    assert main([*argv, "--dataset_name", "sampled.jsonl", "--chart", "False"]) == 0
    assert "No baseline in nobase: no dense reward is judged" in capsys.readouterr().out
    assert "dense, sum" not in values(read()["correlation"], "overall")


def test_ctrl_c_and_resume(desk, sampled, capsys, monkeypatch):
    argv = [*REWARDS, "--dataset_name", "sampled.jsonl", "--demonstrations", "sums.jsonl", "--batch_size", "4"]
    argv += ["--chart", "False"]
    assert main([*argv, "--output_dir", "whole"]) == 0
    monkeypatch.setattr(rewards_models, "CHUNK", 2)
    real, calls = QFunctionReward.score_ids, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(QFunctionReward, "score_ids", interrupted)
    assert main(argv) == 130
    assert "The same command with --resume goes on in rewards." in capsys.readouterr().err
    assert not (desk / "rewards/rewards.json").exists()
    assert main([*argv, "--seed", "1", "--resume"]) == 2
    assert "are of other answers (data, planting, seed)" in capsys.readouterr().err
    assert main([*argv, "--dtype", "bfloat16", "--resume"]) == 2
    assert "of another dtype" in capsys.readouterr().err
    assert main(argv) == 2
    assert "not empty; pass --overwrite or --resume" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert len(calls) == 8 + 12 - 7, "of twelve chunks seven were done"
    assert read()["localisation"] == read("whole/rewards.json")["localisation"]
    assert read()["correlation"] == read("whole/rewards.json")["correlation"]
    assert main([*argv, "--resume", "--num_bootstrap", "30"]) == 0
    assert len(calls) == 13, "nothing is scored again"
    assert main([*argv, "--overwrite"]) == 0
    assert len(calls) == 25


def test_a_run_of_another_model_is_not_resumed(desk, sampled, capsys):
    argv = [*REWARDS, "--dataset_name", "sampled.jsonl", "--chart", "False"]
    assert main(argv) == 0
    assert main([*argv, "--resume", "--gamma", "0.5"]) == 2
    assert "of another model sft" in capsys.readouterr().err


def test_long_empty_and_flat_answers(desk, sampled, capsys):
    rows = [*sampled, {**sampled[0], "completion": " 7" * 200}, {**sampled[0], "completion": "", "finished": False}]
    write_jsonl(desk / "odd.jsonl", rows)
    assert main([*REWARDS, "--dataset_name", "odd.jsonl", "--chart", "False"]) == 0
    out = capsys.readouterr().out
    assert "1 of 26 answers (3.8%) are left out: longer than the model has positions." in out
    assert "1 of 26 answers (3.8%) are left out: without a token." in out
    write_jsonl(desk / "single.jsonl", sampled[::3])
    assert main([*REWARDS, "--dataset_name", "single.jsonl", "--chart", "False", "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "no prompt has answers of different scores: no pairs" in out
    assert "Overall: dense, sum" in out
    assert read()["correlation"]["values"]["within"]["dense, sum"]["value"] is None


def test_csv_scores_may_be_words(desk, capsys):
    with open("rows.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "completion", "label"])
        for row in SUMS[:4]:
            writer.writerows([[row["prompt"], row["completion"], "True"], [row["prompt"], " No.", "false"]])
    assert main([*REWARDS, "--dataset_name", "rows.csv", "--chart", "False"]) == 0
    assert read()["pairs"]["counts"]["pairs"] == 4
    assert read()["correlation"]["heading"].startswith("Spearman with 'label'")


def test_help_does_not_import_torch():
    import subprocess
    import sys

    code = (
        "import sys\nfrom inverselm.cli.main import main\n"
        "for command in ('rewards', 'compare'): assert main([command, '--help']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage: inverselm rewards" in done.stdout


ANSWERS = "--model_name_or_path sft --dataset_name"


CASES = [
    ("--dataset_name sampled.jsonl", "no model: pass --model_name_or_path"),
    ("--model_name_or_path sft", "no data: pass --dataset_name"),
    ("--model_name_or_path corrupt --dataset_name sampled.jsonl", "is damaged"),
    ("--model_name_or_path noeos --dataset_name sampled.jsonl", "no end-of-sequence token"),
    (f"{ANSWERS} sums.jsonl", "has no score, but 'prompt', 'completion'; name a column of numbers with --score_column"),
    (f"{ANSWERS} sampled.jsonl --score_column none", "has no column 'none'"),
    (f"{ANSWERS} sampled.jsonl --score_column completion", "line 1: 'completion' is \" It is 5.\", not a number"),
    (f"{ANSWERS} sampled.jsonl --score_column finished --metric gsm8k", "drop one of them"),
    (f"{ANSWERS} sampled.jsonl --metric gsm8k", "line 1: the reference answer ' It is 5.' is not a number"),
    (f"{ANSWERS} sampled.jsonl --metric gsm8k --reference_column gold", "--metric needs references"),
    (f"{ANSWERS} sampled.jsonl --reference_column reference", "name a metric"),
    (f"{ANSWERS} flat.jsonl", "all scores ('score') are 1: there is nothing to rank"),
    (f"{ANSWERS} messages.jsonl", "split 'messages'"),
    (f"{ANSWERS} prompts.jsonl", "rename 'answer' to 'completion'"),
    (f"{ANSWERS} noprompt.jsonl", "need their 'prompt' in a column of its own"),
    (f"{ANSWERS} badpair.jsonl", "line 1: 'rejected' is empty"),
    (f"{ANSWERS} sampled.jsonl --baseline a=sft/baseline a=sft/baseline", "two models have the label 'a'"),
    (f"{ANSWERS} sampled.jsonl --q_function iqlearn=nobase samew", "two models have the label 'iqlearn'"),
    (f"{ANSWERS} sampled.jsonl --baseline sft=sft/baseline", "the label 'sft' has its own meaning"),
    (f"{ANSWERS} sampled.jsonl --baseline half=./none", "--baseline ./none: no such folder"),
    (f"{ANSWERS} sampled.jsonl --baseline sft", "are the same, sft"),
    (f"{ANSWERS} sampled.jsonl --baseline x=,", "no checkpoint in ','"),
    (f"{ANSWERS} sampled.jsonl --q_function othertok/baseline", "have different tokenizers"),
    (f"{ANSWERS} sampled.jsonl --q_function nobase,samew", "one model each"),
    (f"{ANSWERS} sampled.jsonl --plant digit", "--plant has no part without --demonstrations"),
    (f"{ANSWERS} sampled.jsonl --gamma 2", "--gamma is 2.0"),
    (f"{ANSWERS} sampled.jsonl --num_bootstrap 0", "--num_bootstrap is 0"),
    (f"{ANSWERS} sampled.jsonl --precision_at 0", "--precision_at needs"),
    (f"{ANSWERS} sampled.jsonl --resume", "there is nothing to go on with in rewards"),
    (f"{ANSWERS} sampled.jsonl --output_dir sft", "--output_dir sft: the folder is not empty; choose another"),
    (f"{ANSWERS} sampled.jsonl --output_dir sft --overwrite", "the folder is not empty; choose another"),
    (f"{ANSWERS} sampled.jsonl --output_dir file", "--output_dir file: is a file"),
    (
        "--model_name_or_path sft --demonstrations nodigit.jsonl",
        "no answer has room for a wrong digit; try --plant word",
    ),
    ("--model_name_or_path sft --demonstrations badspan.jsonl", "line 1: 'span' must be [start, end]"),
    ("--model_name_or_path sft --demonstrations same.jsonl", "line 1: 'wrong' is the same as 'completion'"),
    ("--model_name_or_path sft --demonstrations own.jsonl --plant digit", "brings its own errors"),
    ("--model_name_or_path sft --demonstrations talk.jsonl", "no chat template"),
    ("--model_name_or_path sft --demonstrations sums.jsonl --plant number", "--plant: invalid choice: 'number'"),
]


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_bad_input_is_one_line_and_writes_nothing(line, words, desk, sampled, capfd, monkeypatch):
    import transformers

    def no_weights(*args, **kwargs):
        raise AssertionError("weights were loaded before the error")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", no_weights)
    one = SUMS[0]
    write_jsonl(desk / "flat.jsonl", [{**row, "score": 1} for row in sampled])
    write_jsonl(desk / "noprompt.jsonl", [{"chosen": "a", "rejected": "b"}])
    write_jsonl(desk / "badpair.jsonl", [{"prompt": "a", "chosen": "a", "rejected": ""}])
    write_jsonl(desk / "nodigit.jsonl", [{"prompt": "a", "completion": "no number"}])
    write_jsonl(desk / "badspan.jsonl", [{**one, "wrong": " It was 5.", "span": [4, 70]}])
    write_jsonl(desk / "same.jsonl", [{**one, "wrong": one["completion"], "span": [4, 7]}])
    write_jsonl(desk / "own.jsonl", [{**one, "wrong": " It was 5.", "span": [4, 7]}])
    before = {str(path) for path in desk.rglob("*")}
    assert main(["rewards", *shlex.split(line)]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("inverselm rewards: error: ")
    assert err.count("\n") == 1, err
    assert words in err
    assert out == ""
    assert {str(path) for path in desk.rglob("*")} == before


def test_a_missing_package_is_said_at_once(desk, sampled, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(rewards, "_parts", lambda *args: pytest.fail("too late"))
    assert main([*REWARDS, "--dataset_name", "sampled.jsonl"]) == 2
    assert "pip install 'inverselm[report]'" in capsys.readouterr().err
