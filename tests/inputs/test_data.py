"""Reading rows: every format gives the same rows, and every mistake is one line that says where it is."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from inverselm.errors import UserError
from inverselm.inputs import data
from inverselm.inputs.data import LINE_COLUMN, load_rows

GOOD = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "007", "completion": "é\u2028漢"}]


def fails(call, *parts):
    """`call` raises one line that contains every part."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def write(path, content):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return str(path)


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def plain(dataset):
    return [{key: value for key, value in row.items() if key != LINE_COLUMN} for row in dataset]


CSV = 'prompt,completion\r\n1+1=,2\r\n007,"é\u2028漢"\r\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\ufeff" + json.dumps(GOOD[0]) + "\n\n  \n" + json.dumps(GOOD[1], ensure_ascii=False)),
        ("a.jsonl.gz", "\n".join(json.dumps(row) for row in GOOD)),
        ("a.json", json.dumps(GOOD, indent=2)),
        ("a.json", "\n".join(json.dumps(row) for row in GOOD)),
        ("a.csv", CSV),
        ("a.csv.gz", CSV),
        ("a.tsv", CSV.replace(",", "\t")),
    ],
)
def test_text_formats_give_the_same_rows(tmp_path, name, content):
    assert plain(load_rows(write(tmp_path / name, content))) == GOOD


def test_parquet_and_save_to_disk_give_the_same_rows(tmp_path):
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    DatasetDict({"train": Dataset.from_list(GOOD)}).save_to_disk(tmp_path / "saved")
    Dataset.from_list(GOOD).save_to_disk(tmp_path / "one")
    rows = load_rows(str(tmp_path / "a.parquet"))
    assert plain(rows) == GOOD
    assert rows[LINE_COLUMN][1] == f"{tmp_path}/a.parquet: row 2"
    assert plain(load_rows(str(tmp_path / "saved"))) == GOOD
    assert plain(load_rows(str(tmp_path / "one"))) == GOOD
    fails(lambda: load_rows(str(tmp_path / "saved"), split="test"), "no split 'test'", "'train'")


def test_lines_are_physical_lines(tmp_path):
    rows = load_rows(write(tmp_path / "a.csv", 'prompt,completion\n"x\ny",1\n\nz,2\n'))
    assert rows[LINE_COLUMN][:] == [f"{tmp_path}/a.csv: line 2", f"{tmp_path}/a.csv: line 5"]
    rows = load_rows(write(tmp_path / "a.json", '\n[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}]\n'))
    assert [w.rpartition(" ")[2] for w in rows[LINE_COLUMN]] == ["3", "5", "6"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', ("a.jsonl: line 3: not valid JSON", "column")),
        ("a.jsonl", '{"a": 1}\n[1]\n', ("line 2", "a list where an object")),
        ("a.jsonl", '{"a": 1}\nnull\n', ("line 2", "null where an object")),
        ("a.jsonl", '{"a": NaN}\n', ("line 1", "NaN is not JSON")),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ("line 2: not UTF-8", "0xff")),
        ("a.jsonl", "", ("a.jsonl: has no rows",)),
        ("a.jsonl", "\n\n", ("a.jsonl: has no rows",)),
        (
            "a.jsonl",
            '{"a": "x"}\n{"b": 1}\n{"a": 3}\n',
            ("line 3: 'a' holds a whole number here but text in", "line 1"),
        ),
        ("a.jsonl", '{"a": [{"b": "x"}]}\n{"a": [{"b": ["x"]}]}\n', ("line 2: 'a[].b' holds a list here but text",)),
        ("a.jsonl", '{"a": true}\n{"a": 1}\n', ("line 2: 'a' holds a whole number here but true/false",)),
        ("a.jsonl", '{"a": 9007199254740993}\n{"a": 0.5}\n', ("line 2: 'a' holds a number here",)),
        ("a.jsonl", '{"a": 0.5}\n{"a": 9007199254740993}\n', ("line 2: 'a' holds a whole number",)),
        ("a.jsonl", '{"a": 99999999999999999999}\n', ("line 1", "64 bits")),
        ("a.jsonl", '{"a": "\\ud800"}\n', ("line 1", "\\ud800")),
        ("a.jsonl", "[" * 100_000, ("line 1", "nested too deeply")),
        ("a.jsonl", '{"__line__": 1}\n', ("'__line__' is reserved",)),
        ("a.json", '[{"a": 1},\n{"a" 2}]', ("line 2: not valid JSON",)),
        ("a.json", '[{"a": 1}\n{"a": 2}]', ("line 2", "expected ','")),
        ("a.json", '[{"a": 1}]\n]', ("line 2", "after the end")),
        ("a.json", '[{"a": 1}', ("line 1", "expected ','")),
        ("a.json", '[{"a": 1},\n 3]', ("line 2", "a number where")),
        ("a.json", "[]", ("a.json: has no rows",)),
        ("a.json", '{\n "a": 1}', ("line 1", "one list of objects, or one object per line")),
        ("a.csv", "a,b\n1,2\n\n3\n", ("a.csv: line 4: 1 values for 2 columns (a, b)",)),
        ("a.csv", 'a,b\n1,"2\n3,4\n', ("line 2: not valid CSV",)),
        ("a.csv", "a,a\n1,2\n", ("line 1", "names the column 'a' twice")),
        ("a.csv", ",a\n1,2\n", ("line 1", "no name")),
        ("a.csv", "a,b\n", ("a.csv: has no rows",)),
        ("a.csv", b"a,b\nx,\xe9\n", ("line 2: not UTF-8",)),
        ("a.parquet", "PAR1 nonsense", ("a.parquet: not a readable Parquet file",)),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:30], ("a.jsonl.gz",)),
        ("a.txt", "hello", ("unknown kind of file", ".jsonl")),
    ],
)
def test_broken_files_name_the_line(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    fails(lambda: load_rows(str(path)), *parts)


def test_values_survive_missing_keys_nulls_and_exact_numbers(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"a": None, "n": 1}, {"a": "x", "b": [{"c": []}]}, {"n": 2.5}])
    assert plain(load_rows(path)) == [
        {"a": None, "n": 1, "b": None},
        {"a": "x", "n": None, "b": [{"c": []}]},
        {"a": None, "n": 2.5, "b": None},
    ]


def test_large_files_use_the_cache_and_notice_edits(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    path = jsonl(tmp_path / "rows" / "a.jsonl", GOOD)
    rows = load_rows(path)
    assert plain(rows) == GOOD
    assert rows.cache_files
    jsonl(tmp_path / "rows" / "b.jsonl", GOOD)
    rows = load_rows(str(tmp_path / "rows"))  # as many files as columns
    assert plain(rows) == GOOD + GOOD
    assert rows[LINE_COLUMN][3].endswith("b.jsonl: line 2")
    assert plain(load_rows(jsonl(tmp_path / "rows" / "a.jsonl", GOOD[1:]))) == GOOD[1:]
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "below")
    fails(lambda: load_rows(path), "cannot be cached", "HF_DATASETS_CACHE")


def test_folders_choose_the_split_and_refuse_mixtures(tmp_path):
    folder = str(tmp_path)
    fails(lambda: load_rows(folder), "no data files")
    jsonl(tmp_path / "part-2.jsonl", GOOD[1:])
    jsonl(tmp_path / "part-1.jsonl", GOOD[:1])
    rows = load_rows(folder)
    assert plain(rows) == GOOD
    assert rows[LINE_COLUMN][1] == f"{folder}/part-2.jsonl: line 1"
    jsonl(tmp_path / "test.jsonl", GOOD)
    fails(lambda: load_rows(folder), "no file of split 'train'", "test.jsonl")
    jsonl(tmp_path / "train-00000-of-00001.jsonl", GOOD[1:])
    assert plain(load_rows(folder)) == GOOD[1:]
    write(tmp_path / "train.csv", CSV)
    fails(lambda: load_rows(folder), "mixes kinds of files", "train.csv")
    write(tmp_path / "config.json", "{}")
    fails(lambda: load_rows(folder), "model folder")


def test_slices_streaming_and_names(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": str(i)} for i in range(10)])
    assert load_rows(path, split="train[2:4]")["prompt"][:] == ["2", "3"]
    assert len(load_rows(path, split="train[:50%]")) == 5
    assert [row["prompt"] for row in load_rows(path, streaming=True)] == [str(i) for i in range(10)]
    fails(lambda: load_rows(path, split="train[3:3]"), "is empty")
    fails(lambda: load_rows(path, split="train[x]"), "cannot take split")
    fails(lambda: load_rows(path, split="train+test"), "takes one split")
    fails(lambda: load_rows(path, config="main"), "only applies to hub")
    fails(lambda: load_rows("./nowhere"), "./nowhere: no such file or folder")
    fails(lambda: load_rows("nowhere.jsonl"), "no such file or folder")
    fails(lambda: load_rows(" "), "no dataset given")


def test_hub_errors_become_one_line(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("line one\nline two")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    fails(lambda: load_rows("someone/something"), "someone/something: not a local file", "(line one line two)")


def test_hub_arguments_are_passed_on(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "datasets.load_dataset", lambda path, **kw: seen.update(kw, path=path) or Dataset.from_list(GOOD)
    )
    assert plain(load_rows("gsm8k", split="test", config="main")) == GOOD
    assert seen == {"path": "gsm8k", "name": "main", "split": "test", "streaming": False}
