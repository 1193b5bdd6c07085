"""The commands in a row, as a user runs them: each trains or reads what the one before it wrote."""

import csv
import json
import shutil

import pytest

from inverselm.cli.main import main
from inverselm.cli.training import dpr, finetune

from .conftest import SUMS, write_jsonl

pytestmark = pytest.mark.slow
SCRATCH = ["--scratch_config", "tiny.yaml", "--dataset_name", "sums.jsonl", "--max_length", "64", "--report_to", "none"]
CPU = ["--use_cpu", "True", "--bf16", "False", "--disable_tqdm", "True"]
FAST = ["--max_steps", "6", "--learning_rate", "1e-2", "--per_device_train_batch_size", "4"]


def sft(folder, *extra):
    return ["sft", *SCRATCH, *CPU, *FAST, "--output_dir", folder, *extra]


def tensors(folder):
    from safetensors.torch import load_file

    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def marker(folder):
    return json.loads((folder / "inverselm.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(bench, tmp_path_factory):
    """A finished `inverselm sft`, made once."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("tiny.yaml", "sums.jsonl"):
            shutil.copy(bench / name, folder)
        assert main(sft("run", "--save_steps", "2")) == 0
    return folder / "run"


def test_sft_keeps_its_baseline(run):
    assert marker(run) == {"role": "sft", "steps": 6, "base": None, "baseline": "baseline"}
    kept = marker(run / "baseline")
    assert (kept["role"], kept["step"], kept["of_steps"], kept["fraction"]) == ("baseline", 3, 6, 0.5)
    assert not same(run, run / "baseline")
    assert same(run, run / "checkpoint-6")


def test_from_sft_to_a_policy(run, desk, capsys):
    model = str(run)
    assert main(["score", "--model_name_or_path", model, "--dataset_name", "sums.jsonl", "--html", "h.html"]) == 0
    assert f"inverselm dpr --model_name_or_path {model}" in capsys.readouterr().out
    scored = lines(desk / "scores.jsonl")
    assert len(scored) == len(SUMS)
    assert sum(item["reward"] for item in scored) > 0, "the SFT model likes its demonstrations better than the baseline"
    argv = ["dpr", "--model_name_or_path", model, "--dataset_name", "sums.jsonl", "--output_dir", "policy", *CPU]
    assert main([*argv, *FAST, "--max_steps", "2", "--max_completion_length", "8", "--report_to", "none"]) == 0
    out = capsys.readouterr().out
    assert "Wrote policy: the improved policy" in out
    assert "inverselm generate --model_name_or_path policy" in out
    facts = {"sft": model, "kl_coef": 1.0, "credit": "return_to_go", "steps": 2}
    assert marker(desk / "policy") == {"role": "dpr", **facts}
    assert not same(desk / "policy", run)
    argv = ["generate", "--model_name_or_path", "policy", "--dataset_name", "prompts.jsonl", "--max_new_tokens", "8"]
    assert main(argv) == 0
    assert main(["score", "--model_name_or_path", model, "--dataset_name", "generations.jsonl", "--overwrite"]) == 0
    assert all(item["terminated"] == item["finished"] for item in lines(desk / "scores.jsonl"))


def test_what_sft_suggests_can_be_run(desk, capsys):
    assert main(sft("run")) == 0
    out = capsys.readouterr().out
    assert "all 24 rows fit into max_length=64 tokens" in out
    assert "Training on the CPU in float32." in out
    import shlex

    suggested = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  inverselm ")]
    assert [argv[0] for argv in suggested] == ["score", "generate", "dpr"]
    for argv in suggested:
        argv = ["prompts.jsonl" if word == "<prompts>" else word for word in argv]
        assert main(argv + ([*CPU, "--max_steps", "2"] if argv[0] == "dpr" else [])) == 0
    assert (desk / "runs/dpr/model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_iqlearn_of_other_files(kind, desk, capsys):
    if kind == "csv":
        with open("rows.csv", "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(SUMS)
    else:
        from datasets import Dataset

        Dataset.from_list(SUMS).to_parquet("rows.parquet")
    argv = ["iqlearn", *SCRATCH, *CPU, *FAST, "--dataset_name", f"rows.{kind}", "--output_dir", "iq"]
    assert main([*argv, "--gamma", "0.9", "--baseline_fraction", "0"]) == 0
    out = capsys.readouterr().out
    assert "inverselm dpr" not in out
    assert not (desk / "iq/baseline").exists()
    assert marker(desk / "iq") == {"role": "iqlearn", "steps": 6, "base": None, "td_coef": 0.1, "gamma": 0.9}
    assert main(["score", "--model_name_or_path", "iq", "--dataset_name", f"rows.{kind}"]) == 0


def test_adapters(run, desk):
    lora = ["--use_peft", "True", "--lora_r", "4"]
    argv = [
        "--model_name_or_path",
        str(run),
        "--dataset_name",
        "sums.jsonl",
        "--max_length",
        "64",
        "--report_to",
        "none",
    ]
    assert main(["sft", *argv, *CPU, *FAST, *lora, "--output_dir", "lora"]) == 0
    for folder in ("lora", "lora/baseline"):
        assert (desk / folder / "adapter_model.safetensors").is_file()
        assert not (desk / folder / "model.safetensors").exists()
    one = ["--prompt", SUMS[0]["prompt"], "--completion", SUMS[0]["completion"], "--output_file", "one.jsonl"]
    assert main(["score", "--model_name_or_path", "lora", *one]) == 0
    assert len(lines(desk / "one.jsonl")) == 1
    argv = [
        "dpr",
        "--model_name_or_path",
        "lora",
        "--dataset_name",
        "sums.jsonl",
        "--output_dir",
        "policy",
        *CPU,
        *FAST,
    ]
    assert main([*argv, *lora, "--max_completion_length", "8"]) == 2
    assert not (desk / "policy").exists()
    assert main([*argv, "--max_steps", "2", "--max_completion_length", "8", "--report_to", "none"]) == 0
    assert (desk / "policy/adapter_model.safetensors").is_file()


def test_a_killed_run_resumes_to_the_same_weights(run, desk, capsys):
    shutil.copytree(run, desk / "run", ignore=shutil.ignore_patterns("model.safetensors"))
    shutil.copytree(run / "checkpoint-4", desk / "run/checkpoint-4", dirs_exist_ok=True)
    (desk / "run/inverselm.json").unlink()
    (desk / "run/checkpoint-6/trainer_state.json").write_text('{"epo', encoding="utf-8")  # killed while it was written
    early = desk / "run/checkpoint-2/optimizer.pt"
    written = early.stat().st_mtime_ns
    assert main(sft("run", "--save_steps", "2", "--resume_from_checkpoint", "True")) == 0
    assert early.stat().st_mtime_ns == written, "it started anew"
    assert same(run, desk / "run")
    assert marker(desk / "run") == marker(run)
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        (desk / "run" / name / "trainer_state.json").unlink()
    capsys.readouterr()
    assert main(sft("run", "--resume_from_checkpoint", "True")) == 2
    assert "no complete checkpoint in run" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sft", "dpr"])
def test_ctrl_c_in_training(command, run, desk, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    if command == "sft":
        monkeypatch.setattr(finetune.SFTTrainer, "train", stop)
        argv = sft("new")
    else:
        monkeypatch.setattr(dpr.DensePathTrainer, "train", stop)
        argv = ["dpr", "--model_name_or_path", str(run), "--dataset_name", "sums.jsonl", "--output_dir", "new", *CPU]
        argv += [*FAST, "--max_completion_length", "8", "--report_to", "none"]
    assert main(argv) == 130
    err = capsys.readouterr().err
    assert f"inverselm {command}: stopped. No checkpoint was written yet" in err
    shutil.copytree(run / "checkpoint-2", desk / "new/checkpoint-2")
    assert main([*argv, "--overwrite_output_dir", "--resume_from_checkpoint", "True"]) == 130
    assert "with --resume_from_checkpoint True continues from new/checkpoint-2." in capsys.readouterr().err


def test_overwriting_leaves_nothing_of_the_old_run(run, desk):
    shutil.copytree(run, desk / "run")
    (desk / "run/adapter_config.json").write_text("{}", encoding="utf-8")
    write_jsonl(desk / "bad.jsonl", [{"prompt": "a", "completion": ""}])
    assert main(sft("run", "--overwrite_output_dir", "--dataset_name", "bad.jsonl")) == 2
    assert (desk / "run/checkpoint-2").is_dir(), "an error must not cost the old run"
    assert main(sft("run", "--overwrite_output_dir", "--baseline_fraction", "0", "--save_strategy", "no")) == 0
    names = {path.name for path in (desk / "run").iterdir()}
    assert not names & {"checkpoint-2", "baseline", "adapter_config.json"}
    assert "baseline" not in marker(desk / "run")


def test_long_rows_are_counted(desk, capsys):
    assert main(sft("new", "--max_length", "18")) == 0
    assert "are longer than max_length=18 tokens: their answers are cut" in capsys.readouterr().out
    assert main(sft("new2", "--max_length", "18", "--truncation_mode", "keep_end")) == 0
    assert "rows are longer than max_length=18 tokens: the beginning of each is cut" in capsys.readouterr().out
