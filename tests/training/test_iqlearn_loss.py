"""The loss of IQLearnTrainer is the definition's, however the demonstrations are cut into batches."""

import copy
from itertools import pairwise

import pytest
import torch
from datasets import Dataset

from helpers.data import chat_tokenizer, chats, clean_chat_tokenizer, sums, text_tokenizer, texts, tiny_for
from helpers.mdp import Document
from helpers.mdp import steps as naive_steps
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

FULL = {"td_coef": 0.5, "gamma": 0.9, "mle_warmup_steps": 0, "td_anneal_steps": 0}
KEYS = ("loss", "grad_norm")
WHOLE = {"per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 0.01}


def run(folder, rows, tokenizer, **options):
    trainer = make(IQLearnTrainer, arguments(IQLearnConfig, folder, **{**FULL, **WHOLE, **options}), rows, tokenizer)
    trainer.train()
    return trainer


def documents(batch, model):
    """The rows of a collator's batch, unpadded and unpacked, with the model's float64 logits."""
    exact = copy.deepcopy(model).double().eval()
    for row in range(batch["input_ids"].size(0)):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        if "attention_mask" in batch:
            spans = [batch["attention_mask"][row].nonzero().flatten().tolist()]
        else:
            starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), len(ids)]
            spans = [list(range(a, b)) for a, b in pairwise(starts)]
        for span in spans:
            with torch.no_grad():
                logits = exact(input_ids=ids[span][None]).logits[0]
            actions = [bool(labels[c] != -100) and c != span[0] for c in span]
            yield Document(ids[span].tolist(), actions, logits.tolist())


def naive_loss(batch, model, eos, td_coef, gamma):
    """Mean of -log pi + lambda (Q - gamma V')^2 over the actions, in plain Python; how many rows are bootstrapped."""
    each = [naive_steps(document, [eos]) for document in documents(batch, model)]
    found = [step for found in each for step in found]
    cut = sum(found[-1].next_column is not None for found in each)
    return sum(-s.log_prob + td_coef * (s.q - gamma * s.next_v) ** 2 for s in found) / len(found), cut


NAIVE = {
    "prompt_completion": (sums, text_tokenizer, {}),
    "text": (texts, text_tokenizer, {}),
    "cut": (sums, text_tokenizer, {"max_length": 11}),
    "packing": (sums, text_tokenizer, {"packing": True, "max_length": 40}),
    "packed_text": (texts, text_tokenizer, {"packing": True, "max_length": 40}),
    "two_turns": (lambda n: chats(n, 2), clean_chat_tokenizer, {"assistant_only_loss": True}),
    "newline": (lambda n: chats(n, 2), chat_tokenizer, {}),
    "newline_pairs_packed": (chats, chat_tokenizer, {"packing": True, "max_length": 64}),
}


@pytest.mark.parametrize("case", NAIVE)
def test_the_first_loss_is_the_definitions(tmp_path, case):
    rows, tokenizer, options = NAIVE[case]
    tokenizer = tokenizer()
    trainer = run(tmp_path, rows(8), tokenizer, **options)
    (batch,) = trainer.get_train_dataloader()
    expected, cut = naive_loss(batch, tiny_for(tokenizer), tokenizer.eos_token_id, 0.5, 0.9)
    assert steps(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert (cut > 0) == (case == "cut")


@pytest.mark.parametrize("rows", [sums, texts])
def test_packing_changes_nothing(tmp_path, rows):
    plain = run(tmp_path / "a", rows(8), text_tokenizer())
    packed = run(tmp_path / "b", rows(8), text_tokenizer(), packing=True, max_length=40)
    assert len(packed.train_dataset) < 8
    assert_same_steps(plain, packed, (*KEYS, "num_tokens", "td_error", "value_first", "value_gap", "entropy"))
    assert_same_weights(plain.model, packed.model)


def test_accumulation_changes_nothing(tmp_path):
    rows = sums(16)
    plain = run(tmp_path / "a", rows, text_tokenizer())
    parts = run(tmp_path / "b", rows, text_tokenizer(), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    lengths = {len(row["completion"]) for row in rows}
    assert len(lengths) > 3  # a mean of micro-batch means would differ
    assert_same_steps(plain, parts)
    assert_same_weights(plain.model, parts.model)


@pytest.mark.parametrize("options", [{"pad_to_multiple_of": 32}, {"gradient_checkpointing": True}], ids=str)
def test_padding_and_checkpointing_change_nothing(tmp_path, options):
    plain = run(tmp_path / "a", sums(8), text_tokenizer())
    other = run(tmp_path / "b", sums(8), text_tokenizer(), **options)
    assert_same_steps(plain, other, (*KEYS, "td_error", "value_gap", "value_first", "reward"))
    assert_same_weights(plain.model, other.model)


def test_a_wrapped_stream_keeps_its_documents_apart(tmp_path):
    """Boundaries lie at EOS only; first tokens are no actions, and what a row's end cuts is bootstrapped."""
    tokenizer = text_tokenizer()
    trainer = run(
        tmp_path, texts(8), tokenizer, packing=True, packing_strategy="wrapped", max_length=24, max_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=8, shuffle_dataset=False,
    )  # fmt: skip
    batches = list(trainer.get_train_dataloader())
    found = []
    for batch in batches:
        for document in documents(batch, tiny_for(tokenizer)):
            ids = document.ids
            firsts = [0, *(i + 1 for i, token in enumerate(ids[:-1]) if token == tokenizer.eos_token_id)]
            document.actions[:] = [i not in firsts for i in range(len(ids))]
            for a, b in zip(firsts, [*firsts[1:], len(ids)], strict=True):
                part = Document(ids[a:b], document.actions[a:b], document.logits[a:b])
                found += naive_steps(part, [tokenizer.eos_token_id])
    expected = sum(-s.log_prob + 0.5 * (s.q - 0.9 * s.next_v) ** 2 for s in found) / len(found)
    assert steps(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "rows",
    [
        chats(8),
        [{"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]} for row in chats(8)],
        [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in chats(8)],
    ],
    ids=["messages", "conversations", "pairs"],
)
def test_what_the_template_writes_behind_eos_is_no_action(tmp_path, rows):
    tokenizer = chat_tokenizer()
    (newline,) = tokenizer.encode("\n")
    make_one = lambda name, **more: make(
        IQLearnTrainer, arguments(IQLearnConfig, tmp_path / name, **{**FULL, **WHOLE, **more}), rows, tokenizer
    )
    masked = make_one("a")
    for example in masked.train_dataset:
        assert example["input_ids"][-2:] == [tokenizer.eos_token_id, newline]
        assert example["labels"][-2:] == [tokenizer.eos_token_id, -100]
    (inputs,) = masked.get_train_dataloader()
    batch = masked._token_batch(inputs)
    assert batch.terminal.any(dim=1).all()
    assert not batch.truncated.any()
    left = make_one("b", mask_after_eos=False)
    (inputs,) = left.get_train_dataloader()
    assert left._token_batch(inputs).truncated.any(dim=1).all()


def test_a_row_cut_at_max_length_is_bootstrapped(tmp_path):
    trainer = make(
        IQLearnTrainer, arguments(IQLearnConfig, tmp_path, **FULL, **WHOLE, max_length=11), sums(8), text_tokenizer()
    )
    (inputs,) = trainer.get_train_dataloader()
    batch = trainer._token_batch(inputs)
    whole = (inputs["input_ids"] == trainer.processing_class.eos_token_id).any(dim=1)
    assert 0 < whole.sum() < 8
    assert torch.equal(batch.terminal.any(dim=1), whole)
    assert torch.equal(batch.truncated.any(dim=1), ~whole)
    assert (batch.next_state[~whole, -1] == inputs["input_ids"].size(1) - 1).all()


def test_evaluation_has_the_definitions_loss_and_the_full_td_coef(tmp_path):
    tokenizer = text_tokenizer()
    held_out = Dataset.from_list(sums(5))
    args = arguments(IQLearnConfig, tmp_path, **{**FULL, "mle_warmup_steps": 5}, per_device_eval_batch_size=8)
    trainer = make(IQLearnTrainer, args, sums(8), tokenizer, eval_dataset=held_out)
    found = trainer.evaluate()
    (batch,) = trainer.get_eval_dataloader()
    assert found["eval_loss"] == pytest.approx(
        naive_loss(batch, trainer.model, tokenizer.eos_token_id, 0.5, 0.9)[0], rel=1e-5
    )
    assert found["eval_loss"] == pytest.approx(found["eval_nll"] + 0.5 * found["eval_td_squared"], rel=1e-5)


def test_compute_metrics_gets_the_logits_of_every_column(tmp_path):
    tokenizer, seen = text_tokenizer(), []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"rows": len(prediction.predictions)}

    trainer = make(
        IQLearnTrainer,
        arguments(IQLearnConfig, tmp_path, **FULL, per_device_eval_batch_size=8),
        sums(8),
        tokenizer,
        eval_dataset=Dataset.from_list(sums(5)),
        compute_metrics=compute_metrics,
    )
    assert trainer.evaluate()["eval_rows"] == 5
    (batch,) = trainer.get_eval_dataloader()
    logits = torch.as_tensor(seen[0].predictions)
    assert logits.shape == (5, batch["input_ids"].size(1), len(tokenizer))
    with torch.no_grad():
        expected = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real])
    assert (torch.as_tensor(seen[0].label_ids) == batch["labels"]).all()
