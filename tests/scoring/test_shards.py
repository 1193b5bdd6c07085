"""Shards cover the input once, in any order, whatever they and the pieces they are read in measure."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inverselm.cli.scoring.score_input import survey
from inverselm.errors import UserError
from inverselm.scoring import Cutter, JsonlTables, Shard

ROWS = [
    {"prompt": f"Frage {i}: 1+{i}=", "completion": " é" * (i % 4 + 1), "id": None if i == 6 else i} for i in range(11)
]


def write(path, kind, rows=ROWS):
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
        return
    lines = [
        json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=i % 2 == 0)
        for i, row in enumerate(rows)
    ]
    lines.insert(3, "  ")  # blank lines are no rows
    lines.insert(7, "")
    text = "\n".join(lines).encode("utf-8-sig")  # with a byte order mark, without a last line break
    path.write_bytes(gzip.compress(text) if kind == "jsonl.gz" else text)


def read(found, shards, size):
    source = found.open()
    pieces = {shard.number: list(source.tables(shard, size)) for shard in shards}
    for shard in shards:
        lengths = [piece.num_rows for piece in pieces[shard.number]]
        assert lengths[:-1] == [size] * (len(lengths) - 1)
        assert sum(lengths) == shard.rows
    return [row for number in sorted(pieces) for piece in pieces[number] for row in piece.to_pylist()]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "json", "csv"])
def test_every_row_is_in_one_shard(kind, tmp_path):
    if kind == "json":
        (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "csv":
        lines = ["prompt,completion,id", *(f"{row['prompt']},{row['completion']},{row['id']}" for row in ROWS)]
        (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    else:
        write(tmp_path / f"rows.{kind}", kind)
    expected = [{**row, "id": str(row["id"])} for row in ROWS] if kind == "csv" else ROWS
    for size in (1, 3, 4, 100):
        found = survey(str(tmp_path / f"rows.{kind}"), "train", size)
        assert found.kind == (kind[:5] if kind.startswith("jsonl") else kind if kind == "parquet" else "dataset")
        assert found.rows == len(ROWS)
        assert [s.rows for s in found.shards] == [size] * (11 // size) + [11 % size] * (11 % size > 0)
        assert [s.before for s in found.shards] == list(range(0, 11, size))
        for piece in (1, 2, 5):
            assert read(found, found.shards, piece) == expected
        assert read(found, found.shards[::-1], 2) == expected
        of_one_process = [row for shard in found.shards[1::2] for row in expected[shard.before :][: shard.rows]]
        assert read(found, found.shards[1::2], 2) == of_one_process


def test_a_slice_and_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/a.jsonl", "jsonl", ROWS[:5])
    write(tmp_path / "data/b.jsonl", "jsonl", ROWS[5:])
    found = survey(str(tmp_path / "data"), "train", 3)
    assert [(s.file, s.first, s.rows, s.before) for s in found.shards] == [
        (0, 0, 3, 0), (0, 3, 2, 3), (1, 0, 3, 5), (1, 3, 3, 8),
    ]  # fmt: skip
    assert read(found, found.shards, 2) == ROWS
    assert found.where(found.shards[2], 1) == "b.jsonl: row 2"
    part = survey(str(tmp_path / "data/b.jsonl"), "train[1:4]", 2)
    assert read(part, part.shards, 2) == ROWS[6:9]
    assert part.identity != survey(str(tmp_path / "data/b.jsonl"), "train[2:5]", 2).identity


def test_a_compressed_file_is_read_from_its_beginning_once(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl.gz", "jsonl.gz")
    found = survey(str(tmp_path / "rows.jsonl.gz"), "train", 2)
    opened, real = [], gzip.open
    monkeypatch.setattr(gzip, "open", lambda *args: opened.append(args) or real(*args))
    read(found, found.shards[::2], 2)
    assert len(opened) == 1


def test_an_input_that_changed_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, "jsonl")
    found = survey(str(path), "train", 4)
    before = path.read_bytes()
    for content, words in (
        (before + b"\n{}", r"began \(its size\); start anew$"),
        (before.replace(b"{", b"x"), "changed since the run began"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            read(found, found.shards, 4)
    short = JsonlTables([str(path)], [len(before)], found.arrow_schema())
    path.write_bytes(before)
    with pytest.raises(UserError, match="fewer rows"):
        list(short.tables(Shard(0, 0, 0, 12, 0), 4))


def test_the_same_bytes_are_the_same_input(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write(one, "jsonl")
    two.write_bytes(one.read_bytes())
    assert survey(str(one), "train", 4).identity == survey(str(two), "test", 4).identity
    two.write_bytes(one.read_bytes().replace(b"Frage 1:", b"frage 1:"))
    assert survey(str(one), "train", 4).identity != survey(str(two), "train", 4).identity


def test_bad_rows_are_refused_or_left_to_the_scorer(tmp_path):
    write(tmp_path / "rows.jsonl", "jsonl", [ROWS[0], {**ROWS[1], "completion": " "}, {**ROWS[2], "prompt": ""}])
    with pytest.raises(UserError, match=r"line 2: 'completion' is empty.* \(and 1 more row with problems\)"):
        survey(str(tmp_path / "rows.jsonl"), "train", 4)
    assert survey(str(tmp_path / "rows.jsonl"), "train", 4, check=False).rows == 3
    write(tmp_path / "other.parquet", "parquet", [{"prompt": "a", "answer": "b"}])
    for check in (True, False):
        with pytest.raises(UserError, match="rename 'answer' to 'completion'"):
            survey(str(tmp_path / "other.parquet"), "train", 4, check=check)


def test_counting_rows_and_files_cuts_alike():
    one, many = Cutter(4), Cutter(4)
    for file, rows in enumerate((5, 0, 4, 1)):
        many.rows_of_file(file, rows)
        for _ in range(rows):
            one.row(file)
    assert one.shards() == many.shards()
    assert [(s.file, s.first, s.rows, s.before) for s in one.shards()] == [
        (0, 0, 4, 0), (0, 4, 1, 4), (2, 0, 4, 5), (3, 0, 1, 9),
    ]  # fmt: skip
