"""Seq2SeqIQLearnTrainer: the definition's loss, however it is batched; Seq2SeqTrainer without a temporal difference."""

import copy
import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from helpers.data import chat_pairs, chat_tokenizer, chats, text_tokenizer, texts, tiny_for, toy_tokenizer
from helpers.processes import kill, start
from helpers.seq2seq import (
    dataset,
    naive_iqlearn,
    naive_numbers,
    questions,
    rows_of,
    t5_for,
    t5_tokenizer,
    tiny_bart,
)
from helpers.seq2seq_job import global_batch
from helpers.training import arguments, assert_same_steps, assert_same_weights, steps, weights_moved
from inverselm import Seq2SeqIQLearnConfig, Seq2SeqIQLearnTrainer
from inverselm.errors import UserError
from inverselm.training.scratch_tokenizer import build_tokenizer

FULL = {"td_coef": 0.5, "gamma": 0.9, "mle_warmup_steps": 0, "td_anneal_steps": 0}
WHOLE = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 0.01}
KEYS = ("loss", "grad_norm", "nll", "td_error", "value_gap", "value_first", "reward")


def bart_for(tokenizer, seed=0, **kwargs):
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return tiny_bart(seed, len(tokenizer), **{**ids, "decoder_start_token_id": tokenizer.eos_token_id, **kwargs})


FAMILIES = {
    "t5": t5_for,
    "t5 v1.1": lambda tokenizer, **kwargs: t5_for(tokenizer, v1_1=True, **kwargs),
    "bart": bart_for,
}


def make(folder, rows, tokenizer=None, model=None, more=None, **options):
    tokenizer = tokenizer or t5_tokenizer()
    return Seq2SeqIQLearnTrainer(
        t5_for(tokenizer) if model is None else model,
        args=arguments(Seq2SeqIQLearnConfig, folder, **{**FULL, **options}),
        train_dataset=dataset(rows),
        processing_class=tokenizer,
        **(more or {}),
    )


def run(folder, rows, tokenizer=None, model=None, more=None, **options):
    trainer = make(folder, rows, tokenizer, model, more, **{**WHOLE, **options})
    trainer.train()
    return trainer


# --- without a temporal difference it is Seq2SeqTrainer ------------------------------------------------------------


@pytest.mark.parametrize("shifted", [False, True], ids=["labels", "decoder_input_ids"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_td_it_is_seq2seq_trainer(tmp_path, family, shifted):
    tokenizer = t5_tokenizer()
    model = FAMILIES[family](tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model if shifted else None)
    ours = make(tmp_path / "a", questions(), tokenizer, model, {"data_collator": collator}, td_coef=0.0)
    assert shifted == ("decoder_input_ids" in next(iter(ours.get_train_dataloader())))
    theirs = Seq2SeqTrainer(
        FAMILIES[family](tokenizer),
        args=arguments(Seq2SeqTrainingArguments, tmp_path / "b"),
        train_dataset=ours.train_dataset,
        data_collator=collator,
        processing_class=tokenizer,
    )
    ours.train()
    theirs.train()
    assert_same_steps(ours, theirs)
    assert_same_weights(ours.model, theirs.model)
    assert weights_moved(FAMILIES[family](tokenizer), ours.model) > 1e-3
    assert ours.evaluate(ours.train_dataset)["eval_loss"] == pytest.approx(
        theirs.evaluate(ours.train_dataset)["eval_loss"], rel=1e-5
    )


def test_without_td_it_is_seq2seq_trainer_with_lora(tmp_path):
    tokenizer, lora = t5_tokenizer(), LoraConfig(r=2, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")
    models = []
    for _ in range(3):
        torch.manual_seed(0)  # of the adapter's random half
        models.append(get_peft_model(t5_for(tokenizer), lora))
    ours = make(tmp_path / "a", questions(), tokenizer, models[0], td_coef=0.0, learning_rate=0.5)
    theirs = Seq2SeqTrainer(
        models[1],
        args=arguments(Seq2SeqTrainingArguments, tmp_path / "b", learning_rate=0.5),
        train_dataset=ours.train_dataset,
        data_collator=ours.data_collator,
        processing_class=tokenizer,
    )
    ours.train()
    theirs.train()
    assert_same_steps(ours, theirs)
    assert_same_weights(models[0], models[1])
    assert weights_moved(models[2], models[0]) > 1e-3


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [None, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_loss_is_the_definitions(tmp_path, family, cut):
    tokenizer = t5_tokenizer()
    trainer = run(tmp_path, questions(8), tokenizer, FAMILIES[family](tokenizer), max_target_length=cut)
    (batch,) = trainer.get_train_dataloader()
    prompts, answers = rows_of(batch)
    with torch.no_grad():
        numbers = naive_numbers(FAMILIES[family](tokenizer), prompts, answers, tokenizer.eos_token_id)
    assert steps(trainer)[0]["loss"] == pytest.approx(naive_iqlearn(numbers, 0.5, 0.9).item(), rel=1e-5)
    bootstrapped = sum(n["next_value"][-1] != 0 for n in numbers)
    assert (0 < bootstrapped < 8) if cut else bootstrapped == 0
    count = sum(map(len, answers))
    for name, each in (
        ("nll", [-n["log_prob"] for n in numbers]),
        ("td_error", [(n["action_logit"] - 0.9 * n["next_value"]).abs() for n in numbers]),
        ("entropy", [n["entropy"] for n in numbers]),
        ("mean_token_accuracy", [n["greedy"].float() for n in numbers]),
    ):
        assert steps(trainer)[0][name] == pytest.approx(torch.cat(each).sum().item() / count, rel=1e-4), name


def test_accumulation_changes_nothing(tmp_path):
    whole = run(tmp_path / "a", questions(16))
    parts = run(tmp_path / "b", questions(16), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    lengths = {len(row["labels"]) for row in whole.train_dataset}
    assert len(lengths) > 3  # a mean of micro-batch means would differ
    assert_same_steps(whole, parts)
    assert_same_weights(whole.model, parts.model)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize(
    "options", [{"pad_to_multiple_of": 32}, {"gradient_checkpointing": True}], ids=["padding", "checkpointing"]
)
def test_padding_and_checkpointing_change_nothing(tmp_path, family, options):
    model = FAMILIES[family]
    tokenizer = t5_tokenizer()
    plain = run(tmp_path / "a", questions(8), model=model(tokenizer), max_target_length=4)
    other = run(tmp_path / "b", questions(8), model=model(tokenizer), max_target_length=4, **options)
    assert_same_steps(plain, other, KEYS)
    assert_same_weights(plain.model, other.model)
    if "pad_to_multiple_of" in options:
        (batch,) = other.get_train_dataloader()
        assert batch["input_ids"].shape == batch["labels"].shape == (8, 32)
    else:
        assert any(getattr(m, "gradient_checkpointing", False) for m in other.model.modules())


def test_td_coef_warms_up_and_anneals_in_and_is_the_one_in_the_loss(tmp_path):
    options = {"td_coef": 0.4, "max_steps": 8, "mle_warmup_steps": 2, "td_anneal_steps": 3}
    logged = steps(run(tmp_path, questions(), per_device_train_batch_size=4, **options))
    assert [entry["td_coef"] for entry in logged] == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["nll"] + entry["td_coef"] * entry["td_squared"], rel=1e-5)


def test_in_bfloat16(tmp_path):
    """Autocast, with Q and V in float32."""
    seen, dtypes = [], []

    class Watched(Seq2SeqIQLearnTrainer):
        def objective(self, stats, num_actions):
            seen.append(stats)
            return super().objective(stats, num_actions)

    model = t5_for(t5_tokenizer())
    model.decoder.block[0].layer[0].SelfAttention.q.register_forward_hook(lambda m, a, out: dtypes.append(out.dtype))
    args = arguments(Seq2SeqIQLearnConfig, tmp_path / "a", bf16=True, **FULL, **WHOLE)
    trainer = Watched(model, args=args, train_dataset=dataset(questions(8)), processing_class=t5_tokenizer())
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    numbers = seen[-1].value[seen[-1].action_mask]
    assert (numbers != numbers.bfloat16().float()).float().mean() > 0.9
    exact = steps(run(tmp_path / "b", questions(8)))
    for a, b in zip(steps(trainer), exact, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_entropy_bonus(tmp_path):
    plain = run(tmp_path / "a", questions(), td_coef=0.0, max_steps=20)
    bonus = run(tmp_path / "b", questions(), td_coef=0.0, entropy_coef=0.5, max_steps=20)
    for entry in steps(bonus):
        assert entry["loss"] == pytest.approx(entry["nll"] - 0.5 * entry["entropy"], rel=1e-5)
    assert steps(bonus)[-1]["entropy"] > steps(plain)[-1]["entropy"] + 0.01


# --- adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(tmp_path, checkpointing):
    tokenizer, lora = t5_tokenizer(), LoraConfig(r=2, target_modules=["q", "wo"])
    trainers = []
    for way in ("config", "model"):
        torch.manual_seed(0)
        base = t5_for(tokenizer)
        task = LoraConfig(r=2, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")
        model, more = (base, {"peft_config": lora}) if way == "config" else (get_peft_model(base, task), {})
        options = {"learning_rate": 0.5, "gradient_checkpointing": checkpointing}
        trainers.append(run(tmp_path / way, questions(), tokenizer, model, more, **options))
    assert lora.task_type is None, "the caller's configuration is left alone"
    assert_same_steps(*trainers, KEYS)
    assert_same_weights(trainers[0].model, trainers[1].model)
    moved = [n for n, p in trainers[0].model.named_parameters() if "lora_B" in n and p.abs().max() > 0]
    assert len(moved) == sum("lora_B" in n for n, _ in trainers[0].model.named_parameters()) > 8
    base = t5_for(tokenizer)
    trainers[0].save_model(tmp_path / "saved")
    again = PeftModel.from_pretrained(t5_for(tokenizer), tmp_path / "saved")
    assert_same_weights(again, trainers[0].model)
    assert weights_moved(base, trainers[0].model.get_base_model()) == 0
    with pytest.raises(UserError, match="PeftModel already"):
        make(tmp_path, questions(), tokenizer, trainers[0].model, {"peft_config": lora})


# --- evaluation and generation --------------------------------------------------------------------------------------


def expected_loss(trainer, rows, tokenizer):
    (batch,) = trainer.get_test_dataloader(dataset(rows))
    with torch.no_grad():
        numbers = naive_numbers(trainer.model, *rows_of(batch), tokenizer.eos_token_id)
    return naive_iqlearn(numbers, 0.5, 0.9).item()


def test_evaluation_has_the_definitions_loss_and_the_full_td_coef(tmp_path):
    tokenizer = t5_tokenizer()
    held_out = {"few": dataset(questions(3)), "more": dataset(questions(5))}
    trainer = make(tmp_path, questions(8), tokenizer, more={"eval_dataset": held_out}, mle_warmup_steps=5)
    found = trainer.evaluate()
    for name, count in (("few", 3), ("more", 5)):
        loss = found[f"eval_{name}_loss"]
        assert loss == pytest.approx(expected_loss(trainer, questions(count), tokenizer), rel=1e-5)
        assert loss == pytest.approx(found[f"eval_{name}_nll"] + 0.5 * found[f"eval_{name}_td_squared"], rel=1e-5)
    assert "eval_more_td_error" in trainer.state.log_history[-1]
    test = trainer.predict(dataset(questions(4))).metrics
    assert test["test_loss"] == pytest.approx(test["test_nll"] + 0.5 * test["test_td_squared"], rel=1e-5)
    assert trainer.evaluate(dataset(questions(3)))["eval_loss"] == pytest.approx(found["eval_few_loss"])


def test_metrics_of_training_and_evaluation_are_kept_apart(tmp_path):
    """Also where an evaluation comes between two logs."""
    more, options = {"eval_dataset": dataset(questions(5))}, {"max_steps": 4, "logging_steps": 2}
    trainer = run(tmp_path, questions(), more=more, eval_strategy="steps", eval_steps=1, **options)
    plain = run(tmp_path / "plain", questions(), **options)
    assert_same_steps(trainer, plain, KEYS)
    assert len(steps(plain)) == 2
    assert len(steps(trainer, "eval_nll")) == 4
    assert not any("nll" in entry for entry in steps(trainer, "eval_nll"))


def test_predict_with_generate(tmp_path):
    tokenizer, seen = t5_tokenizer(), []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    more = {"compute_metrics": compute_metrics}
    options = {"predict_with_generate": True, "generation_max_length": 7, "per_device_eval_batch_size": 5}
    trainer = make(tmp_path, questions(8), tokenizer, more=more, **options)
    rows = dataset(questions(5))
    found = trainer.evaluate(rows)
    assert found["eval_rows"] == 5
    assert found["eval_loss"] == pytest.approx(expected_loss(trainer, questions(5), tokenizer), rel=1e-5)
    (batch,) = trainer.get_test_dataloader(rows)
    answers = trainer.model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_length=7)
    assert seen[0].predictions[:, : answers.size(1)].tolist() == answers.tolist()
    assert (torch.as_tensor(seen[0].label_ids) == batch["labels"]).all()
    prompts = trainer.train_dataset.select(range(3)).select_columns(["input_ids", "attention_mask"])
    found = trainer.predict(prompts)
    assert len(found.predictions) == 3
    assert found.label_ids is None


def test_compute_metrics_gets_the_logits_that_belong_to_the_labels(tmp_path):
    tokenizer, seen = t5_tokenizer(), []
    more = {"compute_metrics": lambda prediction: seen.append(prediction) or {}}
    trainer = make(tmp_path, questions(8), tokenizer, more=more, per_device_eval_batch_size=5)
    trainer.evaluate(dataset(questions(5)))
    (batch,) = trainer.get_test_dataloader(dataset(questions(5)))
    with torch.no_grad():
        expected = trainer.model(**batch).logits
    logits, real = torch.as_tensor(seen[0].predictions[0]), batch["labels"] != -100
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[real], expected[real])


# --- data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [text_tokenizer, t5_tokenizer], ids=["without EOS", "with EOS"])
def test_texts_are_tokenised_apart_and_end_with_eos_once(tmp_path, tokenizer):
    tokenizer = tokenizer()
    eos = tokenizer.eos_token_id
    trainer = make(tmp_path, questions(6), tokenizer)
    for row, source in zip(trainer.train_dataset, questions(6), strict=True):
        assert row["input_ids"] == tokenizer(source["prompt"])["input_ids"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
        assert row["labels"][-1] == eos
        assert row["labels"].count(eos) == 1
        assert tokenizer.decode(row["labels"][:-1]) == source["completion"]
    assert trainer.train_dataset.column_names == ["input_ids", "attention_mask", "labels"]


def test_long_rows_are_cut(tmp_path):
    tokenizer = t5_tokenizer()
    eos = tokenizer.eos_token_id
    whole = make(tmp_path, questions(8), tokenizer).train_dataset
    trainer = make(tmp_path, questions(8), tokenizer, max_source_length=5, max_target_length=4)
    for row, long in zip(trainer.train_dataset, whole, strict=True):
        assert row["input_ids"] == [*long["input_ids"][:4], eos], "the tokenizer's own special tokens stay"
        assert row["labels"] == long["labels"][:4]
    (inputs,) = make(tmp_path, questions(8), tokenizer, max_target_length=4, **WHOLE).get_train_dataloader()
    batch = trainer._token_batch(inputs)
    ended = (inputs["labels"] == eos).any(dim=1)
    assert 0 < ended.sum() < 8
    assert torch.equal(batch.terminal.any(dim=1), ended)
    assert torch.equal(batch.truncated.any(dim=1), ~ended)


def test_positions_are_a_limit(tmp_path):
    """Of 16 positions, one is the start token's."""
    tokenizer = t5_tokenizer()
    model = bart_for(tokenizer, max_position_embeddings=16)
    trainer = run(tmp_path, [{"prompt": "7 " * 40, "completion": "7 " * 40}] * 4, tokenizer, model, max_steps=1)
    assert {len(row["input_ids"]) for row in trainer.train_dataset} == {16}
    assert {len(row["labels"]) for row in trainer.train_dataset} == {15}


def test_conversations_go_through_the_chat_template(tmp_path):
    tokenizer = chat_tokenizer()
    trainer = make(tmp_path, chat_pairs(6), tokenizer)
    for row, source in zip(trainer.train_dataset, chat_pairs(6), strict=True):
        asked = tokenizer.apply_chat_template(source["prompt"], add_generation_prompt=True, return_dict=True)
        assert row["input_ids"] == asked["input_ids"]
        assert row["labels"][-1] == tokenizer.eos_token_id, "the template's newline behind it is no action"
        assert tokenizer.decode(row["labels"][:-1]) == source["completion"][0]["content"]
    trainer.train()


def test_tokenised_rows_and_streams_are_taken(tmp_path):
    texts_ = make(tmp_path / "a", questions(), max_steps=2)
    padded = lambda row: {"input_ids": [*row["input_ids"], 7, 8], "attention_mask": [*row["attention_mask"], 0, 0]}
    ids = texts_.train_dataset.add_column("id", list(range(16))).map(padded)
    rows = make(tmp_path / "b", ids, max_steps=2)
    streamed = Seq2SeqIQLearnTrainer(
        t5_for(t5_tokenizer()),
        args=arguments(Seq2SeqIQLearnConfig, tmp_path / "c", max_steps=2, **FULL),
        train_dataset=dataset(questions()).to_iterable_dataset(),
        processing_class=t5_tokenizer(),
    )
    for trainer in (texts_, rows, streamed):
        trainer.train()
    assert_same_steps(texts_, rows)
    assert len(steps(streamed)) == 2


def test_a_collators_decoder_input_ids_are_fed(tmp_path):
    """A prefix that the policy did not choose is no action; a shift of the labels says nothing new."""
    tokenizer = t5_tokenizer()
    start, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    prefix = {
        "input_ids": torch.tensor([[5, eos]]),
        "labels": torch.tensor([[-100, 20, eos]]),
        "decoder_input_ids": torch.tensor([[start, 30, 20]]),
    }
    more = {"data_collator": lambda rows: prefix}
    trainer = run(tmp_path, questions(8), tokenizer, more=more, max_steps=1)
    with torch.no_grad():
        q = t5_for(tokenizer)(
            input_ids=prefix["input_ids"], decoder_input_ids=torch.tensor([[start, 30, 20, eos]])
        ).logits[0]
    nll = -(q[1].log_softmax(-1)[20] + q[2].log_softmax(-1)[eos])
    delta = torch.stack([q[1, 20] - 0.9 * q[2].logsumexp(-1), q[2, eos]])
    assert steps(trainer)[0]["loss"] == pytest.approx(((nll + 0.5 * delta.square().sum()) / 2).item(), rel=1e-5)
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    for model in (None, trainer.model):
        collator = DataCollatorForSeq2Seq(left, model=model)
        with pytest.raises(ValueError, match="padded on the left"):
            run(tmp_path, questions(8), tokenizer, more={"data_collator": collator}, max_steps=1)


def test_a_model_by_its_path(tmp_path):
    tokenizer = t5_tokenizer()
    t5_for(tokenizer, seed=3).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = Seq2SeqIQLearnTrainer(
        str(tmp_path / "model"),
        args=arguments(Seq2SeqIQLearnConfig, tmp_path / "run"),
        train_dataset=dataset(questions()),
    )
    assert trainer.model.dtype == torch.float32
    assert_same_weights(trainer.model, t5_for(tokenizer, seed=3).to(torch.bfloat16).float())
    args = arguments(Seq2SeqIQLearnConfig, tmp_path / "run", model_init_kwargs={"dtype": "bfloat16"})
    assert Seq2SeqIQLearnTrainer(str(tmp_path / "model"), args=args).model.dtype == torch.bfloat16


def test_what_the_trainer_refuses(tmp_path):
    tokenizer = t5_tokenizer()
    with pytest.raises(UserError, match="rows with 'prompt' and 'completion', not with text"):
        make(tmp_path, texts())
    with pytest.raises(UserError, match=r"not with messages.*last message is the completion"):
        make(tmp_path, chats())
    with pytest.raises(UserError, match="no chat template"):
        make(tmp_path, chat_pairs())
    with pytest.raises(UserError, match="one kind"):
        make(tmp_path, [{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}])
    with pytest.raises(UserError, match="'labels'"):
        make(tmp_path, [{"input_ids": [5, 0]}])
    with pytest.raises(UserError, match="use IQLearnTrainer"):
        make(tmp_path, questions(), tokenizer, tiny_for(tokenizer))
    with pytest.raises(UserError, match="compute_loss_func"):
        make(tmp_path, questions(), more={"compute_loss_func": lambda *a, **k: 0})
    with pytest.raises(UserError, match="processing_class"):
        Seq2SeqIQLearnTrainer(t5_for(tokenizer), args=arguments(Seq2SeqIQLearnConfig, tmp_path))
    with pytest.raises(UserError, match="Seq2SeqIQLearnConfig"):
        Seq2SeqIQLearnTrainer(t5_for(tokenizer), args=arguments(Seq2SeqTrainingArguments, tmp_path))
    model = t5_for(tokenizer, decoder_start_token_id=None)
    with pytest.raises(UserError, match="decoder_start_token_id"):
        make(tmp_path, questions(), tokenizer, model)
    silent = copy.deepcopy(tokenizer)
    silent.eos_token = None
    with pytest.raises(UserError, match="EOS"):
        make(tmp_path, [{"input_ids": [5], "labels": [6]}], silent, t5_for(tokenizer))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"td_coef": -0.1}, ["td_coef"]),
        ({"gamma": 1.5}, ["gamma"]),
        ({"mle_warmup_steps": -1}, ["mle_warmup_steps"]),
        ({"td_anneal_steps": -0.5}, ["td_anneal_steps"]),
        ({"td_coef": 0.1, "entropy_coef": 0.1}, ["td_coef", "entropy_coef"]),
        ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor"]),
        ({"max_target_length": 0}, ["max_target_length"]),
        ({"max_source_length": 0}, ["max_source_length"]),
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_config_is_built(tmp_path, options, names):
    with pytest.raises(UserError) as caught:
        arguments(Seq2SeqIQLearnConfig, tmp_path, **options)
    assert all(name in str(caught.value) for name in names)


def test_defaults_are_trls():
    config = Seq2SeqIQLearnConfig("x", use_cpu=True)
    assert (config.output_dir, config.bf16, config.logging_steps, config.td_coef) == ("x", True, 10, 0.1)
    assert not Seq2SeqIQLearnConfig("x", use_cpu=True, bf16=False).bf16


# --- runs --------------------------------------------------------------------------------------------------------


def resumable(folder):
    """With dropout, so that the state of the random numbers matters."""
    return make(
        folder, questions(), model=t5_for(t5_tokenizer(), dropout_rate=0.2), mle_warmup_steps=1, td_anneal_steps=3,
        max_steps=6, save_strategy="steps", save_steps=2, optim="adamw_torch", learning_rate=1e-2,
        gradient_accumulation_steps=2,
    )  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = resumable(tmp_path / "whole")
    whole.train()
    shutil.copytree(tmp_path / "whole/checkpoint-4", tmp_path / "half/checkpoint-4")
    resumed = resumable(tmp_path / "half")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_same_weights(whole.model, resumed.model)
    assert_same_steps(whole, resumed, (*KEYS, "td_coef"))


@pytest.mark.slow
@pytest.mark.parametrize("td_coef", [0.0, 0.1])
def test_it_learns(tmp_path, td_coef):
    """Ten answers to ten prompts: for each of 3 seeds the NLL falls below what is possible without reading prompts."""
    tokenizer = build_tokenizer({"type": "char"}, ["0123456789abcdefghij"])
    rows = [{"prompt": str(a), "completion": "abcdefghij"[a]} for a in range(10)]
    for seed in range(3):
        trainer = make(
            tmp_path, rows * 8, tokenizer, t5_for(tokenizer, seed), {"eval_dataset": dataset(rows)}, td_coef=td_coef,
            gamma=1.0, seed=seed, optim="adamw_torch", learning_rate=3e-2, max_steps=40,
            per_device_train_batch_size=16, logging_steps=40, per_device_eval_batch_size=10,
        )  # fmt: skip
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        assert after["eval_nll"] < math.log(10) / 2 < before["eval_nll"], (seed, before, after)
        assert after["eval_loss"] < before["eval_loss"] / 5, (seed, before, after)


@pytest.mark.slow
def test_it_does_not_depend_on_the_number_of_processes(tmp_path):
    process = start("-m", "helpers.seq2seq_job", str(tmp_path / "two"), log=tmp_path / "log")
    try:
        assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-5000:]
    finally:
        kill(process)
    one = global_batch(tmp_path / "one")
    one.train()
    found = json.loads((tmp_path / "two/steps.json").read_text())
    assert found["world"] == 2
    assert len(found["steps"]) == len(steps(one)) == 3
    for a, b in zip(steps(one), found["steps"], strict=True):
        for key in (*KEYS, "entropy", "mean_token_accuracy", "td_coef"):
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (a["step"], key)


def test_the_toy_tokenizer_is_no_exception(tmp_path):
    """A tokenizer without merges or special tokens of its own."""
    assert steps(run(tmp_path, questions(8), toy_tokenizer()))[-1]["loss"] > 0
