"""A file of rows: found by their bytes, searched, sorted, and refused where they are not usable."""

import gzip
import json
import random

import pytest

from inverselm.errors import UserError
from inverselm.inspection import RowFile

from .conftest import SUMS, scored_row, write_jsonl

SCORED = [
    scored_row("What is Ünïcödé?", [" Yes", "."], [0.5, -2.0], topic="text"),
    scored_row("2+2=", [" 4"], [3.0]),
    scored_row("3+3=", [" SIX", " or", " 6"], [-1.0, 0.0, 0.25]),
]


def test_rows_are_read_from_their_place(tmp_path):
    path = tmp_path / "scored.jsonl"
    lines = [json.dumps(row, ensure_ascii=number == 1) for number, row in enumerate(SCORED)]
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n \u00a0\n".join(lines).encode())  # a BOM, blank lines, no line end
    rows = RowFile(str(path))
    assert (len(rows), rows.scored, rows.name) == (3, 3, str(path))
    for index, row in enumerate(SCORED):
        found = rows.row(index)
        assert (found["index"], found["prompt"], found["completion"]) == (index, row["prompt"], row["completion"])
        assert found["stored"].texts == [token["text"] for token in row["tokens"]]
        assert found["stored"].rewards == {"file": [token["reward"] for token in row["tokens"]]}
    assert rows.row(0)["facts"] == {"topic": "text"}
    assert rows.row(0)["add_eos"] is False
    assert rows.summary(2) == {
        "index": 2,
        "prompt": "3+3=",
        "completion": "SIX or 6",
        "stats": {"file": {"sum": -0.75, "mean": -0.25, "min": -1.0, "tokens": 3.0}},
    }
    rows.close()


def test_sorting_and_searching(tmp_path):
    rows = RowFile(write_jsonl(tmp_path / "scored.jsonl", SCORED))
    order = lambda *args, **options: list(map(int, rows.order(*args, **options)))
    assert order() == [0, 1, 2]
    assert order(descending=True) == [2, 1, 0]
    assert order(sort="sum") == [0, 2, 1]
    assert order(sort="sum", descending=True) == [1, 2, 0]
    assert order(sort="mean") == [0, 2, 1]
    assert order(sort="min") == [0, 2, 1]
    assert order(sort="tokens") == [1, 0, 2]
    assert order("six") == [2]
    assert order("ÜNÏCÖDÉ") == [0]
    assert order("=\n 4") == [1]  # across the end of the prompt
    assert order("3+3=\n SIX or 6\0") == []  # but not across rows
    assert order("nothing like it") == []
    assert order("=", sort="sum", descending=True) == [1, 2]
    rows.set_stats("dense", 2, [9.0])
    assert order(sort="sum", by="dense") == [2, 0, 1]  # unknown ones last
    assert order(sort="sum", by="dense", descending=True) == [2, 0, 1]
    rows.set_stats("dense", 0, [1.0])
    assert order(sort="sum", by="dense") == [0, 2, 1]  # what was kept is out of date
    assert (rows.has_stats("dense", 0), rows.has_stats("dense", 1), rows.has_stats("other", 0)) == (True, False, False)
    with pytest.raises(UserError, match="sorted by sum, mean, min, tokens"):
        rows.order(sort="colour")


def test_search_finds_what_a_scan_finds(tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices("abÄß 漢", k=draw.randint(1, 9))) for _ in range(300)]
    rows = RowFile(write_jsonl(tmp_path / "r.jsonl", [{"prompt": t, "completion": t[::-1]} for t in texts]))
    for query in ("ab", "ä", "SS", "漢a", " "):
        wanted = [i for i, t in enumerate(texts) if query.casefold() in f"{t}\n{t[::-1]}".casefold()]
        assert list(rows.order(query)) == wanted, query


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.jsonl.gz"])
def test_other_kinds_are_copied(tmp_path, name):
    plain = [{"prompt": f"p{i}", "completion": f"c{i}, or\nso"} for i in range(5)]
    path = tmp_path / name
    if name.endswith(".csv"):
        quoted = "".join(f'p{i},"c{i}, or\nso"\n' for i in range(5))
        path.write_text(f"prompt,completion\n{quoted}", encoding="utf-8")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in plain).encode()))
    else:
        path.write_text(json.dumps(plain), encoding="utf-8")
    rows = RowFile(str(path))
    path.unlink()  # no longer needed
    assert (len(rows), rows.scored) == (5, 0)
    assert [(rows.row(i)["prompt"], rows.row(i)["completion"]) for i in range(5)] == [
        (row["prompt"], row["completion"]) for row in plain
    ]
    assert rows.row(0)["stored"] is None
    assert rows.row(0)["add_eos"] is True
    assert rows.summary(0)["stats"] == {}


def test_a_split_of_a_parquet_file(tmp_path):
    from datasets import Dataset

    path = tmp_path / "rows.parquet"
    Dataset.from_list([{"prompt": str(i), "completion": "c"} for i in range(9)]).to_parquet(path)
    rows = RowFile(str(path), "train[3:5]")
    assert [rows.row(i)["prompt"] for i in range(len(rows))] == ["3", "4"]


def test_parquet_as_score_writes_it(tmp_path, folder, monkeypatch):
    """A file or a folder of shards: what the same rows as JSON Lines show; a row without a score shows its error."""
    from inverselm.cli.main import main

    monkeypatch.chdir(tmp_path)
    plain = [*SUMS[:3], {"prompt": "", "completion": "x"}]
    write_jsonl(tmp_path / "plain.jsonl", [{**row, "topic": i} for i, row in enumerate(plain)])
    models = ["--model_name_or_path", str(folder / "sft"), "--baseline", str(folder / "baseline"), "--device", "cpu"]
    score = ["score", *models, "--dataset_name", "plain.jsonl", "--on_error", "keep"]
    for output in ("--output_file scored.parquet", "--output_file scored.jsonl", "--output_dir shards --shard_size 3"):
        assert main([*score, *output.split()]) == 0
    wanted = RowFile("scored.jsonl", need_scores=True)
    assert (len(wanted), wanted.scored) == (4, 3)
    assert wanted.row(3)["stored"] is None
    assert wanted.row(3)["facts"] == {"topic": "3", "error": "'prompt' is empty; give it text, or remove the row"}
    for name in ("scored.parquet", "shards"):
        rows = RowFile(name, need_scores=True)
        assert (len(rows), rows.scored) == (4, 3)
        for index in range(4):
            found, want = rows.row(index), wanted.row(index)
            stored, other = found.pop("stored"), want.pop("stored")
            assert found == want
            if index < 3:
                assert stored.rewards["file"] == pytest.approx(other.rewards["file"], abs=1e-5)
                assert (stored.texts, stored.ids, stored.terminated) == (other.texts, other.ids, other.terminated)
        assert list(rows.order(sort="sum")) == list(wanted.order(sort="sum"))


def test_conversations_and_cut_answers(tmp_path):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    row = {"prompt": talk[:1], "completion": talk[1:], "finished": False}
    rows = RowFile(write_jsonl(tmp_path / "talk.jsonl", [row]))
    found = rows.row(0)
    assert found["prompt"] == talk[:1]
    assert (found["prompt_text"], found["completion"], found["add_eos"]) == ("user: hi", "yo", False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, "line 2: needs 'prompt' and 'completion', but has 'question', 'answer'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "split 'messages': all but the last are the prompt"),
        ({"prompt": 3, "completion": "b"}, "line 2: 'prompt' is neither text nor a list of chat messages"),
        ({"prompt": "a", "completion": ["b"]}, "'completion' is neither text"),
        ({"prompt": "a", "completion": "b", "tokens": [{"text": "b"}]}, "'tokens' is no list of tokens"),
        ({"prompt": "a", "completion": "b", "tokens": [{"text": "b", "reward": "1"}]}, "'tokens' is no list"),
    ],
)
def test_unusable_rows_are_named(tmp_path, row, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(UserError) as error:
        RowFile(path)
    assert message in str(error.value)


def test_broken_and_missing_files(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt"\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        RowFile(str(tmp_path / "broken.jsonl"))
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="has no rows"):
        RowFile(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="no such file"):
        RowFile(str(tmp_path / "missing.jsonl"))
    plain = write_jsonl(tmp_path / "plain.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match="line 1: has no token rewards; name the model"):
        RowFile(plain, need_scores=True)


def test_a_file_that_changes_is_noticed(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = RowFile(write_jsonl(path, SCORED))
    with path.open("a", encoding="utf-8") as stream:
        stream.write("{}\n")
    with pytest.raises(UserError, match="has changed since it was opened"):
        rows.row(0)
    with pytest.raises(UserError, match="there is no row 3; the file has 3"):
        RowFile(write_jsonl(tmp_path / "other.jsonl", SCORED)).row(3)
