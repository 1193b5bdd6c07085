"""The average of the weights: its numbers, what it leaves alone, and that a resumed run ends with the same."""

import logging
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from helpers.data import sums, text_tokenizer, tiny_for
from helpers.training import arguments, assert_same_weights, make
from inverselm.errors import UserError
from inverselm.scorers import TokenReward
from inverselm.scorers.markers import read_marker
from inverselm.training import EMABaselineCallback

SAVING = {"save_strategy": "steps", "save_steps": 2}


def lora():
    return LoraConfig(r=2, target_modules=["q_proj", "down_proj"])


class Recorder(TrainerCallback):
    """The trained weights at the beginning and after every step, float64."""

    def __init__(self, trainer):
        self.trainer, self.seen = trainer, []

    def on_train_begin(self, *args, **kwargs):
        self.seen.append({n: p.detach().double() for n, p in self.trainer.model.named_parameters() if p.requires_grad})

    on_step_end = on_train_begin


def sft(folder, decay: float | None = 0.7, model=None, peft_config=None, eval_rows=None, **options):
    options = {"max_steps": 4, "learning_rate": 0.5, **options}
    args = arguments(SFTConfig, folder, **options)
    more = {"eval_dataset": eval_rows} if eval_rows is not None else {}
    trainer = make(SFTTrainer, args, sums(), text_tokenizer(), model, peft_config=peft_config, **more)
    trainer.recorder = Recorder(trainer)
    trainer.add_callback(trainer.recorder)
    if decay is not None:
        trainer.add_callback(EMABaselineCallback(trainer, decay))
    return trainer


def by_hand(seen, decay):
    average = dict(seen[0])
    for weights in seen[1:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
    return average


def close(found, wanted, atol=1e-6):
    assert found.keys() == wanted.keys()
    for name in found:
        torch.testing.assert_close(found[name].double(), wanted[name], rtol=0, atol=atol, msg=lambda m, n=name: n + m)


def parameters(model, trained="lora_"):
    return {n: p.detach() for n, p in model.named_parameters() if trained in n}


def test_the_average_of_a_full_model(tmp_path):
    trainer = sft(tmp_path)
    trainer.train()
    wanted = by_hand(trainer.recorder.seen, 0.7)
    close(parameters(AutoModelForCausalLM.from_pretrained(tmp_path / "baseline-ema"), ""), wanted)
    last = trainer.recorder.seen[-1]
    assert min((wanted[n] - last[n]).abs().max() for n in last) > 1e-4
    close(parameters(trainer.model, ""), last, 0.0)  # the model itself is what it was
    marker = read_marker(tmp_path / "baseline-ema")
    assert (marker["role"], marker["ema_decay"], marker["step"], marker["of_steps"]) == ("baseline", 0.7, 4, 4)
    trainer.save_model(str(tmp_path))
    reward = TokenReward.from_checkpoints(tmp_path, tmp_path / "baseline-ema")
    assert max(map(abs, reward.score(["Q: 1+1="], [" 2"])[0].rewards)) > 1e-4


def test_the_run_is_the_same_without_it(tmp_path):
    with_it, without = sft(tmp_path / "a", optim="adamw_torch"), sft(tmp_path / "b", None, optim="adamw_torch")
    with_it.train()
    without.train()
    assert_same_weights(with_it.model, without.model, atol=0)
    assert not (tmp_path / "b" / "baseline-ema").exists()


def test_the_average_of_an_adapter(tmp_path):
    tiny_for(text_tokenizer()).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = sft(tmp_path / "run", model=base, peft_config=lora())
    trainer.train()
    folder = tmp_path / "run" / "baseline-ema"
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(folder))
    wanted = by_hand(trainer.recorder.seen, 0.7)
    assert all("lora_" in name for name in wanted)
    close(parameters(found), wanted)


def test_the_average_is_float32_whatever_the_model_is(tmp_path):
    """The steps of this run are lost in bfloat16's 8 bits, but not in the average."""
    model = tiny_for(text_tokenizer(), dtype=torch.bfloat16)
    trainer = sft(tmp_path, 0.99, model, **SAVING)
    trainer.train()
    wanted = by_hand(trainer.recorder.seen, 0.99)
    saved = load_file(tmp_path / "checkpoint-4" / "ema.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}
    close(saved, wanted)
    assert any((t != t.bfloat16().float()).any() for t in saved.values())
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "baseline-ema")
    assert kept.dtype == torch.bfloat16
    close(parameters(kept, ""), {n: w.bfloat16().double() for n, w in wanted.items()}, 0.02)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_resumed_run_ends_with_the_same_average(tmp_path, kind):
    options = {"optim": "adamw_torch", "learning_rate": 1e-2, **SAVING}
    options |= {"peft_config": lora()} if kind == "lora" else {}
    sft(tmp_path, **options).train()
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    whole = (tmp_path / "baseline-ema" / name).read_bytes()
    shutil.rmtree(tmp_path / "baseline-ema")
    resumed = sft(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "baseline-ema" / name).read_bytes() == whole
    assert len(resumed.recorder.seen) == 3


def test_resuming_from_a_checkpoint_elsewhere(tmp_path):
    sft(tmp_path / "a", **SAVING).train()
    shutil.move(tmp_path / "a" / "checkpoint-2", tmp_path / "checkpoint-2")
    path = str(tmp_path / "checkpoint-2")
    resumed = sft(tmp_path / "b", resume_from_checkpoint=path)
    resumed.train(resume_from_checkpoint=path)
    a, b = ((tmp_path / name / "baseline-ema" / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize("strategy", ["epoch", "best", "steps"])
def test_every_checkpoint_holds_it(tmp_path, strategy):
    from datasets import Dataset

    options = {"save_strategy": strategy, "save_steps": 3, "learning_rate": 1e-2}
    if strategy == "best":
        options |= {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
        options |= {"load_best_model_at_end": True, "eval_rows": Dataset.from_list(sums(4))}
    trainer = sft(tmp_path, max_steps=8, **options)
    trainer.train()
    found = sorted(int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*"))
    assert found == {"epoch": [4, 8], "steps": [3, 6, 8], "best": [2, 4, 6, 8]}[strategy]
    for step in found:
        folder = tmp_path / f"checkpoint-{step}"
        close(load_file(folder / "ema.safetensors"), by_hand(trainer.recorder.seen[: step + 1], 0.7))
        with safe_open(folder / "ema.safetensors", "pt") as file:
            assert file.metadata()["decay"] == "0.7"
        assert not list(folder.glob("*.tmp"))
        if strategy != "best":  # the file that says that a checkpoint is complete comes after it
            times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
            assert times["trainer_state.json"] == max(times.values())


def test_what_cannot_be_resumed_is_said(tmp_path):
    sft(tmp_path, **SAVING).train()
    folder = tmp_path / "checkpoint-2"
    resume = lambda decay=0.7, **options: sft(tmp_path, decay, **options).train(resume_from_checkpoint=str(folder))
    with pytest.raises(UserError, match=r"decay of 0\.7, not 0\.8"):
        resume(0.8)
    tensors = load_file(folder / "ema.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "ema.safetensors", metadata={"decay": "0.7"})
    with pytest.raises(UserError, match="of other weights"):
        resume()
    (folder / "ema.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read"):
        resume()
    (folder / "ema.safetensors").unlink()
    with pytest.raises(UserError, match=r"checkpoint-2/ema\.safetensors: .* cannot be read"):
        resume()
    resume(None)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5])
def test_a_decay_outside_0_1_is_refused(decay):
    with pytest.raises(UserError, match="between 0 and 1"):
        EMABaselineCallback(None, decay)


@pytest.mark.parametrize("kind", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_weights_are_refused(tmp_path, kind):
    trainer = sft(tmp_path)
    setattr(trainer, kind, True)
    with pytest.raises(UserError, match="does not support sharded"):
        EMABaselineCallback(trainer).on_train_begin(trainer.args, trainer.state, trainer.control)


def test_an_average_that_hardly_moves_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    sft(tmp_path / "a", 0.9).train()
    assert "66% of the averaged weights will be those the run began with; 0.5 would lag" in caplog.text
    caplog.clear()
    sft(tmp_path / "b", 0.7).train()
    assert "averaged weights" not in caplog.text


def test_an_average_that_lies_there_already_is_written_anew(tmp_path):
    """A run begun again over an earlier one, whose checkpoints are decided on after an evaluation."""
    best = {"save_strategy": "best", "metric_for_best_model": "eval_loss", "eval_strategy": "steps", "eval_steps": 2}
    rows = Dataset.from_list(sums()[:4])
    first = sft(tmp_path, 0.7, eval_rows=rows, learning_rate=0.05, **best)
    first.train()
    folders = sorted(folder.name for folder in tmp_path.glob("checkpoint-*"))
    assert folders
    again = sft(tmp_path, 0.3, eval_rows=rows, learning_rate=0.05, **best)
    again.train()
    for name in folders:
        step = int(name.removeprefix("checkpoint-"))
        close(load_file(tmp_path / name / "ema.safetensors"), by_hand(again.recorder.seen[: step + 1], 0.3))
