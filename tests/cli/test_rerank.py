"""`inverselm rerank`: which answers it writes, in what order, unchanged."""

import json

import pytest

from inverselm.cli.main import main
from inverselm.cli.scoring import scored_rows
from inverselm.inference.reranking import answer_scores
from inverselm.scorers import QFunctionReward, TokenReward

from .conftest import SUMS, write_jsonl

RERANK = ["rerank", "--model_name_or_path", "sft", "--device", "cpu", "--dataset_name", "sampled.jsonl"]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def scored(rows, scorer=None):
    scorer = scorer or TokenReward.from_checkpoints("sft", device="cpu")
    return [
        scorer.score([row["prompt"]], [row.get("token_ids") or row["completion"]], add_eos=row["finished"])[0]
        for row in rows
    ]


@pytest.mark.parametrize(("flags", "by"), [([], "sum"), (["--by", "length_controlled", "--keep", "0"], None)])
def test_the_best_answer_of_each_prompt_in_its_own_columns(desk, sampled, capsys, flags, by):
    assert main([*RERANK, *flags]) == 0
    found, completions = lines("best.jsonl"), scored(sampled)
    groups = [row["prompt"] for row in sampled]
    scores = answer_scores([c.rewards for c in completions], groups, by=by or "length_controlled")
    want = []
    for prompt in dict.fromkeys(groups):
        order = sorted((i for i in range(len(sampled)) if groups[i] == prompt), key=lambda i: -scores[i])
        want += [(rank, i) for rank, i in enumerate(order[:1] if by else order)]
    assert len(found) == len(want) == (8 if by else 24)
    for record, (rank, i) in zip(found, want, strict=True):
        facts = record.pop("rerank")
        assert record == sampled[i]
        assert (facts["rank"], facts["candidates"], facts["tokens"]) == (rank, 3, len(completions[i].tokens))
        assert facts["score"] == pytest.approx(scores[i], abs=1e-4)
        assert facts["reward"] == pytest.approx(completions[i].total, abs=1e-4)
    out = capsys.readouterr().out
    assert "8 prompts with 3 answers each" in out
    assert f"{sum(len(c.tokens) for c in completions) / 24:.1f} on average" in out
    if not by:
        assert "score and length correlate by +0.00" in out or "by -0.00" in out
    assert {path.name for path in desk.glob("best*")} == {"best.jsonl"}


def test_sampled_ids_are_scored_and_log_pi_may_choose(desk, sampled):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("sft")
    for row in sampled:  # one token for each byte: other ids than the text's, and the same text
        ids = [i for letter in row["completion"] for i in tokenizer(letter, add_special_tokens=False)["input_ids"]]
        row["token_ids"] = ids + [tokenizer.eos_token_id] * row["finished"]
    write_jsonl(desk / "ids.jsonl", sampled)
    assert main([*RERANK[:-1], "ids.jsonl", "--reward", "log_prob", "--by", "mean", "--keep", "0"]) == 0
    scorer = QFunctionReward.from_checkpoint("sft", kind="log_prob", device="cpu")
    for record in lines("best.jsonl"):
        completion = scored([record], scorer)[0]
        assert record["rerank"]["tokens"] == len(record["token_ids"]) == len(completion.tokens)
        assert record["rerank"]["score"] == pytest.approx(completion.total / len(completion.tokens), abs=1e-4)


def test_stopped_runs_go_on(desk, sampled, monkeypatch, capsys):
    assert main([*RERANK, "--output_file", "whole.jsonl", "--batch_size", "2"]) == 0
    monkeypatch.setattr(scored_rows, "CHUNK", 2)
    real, calls = TokenReward.score_ids, []

    def stopped(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(TokenReward, "score_ids", stopped)
    assert main([*RERANK, "--batch_size", "2"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (desk / "best.jsonl").exists()
    assert main([*RERANK, "--batch_size", "2"]) == 2, "what is scored is not thrown away unasked"
    assert "--resume continues it" in capsys.readouterr().err
    assert main([*RERANK, "--batch_size", "3", "--resume"]) == 2, "rows would be lost or scored twice"
    assert "batch_size" in capsys.readouterr().err
    assert main([*RERANK, "--batch_size", "2", "--resume"]) == 0
    assert len(calls) == 3 + 4, "the two chunks of four rows that were done are not done again"
    assert [row["completion"] for row in lines("best.jsonl")] == [row["completion"] for row in lines("whole.jsonl")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_name", "sums.jsonl"], "no prompt has two answers"),
        (["--unit", "line"], "--unit line is for --by min"),
        (["--keep", "-1"], "--keep is -1"),
        (["--output_file", "sums.jsonl"], "exists"),
        (["--reward", "log_prob", "--baseline", "nobase"], "has no part in --reward log_prob"),
        (["--model_name_or_path", "nobase"], "baseline"),
        (["--dataset_name", "missing.jsonl"], "no such file"),
    ],
)
def test_bad_input_is_one_line(desk, sampled, capsys, flags, message):
    assert main([*RERANK, *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (desk / "best.jsonl").exists()


def test_answers_too_long_are_counted(desk, sampled, capsys):
    sampled[0] = {**sampled[0], "completion": " 7" * 200}
    write_jsonl(desk / "long.jsonl", [*sampled, {**SUMS[0], "finished": False, "completion": ""}])
    assert main([*RERANK[:-1], "long.jsonl"]) == 0
    assert "2 of 25 answers are left out" in capsys.readouterr().out
    assert lines("best.jsonl")[0]["rerank"]["candidates"] == 2
