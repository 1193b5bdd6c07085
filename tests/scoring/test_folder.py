"""Shards on the disk: whole or not there, and never of two runs."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inverselm.errors import UserError
from inverselm.scorers import ScoredCompletion, TokenScore
from inverselm.scoring import METADATA_KEY, Piece, ScoredRow, Shard, ShardFolder, ShardWorker, output_schema, read_facts
from inverselm.scoring.folder import difference, replacing
from inverselm.scoring.tables import records_of

ROWS = pa.Table.from_pylist([{"prompt": "a", "completion": "bé!", "reward": "mine"}, {"prompt": "c", "completion": ""}])
SCORED = [
    ScoredRow(
        ScoredCompletion("bé!", (TokenScore(7, "b", 0, 1, 0.5), TokenScore(8, "", 1, 1, -1.25),
                                 TokenScore(9, "é!", 1, 3, 2.0)), True),
        (1.5, 2.5, 0.0),
    ),
    ScoredRow(None, None, "the completion has no token", "empty"),
]  # fmt: skip
SCHEMA = output_schema(ROWS.schema, {"reward": "bellman"})
PIECE = Piece(ROWS, [3, 4], SCORED, [0, 1])


def folder_at(path, kind="parquet", shards=1, **options):
    folder = ShardFolder(path, kind, shards, SCHEMA, **options)
    folder.begin({"settings": {"gamma": 1.0}}, resume=False, name="out")
    return folder


def test_parquet_holds_what_the_documents_say(tmp_path):
    folder = folder_at(tmp_path / "scores")
    counts = folder.write(Shard(0, 0, 0, 2, 3), [PIECE])
    assert counts == {"rows": 1, "tokens": 3, "empty": 1}
    file = tmp_path / "scores/part-00000-of-00001.parquet"
    schema = pq.read_schema(file)
    assert [(field.name, str(field.type), field.nullable) for field in schema] == [
        ("prompt", "string", True), ("completion", "string", True), ("input_row", "int64", False),
        ("scored_text", "string", True), ("token_ids", "list<element: int32>", True),
        ("starts", "list<element: int32>", True), ("ends", "list<element: int32>", True),
        ("rewards", "list<element: float>", True), ("values", "list<element: float>", True),
        ("reward", "double", True), ("terminated", "bool", True), ("error", "string", True),
    ]  # fmt: skip
    assert json.loads(schema.metadata[METADATA_KEY]) == {"version": 1, "reward": "bellman"} == read_facts(file)
    one, two = pq.read_table(file).to_pylist()
    assert one == {
        "prompt": "a", "completion": "bé!", "input_row": 3, "scored_text": "bé!", "token_ids": [7, 8, 9],
        "starts": [0, 1, 1], "ends": [1, 1, 3], "rewards": [0.5, -1.25, 2.0], "values": [1.5, 2.5, 0.0],
        "reward": 1.25, "terminated": True, "error": None,
    }  # fmt: skip
    assert {k: v for k, v in two.items() if v is not None} == {
        "prompt": "c", "completion": "", "input_row": 4, "error": "the completion has no token",
    }  # fmt: skip
    assert folder.finish() == counts
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"_manifest.json", file.name}
    assert folder.finish() == counts, "a finished folder may be finished again"


def test_jsonl_and_parquet_say_the_same(tmp_path):
    for errors in (True, False):
        jsonl = folder_at(tmp_path / f"jsonl{errors}", "jsonl", errors=errors)
        jsonl.write(Shard(0, 0, 0, 2, 3), [PIECE])
        lines = [json.loads(line) for line in jsonl.part(0).read_text(encoding="utf-8").splitlines()]
        assert ["error" in line for line in lines] == [errors] * 2
        if errors:
            parquet = folder_at(tmp_path / "parquet")
            parquet.write(Shard(0, 0, 0, 2, 3), [PIECE])
            assert list(records_of(pq.read_table(parquet.part(0)))) == lines
            assert lines[0]["tokens"][2] == {"token_id": 9, "text": "é!", "start": 1, "end": 3, "reward": 2.0}


def test_a_file_without_our_metadata_is_not_ours(tmp_path):
    pq.write_table(ROWS, tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="did not write it"):
        read_facts(tmp_path / "other.parquet")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_shard_that_fails_leaves_nothing(tmp_path, kind):
    folder = folder_at(tmp_path / "scores", kind, shards=2)

    def pieces():
        yield PIECE
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        folder.write(Shard(0, 0, 0, 4, 0), pieces())
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"_manifest.json", "_counts"}
    assert not folder.is_done(0)
    with pytest.raises(UserError, match=f"part-00000-of-00002.{kind}: is missing"):
        folder.finish()


def test_a_worker_leaves_a_shard_that_is_there(tmp_path):
    folder = folder_at(tmp_path / "scores")
    folder.write(Shard(0, 0, 0, 2, 3), [PIECE])
    seen = []
    assert ShardWorker(None, None, folder, size=2)(Shard(0, 0, 0, 2, 3), seen.append) == {}
    assert seen == [2]


def test_parts_are_merged_in_order(tmp_path):
    for kind in ("parquet", "jsonl"):
        folder = folder_at(tmp_path / "parts", kind, shards=12)
        for number in reversed(range(12)):
            rows = pa.Table.from_pylist([{"prompt": f"{number}", "completion": "b"}], schema=ROWS.schema)
            folder.write(Shard(number, 0, number, 1, number), [Piece(rows, [number], SCORED[:1], [0])])
        assert folder.finish() == {"rows": 12, "tokens": 36}
        folder.merge(tmp_path / f"all.{kind}")
        if kind == "parquet":
            table = pq.read_table(tmp_path / "all.parquet")
            assert table.column("input_row").to_pylist() == list(range(12))
            assert read_facts(tmp_path / "all.parquet")["version"] == 1
            prompts = table.column("prompt").to_pylist()
        else:
            prompts = [json.loads(line)["prompt"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
        assert prompts == [str(i) for i in range(12)]
        assert not (tmp_path / "parts").exists()


def test_resume_refuses_another_run(tmp_path):
    folder = ShardFolder(tmp_path / "scores", "parquet", 1, SCHEMA)
    with pytest.raises(UserError, match="no unfinished out to continue"):
        folder.begin({}, resume=True, name="out")
    identity = {"settings": {"gamma": 1.0, "a": 2}, "models": {"model": {"config.json": "00"}}}
    folder.begin(identity, resume=False, name="out")
    folder.write(Shard(0, 0, 0, 2, 3), [PIECE])
    stale = tmp_path / "scores/.part-00000-of-00001.parquet.0.tmp"
    stale.write_bytes(b"half")
    for other, words in (
        ({**identity, "settings": {"gamma": 0.5, "a": 2}}, "another gamma"),
        ({**identity, "models": {"model": {"config.json": "01"}}}, "another models: model: config.json"),
        ({**identity, "input": {"sha256": ["0"]}}, "another input"),
    ):
        with pytest.raises(UserError, match=words):
            folder.begin(other, resume=True, name="out")
    assert folder.is_done(0)
    folder.begin(identity, resume=True, name="out")
    assert folder.is_done(0)
    assert not stale.exists()
    folder.begin(identity, resume=False, name="out")
    assert not folder.is_done(0)


def test_replacing_is_all_or_nothing(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def killed():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert target.read_text() == "old"
    with replacing(target) as one, replacing(target) as two:
        assert one != two, "two processes with one shard do not share a file"
        one.write_text("new")
        two.write_text("new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_difference_names_the_place():
    assert difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a: b"
    assert difference({"settings": {"b": 1}}, {"settings": {}}) == "b"
