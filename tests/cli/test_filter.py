"""`inverselm filter`: rows ranked, places named, files kept as they were, pages that need nothing else."""

import json
import shlex

import pytest

from inverselm.cli.main import main
from inverselm.cli.scoring import scored_rows
from inverselm.inference import keep_rows, suspicion
from inverselm.scorers import QFunctionReward, TokenReward

from .conftest import SUMS, write_jsonl

FILTER = ["filter", "--model_name_or_path", "sft", "--device", "cpu", "--dataset_name", "demos.jsonl"]


def lines(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


@pytest.fixture
def demos(desk):
    """Rows of different columns, one of them double, one contradicted, one too long, one that is no plain text."""
    rows = [{**row, "id": i} for i, row in enumerate(SUMS[:10])]
    rows[1] = {**rows[1], "extra": {"deep": [1, 2.5, None]}}
    rows[2] = {**rows[2], "completion": " <b>&\n#### 7"}
    rows += [dict(rows[3]), {**rows[4], "completion": " no"}, {"prompt": "Q?", "completion": " 7" * 200, "id": 99}]
    write_jsonl(desk / "demos.jsonl", rows)
    return rows


def scores_of(rows, scorer):
    return scorer.score([row["prompt"] for row in rows], [row["completion"] for row in rows])


def test_review_without_a_decision_keeps_nothing(desk, demos, capsys):
    assert main([*FILTER, "--review_rows", "4"]) == 0
    files = {path.name for path in (desk / "filtered").iterdir()}
    assert files == {"review.jsonl", "review.html", "report.txt", "report.html", "report.json", "scores.jsonl"}
    scorer = QFunctionReward.from_checkpoint("sft", kind="log_prob", device="cpu")
    completions = scores_of(demos[:12], scorer)
    worst = sorted(range(12), key=lambda i: min(completions[i].rewards))
    review = lines("filtered/review.jsonl")
    assert [record["row"] for record in review] == worst[:4]
    for record in review:
        row, completion = demos[record["row"]], completions[record["row"]]
        assert record["where"] == f"demos.jsonl: line {record['row'] + 1}"
        assert (record["prompt"], record["completion"]) == (row["prompt"], row["completion"])
        assert record["score"] == pytest.approx(min(completion.rewards), abs=1e-4)
        place = record["lowest_token"]
        assert place["reward"] == pytest.approx(record["score"])
        assert record["scored_text"][place["start"] : place["end"]] == place["text"]
        assert place["text"] == suspicion(completion).text
        assert record["lowest_step"]["text"] == suspicion(completion, "line").text
        assert record["first_low_token"]["start"] == suspicion(completion, share=1 / 3).start
    scores = lines("filtered/scores.jsonl")
    assert [record["row"] for record in scores] == list(range(13))
    assert (scores[12]["score"], scores[12]["why"]) == (None, "too long")
    out = capsys.readouterr().out
    for fact in ("13 rows, 12 with a reward", "1 without: too long", "1 repeat an earlier row", "1 prompts have"):
        assert fact in out
    assert "--keep_share 0.9" in out


def test_what_it_offers_next_ranks_as_it_did(desk, demos, capsys):
    flags = ["--reward", "log_ratio", "--baseline", "sft/baseline", "--by", "sum", "--dataset_split", "train[:4]"]
    assert main([*FILTER, *flags, "--max_length", "90"]) == 0
    again = shlex.split(capsys.readouterr().out.partition("  inverselm ")[2])
    assert again[-3:] == ["--overwrite", "--keep_share", "0.9"]
    given = dict(zip(again[1:-3:2], again[2:-3:2], strict=True))
    asked = [*FILTER[1:], *flags, "--max_length", "90", "--output_dir", "filtered"]
    assert given == {k: v for k, v in zip(asked[::2], asked[1::2], strict=True) if k != "--device"}
    (before,) = {tuple(record["score"] for record in lines("filtered/scores.jsonl"))}
    assert main(again) == 0
    assert tuple(record["score"] for record in lines("filtered/scores.jsonl")) == before
    assert main([*FILTER, "--overwrite", "--drop_below", "100"]) == 0
    out = capsys.readouterr().out
    assert "Kept 0 of 13 rows" in out
    assert out.endswith("No row reaches --drop_below: there is nothing to train on; lower it.\n")


def test_pages_are_self_contained_and_escaped(desk, demos):
    assert main([*FILTER, "--review_rows", "20"]) == 0
    for name in ("review", "report"):
        page = (desk / f"filtered/{name}.html").read_text(encoding="utf-8")
        assert "default-src 'none'" in page
        assert "<script" not in page
        assert "src=" not in page
        assert "<b>&" not in page
    page = (desk / "filtered/review.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 12
    assert page.count("<mark>") == 24, "every heatmap marks its lowest token, and its legend says so"
    assert "&lt;" in page


@pytest.mark.parametrize(
    ("flags", "decision", "kind"),
    [
        (["--keep_share", "0.5", "--reward", "log_ratio", "--by", "sum"], {"share": 0.5}, "log_ratio"),
        (["--drop_below", "-60", "--by", "sum"], {"threshold": -60.0}, "log_prob"),
    ],
)
def test_kept_rows_are_the_lines_of_the_file(desk, demos, capsys, flags, decision, kind):
    assert main([*FILTER, *flags]) == 0
    ratio = kind == "log_ratio"
    scorer = TokenReward.from_checkpoints("sft", device="cpu") if ratio else QFunctionReward.from_checkpoint(
        "sft", kind=kind, device="cpu"
    )  # fmt: skip
    good = keep_rows([c.total for c in scores_of(demos[:12], scorer)], **decision)
    assert 0 < sum(good) < 12
    original = (desk / "demos.jsonl").read_text(encoding="utf-8").splitlines()
    kept = (desk / "filtered/kept.jsonl").read_text(encoding="utf-8").splitlines()
    dropped = (desk / "filtered/dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert kept == [line for line, keep in zip(original, good, strict=False) if keep]
    assert dropped == [line for line, keep in zip(original, [*good, False], strict=True) if not keep]
    assert [record["kept"] for record in lines("filtered/scores.jsonl")] == [*good, False]
    assert f"Kept {sum(good)} of 13 rows" in capsys.readouterr().out


def test_csv_and_max_length(desk, capsys):
    text = 'prompt,completion,n\n"a, b", 7,007\nc, 8 9 10 11 12 13 14 15 16 17 18 19,x\n'
    (desk / "demos.csv").write_text(text, encoding="utf-8")
    argv = [*FILTER[:-1], "demos.csv", "--max_length", "12", "--keep_share", "1"]
    assert main(argv) == 0
    assert lines("filtered/kept.jsonl") == [{"prompt": "a, b", "completion": " 7", "n": "007"}]
    assert len(lines("filtered/dropped.jsonl")) == 1


def test_the_last_message_of_a_conversation_is_judged(desk, monkeypatch):
    from inverselm.inputs import models
    from inverselm.training.scratch_tokenizer import CHATML

    load = models.load_tokenizer

    def with_template(*args, **kwargs):
        tokenizer = load(*args, **kwargs)
        tokenizer.chat_template = CHATML
        return tokenizer

    monkeypatch.setattr(models, "load_tokenizer", with_template)
    assert main([*FILTER[:-1], "messages.jsonl", "--keep_share", "1"]) == 0
    assert lines("filtered/kept.jsonl") == lines("messages.jsonl")
    assert lines("filtered/review.jsonl")[0]["completion"] == [{"role": "assistant", "content": "yo"}]


def test_stopped_runs_go_on(desk, demos, monkeypatch):
    monkeypatch.setattr(scored_rows, "CHUNK", 1)
    real, calls = QFunctionReward.score_ids, []

    def stopped(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(QFunctionReward, "score_ids", stopped)
    assert main([*FILTER, "--batch_size", "4"]) == 130
    assert main([*FILTER, "--batch_size", "4", "--resume"]) == 0
    assert len(calls) == 2 + 2
    assert len(lines("filtered/scores.jsonl")) == 13
    assert main([*FILTER, "--batch_size", "4", "--resume"]) == 2, "there is nothing to go on with"
    assert len(lines("filtered/scores.jsonl")) == 13, "and nothing is lost"
    assert main([*FILTER, "--batch_size", "4"]) == 2
    assert main([*FILTER, "--batch_size", "4", "--overwrite", "--keep_share", "1"]) == 0
    assert main([*FILTER, "--batch_size", "4", "--overwrite"]) == 0
    assert not (desk / "filtered/kept.jsonl").exists(), "of the run before"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_share", "0.5", "--drop_below", "0"], "both say what to keep"),
        (["--keep_share", "1.5"], "--keep_share is 1.5"),
        (["--by", "sum", "--unit", "line"], "--unit line is for --by min"),
        (["--baseline", "nobase"], "has no part in --reward log_prob"),
        (["--dataset_name", "columns.jsonl"], "rename 'question' to 'prompt'"),
        (["--dataset_name", "empty.jsonl"], "is empty"),
        (["--output_dir", "full"], "the folder is not empty"),
        (["--output_dir", "."], "the folder is not empty"),
        (["--max_length", "2"], "no row can be scored"),
    ],
)
def test_bad_input_is_one_line(desk, demos, capsys, flags, message):
    (desk / "full").mkdir()
    (desk / "full/mine.txt").write_text("", encoding="utf-8")
    assert main([*FILTER, *flags]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (desk / "filtered").exists()
