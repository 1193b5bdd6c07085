"""`inverselm score`: what it prints and writes, which rows it leaves out, and how it goes on."""

import json

import pytest

from inverselm.cli import score
from inverselm.cli.main import main
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


def test_cut_answers_get_no_eos_and_empty_ones_are_counted(desk, capsys):
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
    assert "1 of 5 answers (20.0%) are left out: they have no token." in out
    assert main([*SCORE, "--dataset_name", "sampled.jsonl", "--add_eos", "False", "--overwrite"]) == 0
    assert [item["terminated"] for item in lines("scores.jsonl")] == [False, False]


def test_the_marker_of_an_iqlearn_folder_chooses_the_bellman_reward(desk, capsys):
    import shutil

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
    with open("scores.jsonl.unfinished", "a", encoding="utf-8") as stream:
        stream.write('{"half a li' * 5000)
    assert main([*argv, "--resume", "--gamma", "0.5"]) == 2
    assert "was written with another gamma" in capsys.readouterr().err
    calls[:] = [1] * 5
    assert main([*argv, "--resume"]) == 0
    assert len(calls) == 6, "the two chunks that were done are not done again"
    assert lines("scores.jsonl") == lines("whole.jsonl")
    assert {path.name for path in desk.glob("scores*")} == {"scores.jsonl"}


def test_control_characters_do_not_reach_the_terminal():
    from inverselm.cli.heatmaps import terminal_heatmap
    from inverselm.scorers import ScoredCompletion, TokenScore

    scored = ScoredCompletion("a\x1b[2Jb", (TokenScore(1, "a\x1b[2Jb", 0, 6, -1.0),), False)
    painted = terminal_heatmap(scored, color=True)
    assert "\x1b[2J" not in painted
    assert "\x1b[48;2;230;159;0m" in painted
    assert "\x1b" not in terminal_heatmap(scored, color=False)
