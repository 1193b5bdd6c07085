"""`inverselm rewards`: the numbers are those of the scorers and of the pure functions; planted errors."""

import csv
import shutil

import numpy as np
import pytest
from scipy import stats

from inverselm.cli.main import main
from inverselm.evaluation import error_localisation, plant_errors
from inverselm.scorers import QFunctionReward, TokenReward
from inverselm.scorers.markers import write_marker

from .conftest import SUMS, write_jsonl
from .rewards_bench import REWARDS, lines, read, scored, values


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
    from inverselm.inputs.models import load_tokenizer

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

    from inverselm.inputs.models import load_tokenizer

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
