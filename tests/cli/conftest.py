"""A bench for the commands: data files, a tiny model with its baseline, and broken versions of both."""

import json
import shutil
from pathlib import Path

import pytest

TINY = """
model: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 96, tie_word_embeddings: true}
tokenizer: {type: bpe, vocab_size: 300}
"""
SUMS = [
    {"prompt": f"Question: what is {a}+{b}?\nAnswer:", "completion": f" It is {a + b}."}
    for a in range(2, 10)
    for b in (3, 14, 25)
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _models(folder):
    """`sft` with its baseline: the same architecture and tokenizer, other random weights."""
    from inverselm.scorers.markers import write_marker
    from inverselm.training.scratch import build_from_scratch, texts_of

    for seed, name in enumerate(("sft", "sft/baseline")):
        model, tokenizer = build_from_scratch(folder / "tiny.yaml", texts_of(SUMS), seed=seed)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_marker(folder / "sft", "sft")
    write_marker(folder / "sft/baseline", "baseline")


def _broken_models(folder):
    for name in ("corrupt", "nobase", "samew", "othertok", "noeos", "badmarker", "noweights"):
        shutil.copytree(folder / "sft", folder / name)
    weights = (folder / "sft/model.safetensors").read_bytes()
    (folder / "corrupt/model.safetensors").write_bytes(weights[: len(weights) // 2])
    shutil.rmtree(folder / "nobase/baseline")
    (folder / "samew/baseline/model.safetensors").write_bytes(weights)
    file = folder / "othertok/baseline/tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    file.write_text(json.dumps(content), encoding="utf-8")
    file = folder / "noeos/tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("eos_token")
    file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "badmarker/baseline/inverselm.json").write_text("{", encoding="utf-8")
    (folder / "noweights/model.safetensors").unlink()


def _data(folder):
    write_jsonl(folder / "sums.jsonl", SUMS)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": s["prompt"], "answer": s["completion"]} for s in SUMS[:6]])
    write_jsonl(folder / "columns.jsonl", [{"question": "a", "answer": "b"}])
    write_jsonl(folder / "empty.jsonl", [SUMS[0], {"prompt": "a", "completion": " "}])
    write_jsonl(folder / "eos.jsonl", [SUMS[0], {"prompt": "a", "completion": "<|endoftext|>"}])
    write_jsonl(folder / "blank_prompt.jsonl", [SUMS[0], {"prompt": " \n", "completion": "b"}])
    write_jsonl(folder / "number.jsonl", [{"prompt": "a", "completion": 3}])
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    write_jsonl(folder / "messages.jsonl", [{"messages": talk}] * 4)
    write_jsonl(folder / "talk.jsonl", [{"prompt": talk[:1], "completion": talk[1:]}] * 4)
    (folder / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "x", \n', encoding="utf-8")
    (folder / "latin.csv").write_bytes("prompt,completion\na,\xe9\n".encode("latin-1"))
    (folder / "broken.parquet").write_bytes(b"PAR1")
    (folder / "list.yaml").write_text("- a\n", encoding="utf-8")
    (folder / "unknown.yaml").write_text("learning_rat: 1\n", encoding="utf-8")
    (folder / "invalid.yaml").write_text("a: 1\nb: [1\n", encoding="utf-8")
    (folder / "env.yaml").write_text("env: [1]\n", encoding="utf-8")
    (folder / "file").write_text("", encoding="utf-8")


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Path:
    """Read only: a test that writes asks for `desk`."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    _data(folder)
    _models(folder)
    _broken_models(folder)
    return folder


@pytest.fixture
def desk(bench, tmp_path, monkeypatch) -> Path:
    """A folder of one's own, the working directory, with links to what is on the bench."""
    for item in bench.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def sampled(desk) -> list[dict]:
    """Three answers to each of eight prompts, right or wrong, one of them cut, one of other ids than its text's."""
    rows = []
    for i, row in enumerate(SUMS[:8]):
        result = row["completion"].removeprefix(" It is ").removesuffix(".")
        for k, text in enumerate((row["completion"], " It is 99.", f" It is {result}, I think.")):
            rows.append({"prompt": row["prompt"], "completion": text, "reference": row["completion"], "finished": True})
            rows[-1]["score"] = (k != 1) + 0.1 * i + 0.01 * k
    rows[4]["finished"] = False
    write_jsonl(desk / "sampled.jsonl", rows)
    return rows
