"""`inverselm score` into shards: the plain command's rewards, whatever is cut, killed or resumed."""

import json
import shutil
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers.processes import kill, start, wait_for
from inverselm.cli.main import main
from inverselm.cli.scoring import score
from inverselm.scoring import RowScorer, read_facts

from .conftest import SUMS, write_jsonl

SCORE = ["score", "--model_name_or_path", "sft", "--device", "cpu", "--batch_size", "2"]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parquet_in_and_out_equals_the_plain_command(desk, capsys):
    rows = [{**row, "id": i, "finished": i % 3 > 0} for i, row in enumerate(SUMS)]
    write_jsonl(desk / "rows.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet", row_group_size=7)
    assert main([*SCORE, "--dataset_name", "rows.jsonl", "--output_file", "plain.jsonl"]) == 0
    plain = lines("plain.jsonl")
    argv = [*SCORE, "--dataset_name", "rows.parquet", "--shard_size", "5", "--html", "page.html"]
    assert main([*argv, "--output_file", "scores.parquet"]) == 0
    out = capsys.readouterr().out
    assert f"Wrote scores.parquet: 24 answers, {sum(len(row['tokens']) for row in plain)} token rewards." in out
    assert "inverselm dpr --model_name_or_path sft" in out
    assert (desk / "page.html").read_text(encoding="utf-8").count("Answer ") >= 24
    found = pq.read_table("scores.parquet").to_pylist()
    assert [row["input_row"] for row in found] == [row["id"] for row in found] == list(range(24))
    for row, want, read in zip(found, plain, rows, strict=True):
        assert {name: row[name] for name in read} == read
        assert row["rewards"] == pytest.approx([token["reward"] for token in want["tokens"]], abs=1e-5)
        assert row["reward"] == pytest.approx(want["reward"], abs=1e-4)
        places = [(token["token_id"], token["start"], token["end"]) for token in want["tokens"]]
        assert list(zip(row["token_ids"], row["starts"], row["ends"], strict=True)) == places
        assert (row["scored_text"], row["terminated"]) == (want["scored_text"], want["terminated"])
        assert row["values"] is None is row["error"]
    facts = read_facts("scores.parquet")
    assert (facts["version"], facts["reward"]) == (1, "log_ratio")
    assert set(facts["models"]) == {"model", "baseline 0"}
    assert not (desk / "scores.parquet.shards").exists()
    assert main([*argv[:-2], "--output_dir", "folder", "--output_format", "jsonl"]) == 0
    parts = sorted(path.name for path in (desk / "folder").glob("part-*"))
    assert parts == [f"part-0000{i}-of-00005.jsonl" for i in range(5)]
    assert [row["id"] for part in parts for row in lines(desk / "folder" / part)] == list(range(24))
    assert main([*argv[:-2], "--output_file", "scores.parquet"]) == 2


def test_rows_without_a_score_are_kept_skipped_or_stop_the_run(desk, capsys, monkeypatch):
    monkeypatch.setattr(score, "CHUNK", 1)  # pieces of two rows
    bad = [
        {**SUMS[1], "completion": " 7" * 200},
        {"prompt": SUMS[2]["prompt"], "completion": ""},
        {"prompt": None, "completion": "5"},
    ]
    write_jsonl(desk / "rows.jsonl", [SUMS[0], *bad, SUMS[4]])
    argv = [*SCORE, "--dataset_name", "rows.jsonl", "--shard_size", "2"]
    assert main([*argv, "--output_dir", "kept"]) == 0
    rows = [row for path in sorted((desk / "kept").glob("part-*")) for row in pq.read_table(path).to_pylist()]
    assert [row["error"] is None for row in rows] == [True, False, False, False, True]
    assert "longer than the model's 96 positions (" in rows[1]["error"]
    assert rows[2]["error"] == "'completion' is empty; give it text, or remove the row"
    assert rows[3]["error"] == "'prompt' is null; give it text, or remove the row"
    assert [row["prompt"] for row in rows] == [SUMS[0]["prompt"], *(row["prompt"] for row in bad), SUMS[4]["prompt"]]
    assert all(rows[i][name] is None for i in (1, 2, 3) for name in ("rewards", "token_ids", "reward", "scored_text"))
    out = capsys.readouterr().out
    assert "1 of 5 answers (20.0%) are without a score: longer than the model has positions." in out
    assert "2 of 5 answers (40.0%) are without a score: they are no prompt and answer." in out
    assert main([*argv, "--output_file", "kept.jsonl", "--on_error", "keep"]) == 0
    assert [item["error"] for item in lines("kept.jsonl")] == [row["error"] for row in rows]
    assert main([*argv, "--output_dir", "stopped", "--on_error", "stop"]) == 2
    assert "line 3: 'completion' is empty" in capsys.readouterr().err
    write_jsonl(desk / "rows.jsonl", [*SUMS[:3], bad[0], SUMS[4]])
    assert main([*argv, "--output_dir", "stopped", "--on_error", "stop"]) == 2
    assert "rows.jsonl: row 4: longer than the model's 96 positions" in capsys.readouterr().err
    assert [path.name for path in (desk / "stopped").glob("part-*")] == ["part-00000-of-00003.parquet"]
    assert main([*argv, "--output_dir", "skipped", "--on_error", "skip", "--shard_size", "5"]) == 0
    found = [n for p in sorted((desk / "skipped").glob("part-*")) for n in pq.read_table(p)["input_row"].to_pylist()]
    assert found == [0, 1, 2, 4]


HANG = """
import sys, time
from inverselm.cli import main
from inverselm.cli.scoring import score
from inverselm.scoring import RowScorer
real, calls = RowScorer.score, []
def hanging(self, rows):
    calls.append(1)
    if len(calls) == 5:
        open("hanging", "w").close()
        time.sleep(600)
    return real(self, rows)
RowScorer.score, score.CHUNK = hanging, 1
main.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_what_is_killed_goes_on_to_the_same_bytes(desk, capsys, monkeypatch):
    monkeypatch.setattr(score, "CHUNK", 1)  # pieces of two rows
    write_jsonl(desk / "rows.jsonl", SUMS)
    argv = [*SCORE, "--dataset_name", "rows.jsonl", "--shard_size", "5"]
    assert main([*argv, "--output_dir", "whole"]) == 0
    process = start("-c", HANG, *argv, "--output_dir", "broken", log=desk / "log")
    try:
        wait_for(desk / "hanging", process, desk / "log", seconds=600)
    finally:
        kill(process)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in (desk / "broken").glob("part-*")] == ["part-00000-of-00005.parquet"]
    assert list((desk / "broken").glob(".part-00001-*.tmp")), "it was killed in the middle of a shard"
    assert main([*argv, "--output_dir", "broken"]) == 2
    resume = [*argv, "--output_dir", "broken", "--resume"]
    assert main([*resume, "--shard_size", "4"]) == 2
    assert "was written with another shard_size" in capsys.readouterr().err
    shutil.copytree(desk / "nobase", desk / "other")
    assert main([*resume, "--reward", "log_prob"]) == 2
    write_jsonl(desk / "rows.jsonl", [*SUMS[:-1], {**SUMS[-1], "completion": " It is 43."}])
    assert main(resume) == 2
    assert "was written with another input: sha256" in capsys.readouterr().err
    write_jsonl(desk / "rows.jsonl", SUMS)
    weights = (desk / "sft/baseline/model.safetensors").read_bytes()
    shutil.copytree(desk / "sft/baseline", desk / "changed")
    (desk / "changed/model.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    assert main([*resume, "--baseline", "changed"]) == 2
    assert "another models: baseline 0: model.safetensors" in capsys.readouterr().err
    assert [path.name for path in (desk / "broken").glob("part-*")] == ["part-00000-of-00005.parquet"]
    real, calls = RowScorer.score, []
    monkeypatch.setattr(RowScorer, "score", lambda self, rows: calls.append(len(rows)) or real(self, rows))
    assert main([*argv, "--output_dir", "broken", "--resume"]) == 0
    assert calls == [2, 2, 1] * 3 + [2, 2], "the shard that was done is not done again"
    assert files(desk / "broken") == files(desk / "whole")
    assert main([*argv, "--output_dir", "broken", "--resume"]) == 0
    assert files(desk / "broken") == files(desk / "whole")


def test_an_unfinished_run_is_not_thrown_away(desk, capsys):
    argv = [*SCORE, "--dataset_name", "sums.jsonl", "--output_file", "out.parquet"]
    (desk / "out.parquet.shards").mkdir()
    (desk / "out.parquet.shards/_manifest.json").write_text('{"identity": {}, "complete": false}')
    assert main(argv) == 2
    assert "an unfinished run; --resume continues it, --overwrite starts anew" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    assert pq.read_metadata("out.parquet").num_rows == len(SUMS)


def test_a_jsonl_file_is_not_continued_with_other_rows_models_or_batches(desk, capsys, monkeypatch):
    monkeypatch.setattr(score, "CHUNK", 1)
    write_jsonl(desk / "rows.jsonl", SUMS)
    argv = [*SCORE, "--dataset_name", "rows.jsonl", "--output_file", "out.jsonl"]
    with monkeypatch.context() as patch:
        real, calls = score._score, []
        patch.setattr(score, "_score", lambda *a: real(*a) if calls.append(1) or len(calls) < 4 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(argv)
    assert main([*argv, "--resume", "--batch_size", "3"]) == 2
    assert "was written with another batch_size" in capsys.readouterr().err
    write_jsonl(desk / "rows.jsonl", [*SUMS[:-1], {**SUMS[-1], "completion": " It is 43."}])
    assert main([*argv, "--resume"]) == 2
    assert "was written with another input" in capsys.readouterr().err
    write_jsonl(desk / "rows.jsonl", SUMS)
    assert main([*argv, "--resume"]) == 0
    assert [item["completion"] for item in lines("out.jsonl")] == [row["completion"] for row in SUMS]
    tokens = sum(len(item["tokens"]) for item in lines("out.jsonl"))
    assert f"24 answers, {tokens} token rewards" in capsys.readouterr().out, "those of the broken run are counted"


def test_values_are_the_models_own(desk):
    """V(s) = logsumexp of the logits at the state, here from the whole logits of transformers."""
    from transformers import AutoModelForCausalLM

    write_jsonl(desk / "rows.jsonl", SUMS[:5])
    argv = ["score", "--model_name_or_path", "nobase", "--reward", "bellman", "--device", "cpu"]
    assert main([*argv, "--dataset_name", "rows.jsonl", "--output_dir", "scores", "--gamma", "0.9"]) == 0
    model = AutoModelForCausalLM.from_pretrained("nobase")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("nobase")
    for row in pq.read_table("scores/part-00000-of-00001.parquet").to_pylist():
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = row["token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
        values = logits.logsumexp(-1)
        assert row["values"] == pytest.approx(values.tolist(), abs=1e-4)
        chosen = logits[range(len(ids)), ids]
        following = torch.cat([values[1:], torch.zeros(1)])  # every answer here ends with EOS
        assert row["rewards"] == pytest.approx((chosen - 0.9 * following).tolist(), abs=1e-4)


PEAKS = """
import json, os, resource, sys
from inverselm.cli import main
from inverselm.cli.scoring import score
score.CHUNK = 2
sums = [json.loads(line) for line in open("sums.jsonl")]
for times in (1, 20):
    with open("rows.jsonl", "w") as stream:
        for i in range(60 * times):
            stream.write(json.dumps({**sums[i % len(sums)], "id": i, "more": os.urandom(20_000).hex()}) + "\\n")
    peaks = []
    for output in (["--output_file", "out.jsonl"], ["--output_dir", "out", "--shard_size", "100"]):
        assert main.main([*sys.argv[1:], "--overwrite", *output]) == 0
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    with open(f"peaks-{times}.json", "w") as stream:
        json.dump(peaks, stream)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(desk):
    """20 times the rows, 48 MB of them, in at most 16 MB more, into a file and into a folder."""
    argv = [*SCORE[:-2], "--reward", "log_prob", "--dataset_name", "rows.jsonl"]
    process = start("-c", PEAKS, *argv, log=desk / "log")
    try:
        assert process.wait(timeout=600) == 0, (desk / "log").read_text()[-3000:]
    finally:
        kill(process)
    few, many = (json.loads((desk / f"peaks-{times}.json").read_text()) for times in (1, 20))
    assert many[0] - few[-1] < 16, (few, many)
    assert many[1] - few[-1] < 16, (few, many)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dataset_name sums.jsonl --output_dir a --output_file b.jsonl", "--output_file or --output_dir, not both"),
        ("--dataset_name sums.jsonl --output_dir sums.jsonl", "is a file; name a folder"),
        ("--dataset_name sums.jsonl --output_dir sft", "is not empty; pass --overwrite or --resume"),
        ("--dataset_name sums.jsonl --output_dir . --overwrite", "holds the rows that are read"),
        ("--dataset_name sums.jsonl --output_dir new --resume", "no unfinished new to continue"),
        ("--dataset_name sums.jsonl --output_dir new --shard_size 0", "--shard_size is 0"),
        ("--dataset_name broken.jsonl --output_dir new", "line 2: not valid JSON"),
        ("--dataset_name broken.parquet --output_dir new", "not a readable Parquet file"),
        ("--dataset_name talk.jsonl --output_dir new", "no chat template"),
        ("--dataset_name messages.jsonl --output_dir new", "all but the last message"),
        ("--prompt a --completion b --output_dir new", "are for a dataset"),
        ("--prompt a --completion b --output_file new.parquet", "are for a dataset"),
    ],
)
def test_bad_flags_are_one_line_and_write_nothing(flags, words, desk, capsys):
    before = sorted(path.name for path in desk.iterdir())
    assert main([*SCORE, *flags.split()]) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in desk.iterdir()) == before
