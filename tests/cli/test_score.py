"""`inverselm score`: what it prints and writes, which rows it leaves out, and how it goes on."""

import json
import logging
import shlex
import shutil

import pyarrow.parquet as pq
import pytest

from inverselm.cli.main import main
from inverselm.cli.scoring import score, score_report
from inverselm.scorers import QFunctionReward, TokenReward

from .conftest import SUMS, write_jsonl

SCORE = ["score", "--model_name_or_path", "sft", "--device", "cpu"]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def test_one_answer_is_printed_token_by_token(desk, capsys):
    prompt, completion = SUMS[0]["prompt"], SUMS[0]["completion"]
    assert main([*SCORE, "--prompt", prompt, "--completion", completion]) == 0
    out = capsys.readouterr().out
    expected = TokenReward.from_checkpoints("sft", device="cpu").score([prompt], [completion])[0]
    rows = out.splitlines()
    for row, token in zip(rows, expected.tokens, strict=False):
        assert row == f"{token.reward:+8.3f}  {token.text!r}"
    assert rows[len(expected.tokens)] == f"{expected.total:+8.3f}  sum of {len(expected.tokens)} tokens, nats"
    assert "'<|endoftext|>'" in rows[len(expected.tokens) - 1]
    assert "inverselm score --model_name_or_path sft --dataset_name <answers>" in out
    assert not list(desk.glob("scores*"))


def test_what_it_offers_next_can_be_copied(desk, capsys, monkeypatch):
    """With the baseline that was named, and texts only where a terminal shows them as they are."""
    shutil.copytree(desk / "sft/baseline", desk / "early")
    monkeypatch.setattr(score_report, "_SHOWN", 20)

    def offered(*flags):
        assert main([*SCORE, *flags, "--overwrite"]) == 0
        words = [shlex.split(part) for part in capsys.readouterr().out.partition("Next:")[2].split("  inverselm ")[1:]]
        return {line[0]: line[1:] for line in words}

    model = ["--model_name_or_path", "sft"]
    early = [*model, "--baseline", "early"]
    for prompt, completion in (("1+1=\n", " it's 2"), ("a", "\x1b[2J"), ("<s>a", "b"), ("a" * 12, "b" * 9)):
        found = offered("--baseline", "early", "--prompt", prompt, "--completion", completion)
        texts = ["--prompt", prompt, "--completion", completion] if completion == " it's 2" else []
        assert found["inspect"] == [*early, *texts]
        assert found["score"] == [*early, "--dataset_name", "<answers>", "--html", "heatmap.html"]
    found = offered("--baseline", "early", "--dataset_name", "sums.jsonl", "--output_file", "my scores.jsonl")
    assert found["inspect"] == [*early, "--dataset_name", "my scores.jsonl"]
    assert found["dpr"] == [*early, "--dataset_name", "<prompts>", "--output_dir", "runs/dpr"]
    found = offered("--reward", "log_prob", "--dataset_name", "sums.jsonl", "--output_dir", "shards")
    assert found == {"inspect": [*model, "--dataset_name", "shards"]}


def test_dataset_becomes_jsonl_and_a_page(desk, capsys):
    rows = [{**row, "id": i} for i, row in enumerate(SUMS[:5])]
    rows[1]["completion"] = " <b>&\n"
    write_jsonl(desk / "answers.jsonl", rows)
    argv = [*SCORE, "--dataset_name", "answers.jsonl", "--output_file", "out.jsonl", "--batch_size", "2"]
    assert main([*argv, "--html", "page.html", "--html_rows", "2"]) == 0
    scored = lines("out.jsonl")
    expected = TokenReward.from_checkpoints("sft", device="cpu").score(
        [row["prompt"] for row in rows], [row["completion"] for row in rows]
    )
    for row, item, want in zip(rows, scored, expected, strict=True):
        assert list(item) == ["prompt", "completion", "id", "scored_text", "tokens", "reward", "terminated"]
        assert {name: item[name] for name in row} == row
        assert item["scored_text"] == row["completion"] + "<|endoftext|>"
        assert item["terminated"] is True
        assert [t["reward"] for t in item["tokens"]] == pytest.approx(want.rewards, abs=1e-5)
        assert item["reward"] == pytest.approx(sum(t["reward"] for t in item["tokens"]))
        for token in item["tokens"]:
            assert set(token) == {"token_id", "text", "start", "end", "reward"}
            assert item["scored_text"][token["start"] : token["end"]] == token["text"]
    page = (desk / "page.html").read_text(encoding="utf-8")
    assert "Answer 2:" in page
    assert "Answer 3:" not in page
    assert "&lt;" in page
    assert "<b>&" not in page
    out = capsys.readouterr().out
    assert f"Wrote out.jsonl: 5 answers, {sum(len(w.tokens) for w in expected)} token rewards." in out
    assert "Wrote page.html" in out
    assert "inverselm dpr --model_name_or_path sft" in out
    assert {path.name for path in desk.glob("out*")} == {"out.jsonl"}


def test_cut_answers_get_no_eos_and_empty_ones_are_counted(desk, capsys, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog
    rows = [
        {**SUMS[0], "finished": True},
        {**SUMS[1], "finished": False},
        {**SUMS[2], "completion": "", "finished": True},
        {**SUMS[3], "completion": "", "finished": False},
        {"prompt": SUMS[4]["prompt"], "completion": " 7" * 200, "finished": True},
    ]
    write_jsonl(desk / "sampled.jsonl", rows)
    assert main([*SCORE, "--dataset_name", "sampled.jsonl"]) == 0
    scored = lines("scores.jsonl")
    assert [item["terminated"] for item in scored] == [True, False, True]
    assert [item["scored_text"] for item in scored] == [
        SUMS[0]["completion"] + "<|endoftext|>",
        SUMS[1]["completion"],
        "<|endoftext|>",
    ]
    out = capsys.readouterr().out
    assert "1 of 5 answers (20.0%) are left out: longer than the model's 96 positions." in out
    assert "indexing errors" not in caplog.text, "transformers' warning about rows that are never read"
    assert "1 of 5 answers (20.0%) are left out: they have no token." in out
    assert main([*SCORE, "--dataset_name", "sampled.jsonl", "--add_eos", "False", "--overwrite"]) == 0
    assert [item["terminated"] for item in lines("scores.jsonl")] == [False, False]


def test_the_marker_of_an_iqlearn_folder_chooses_the_bellman_reward(desk, capsys):
    from inverselm.scorers.markers import write_marker

    shutil.copytree(desk / "nobase", desk / "iq")
    write_marker(desk / "iq", "iqlearn", gamma=0.5, td_coef=0.1)
    argv = ["score", "--model_name_or_path", "iq", "--device", "cpu", "--dataset_name", "sums.jsonl"]
    prompts, answers = [row["prompt"] for row in SUMS], [row["completion"] for row in SUMS]
    for flags, kind, gamma in (
        ([], "bellman", 0.5),
        (["--gamma", "0.9"], "bellman", 0.9),
        (["--reward", "log_prob"], "log_prob", 1.0),
    ):
        assert main([*argv, *flags, "--overwrite"]) == 0
        want = QFunctionReward.from_checkpoint("iq", kind=kind, gamma=gamma, device="cpu").score(prompts, answers)
        assert [item["reward"] for item in lines("scores.jsonl")] == pytest.approx([w.total for w in want], abs=1e-4)
    assert "inverselm dpr" not in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on_and_resume_gives_the_same(desk, capsys, monkeypatch):
    argv = [*SCORE, "--dataset_name", "sums.jsonl", "--batch_size", "4"]
    assert main([*argv, "--output_file", "whole.jsonl"]) == 0
    monkeypatch.setattr(score, "CHUNK", 2)
    real, calls = score._score, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(score, "_score", interrupted)
    assert main(argv) == 130
    assert "The same command with --resume continues scores.jsonl." in capsys.readouterr().err
    assert not (desk / "scores.jsonl").exists()
    assert main(argv) == 2, "what is scored is not thrown away unasked"
    assert "--resume continues it, --overwrite starts anew" in capsys.readouterr().err
    with open("scores.jsonl.unfinished", "a", encoding="utf-8") as stream:
        stream.write('{"half a li' * 5000)
    assert main([*argv, "--resume", "--gamma", "0.5"]) == 2
    assert "was written with another gamma" in capsys.readouterr().err
    calls[:] = [1] * 5
    assert main([*argv, "--resume"]) == 0
    assert len(calls) == 6, "the two chunks that were done are not done again"
    assert lines("scores.jsonl") == lines("whole.jsonl")
    assert {path.name for path in desk.glob("scores*")} == {"scores.jsonl"}


@pytest.mark.parametrize("output", ["scores.jsonl", "scores.parquet"])
def test_a_reward_that_is_no_number_is_an_error(desk, capsys, monkeypatch, output):
    """Of a damaged model, or of one that overflows in float16; JSON has no NaN."""
    real = TokenReward.score_ids

    def overflowing(self, prompts, completions, *args, **kwargs):
        found = real(self, prompts, completions, *args, **kwargs)
        return [s._replace(rewards=s.rewards / 0) if i == 2 else s for i, s in enumerate(found)]

    monkeypatch.setattr(TokenReward, "score_ids", overflowing)
    argv = [*SCORE, "--dataset_name", "sums.jsonl", "--output_file", output]
    assert main([*argv, "--on_error", "skip"]) == 2
    assert "sums.jsonl: row 3: the model gives a reward that is no finite number" in capsys.readouterr().err
    assert main([*argv, "--on_error", "keep", "--overwrite"]) == 0
    assert "1 of 24 answers (4.2%) are without a score: the model gives no finite" in capsys.readouterr().out
    rows = lines(output) if output.endswith(".jsonl") else pq.read_table(output).to_pylist()
    assert [row["error"] is None for row in rows] == [i != 2 for i in range(24)]
    assert not rows[2].get("tokens")
    assert rows[2]["reward"] is None


def test_control_characters_do_not_reach_the_terminal():
    from inverselm.cli.scoring.heatmaps import terminal_heatmap
    from inverselm.scorers import ScoredCompletion, TokenScore

    scored = ScoredCompletion("a\x1b[2Jb", (TokenScore(1, "a\x1b[2Jb", 0, 6, -1.0),), False)
    painted = terminal_heatmap(scored, color=True)
    assert "\x1b[2J" not in painted
    assert "\x1b[48;2;230;159;0m" in painted
    assert "\x1b" not in terminal_heatmap(scored, color=False)
