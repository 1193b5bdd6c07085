"""DFT and GEM by IQLearnTrainer: their definitions, however rows are cut into batches; the soft head; resumed runs."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from helpers.data import chat_tokenizer, chats, sums, text_tokenizer, texts, tiny_for
from helpers.seq2seq import t5_for, t5_tokenizer
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps, weights_moved
from inverselm import Seq2SeqIQLearnConfig, Seq2SeqIQLearnTrainer
from inverselm.errors import UserError
from inverselm.token_mdp import of_models
from inverselm.training import iqlearn_shared
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

GEM, DFT = {"objective": "gem", "td_coef": 0.0}, {"objective": "dft", "td_coef": 0.0}
LOGGED = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
WHOLE = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 0.01}
CASES = {
    "prompt_completion": (sums, text_tokenizer, {}),
    "assistant_only": (lambda: chats(turns=2), chat_tokenizer, {"assistant_only_loss": True}),
    "packing": (sums, text_tokenizer, {"packing": True, "max_length": 48, "per_device_train_batch_size": 2}),
    "wrapped": (texts, text_tokenizer, {"packing": True, "packing_strategy": "wrapped", "max_length": 24}),
    "accumulation": (sums, text_tokenizer, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}),
    "padding": (sums, text_tokenizer, {"pad_to_multiple_of": 16}),
}


def run(folder, rows=None, **options):
    rows = sums(8) if rows is None else rows
    trainer = make(IQLearnTrainer, arguments(IQLearnConfig, folder, **{**WHOLE, **options}), rows, text_tokenizer())
    trainer.train()
    return trainer


@pytest.fixture(autouse=True)
def whole_logits(monkeypatch):
    """How often the whole logits were computed."""
    found = []
    real = of_models.token_logits
    for module in (of_models, iqlearn_shared):
        monkeypatch.setattr(module, "token_logits", lambda *a, **k: found.append(1) or real(*a, **k))
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("theirs", "ours"), [({"loss_type": "dft"}, DFT), ({}, {**GEM, "gem_temperature": 1.0})], ids=["dft", "gem"]
)
def test_trls_losses(tmp_path, case, theirs, ours, whole_logits):
    """DFT is TRL's; GEM at temperature 1 is SFT."""
    rows, tokenizer, options = CASES[case]
    rows, tokenizer = rows(), tokenizer()
    options = {"learning_rate": 5.0 if theirs else 0.05, **options}  # DFT's gradients are small at the start
    sft = make(SFTTrainer, arguments(SFTConfig, tmp_path / "a", **theirs, **options), rows, tokenizer)
    peer = make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path / "b", **ours, **options), rows, tokenizer)
    sft.train()
    peer.train()
    assert_same_steps(sft, peer, LOGGED)
    assert_same_weights(sft.model, peer.model)
    assert weights_moved(tiny_for(tokenizer), peer.model) > 1e-4
    assert not whole_logits


def reference(trainer, beta=0.7):
    """GEM's loss and value, NLL and entropy of the trainer's first batch, from a tiny llama's float64 logits."""
    (batch,) = trainer.get_train_dataloader()
    model = copy.deepcopy(tiny_for(text_tokenizer())).double()
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    log_pi, log_q = logits.log_softmax(-1), (logits / beta).log_softmax(-1)
    chosen = lambda of: of.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    each = {
        "loss": -beta * chosen(log_q),
        "gem": -chosen(log_pi) + (log_q.exp() * log_pi).sum(-1),
        "nll": -chosen(log_pi),
        "entropy": -(log_pi.exp() * log_pi).sum(-1),
    }
    return {name: float(values[labels != -100].mean()) for name, values in each.items()}


def test_the_first_loss_of_gem_is_the_definitions(tmp_path, whole_logits):
    trainer = run(tmp_path, **GEM)
    first = steps(trainer)[0]
    for name, expected in reference(trainer).items():
        assert first[name] == pytest.approx(expected, rel=1e-5), name
    assert first["loss"] != pytest.approx(first["nll"], rel=1e-2)
    assert not whole_logits
    assert "td_coef" not in first
    other = run(tmp_path, **GEM, gem_temperature=0.4)
    assert steps(other)[0]["loss"] == pytest.approx(reference(other, 0.4)["loss"], rel=1e-5)
    assert steps(other)[0]["nll"] == pytest.approx(first["nll"], rel=1e-5), "at temperature 1"


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"pad_to_multiple_of": 32},
        {"gradient_checkpointing": True},
        {"packing": True, "max_length": 200},
    ],
    ids=str,
)
@pytest.mark.parametrize("peer", [GEM, DFT], ids=["gem", "dft"])
def test_how_rows_are_cut_changes_nothing(tmp_path, peer, options):
    rate = {"learning_rate": 0.01 if peer is GEM else 1.0}
    plain, other = run(tmp_path / "a", **peer, **rate), run(tmp_path / "b", **{**peer, **rate, **options})
    assert_same_steps(plain, other)
    assert_same_weights(plain.model, other.model)
    assert weights_moved(tiny_for(text_tokenizer()), other.model) > 1e-4


@pytest.mark.parametrize("peer", [GEM, DFT], ids=["gem", "dft"])
def test_evaluations_compare_by_the_nll_of_temperature_one(tmp_path, peer, whole_logits):
    held_out = {"eval_dataset": Dataset.from_list(sums(5)), "compute_metrics": None}
    args = {"per_device_eval_batch_size": 3}
    sft = make(SFTTrainer, arguments(SFTConfig, tmp_path / "a", **args), sums(), text_tokenizer(), **held_out)
    expected = sft.evaluate()
    ours = arguments(IQLearnConfig, tmp_path / "b", **args, **peer)
    found = make(IQLearnTrainer, ours, sums(), text_tokenizer(), **held_out).evaluate()
    assert found["eval_nll"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert found["eval_loss"] != pytest.approx(expected["eval_loss"], rel=1e-2)
    for name in ("eval_entropy", "eval_mean_token_accuracy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    assert not whole_logits
    seen = []
    held_out["compute_metrics"] = lambda prediction: seen.append(prediction) or {"rows": len(prediction.predictions)}
    dense = make(IQLearnTrainer, ours, sums(), text_tokenizer(), **held_out).evaluate()
    assert whole_logits
    assert dense["eval_rows"] == 5
    for name in ("eval_loss", "eval_nll", "eval_entropy", "eval_gem" if peer is GEM else "eval_probability"):
        assert dense[name] == pytest.approx(found[name], rel=1e-5), name


@pytest.mark.parametrize("peer", [GEM, DFT], ids=["gem", "dft"])
def test_training_lowers_the_loss_and_the_nll(tmp_path, peer):
    rate = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 25}
    logged = steps(run(tmp_path, **peer, **rate))
    assert logged[-1]["nll"] < 0.5 * logged[0]["nll"]
    if peer is GEM:
        assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    else:
        assert logged[-1]["probability"] > 5 * logged[0]["probability"], "DFT's loss is small at both ends"


def test_gem_stays_broader_than_maximum_likelihood(tmp_path):
    """One prompt, two answers, 3 to 1: SFT ends at 3/4, GEM at softmax(.7 log p)."""
    rows = [{"prompt": "q", "completion": " a"}] * 3 + [{"prompt": "q", "completion": " b"}]
    rate = {"optim": "adamw_torch", "learning_rate": 2e-2, "max_steps": 120, "lr_scheduler_type": "linear"}
    found = {}
    for name, options in (("nll", {"td_coef": 0.0}), ("gem", GEM)):
        model = run(tmp_path / name, rows, **options, **rate, logging_steps=60).model.eval()
        tokenizer = text_tokenizer()
        prompt = tokenizer("q")["input_ids"]
        ids = [tokenizer("q" + answer)["input_ids"][len(prompt)] for answer in (" a", " b")]
        with torch.no_grad():
            log_pi = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        if ids[0] == ids[1]:  # a token of its own for the space
            ids = [tokenizer("q" + answer)["input_ids"][len(prompt) + 1] for answer in (" a", " b")]
            with torch.no_grad():
                space = tokenizer("q ")["input_ids"]
                log_pi = model(torch.tensor([space])).logits[0, -1].log_softmax(-1)
        found[name] = float(log_pi[ids[0]] - log_pi[ids[1]])
    assert found["nll"] == pytest.approx(math.log(3), abs=0.05)
    assert found["gem"] == pytest.approx(0.7 * math.log(3), abs=0.05)


@pytest.mark.parametrize("peer", [GEM, DFT], ids=["gem", "dft"])
def test_a_resumed_run_ends_where_a_whole_one_does(tmp_path, peer):
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    whole = run(tmp_path / "run", **peer, **saved)
    args = arguments(IQLearnConfig, tmp_path / "run", **{**WHOLE, **peer, **saved})
    resumed = make(IQLearnTrainer, args, sums(8), text_tokenizer())
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert_same_weights(whole.model, resumed.model)
    assert_same_steps(whole, resumed, ("loss", "nll"))


@pytest.mark.parametrize("peer", [GEM, DFT], ids=["gem", "dft"])
def test_encoder_decoders_too(tmp_path, peer, whole_logits):
    tokenizer = t5_tokenizer()
    args = arguments(Seq2SeqIQLearnConfig, tmp_path, **peer, **WHOLE)
    trainer = make(Seq2SeqIQLearnTrainer, args, sums(8), tokenizer, t5_for(tokenizer))
    (batch,) = trainer.get_train_dataloader()
    with torch.no_grad():
        logits = t5_for(tokenizer).eval()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
        )
        labels, logits = batch["labels"], logits.logits.double()
        beta = 0.7 if peer is GEM else 1.0
        log_q = (logits / beta).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        each = -beta * log_q if peer is GEM else -log_q.exp() * log_q
        nll = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    trainer.train()
    first = steps(trainer)[0]
    assert first["loss"] == pytest.approx(float(each[labels != -100].mean()), rel=1e-4)
    assert first["nll"] == pytest.approx(float(nll[labels != -100].mean()), rel=1e-4)
    assert not whole_logits


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"objective": "sft"}, ["objective", "iqlearn, dft, gem"]),
        ({"objective": "gem"}, ["td_coef and entropy_coef to 0"]),
        ({"objective": "dft", "td_coef": 0.0, "entropy_coef": 0.1}, ["td_coef and entropy_coef to 0"]),
        ({**DFT, "gem_temperature": 0.7}, ["gem_temperature belongs"]),
        ({"gem_temperature": 0.7}, ["gem_temperature belongs"]),
        ({**GEM, "gem_temperature": 0.0}, ["gem_temperature must be above 0"]),
        ({**GEM, "gem_temperature": float("nan")}, ["gem_temperature must be above 0"]),
        ({**GEM, "loss_type": "dft"}, ["loss_type", "objective"]),
        ({**GEM, "label_smoothing_factor": 0.1}, ["label_smoothing_factor"]),
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_config_is_built(tmp_path, options, names):
    with pytest.raises(UserError) as caught:
        arguments(IQLearnConfig, tmp_path, **options)
    assert all(name in str(caught.value) for name in names)


def test_a_lower_nll_is_better(tmp_path):
    for name, greater in (("eval_nll", False), ("nll", False), ("eval_valid_nll", False), ("eval_probability", True)):
        args = arguments(IQLearnConfig, tmp_path, **GEM, metric_for_best_model=name)
        assert args.greater_is_better is greater


def test_the_temperature_has_a_default(tmp_path):
    assert arguments(IQLearnConfig, tmp_path, **GEM).gem_temperature == 0.7
    assert arguments(IQLearnConfig, tmp_path).gem_temperature is None
    assert arguments(IQLearnConfig, tmp_path, **GEM).mask_after_eos is False, "as in SFT"


def test_the_model_card_names_the_loss(tmp_path):
    for peer, name, paper in ((GEM, "GEM", "2408.16673"), (DFT, "DFT", "2508.05629"), ({}, "IQLearn", "2409.01369")):
        trainer = make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path, **peer), sums(), text_tokenizer())
        trainer.create_model_card(model_name="m")
        card = (tmp_path / "README.md").read_text()
        assert name in card
        assert paper in card
        assert ("2409.01369" in card) == (name == "IQLearn")
