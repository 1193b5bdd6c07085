"""The baseline an SFT run keeps, where it is found again, and which checkpoints a run may resume from."""

import json
import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from helpers.data import sums, text_tokenizer, tiny_for
from helpers.training import arguments, assert_same_weights, make
from inverselm.errors import UserError
from inverselm.scorers.markers import read_marker, write_marker
from inverselm.training import BaselineCheckpointCallback, baseline_folder, find_baseline, last_complete_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 1}


def sft(folder, fraction=0.5, peft_config=None, model=None, **options):
    trainer = make(
        SFTTrainer, arguments(SFTConfig, folder, **options), sums(), text_tokenizer(), model, peft_config=peft_config
    )
    trainer.add_callback(BaselineCheckpointCallback(trainer, fraction=fraction))
    return trainer


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("inverselm")]


def test_every_public_name_of_the_package_is_there():
    import inverselm.training as package

    assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.fixture(autouse=True)
def _heard(caplog, monkeypatch):
    """transformers' loggers do not pass records on; these tests listen."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.INFO, logger="inverselm")


@pytest.mark.parametrize(("fraction", "steps", "kept"), [(0.5, 4, 2), (0.5, 5, 3), (0.1, 4, 1), (0.75, 4, 3)])
def test_the_baseline_is_the_model_after_the_fraction(tmp_path, fraction, steps, kept):
    trainer = sft(tmp_path, fraction, max_steps=steps, **SAVING)
    trainer.train()
    baseline = AutoModelForCausalLM.from_pretrained(tmp_path / "baseline")
    assert_same_weights(baseline, AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{kept}"), atol=0)
    marker = read_marker(tmp_path / "baseline")
    assert (marker["role"], marker["step"], marker["of_steps"], marker["fraction"]) == (
        "baseline",
        kept,
        steps,
        fraction,
    )
    assert marker["epoch"] == pytest.approx(kept * 4 / 16)
    assert AutoTokenizer.from_pretrained(tmp_path / "baseline").get_vocab() == text_tokenizer().get_vocab()
    assert not (tmp_path / "baseline" / "training_args.bin").exists()
    assert not list(tmp_path.glob(".*unfinished"))


def test_a_lora_runs_baseline_is_the_adapter_alone(tmp_path):
    tiny_for(text_tokenizer()).save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    run = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = sft(run, peft_config=lora, model=model, max_steps=4, learning_rate=0.5, **SAVING)
    trainer.train()
    assert (run / "baseline" / "adapter_model.safetensors").is_file()
    assert not (run / "baseline" / "model.safetensors").exists()
    load = lambda name: PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(run / name)
    )
    assert_same_weights(load("baseline"), load("checkpoint-2"), atol=0)
    moved = [
        (a - b).abs().max().item()
        for (n, a), (_, b) in zip(
            load("baseline").named_parameters(), load("checkpoint-4").named_parameters(), strict=True
        )
        if "lora_B" in n
    ]
    assert min(moved) > 0


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0])
def test_a_fraction_outside_0_1_is_refused(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        BaselineCheckpointCallback(None, fraction=fraction)


def test_a_run_of_one_step_is_refused(tmp_path):
    with pytest.raises(UserError, match="one optimiser step"):
        sft(tmp_path, max_steps=1).train()


def test_a_fraction_that_ends_with_the_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"After 0\.9 of 4 optimiser steps .* the model itself"):
        sft(tmp_path, 0.9, max_steps=4).train()
    sft(tmp_path, 0.75, max_steps=4).train()


def test_further_baselines_stand_beside_the_main_one(tmp_path):
    trainer = sft(tmp_path, max_steps=8, **SAVING)
    for fraction in (0.25, 0.5, 0.125):
        trainer.add_callback(BaselineCheckpointCallback(trainer, fraction, baseline_folder(fraction)))
    trainer.train()
    kept = {"baseline": 4, "baseline-25": 2, "baseline-50": 4, "baseline-12.5": 1}
    assert {folder.name for folder in tmp_path.glob("baseline*")} == set(kept)
    for name, step in kept.items():
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        assert weights == (tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes()
        assert read_marker(tmp_path / name)["step"] == step
    assert find_baseline(tmp_path) == tmp_path / "baseline"
    with pytest.raises(UserError, match="No baseline found"):  # a baseline is no checkpoint of the run around it
        find_baseline(tmp_path / "baseline-25")


def test_it_survives_save_total_limit(tmp_path):
    sft(tmp_path, max_steps=6, save_total_limit=1, **SAVING).train()
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert read_marker(tmp_path / "baseline")["step"] == 3


def test_a_resumed_run_keeps_its_baseline(tmp_path, caplog):
    sft(tmp_path, max_steps=4, **SAVING).train()
    file = tmp_path / "baseline" / "model.safetensors"
    before, written = file.read_bytes(), file.stat().st_mtime_ns
    sft(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert file.stat().st_mtime_ns == written
    assert file.read_bytes() == before
    assert not any("missing" in text for text in messages(caplog))


def test_a_run_resumed_before_the_fraction_makes_the_same_baseline(tmp_path):
    sft(tmp_path, max_steps=4, **SAVING).train()
    file = tmp_path / "baseline" / "model.safetensors"
    before = file.read_bytes()
    (tmp_path / "baseline" / "model.safetensors").unlink()
    sft(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert file.read_bytes() == before


def test_a_resumed_run_without_baseline_says_so(tmp_path, caplog):
    import shutil

    sft(tmp_path, max_steps=4, **SAVING).train()
    shutil.rmtree(tmp_path / "baseline")
    sft(tmp_path, max_steps=4, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert any("Resumed at step 3" in text and "missing" in text for text in messages(caplog))
    assert not (tmp_path / "baseline").exists()


def test_what_a_kill_left_half_written_is_replaced(tmp_path):
    (tmp_path / ".baseline.unfinished").mkdir()
    (tmp_path / ".baseline.unfinished" / "junk").write_text("x")
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "junk").write_text("x")
    sft(tmp_path, max_steps=2).train()
    assert read_marker(tmp_path / "baseline")["step"] == 1
    assert not (tmp_path / "baseline" / "junk").exists()
    assert not (tmp_path / ".baseline.unfinished").exists()


def test_find_baseline(tmp_path):
    (tmp_path / "baseline").mkdir()
    (tmp_path / "checkpoint-7").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoint-7"):
        with pytest.raises(UserError, match="No baseline found"):
            find_baseline(folder)
    write_marker(tmp_path / "baseline", "policy")
    with pytest.raises(UserError, match="No baseline found"):
        find_baseline(tmp_path)
    write_marker(tmp_path / "baseline", "baseline")
    assert find_baseline(tmp_path) == find_baseline(str(tmp_path / "checkpoint-7")) == tmp_path / "baseline"


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_broken_marker_is_named(tmp_path, content):
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "inverselm.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"inverselm\.json"):
        find_baseline(tmp_path)


def test_the_last_complete_checkpoint(tmp_path):
    def checkpoint(name, state: str | None = "{}") -> Path:
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
        return tmp_path / name

    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    checkpoint("checkpoint-40", None)
    checkpoint("checkpoint-30", '{"global_step": 3')
    checkpoint("checkpoint-best")
    assert last_complete_checkpoint(tmp_path) is None
    eight, nine, ten = (checkpoint(f"checkpoint-{n}") for n in (8, 9, 10))
    assert last_complete_checkpoint(tmp_path) == ten  # by number, not by name
    assert last_complete_checkpoint(str(tmp_path), multiple_of=3) == nine
    assert last_complete_checkpoint(tmp_path, multiple_of=4) == eight
    assert last_complete_checkpoint(tmp_path, multiple_of=7) is None


def test_the_trainer_writes_its_state_last(tmp_path):
    """What `last_complete_checkpoint` relies on: a checkpoint with a trainer_state.json holds everything else."""
    sft(tmp_path, max_steps=2, **SAVING).train()
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= set(times)
    assert times["trainer_state.json"] == max(times.values())
    assert json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    assert torch.load(tmp_path / "checkpoint-2" / "scheduler.pt")["last_epoch"] == 2
