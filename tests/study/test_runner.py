"""A study that runs: killed at any point it ends as an unbroken one; nothing of two versions is mixed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from inverselm import UserError
from inverselm.cli.main import main
from inverselm.study.runner import StudyError, run_study
from inverselm.study.spec import parse_spec
from inverselm.study.worker import write_scores

TINY = {
    "model": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
    "tokenizer": {"type": "char"},
}
METRIC = """
def digits(completion, references, row):
    if row["prompt"].startswith("broken"):
        raise ValueError("this row is broken")
    return {"right": float(completion == references[0]), "digits": float(sum(c.isdigit() for c in completion))}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Data, a model description, and a study of seven methods."""
    folder = tmp_path_factory.mktemp("study")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(10) for b in range(8)]
    for name, part in {"train": rows[::2], "valid": rows[1:12:4], "test": rows[3:16:4]}.items():
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    (folder / "metric.py").write_text(METRIC, encoding="utf-8")
    return folder


def study(bench, **more):
    return {
        "name": "toy",
        "task": f"{bench}/metric.py:digits",
        "data": {split: f"{bench}/{split}.jsonl" for split in ("train", "valid", "test")},
        "sizes": [16],
        "seeds": [0],
        "reference": "sft",
        "training": {
            "finetune": {
                "scratch_config": f"{bench}/tiny.yaml",
                "max_steps": 6,
                "max_length": 32,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.01,
                "save_steps": 2,
                "logging_steps": 2,
                "gradient_checkpointing": False,
            },
            "dpr": {
                "max_steps": 2,
                "num_generations": 2,
                "per_device_train_batch_size": 4,
                "max_completion_length": 4,
                "save_steps": 1,
                "gradient_checkpointing": False,
            },
            "gail": {"max_steps": 2, "max_completion_length": 4, "save_steps": 1, "gradient_checkpointing": False},
            "selfplay": {"max_steps": 1, "max_completion_length": 4, "gradient_checkpointing": False},
        },
        "evaluation": {"samplers": ["greedy", "T=1.0"], "num_samples": 2, "max_new_tokens": 4, "batch_size": 4},
        "rewards": {"metric": "digits", "num_bootstrap": 20, "chart": False},
        "methods": {
            "sft": {"command": "sft"},
            "iq": {"command": "iqlearn", "td_coef": 0.1, "baseline_fraction": 0},
            "dpr": {"command": "dpr", "from": "sft"},
            "gail": {"command": "gail", "from": "sft", "critics": "head"},
            "spin": {"command": "selfplay", "from": "sft", "iterations": 2, "loss_type": "spin"},
            "guided": {"command": "none", "from": "sft", "guided": 0.5, "role": "control"},
            "beyond": {"command": "extrapolate", "from": "sft", "weight": 0.5, "role": "control"},
        },
        **more,
    }


def products(folder: Path) -> dict[str, str]:
    """What a study found: every sample and result, without times and paths."""
    found = {}
    for path in sorted(folder.glob("runs/*/*/*/*/samples/*/*.jsonl")):
        found[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    for path in sorted(folder.glob("runs/*/*/*/*/results.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        found[path.relative_to(folder).as_posix()] = json.dumps(rows).replace(str(folder), "")
    for path in sorted(folder.glob("runs/*/rewards/*/rewards/rewards.csv")):
        found[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def unbroken(bench):
    """The study's folder after a run that nobody disturbed."""
    return run_study(parse_spec(study(bench)), bench / "unbroken", workers=2, threads=1, progress=False)


@pytest.mark.slow
def test_everything_is_there(unbroken):
    records = [json.loads(path.read_text(encoding="utf-8")) for path in unbroken.glob("runs/*/*/*/stages/*.json")]
    assert len(records) == 6 + 2 * 7 + 1
    assert all(record["seconds"] > 0 and record["peak_rss"] > 2**20 for record in records)
    assert len({record["code"] for record in records}) == 1
    assert all(record["data"] == records[0]["data"] != {} for record in records)
    found = products(unbroken)
    assert sum(name.endswith(".jsonl") for name in found) == 2 * 7 * 2
    content = json.loads((unbroken / "study.json").read_text(encoding="utf-8"))
    assert content["metrics"] == {"right": "high", "digits": "high"}
    assert content["rows"] == {"16": 16}
    assert content["methods"]["sft"]["role"] == "reference"
    model = unbroken / "runs/16/sft/seed0/model"
    assert (model / "baseline/model.safetensors").is_file()
    assert not list(unbroken.glob("runs/16/*/seed0/model/checkpoint-*"))
    assert not list(unbroken.glob("runs/16/*/seed0/model/iteration_*"))
    guided = json.loads((unbroken / "runs/16/guided/seed0/test/results.json").read_text(encoding="utf-8"))
    assert [row["sampler"] for row in guided["rows"]] == ["greedy,guided=0.5", "T=1.0,guided=0.5"]
    assert "inverselm sft --dataset_name" in (unbroken / "runs/16/sft/seed0/log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_finished_study_runs_nothing(bench, unbroken, monkeypatch):
    monkeypatch.setattr("inverselm.study.runner.Scheduler", None)
    assert run_study(parse_spec(study(bench)), unbroken) == unbroken


@pytest.mark.slow
def test_killed_again_and_again(bench, unbroken):
    """SIGKILL of the runner alone, at a later point each time: its workers go too, and the end is the same."""
    file = bench / "study.yaml"
    file.write_text(yaml.safe_dump(study(bench)), encoding="utf-8")
    folder = bench / "killed"
    command = [sys.executable, "-m", "inverselm", "study", str(file), "--output_dir", str(folder), "--workers", "2"]
    kills, marks = 0, [2, 5, 9]
    while True:
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while process.poll() is None and not (marks and _progress(folder) >= marks[0]):
            time.sleep(0.02)
        if process.poll() is not None:
            assert process.returncode == 0, process.stdout.read().decode()
            break
        marks.pop(0)
        kills += 1
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert _gone(folder), "workers outlived the runner"
    assert kills >= 2
    assert products(folder) == products(unbroken)


def _progress(folder: Path) -> int:
    """Grows while a study runs: finished stages and checkpoints."""
    return len(list(folder.glob("runs/*/*/*/stages/*.json"))) + len(list(folder.glob("runs/*/*/*/model/checkpoint-*")))


def _gone(folder: Path) -> bool:
    """Whether nothing writes into the study any more, a few seconds after the kill."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = []
        for path in Path("/proc").glob("[0-9]*/fd/1"):
            try:
                alive += [path] if str(folder) in os.readlink(path) else []
            except OSError:
                continue
        if not alive:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(bench):
    file = bench / "interrupted.yaml"
    file.write_text(yaml.safe_dump(study(bench)), encoding="utf-8")
    folder = bench / "interrupted"
    command = [sys.executable, "-m", "inverselm", "study", str(file), "--output_dir", str(folder), "--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and not _progress(folder):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 130
    assert "The same command continues the study." in output
    assert "Traceback" not in output
    assert _gone(folder)


@pytest.mark.slow
def test_nothing_of_two_versions_is_mixed(bench, unbroken, monkeypatch):
    spec = parse_spec(study(bench))
    with pytest.raises(UserError, match="holds the study 'toy', not 'other'"):
        run_study(dataclasses.replace(spec, name="other"), unbroken)
    monkeypatch.setattr("inverselm.study.runner.data_hash", lambda name: "changed")
    with pytest.raises(UserError, match="the data changed since the study began"):
        run_study(spec, unbroken)
    monkeypatch.undo()
    monkeypatch.setattr("inverselm.study.identity.code_hash", lambda: "changed")
    with pytest.raises(UserError, match="inverselm's source changed"):
        run_study(spec, unbroken)
    monkeypatch.undo()
    other = study(bench)
    other["methods"]["iq"]["td_coef"] = 0.2
    with pytest.raises(UserError, match="16/iq/seed0/train was made with other settings"):
        run_study(parse_spec(other), unbroken)


@pytest.mark.slow
def test_redo_runs_what_changed_and_failures_leave_the_rest(bench, unbroken):
    """One method with other settings, one that fails: the first is run again, the second named, the others kept."""
    before = products(unbroken)
    again = study(bench)
    del again["rewards"]
    again["methods"]["beyond"]["weight"] = 0.75
    again["methods"]["bad"] = {"command": "dpr", "from": "sft", "kl_coef": -1}
    said = r"3 of 6 stages failed(.|\n)*16/bad/seed0/train(.|\n)*kl_coef(.|\n)*needs 16/bad"
    with pytest.raises(StudyError, match=said):
        run_study(parse_spec(again), unbroken, workers=1, redo=True, progress=False)
    after = products(unbroken)
    assert {name.split("/")[2] for name in before if before[name] != after[name]} == {"beyond"}
    run_study(parse_spec(study(bench)), unbroken, workers=1, redo=True, progress=False)
    assert products(unbroken) == before


def test_one_runner_at_a_time(bench, tmp_path):
    import fcntl

    with open(tmp_path / "study.lock", "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process runs this study"):
            run_study(parse_spec(study(bench)), tmp_path)


def test_a_folder_with_something_else(bench, tmp_path):
    (tmp_path / "thesis.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="holds something that is no study"):
        run_study(parse_spec(study(bench)), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"sft": {"command": "sft", "learning_rat": 1}}}, "unknown flag 'learning_rat' (did you mean"),
        ({"evaluation": {"num_sample": 1}}, "unknown flag 'num_sample' (did you mean num_samples?)"),
        ({"sizes": [1000]}, "sizes: 1000 rows, but"),
    ],
)
def test_typing_errors_end_before_anything_runs(bench, capsys, tmp_path, change, message):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study(bench, **change)), encoding="utf-8")
    assert main(["study", str(file), "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_every_stage(bench, capsys, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study(bench)), encoding="utf-8")
    assert main(["study", str(file), "--output_dir", str(tmp_path / "out"), "--dry_run", "True"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "21 stages of 8 runs, 0 done."
    assert len(lines) == 22
    assert not (tmp_path / "out").exists()
    assert main(["study"]) == 2
    assert "inverselm study <file.yaml>" in capsys.readouterr().err


def test_scores_of_answers(tmp_path):
    rows = [
        {"prompt": "a", "completion": "b", "finished": True, "token_ids": [1], "metrics": {"wer": 0.25, "per": 0.5}},
        {"prompt": "a", "completion": "c", "finished": False, "token_ids": [2], "metrics": {"wer": 1.0, "per": 0.0}},
    ]
    source, target = tmp_path / "samples.jsonl", tmp_path / "scores.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def scores(metric):
        write_scores(str(source), metric, str(target))
        return [json.loads(line)["score"] for line in target.read_text(encoding="utf-8").splitlines()]

    assert scores("") == scores("wer") == [0.25, 1.0]
    assert scores("-per") == [-0.5, 0.0]
