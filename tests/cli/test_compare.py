"""`inverselm compare`: pairing, metrics from columns and texts, seeds, lengths, what it prints and writes."""

import json

import numpy as np
import pytest

from inverselm.cli.main import main
from inverselm.evaluation import compare_runs

from .conftest import write_jsonl


def answers(seed, prompts=30, samples=2, right=0.5, words=3):
    """Records as `inverselm generate` writes them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(prompts):
        for k in range(samples):
            good = rng.random() < right
            text = " ".join(["so"] * words) + f"\n#### {i if good else i + 1}"
            rows.append(
                {
                    "prompt": f"What is {i}?", "completion": text, "sample": k, "finished": True, "reference": str(i),
                    "temperature": 1.0, "token_ids": [5] * (words + 3), "reward": rng.normal(good),
                }
            )  # fmt: skip
    return rows


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for seed in range(3):
        write_jsonl(tmp_path / f"a{seed}.jsonl", answers(seed))
        write_jsonl(tmp_path / f"b{seed}.jsonl", answers(10 + seed, right=0.9, words=5)[::-1])
    return tmp_path


def read(path="comparison.json"):
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def by_prompt(rows, value):
    found = {}
    for row in rows:
        found.setdefault(row["prompt"], []).append(value(row))
    return [np.mean(found[f"What is {i}?"]) for i in range(len(found))]


def right(row):
    return float(row["completion"].split("#### ")[1] == row["reference"])


def test_one_seed(files, capsys):
    argv = ["compare", "--runs", "sft=a0.jsonl", "iq=b0.jsonl", "--metric", "accuracy", "reward", "--num_samples"]
    assert main([*argv, "400"]) == 0
    out = capsys.readouterr().out
    content = read()
    one, two = answers(0), answers(10, right=0.9, words=5)
    [expected] = compare_runs({"sft": by_prompt(one, right), "iq": by_prompt(two, right)}, n=400)
    found = {c["metric"]: c for c in content["comparisons"]}
    accuracy = found["accuracy"]
    assert accuracy["difference"] == pytest.approx(expected.difference._asdict())
    assert (accuracy["p"], accuracy["value"]) == pytest.approx((expected.p, expected.value))
    [rewards] = compare_runs(
        {"sft": by_prompt(one, lambda r: r["reward"]), "iq": by_prompt(two, lambda r: r["reward"])}, n=400
    )
    assert found["reward"]["difference"] == pytest.approx(rewards.difference._asdict())
    larger, smaller = max(accuracy["p"], rewards.p), min(accuracy["p"], rewards.p)
    assert max(c["p_adjusted"] for c in found.values()) == pytest.approx(max(larger, min(1, 2 * smaller)))
    assert accuracy["length"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0}), "tokens, EOS not counted"
    assert content["lengths"] == {"unit": "tokens", "sft": 5.0, "iq": 7.0}
    assert accuracy["prompts"] == 30
    assert "one seed per run" in content["notes"][0]
    assert "30 prompts, 1 seed per run; differences from sft." in out
    assert f"iq: {accuracy['verdict']}" in out
    assert accuracy["verdict"].startswith("better by 0.")
    assert "Note: one seed per run: this compares these runs, not the methods" in out
    assert "length (tokens)" in out
    assert "Next: train two more seeds" in out


def test_three_seeds(files, capsys):
    runs = ["sft=a0.jsonl,a1.jsonl,a2.jsonl", "iq=b0.jsonl,b1.jsonl,b2.jsonl"]
    assert main(["compare", "--runs", *runs, "--metric", "accuracy", "--num_samples", "300", "--seed", "4"]) == 0
    tables = {
        "sft": [by_prompt(answers(s), right) for s in range(3)],
        "iq": [by_prompt(answers(10 + s, right=0.9, words=5), right) for s in range(3)],
    }
    [expected] = compare_runs(tables, n=300, seed=4)
    content = read()
    assert content["comparisons"][0]["difference"] == pytest.approx(expected.difference._asdict())
    assert content["comparisons"][0]["p_seeds"] == pytest.approx(expected.p_seeds)
    assert content["notes"] == []
    out = capsys.readouterr().out
    assert "30 prompts, 3 seeds per run" in out
    assert "Note" not in out


def test_bleu_is_of_the_corpus(files):
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = [[f"the cat number {i} sat on a mat", f"a cat number {i} sat"] for i in range(25)]
    for name, column in (("x", 0), ("y", 1)):
        rows = [
            {"prompt": str(i), "completion": t[column], "references": [f"the cat number {i} sat on the mat", "a dog"]}
            for i, t in enumerate(texts)
        ]
        write_jsonl(files / f"{name}.jsonl", rows)
    assert main(["compare", "--runs", "x=x.jsonl", "y=y.jsonl", "--metric", "bleu", "--num_samples", "50"]) == 0
    references = [[f"the cat number {i} sat on the mat" for i in range(25)], ["a dog"] * 25]
    found = read()["comparisons"][0]
    assert found["reference_value"] == pytest.approx(sacrebleu.corpus_bleu([t[0] for t in texts], references).score)
    assert found["value"] == pytest.approx(sacrebleu.corpus_bleu([t[1] for t in texts], references).score)
    assert found["verdict"].startswith("worse by")
    assert read()["lengths"]["unit"] == "words"


def test_ratios_lower_is_better_and_several_runs(files, capsys):
    for name, wrong in (("x", 3), ("y", 1), ("z", 3)):
        rows = [{"prompt": str(i), "errors": (i + wrong) % (wrong + 1), "words": 5 + i} for i in range(40)]
        write_jsonl(files / f"{name}.jsonl", rows)
    argv = ["--metric", "errors/words", "--lower_is_better", "errors/words", "--num_samples", "400"]
    assert main(["compare", "--runs", "x=x.jsonl", "y=y.jsonl", "z=z.jsonl", *argv]) == 0
    y, z = read()["comparisons"]
    words = sum(range(5, 45))
    assert y["value"] == pytest.approx(sum((i + 1) % 2 for i in range(40)) / words)
    assert y["verdict"].startswith("better by")
    assert z["verdict"].startswith("no difference shown (+0 [")
    assert y["p_adjusted"] == pytest.approx(2 * y["p"])
    assert y["length"] is None
    out = capsys.readouterr().out
    assert "lower is better" in out
    assert "length" not in out.split("Note")[0]


def test_prompts_are_paired_and_what_is_left_out_is_said(files, capsys):
    rows = answers(0)
    write_jsonl(files / "more.jsonl", [*rows[4:], {**rows[0], "prompt": "another"}])
    assert main(["compare", "--runs", "a=a0.jsonl", "m=more.jsonl", "--metric", "reward", "--num_samples", "50"]) == 0
    found = read()["comparisons"][0]
    assert found["prompts"] == 28
    assert found["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "3 prompts are not in all files: left out." in capsys.readouterr().out


def test_samplers_are_told_apart(files, capsys):
    hot = [{**row, "temperature": 2.0} for row in answers(0)]
    write_jsonl(files / "mixed.jsonl", [*answers(0), *hot])
    write_jsonl(files / "hot.jsonl", hot)
    argv = ["--metric", "reward", "--num_samples", "50", "--overwrite"]
    assert main(["compare", "--runs", "a=a0.jsonl", "m=mixed.jsonl", *argv]) == 0
    assert "m mixes answers of different temperature (1.0, 2.0): choose with --where" in capsys.readouterr().out
    assert main(["compare", "--runs", "a=a0.jsonl", "m=mixed.jsonl", *argv, "--where", "temperature=1"]) == 0
    assert "mixes" not in capsys.readouterr().out
    assert main(["compare", "--runs", "a=a0.jsonl", "h=hot.jsonl", *argv]) == 0
    assert "differ in temperature (a 1.0, h 2.0): the difference is of samplers, too" in capsys.readouterr().out


def test_samples_of_evaluate(files):
    """Measures are in `metrics`, and best-of-n keeps the answers that were not chosen."""
    for name, shift in (("x", 0), ("y", 1)):
        rows = [
            {"prompt": str(i), "completion": "a", "metrics": {"accuracy": float(i % 2 or shift)}, "chosen": k == 0}
            for i in range(30)
            for k in range(2)
        ]
        for row in rows:
            if not row["chosen"]:
                row["metrics"] = {"accuracy": -100.0}
        write_jsonl(files / f"{name}.jsonl", rows)
    assert main(["compare", "--runs", "x=x.jsonl", "y=y.jsonl", "--metric", "accuracy", "--num_samples", "50"]) == 0
    found = read()["comparisons"][0]
    assert (found["reference_value"], found["value"]) == (0.5, 1.0)


def test_commas_in_the_names_of_files(files):
    write_jsonl(files / "T=1,top_p=0.9.jsonl", answers(0))
    write_jsonl(files / "T=1,top_p=0.5.jsonl", answers(1))
    names = [*("T=1,top_p=0.9.jsonl", "a0.jsonl"), *("a1.jsonl", "T=1,top_p=0.5.jsonl")]
    runs = [f"x={names[0]},{names[1]}", f"y={names[2]},{names[3]}"]
    assert main(["compare", "--runs", *runs, "--metric", "reward", "--num_samples", "50"]) == 0
    assert read()["settings"]["runs"] == {"x": names[:2], "y": names[2:]}


def test_the_output_is_not_overwritten(files, capsys):
    argv = ["compare", "--runs", "a=a0.jsonl", "b=b0.jsonl", "--metric", "reward", "--num_samples", "20"]
    assert main(argv) == 0
    assert main(argv) == 2
    assert "comparison.json: exists; pass --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0


CASES = [
    ("--metric reward", "needs two or more runs"),
    ("--runs a=a0.jsonl --metric reward", "needs two or more runs"),
    ("--runs a0.jsonl b0.jsonl --metric reward", "write name=file.jsonl"),
    ("--runs a=a0.jsonl a=b0.jsonl --metric reward", "the name 'a' is used twice"),
    ("--runs a=a0.jsonl,a1.jsonl b=b0.jsonl --metric reward", "as many files for each run (a has 2, b has 1)"),
    ("--runs a=a0.jsonl b=a0.jsonl --metric reward", "a0.jsonl is given twice"),
    ("--runs a=a0.jsonl b=none.jsonl --metric reward", "none.jsonl: no such file"),
    ("--runs a=a0.jsonl b=b0.jsonl", "no metric: pass --metric"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward reward", "names a metric twice"),
    (
        "--runs a=a0.jsonl b=b0.jsonl --metric rewrad",
        "no such column in all files; columns of numbers: finished, reward",
    ),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --lower_is_better wer", "is not among --metric reward"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric completion", "not a number"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric bleu --reference_column gold", "the files have no column 'gold'"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --where sampler", "write column=value"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --where sampler=x", "has no column 'sampler' for --where"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --where temperature=3", "no row fits --where temperature=3"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --alpha 0", "--alpha is 0.0"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --num_samples 0", "--num_samples is 0"),
    ("--runs a=a0.jsonl b=b0.jsonl --metric reward --output_file a0.jsonl", "is the file that is read"),
    ("--runs a=a0.jsonl b=other.jsonl --metric reward", "no prompt in common"),
    ("--runs a=a0.jsonl b=null.jsonl --metric reward", "null.jsonl: line 2: 'reward' is null, not a number"),
    ("--runs a=a0.jsonl b=bare.jsonl --metric reward", "bare.jsonl: line 1: has no 'prompt'"),
]


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line for line, _ in CASES])
def test_bad_input_is_one_line_and_writes_nothing(line, words, files, capsys):
    rows = answers(3)
    write_jsonl(files / "other.jsonl", [{**row, "prompt": "x" + row["prompt"]} for row in rows])
    write_jsonl(files / "null.jsonl", [rows[0], {**rows[1], "reward": None}, *rows[2:]])
    write_jsonl(files / "bare.jsonl", [{"reward": 1.0}])
    before = {path.name for path in files.iterdir()}
    assert main(["compare", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("inverselm compare: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert out == ""
    assert {path.name for path in files.iterdir()} == before
