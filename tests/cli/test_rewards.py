"""`inverselm rewards`: the numbers are those of the scorers and of the pure functions; going on; planted errors."""

import csv
import json
import shlex
import shutil

import numpy as np
import pytest
from scipy import stats

from inverselm.cli import rewards, rewards_models
from inverselm.cli.main import main
from inverselm.evaluation import error_localisation, plant_errors
from inverselm.scorers import QFunctionReward, TokenReward
from inverselm.scorers.markers import write_marker

from .conftest import SUMS, write_jsonl

REWARDS = ["rewards", "--model_name_or_path", "sft", "--device", "cpu", "--num_bootstrap", "20"]


def read(path="rewards/rewards.json"):
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def lines(path):
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def values(part, measure):
    return {name: found["value"] for name, found in part["values"][measure].items()}


@pytest.fixture
def sampled(desk):
    """Three answers to each of eight prompts, right or wrong, one of them cut, one of other ids than its text's."""
    rows = []
    for i, row in enumerate(SUMS[:8]):
        result = row["completion"].removeprefix(" It is ").removesuffix(".")
        for k, text in enumerate((row["completion"], " It is 99.", f" It is {result}, I think.")):
            rows.append({"prompt": row["prompt"], "completion": text, "reference": row["completion"], "finished": True})
            rows[-1]["score"] = (k != 1) + 0.1 * i + 0.01 * k
    rows[4]["finished"] = False
    write_jsonl(desk / "sampled.jsonl", rows)
    return rows


def scored(rows):
    """By the scorers themselves, row by row."""
    dense = TokenReward.from_checkpoints("sft", device="cpu")
    own = {kind: QFunctionReward.from_checkpoint("sft", kind=kind, device="cpu") for kind in ("bellman", "log_prob")}
    found = {"dense": [], "Q - V'": [], "log-likelihood": []}
    for row in rows:
        for name, scorer in zip(found, (dense, own["bellman"], own["log_prob"]), strict=True):
            one = scorer.score([row["prompt"]], [row["completion"]], add_eos=row.get("finished", True))[0]
            found[name].append(one.rewards)
    return found


def test_correlation_and_pairs(desk, sampled, capsys):
    assert main([*REWARDS, "--dataset_name", "sampled.jsonl", "--batch_size", "5"]) == 0
    content = read()
    expected, scores = scored(sampled), [row["score"] for row in sampled]
    overall, within = (values(content["correlation"], m) for m in ("overall", "within"))
    pairs = values(content["pairs"], "accuracy")
    for name, tokens in expected.items():
        for suffix, total in (("sum", np.sum), ("mean", np.mean)):
            per_answer = [total(t) for t in tokens]
            assert overall[f"{name}, {suffix}"] == pytest.approx(stats.spearmanr(per_answer, scores).statistic)
            each = [stats.spearmanr(per_answer[i : i + 3], scores[i : i + 3]).statistic for i in range(0, 24, 3)]
            assert within[f"{name}, {suffix}"] == pytest.approx(np.mean(each))
            wins = [
                per_answer[i + a] > per_answer[i + b]
                for i in range(0, 24, 3)
                for a in range(3)
                for b in range(3)
                if scores[i + a] > scores[i + b]
            ]
            assert pairs[f"{name}, {suffix}"] == pytest.approx(np.mean(wins))
    lengths = [len(tokens) for tokens in expected["dense"]]
    assert overall["length"] == pytest.approx(stats.spearmanr(lengths, scores).statistic)
    assert content["correlation"]["counts"] == {"prompts": 8, "answers": 24, "prompts_within": 8}
    assert content["pairs"]["counts"] == {"prompts": 8, "answers": 24, "pairs": 24}
    out = capsys.readouterr().out
    assert "Spearman with 'score': 24 answers to 8 prompts" in out
    assert "\nWithin prompts: dense, sum against log-likelihood, sum: " in out or "\nWithin prompts: dense, sum" in out
    assert "Wrote rewards: rewards.json, rewards.csv, rewards.png; token scores in rewards/scores." in out
    assert (desk / "rewards/rewards.png").read_bytes()[:4] == b"\x89PNG"
    with open("rewards/rewards.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    row = next(r for r in rows if (r["measure"], r["reward"]) == ("within", "dense, sum"))
    assert float(row["value"]) == pytest.approx(within["dense, sum"])
    assert (row["part"], row["control"], row["prompts_used"]) == ("correlation", "log-likelihood, sum", "8")
    assert {r["part"] for r in rows} == {"correlation", "pairs"}


def test_metrics_make_scores(desk, sampled):
    argv = [*REWARDS, "--dataset_name", "sampled.jsonl", "--chart", "False"]
    assert main([*argv, "--metric", "exact_match"]) == 0
    content = read()
    assert content["correlation"]["heading"].startswith("Spearman with exact_match against 'reference'")
    assert content["pairs"]["counts"]["pairs"] == 16
    assert not (desk / "rewards/rewards.png").exists()
    pytest.importorskip("sacrebleu")
    assert main([*argv, "--metric", "chrf", "--resume"]) == 0
    assert read()["pairs"]["counts"]["pairs"] == 24, "three different scores"


def test_sampled_ids_are_scored_as_they_are(desk):
    from inverselm.cli.models import load_tokenizer

    tokenizer = load_tokenizer("sft")
    single = [tokenizer.encode(c)[0] for c in " It is 5."]  # the characters one by one: not how the text is cut
    whole = tokenizer.encode(" It is 5.")
    assert len(single) > len(whole)
    row = {"prompt": SUMS[0]["prompt"], "completion": " It is 5.", "finished": True, "score": 1.0}
    other = {**row, "completion": " It is 6.", "score": 0.0, "token_ids": None}
    eos = tokenizer.eos_token_id
    write_jsonl(desk / "ids.jsonl", [{**row, "token_ids": [*single, eos]}, other])
    assert main([*REWARDS, "--dataset_name", "ids.jsonl", "--chart", "False"]) == 0
    first = lines("rewards/scores/sft.jsonl")[0]
    assert len(first["log_prob"]) == len(single) + 1
    write_jsonl(desk / "ids.jsonl", [{**row, "token_ids": [*single, 3, eos]}, other])  # not what the text says
    assert main([*REWARDS, "--dataset_name", "ids.jsonl", "--chart", "False", "--overwrite"]) == 0
    first = lines("rewards/scores/sft.jsonl")[0]
    assert len(first["log_prob"]) == len(whole) + 1


def test_chosen_and_rejected(desk, capsys):
    rows = [{"prompt": s["prompt"], "chosen": s["completion"], "rejected": " It is 99."} for s in SUMS[:6]]
    write_jsonl(desk / "preferences.jsonl", [*rows, {**rows[0], "rejected": " No."}])
    assert main([*REWARDS, "--dataset_name", "preferences.jsonl", "--chart", "False"]) == 0
    content = read()
    assert "correlation" not in content
    assert content["pairs"]["counts"] == {"prompts": 6, "answers": 14, "pairs": 7}
    found = scored([{"prompt": r["prompt"], "completion": r[c]} for r in rows for c in ("chosen", "rejected")])
    sums = [sum(tokens) for tokens in found["dense"]]
    last = scored([{"prompt": rows[0]["prompt"], "completion": " No."}])["dense"][0]
    wins = [a > b for a, b in zip(sums[::2], sums[1::2], strict=True)] + [sums[0] > sum(last)]
    assert values(content["pairs"], "accuracy")["dense, sum"] == pytest.approx(np.mean(wins))


@pytest.mark.parametrize("kind", ["digit", "word", "token"])
def test_planted_errors(desk, kind, capsys):
    rows = SUMS
    if kind != "digit":  # the sums' words are all alike
        firsts = ("It", "That", "This")
        rows = [{**r, "completion": f" {firsts[i % 3]} is{r['completion'][6:]}"} for i, r in enumerate(SUMS)]
    write_jsonl(desk / "right.jsonl", rows)
    assert main([*REWARDS, "--demonstrations", "right.jsonl", "--plant", kind, "--seed", "3"]) == 0
    content = read()["localisation"]
    records = lines("rewards/planted.jsonl")
    assert len(records) == content["counts"]["answers"] == 24
    for record, row in zip(records, rows, strict=True):
        start, end = record["span"]
        assert record["completion"] == row["completion"]
        assert record["wrong"] != row["completion"]
        assert record["wrong"][:start] == row["completion"][:start]
        assert record["wrong"][end:] == row["completion"][len(row["completion"]) - len(record["wrong"]) + end :]
    if kind == "digit":
        texts = [s["completion"] for s in SUMS]
        assert [r["wrong"] for r in records] == [p.wrong for p in plant_errors(texts, "digit", seed=3)]
        dense = TokenReward.from_checkpoints("sft", device="cpu")
        found = [dense.score([r["prompt"]], [r["wrong"]])[0] for r in records]
        planted = [
            [t.start < r["span"][1] and t.end > r["span"][0] for t in s.tokens]
            for s, r in zip(found, records, strict=True)
        ]
        report = error_localisation({"dense": [s.rewards for s in found]}, planted, n=1)
        for measure in ("auroc", "auroc_until", "rank", "top1", "precision@3"):
            expected = report.values[measure]["dense"].value
            assert values(content, measure)["dense"] == pytest.approx(expected), measure
    assert content["controls"] == {"dense": "log pi", "Q - V'": "log pi"}
    assert set(values(content, "auroc")) == {"dense", "Q - V'", "log pi", "random"}
    out = capsys.readouterr().out
    assert f"Localisation of planted errors (one wrong {kind} each): 24 answers" in out
    assert "planted.jsonl" in out
    assert "Localisation up to the error: dense" in out


def test_errors_of_ones_own(desk, capsys):
    rows = []
    for row in SUMS[:5]:
        wrong = row["completion"].replace("It is", "It was")
        rows.append({**row, "wrong": wrong, "span": [4, 7]})
    write_jsonl(desk / "own.jsonl", rows)
    assert main([*REWARDS, "--demonstrations", "own.jsonl", "--precision_at", "1", "2"]) == 0
    content = read()["localisation"]
    assert content["heading"].startswith("Localisation of planted errors (as given): 5 answers")
    found = values(content, "precision@1")
    assert found == values(content, "top1")
    assert "precision@2" in content["values"]
    assert [record["span"] for record in lines("rewards/planted.jsonl")] == [[4, 7]] * 5


def test_several_baselines_and_q_functions(desk, sampled, capsys):
    shutil.copytree(desk / "nobase", desk / "iq")
    write_marker(desk / "iq", "iqlearn", gamma=0.5)
    shutil.copytree(desk / "sft/baseline", desk / "late")
    argv = ["--baseline", "early=sft/baseline", "both=sft/baseline,late", "--q_function", "iq", "--chart", "False"]
    assert main([*REWARDS, "--dataset_name", "sampled.jsonl", *argv]) == 0
    content = read()
    models = content["settings"]["models"]
    assert list(models) == ["sft", "early", "both.1", "both.2", "q_function"]
    assert models["q_function"] == {"path": "iq", "gamma": 0.5}
    overall = values(content["correlation"], "overall")
    assert list(overall)[:8:2] == ["dense early, sum", "dense both, sum", "iqlearn, sum", "Q - V', sum"]
    assert overall["dense both, sum"] == pytest.approx(overall["dense early, sum"]), "the mean of two equal ones"
    q = QFunctionReward.from_checkpoint("iq", kind="bellman", gamma=0.5, device="cpu")
    sums = [q.score([r["prompt"]], [r["completion"]], add_eos=r["finished"])[0].total for r in sampled]
    assert overall["iqlearn, sum"] == pytest.approx(stats.spearmanr(sums, [r["score"] for r in sampled]).statistic)
    assert "Within prompts: iqlearn, sum " in capsys.readouterr().out


def test_encoder_decoders(desk, sampled):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from inverselm.cli.models import load_tokenizer

    tokenizer = load_tokenizer("sft")
    start = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": len(tokenizer)}
    for seed, name in enumerate(("t5", "t5base")):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**sizes, **start, decoder_start_token_id=tokenizer.pad_token_id))
        model.save_pretrained(desk / name)
        tokenizer.save_pretrained(desk / name)
    argv = ["rewards", "--model_name_or_path", "t5", "--baseline", "t5base", "--device", "cpu", "--num_bootstrap", "20"]
    argv += [
        "--dataset_name",
        "sampled.jsonl",
        "--demonstrations",
        "sums.jsonl",
        "--plant",
        "token",
        "--chart",
        "False",
    ]
    assert main(argv) == 0
    dense = TokenReward.from_checkpoints("t5", "t5base", device="cpu")
    sums = [dense.score([r["prompt"]], [r["completion"]], add_eos=r["finished"])[0].total for r in sampled]
    found = values(read()["correlation"], "overall")["dense, sum"]
    assert found == pytest.approx(stats.spearmanr(sums, [r["score"] for r in sampled]).statistic)
    assert read()["localisation"]["counts"]["answers"] == 24


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
