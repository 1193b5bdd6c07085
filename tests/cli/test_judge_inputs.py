"""What `inverselm judge` takes: templates, YAML, further fields; and what it refuses before it sends anything."""

import os
import subprocess
import sys

import pytest

from helpers.judge_runs import command, fails, lines, prepare, results, rows, write
from helpers.judge_server import always, prefers_longer, serving
from inverselm.cli.main import main
from inverselm.evaluation.judging import Prompting


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


def test_own_template_marks_and_reference(files):
    (files / "own.txt").write_text("{reference}Q {prompt}\n1: {answer_a}\n2: {answer_b}\nSay ONE, TWO or SAME.\n")
    more = ["--template", "own.txt", "--marks", "ONE", "TWO", "SAME", "--reference_column", "reference"]
    more += ["--concurrency", "1"]  # requests come in their order
    with serving(always("so\nONE")) as server:
        assert main(command(server, *more)) == 0
    text = server.requests[0]["messages"][0]["content"]
    assert text.startswith("<reference_answer>\nit is 0\n</reference_answer>\n\nQ What is 0?\n1: b0 x")
    assert results()["comparisons"][0]["first_position"] == 1.0
    assert results()["prompt"] == {
        "template": (files / "own.txt").read_text(), "criteria": Prompting().criteria, "marks": ["ONE", "TWO", "SAME"]
    }  # fmt: skip
    assert lines("judged/pairs.jsonl")[1]["reference"] == "it is 1"


def test_yaml_extra_fields_and_where(files):
    write(files / "a.jsonl", rows("a", 1, sampler="greedy") + rows("no", 3, sampler="T=1"))
    write(files / "b.jsonl", rows("b", 1, sampler="greedy"))
    with serving(prefers_longer) as server:
        (files / "judge.yaml").write_text(
            f"judge_url: {server.url}\njudge_model: m\nruns: [a=a.jsonl, b=b.jsonl]\nwhere: [sampler=greedy]\n"
            'extra_body: \'{"max_tokens": null, "max_completion_tokens": 7, "seed": 3}\'\nnum_samples: 50\n'
        )
        assert main(["judge", "--config", "judge.yaml"]) == 0
    keys = {"model", "messages", "temperature", "max_completion_tokens", "seed"}
    assert {frozenset(request) for request in server.requests} == {frozenset(keys)}
    assert not any("no0" in r["messages"][0]["content"] for r in server.requests)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--judge_url", ""], "--judge_url"),
        (["--judge_model", ""], "--judge_model"),
        (["--judge_url", "localhost:8000"], "judge_url"),
        (["--runs", "a=a.jsonl"], "two or more runs"),
        (["--runs", "a=a.jsonl", "b=nothing.jsonl"], "nothing.jsonl"),
        (["--runs", "a=a.jsonl", "b=other.jsonl"], "no prompt in common"),
        (["--runs", "a=a.jsonl", "b=one.jsonl"], "one prompt in common"),
        (["--runs", "a=a.jsonl", "b=bare.jsonl"], "has no 'completion'"),
        (["--alpha", "1"], "--alpha"),
        (["--num_prompts", "1"], "--num_prompts"),
        (["--max_tokens", "0"], "--max_tokens"),
        (["--price_prompt", "-1"], "--price_prompt"),
        (["--extra_body", "{"], "--extra_body"),
        (["--extra_body", "[1]"], "--extra_body"),
        (["--extra_body", '{"stream": true}'], "'stream'"),
        (["--template", "nothing.txt"], "--template nothing.txt"),
        (["--template", "short.txt"], "{answer_b}"),
        (["--template", "plain.txt", "--reference_column", "reference"], "has no {reference}"),
        (["--template", "plain.txt", "--criteria", "x"], "has no {criteria}"),
        (["--marks", "A", "B"], "three texts"),
        (["--reference_column", "nothing"], "has no reference in 'nothing'"),
        (["--output_dir", "a.jsonl"], "is a file"),
        (["--output_dir", "a.jsonl/deeper/still"], "a.jsonl is a file"),
        (["--cache_file", "."], "is a folder"),
        (["--cache_file", "a.jsonl"], "is one of --runs"),
        (["--cache_file", "judged/judge.json"], "is where results go"),
        (["--cache_file", "other.jsonl"], "no cache of a judge's replies"),
        (["--api_key_env", "NOT_SET_HERE"], "NOT_SET_HERE is not set"),
        (["--where", "temperature=2"], "no row fits"),
        (["--concurrency", "0"], "--concurrency"),
        (["--timeout", "0"], "timeout"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(more, words, capsys, files):
    write(files / "other.jsonl", [{"prompt": "else", "completion": "x"}])
    write(files / "one.jsonl", rows("b", 2)[:1])
    write(files / "bare.jsonl", [{"prompt": r["prompt"]} for r in rows("b")])
    (files / "short.txt").write_text("{prompt} {answer_a} [[A]] [[B]] [[C]]")
    (files / "plain.txt").write_text("{prompt} {answer_a} {answer_b} [[A]] [[B]] [[C]]")
    before = sorted(os.listdir())
    with serving(prefers_longer) as server:
        error = fails(capsys, [*command(server), *more])
        assert server.requests == []
    assert words in error
    assert error.startswith("inverselm judge: error: ")
    assert sorted(os.listdir()) == before


def test_help_is_light():
    code = (
        "import sys\nfrom inverselm.cli.main import main\nassert main(['judge', '--help']) == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'httpx2', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--judge_url" in done.stdout
