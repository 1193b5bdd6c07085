"""Reading rows and checking them: every mistake is one line that says where it is."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from inverselm.cli import data
from inverselm.cli.data import (
    LINE_COLUMN,
    check_demonstrations,
    check_different_checkpoints,
    check_output_dir,
    check_same_tokenizer,
    check_tokenizer_has_eos,
    count_too_long,
    load_rows,
    report_lengths,
    training_columns,
)
from inverselm.errors import UserError

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
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:30], ("a.jsonl.gz",)),
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


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "need", "found"),
    [
        ({"prompt": "a", "completion": "b", "id": 1}, "demonstrations", "prompt-completion"),
        (
            {"prompt": [user("a")], "completion": [assistant("b")]},
            "demonstrations",
            "conversational-prompt-completion",
        ),
        ({"messages": [user("a"), assistant("b")], "prompt": "a"}, "demonstrations", "messages"),
        (
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
            "answers",
            "messages",
        ),
        ({"text": "a"}, "demonstrations", "text"),
        ({"prompt": "a", "completion": None}, "prompts", "prompt"),
        ({"prompt": [user("a")]}, "prompts", "conversational-prompt"),
    ],
)
def test_formats_are_found_and_reduced_to_their_columns(row, need, found):
    dataset = Dataset.from_list([{**row, LINE_COLUMN: "x"}] * 3)
    assert check_demonstrations(dataset, "x", need=need) == found
    names = {
        "messages": ["messages"],
        "text": ["text"],
        "prompt": ["prompt"],
        "conversational-prompt": ["prompt"],
    }
    reduced = training_columns(dataset, found)
    assert reduced.column_names == names.get(found, ["prompt", "completion"])
    if found == "messages":
        assert reduced[0]["messages"] == [user("a"), assistant("b")]


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": "a", "completion": None}, "'completion' is null"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ({"prompt": None, "completion": "b"}, "'prompt' is null"),
        ({"prompt": "a", "completion": " <eos> "}, "only the end-of-sequence token <eos>"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_plain_rows_are_named(bad, part, place):
    rows = [{"prompt": "a", "completion": "b"}] * 3
    rows.insert(place, bad)
    check = lambda: check_demonstrations(Dataset.from_list(rows), "d.jsonl", eos_token="<eos>")
    fails(check, f"d.jsonl: row {place + 1}: ", part)


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        (None, "'messages' is null"),
        ([], "empty list"),
        ([user("a")], "no message of the assistant"),
        ([user("a"), {"role": "gpt", "content": "b"}], "rename the role 'gpt' to 'assistant'"),
        ([assistant("a"), user("b")], "last message of 'messages' is from 'user'"),
        ([user("a"), {"role": "assistant", "content": None}], "a message of 'assistant' in 'messages' has no content"),
        ([user("a"), {"role": None, "content": "b"}], "has no role"),
        ([user("a"), assistant(" ")], "the assistant in 'messages' is empty"),
        ([user("a"), assistant("<eos>")], "only the end-of-sequence token"),
    ],
)
def test_bad_dialogues_are_named(messages, part):
    rows = [{"messages": [user("a"), assistant("b")]}, {"messages": messages}]
    dataset = Dataset.from_list(rows)
    fails(lambda: check_demonstrations(dataset, "d", eos_token="<eos>"), "d: row 2: ", part)
    rows = [{"prompt": [user("a")], "completion": row["messages"]} for row in rows]
    dataset = Dataset.from_list(rows)
    fails(
        lambda: check_demonstrations(dataset, "d", eos_token="<eos>"),
        "d: row 2: ",
        part.replace("messages", "completion"),
    )


def test_every_row_is_checked_and_the_rest_counted():
    rows = [{"prompt": "a", "completion": "" if i in (1500, 1700, 2500) else "b"} for i in range(3000)]
    dataset = Dataset.from_list(rows)
    fails(lambda: check_demonstrations(dataset, "d"), "d: row 1501: ", "(and 2 more rows with problems)")
    assert check_demonstrations(dataset, "d", allow_empty=True) == "prompt-completion"
    named = dataset.add_column(LINE_COLUMN, [f"d.jsonl: line {2 * i}" for i in range(3000)])
    fails(lambda: check_demonstrations(named.select(range(1700, 3000)), "d"), "d.jsonl: line 3400: ", "and 1 more row ")
    fails(lambda: check_demonstrations(named.to_iterable_dataset(), "d"), "d.jsonl: line 3000: ", "and 2 more")


def test_mixed_and_other_types_are_refused():
    mixed = Dataset.from_list([{"prompt": "a", "completion": [assistant("b")]}])
    fails(lambda: check_demonstrations(mixed, "d"), "row 1", "must both be text, or both be lists")
    mixed = Dataset.from_list([{"prompt": [user("a")], "completion": "b"}])
    fails(lambda: check_demonstrations(mixed, "d"), "row 1", "'completion' is not a list of messages")
    numbers = Dataset.from_list([{"prompt": "a", "completion": 2}])
    fails(lambda: check_demonstrations(numbers, "d"), "row 1", "'completion' is int, not text")


@pytest.mark.parametrize(
    ("columns", "need", "parts"),
    [
        (("question", "answer"), "demonstrations", ("rename 'question' to 'prompt' and 'answer' to 'completion'",)),
        (("instruction", "output"), "answers", ("rename 'instruction' to 'prompt' and 'output' to 'completion'",)),
        (("Prompt", "completion"), "demonstrations", ("rename 'Prompt' to 'prompt'",)),
        (("prompt", "target"), "answers", ("has 'prompt', 'target'; rename 'target' to 'completion'",)),
        (("id", "dialogue"), "demonstrations", ("rename 'dialogue' to 'messages'",)),
        (("question",), "prompts", ("needs the columns 'prompt', but has 'question'; rename 'question' to 'prompt'",)),
        (("a", "b"), "demonstrations", ("'prompt' and 'completion', or 'messages', or 'text', but has 'a', 'b'",)),
        (("text",), "answers", ("'prompt' and 'completion', or 'messages', but has 'text'",)),
    ],
)
def test_missing_columns_are_named_with_a_rename(columns, need, parts):
    dataset = Dataset.from_list([dict.fromkeys(columns, "x")])
    fails(lambda: check_demonstrations(dataset, "d.csv", need=need), "d.csv: ", *parts)


def test_text_field_and_empty_dataset():
    dataset = Dataset.from_list([{"body": "x"}, {"body": " "}])
    fails(lambda: check_demonstrations(dataset, "d", text_field="body"), "row 2: 'body' is empty")
    assert check_demonstrations(dataset.select([0]), "d", text_field="body") == "text"
    fails(lambda: check_demonstrations(dataset.select([]), "d", text_field="body"), "has no rows")


def test_output_dir(tmp_path, monkeypatch):
    check_output_dir(tmp_path / "new" / "er")
    assert not list(tmp_path.iterdir())
    full = tmp_path / "full"
    (full / "checkpoint-5").mkdir(parents=True)
    fails(lambda: check_output_dir(full), str(full), "--overwrite_output_dir", "--resume_from_checkpoint")
    check_output_dir(full, overwrite=True)
    check_output_dir(full, resume=True)
    fails(lambda: check_output_dir(tmp_path / "new", resume=True), "no checkpoint-* folder")
    fails(lambda: check_output_dir(full, resume=str(full / "checkpoint-5")), "trainer_state.json")
    (full / "checkpoint-5" / "trainer_state.json").write_text("{}")
    check_output_dir(full, resume=str(full / "checkpoint-5"))
    (tmp_path / "file").write_text("")
    fails(lambda: check_output_dir(tmp_path / "file", overwrite=True), "is a file")
    fails(lambda: check_output_dir(tmp_path / "file" / "below"), "in the way")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails(lambda: check_output_dir(tmp_path / "new"), "no permission to write in", str(tmp_path))


def tokenizer(words="abc", **kwargs):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", "<pad>", *words])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **{"eos_token": "<eos>", **kwargs})


def test_tokenizer_needs_eos():
    check_tokenizer_has_eos(tokenizer(), "m")
    fails(lambda: check_tokenizer_has_eos(tokenizer(eos_token=None), "m"), "m: the tokenizer has no end-of-sequence")


def test_tokenizers_must_agree():
    a = tokenizer("abc")
    check_same_tokenizer(a, tokenizer("abc", pad_token="<pad>"), "A", "B")
    fails(lambda: check_same_tokenizer(a, tokenizer("acb"), "A", "B"), "the token 'b' has id 4 in A but 5 in B")
    fails(lambda: check_same_tokenizer(a, tokenizer("abcd"), "A", "B"), "A lacks the token 'd' of B")
    fails(lambda: check_same_tokenizer(tokenizer("abcd"), a, "A", "B"), "B lacks the token 'd' of A")
    fails(lambda: check_same_tokenizer(a, tokenizer(eos_token="<pad>"), "A", "B"), "the eos_token is '<eos>' in A")
    from tokenizers import normalizers

    other = tokenizer("abc")
    other.backend_tokenizer.normalizer = normalizers.Replace("e", "a")
    fails(lambda: check_same_tokenizer(a, other, "A", "B"), "'Hello, world!' becomes")


def test_checkpoints_must_differ(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, weights in zip(folders, (b"x" * 2**21, b"x" * 2**21, b"x" * (2**21 - 1) + b"y"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
    a, b, c = folders
    (tmp_path / "link").symlink_to(a)
    check_different_checkpoints(a, c)
    check_different_checkpoints("org/one", "org/two")
    fails(lambda: check_different_checkpoints(a, b), "identical weights", str(b))
    fails(lambda: check_different_checkpoints(a, tmp_path / "link"), "are the same")
    fails(lambda: check_different_checkpoints("org/one", "org/one"), "are the same, org/one")
    for folder in (a, b):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folder.name}))
    check_different_checkpoints(a, b)


def test_lengths_are_reported():
    assert count_too_long([128, 129, 1], 128) == (1, 3)
    ids = [[0] * n for n in (4, 5, 9, 9, 4)]
    report = report_lengths(ids, [1, 1, 4, 5, 0], 4, name="train")
    assert report.startswith("train: 1 of 5 rows (20.0%) is longer than max_length=4 tokens: its answer is cut, kept")
    assert "2 of 5 rows (40.0%) are dropped: the prompt alone fills max_length=4" in report
    assert report_lengths(ids, [1] * 5, 9) == "all 5 rows fit into max_length=9 tokens (the longest has 9)."
    assert "nothing is cut" in report_lengths(ids, [1] * 5, None)
    assert "29,000 rows (0.5%) are longer" in report_lengths([[0] * 3] * 132 + [[0]] * 28868, [0] * 29000, 2)
    fails(lambda: report_lengths(ids, [4] * 5, 4), "in all 5 rows the prompt alone fills max_length=4")
    with pytest.raises(ValueError, match="shorter"):
        report_lengths(ids, [1], 4)
