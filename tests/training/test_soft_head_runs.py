"""Runs with the soft-Q head: on two processes, sharded or not, and IQLearnTrainer's against the dense reference."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from helpers.data import sums, text_tokenizer, tiny_for
from helpers.models import tiny_family
from helpers.processes import kill, start
from helpers.sharded import CASES, MODELS, RUNS, results, trained
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps
from inverselm.token_mdp import SoftHeadError, of_models
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

FULL = {"td_coef": 0.5, "gamma": 0.9, "mle_warmup_steps": 0, "td_anneal_steps": 0}
KEYS = ("loss", "grad_norm", "nll", "td_error", "reward", "value_first", "value_gap", "entropy", "mean_token_accuracy")


@pytest.fixture
def reasons(monkeypatch):
    """Why the dense reference was taken, each time it was."""
    found = []
    monkeypatch.setattr(of_models, "fall_back", lambda reason: found.append(str(reason)))
    return found


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    """What each rank found, of all cases in one start."""
    folder = tmp_path_factory.mktemp("sharded")
    log = folder / "log"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "helpers.sharded"]
    process = start(*launch, str(folder), log=log)
    try:
        assert process.wait(timeout=300) == 0, log.read_text()[-5000:]
    finally:
        kill(process)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


AFTERWARDS = ("fsdp", "fsdp, layers", "fsdp, head kept", "fsdp, lora")
"""Cases under FSDP2 whose output layer is there after the call too."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_add_up_to_one(case, on_two_processes, monkeypatch):
    """Rows of one batch on two processes: losses and gradients of one process, in the fused and the plain mode."""
    monkeypatch.setattr(of_models, "fall_back", of_models.fall_back)  # `results` replaces it
    expected = results(lambda model: model, MODELS[CASES[case][0]])
    for found in (rank[case] for rank in on_two_processes):
        assert found["dtypes"] == {torch.float32}
        assert bool(found["reasons"]) == ("dense" in case)
        assert found["projects"] == (case in AFTERWARDS or (case.startswith("ddp") and "dense" not in case))
        tolerance = 0.05 if "bfloat16" in case else 2e-6
        for key in ("loss 0", "log_prob 0", "loss 1", "log_prob 1"):
            (value, grads), (expected_value, expected_grads) = found[key], expected[key]
            assert value.item() == pytest.approx(expected_value.item(), rel=tolerance)
            assert grads.keys() == expected_grads.keys()
            size = max(gradient.abs().max().item() for gradient in expected_grads.values())
            for name, gradient in expected_grads.items():
                assert (grads[name] - gradient).abs().max().item() < tolerance * size, (key, name)


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_the_trainer_under_fsdp2(case, on_two_processes, tmp_path, monkeypatch):
    monkeypatch.setattr(of_models, "fall_back", of_models.fall_back)
    one = trained(tmp_path, **RUNS[case])
    rel = 0.02 if "bf16" in RUNS[case] else 1e-5
    for found in (rank[case] for rank in on_two_processes):
        assert found["layer"].startswith("FSDP")
        assert found["reasons"] == one["reasons"] == []
        assert len(found["steps"]) == len(one["steps"]) == 4
        for step, expected in zip(found["steps"], one["steps"], strict=True):
            for key in KEYS:
                assert step[key] == pytest.approx(expected[key], rel=rel, abs=1e-6), (step["step"], key)


def run(folder, model, left=False, whole=False, **options):
    """A few steps on the same 8 rows; `whole` trains the output layer whole beside an adapter."""
    args = arguments(IQLearnConfig, folder, **{**FULL, "per_device_train_batch_size": 8, "max_steps": 2, **options})
    torch.manual_seed(0)
    adapter = (
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
        if whole
        else None
    )
    trainer = make(IQLearnTrainer, args, sums(8), text_tokenizer(), model, peft_config=adapter)
    if left:
        trainer.data_collator = OnTheLeft(trainer.data_collator)
    trainer.train()
    return trainer


class OnTheLeft:
    """A collator's right-padded rows with their padding on the left."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, rows):
        batch = self.collator(rows)
        padding = (batch["attention_mask"] == 0).sum(dim=1).tolist()
        assert any(padding)
        turn = lambda tensor: torch.stack([row.roll(by) for row, by in zip(tensor, padding, strict=True)])
        return {name: turn(tensor) for name, tensor in batch.items()}


def llama():
    return tiny_for(text_tokenizer())


def gemma2():
    tokenizer = text_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return tiny_family("gemma2", vocab_size=len(tokenizer), **ids)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs with right padding and without checkpointing, by kind of model."""
    kinds = {"llama": llama, "gemma2": gemma2, "whole": llama}
    return {kind: run(tmp_path_factory.mktemp(kind), model(), whole=kind == "whole") for kind, model in kinds.items()}


OPTIONS = {
    "left": {"left": True},
    "left, wider": {"left": True, "pad_to_multiple_of": 32},
    "packing": {"packing": True, "max_length": 40},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "whole"])
def test_layout_and_checkpointing_change_nothing(kind, what, plain, tmp_path, reasons):
    model = gemma2() if kind == "gemma2" else llama()
    other = run(tmp_path, model, whole=kind == "whole", **OPTIONS[what])
    assert_same_steps(plain[kind], other, KEYS)
    assert_same_weights(plain[kind].model, other.model)
    assert not reasons


@pytest.mark.slow
def test_fifty_steps_like_the_dense_reference(tmp_path, monkeypatch, reasons):
    """Both train as far as two dense runs with different padding agree, to some 1e-5."""

    def refuse(*args, **kwargs):
        raise SoftHeadError("a test wants the dense reference")

    options = {
        "max_steps": 50, "td_coef": 0.3, "optim": "adamw_torch", "learning_rate": 3e-3, "lr_scheduler_type": "constant",
    }  # fmt: skip
    soft = run(tmp_path / "soft", llama(), **options)
    assert not reasons
    monkeypatch.setattr(of_models, "run_with_head", refuse)
    dense = run(tmp_path / "dense", llama(), **options)
    assert len(reasons) == 50
    assert steps(soft)[-1]["loss"] < 0.2 * steps(soft)[0]["loss"]
    assert_same_steps(soft, dense, KEYS, rel=3e-4, abs_tol=3e-4)
    assert_same_weights(soft.model, dense.model, atol=1e-3)
