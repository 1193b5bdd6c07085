"""Batches of encoder-decoder models, and their statistics and losses against one example at a time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.models import gradients
from helpers.seq2seq import EOS, SEQ2SEQ_MODELS, naive_iqlearn, naive_numbers, tiny_bart, tiny_t5
from inverselm.objectives import iqlearn
from inverselm.token_mdp import Seq2SeqBatch, SoftHeadError, project, token_loss, token_stats

# one answer ends, one is cut, one holds the padding token, one is EOS alone
PROMPTS = [[5, 6, 7, 8, EOS], [9, EOS], [10, 11, 12, EOS], [13, EOS]]
ANSWERS = [[20, 21, EOS], [22, 23, 24, 25], [26, 0, 27, 28, EOS], [EOS]]
FIELDS = ("action_logit", "value", "next_value", "entropy", "log_prob")


def batch_for(model, rows=slice(None), **kwargs):
    ids = {"start_token_id": model.config.decoder_start_token_id, "pad_token_id": 0, "eos_token_ids": [EOS]}
    return Seq2SeqBatch.from_ids(PROMPTS[rows], ANSWERS[rows], **ids, **kwargs)


def without_soft_head(model):
    """A head whose forward was replaced is computed densely."""
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(SoftHeadError):
        project(model, batch_for(model))
    return model


def test_layout():
    batch = batch_for(tiny_t5())
    assert batch.encoder_ids.tolist() == [
        [5, 6, 7, 8, EOS], [9, EOS, 0, 0, 0], [10, 11, 12, EOS, 0], [13, EOS, 0, 0, 0]
    ]  # fmt: skip
    assert batch.encoder_mask.sum(dim=1).tolist() == [5, 2, 4, 2]
    assert batch.input_ids.tolist() == [
        [0, 20, 21, EOS, 0, 0], [0, 22, 23, 24, 25, 0], [0, 26, 0, 27, 28, EOS], [0, EOS, 0, 0, 0, 0]
    ]  # fmt: skip
    assert batch.attention_mask.sum(dim=1).tolist() == [4, 5, 6, 2]
    assert batch.action_mask.sum(dim=1).tolist() == [3, 4, 5, 1]
    assert not batch.action_mask[:, 0].any()
    assert batch.next_state.tolist() == [
        [-1, 1, 2, -1, -1, -1], [-1, 1, 2, 3, 4, -1], [-1, 1, 2, 3, 4, -1], [-1, -1, -1, -1, -1, -1]
    ]  # fmt: skip
    assert batch.terminal.any(dim=1).tolist() == [True, False, True, True]
    assert batch.truncated.nonzero().tolist() == [[1, 4]]
    inputs = batch.model_inputs()
    assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"}
    assert inputs["input_ids"] is batch.encoder_ids
    assert inputs["attention_mask"].tolist() == batch.encoder_mask.long().tolist()
    assert inputs["decoder_attention_mask"].tolist() == batch.attention_mask.long().tolist()


def test_it_moves_as_a_whole():
    moved = batch_for(tiny_t5()).to("meta")
    assert isinstance(moved, Seq2SeqBatch)
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert all(t.device.type == "meta" for t in moved.model_inputs().values())


@pytest.mark.parametrize("wider", [None, 16])
@pytest.mark.parametrize("head", ["soft", "dense"])
@pytest.mark.parametrize("family", SEQ2SEQ_MODELS)
def test_stats_are_those_of_one_example_at_a_time(family, head, wider):
    model = SEQ2SEQ_MODELS[family](seed=1)
    with torch.no_grad():
        reference = naive_numbers(model, PROMPTS, ANSWERS)
        if head == "dense":
            model = without_soft_head(model)
        stats = token_stats(model, batch_for(model, pad_to_multiple_of=wider), entropy=True)
    spread = torch.cat([n["value"] for n in reference])
    assert spread.std() > 0.02  # or any state would do for any other
    for name in FIELDS:
        numbers = getattr(stats, name)
        for row, expected in enumerate(reference):
            found = numbers[row, 1 : 1 + len(ANSWERS[row])]
            torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            assert not numbers[row, 1 + len(ANSWERS[row]) :].any()
            assert numbers[row, 0] == 0
    assert torch.equal(stats.greedy[stats.action_mask], torch.cat([n["greedy"] for n in reference]))


@pytest.mark.parametrize("head", ["soft", "dense"])
@pytest.mark.parametrize("family", SEQ2SEQ_MODELS)
def test_losses_and_gradients_are_those_of_one_example_at_a_time(family, head):
    model = SEQ2SEQ_MODELS[family](seed=2)
    expected = naive_iqlearn(naive_numbers(model, PROMPTS, ANSWERS), td_coef=0.3, gamma=0.9)
    expected.backward()
    reference = gradients(model)
    model.zero_grad()
    if head == "dense":
        model = without_soft_head(model)
    loss, _, _ = token_loss(model, batch_for(model, pad_to_multiple_of=8), partial(iqlearn, td_coef=0.3, gamma=0.9))
    loss.value.backward()
    torch.testing.assert_close(loss.value, expected)
    found = gradients(model)
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        assert gradient.abs().max() > 1e-6 or "k_proj.bias" in name, name  # keys' biases cancel in a softmax
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", SEQ2SEQ_MODELS)
def test_a_part_of_the_global_batch_adds_up(family):
    """Micro-batches of unlike padding, normalised by the global count, sum to the loss of all."""
    model = SEQ2SEQ_MODELS[family](seed=3)
    objective = partial(iqlearn, td_coef=0.3, gamma=0.9)
    with torch.no_grad():
        whole, _, _ = token_loss(model, batch_for(model), objective)
        count = batch_for(model).num_actions
        parts = [
            token_loss(model, batch_for(model, slice(i, i + 2)), objective, num_actions=count)[0].value for i in (0, 2)
        ]
    assert count == 13
    torch.testing.assert_close(sum(parts), whole.value)


def test_a_cut_answer_has_a_next_value_and_an_ended_one_has_none():
    model = tiny_t5(seed=4)
    with torch.no_grad():
        stats = token_stats(model, batch_for(model))
    last = [stats.next_value[row, len(answer)].item() for row, answer in enumerate(ANSWERS)]
    assert [x == 0 for x in last] == [True, False, True, True]


def test_t5_takes_the_soft_head():
    for v1_1 in (False, True):
        model = tiny_t5(v1_1=v1_1)
        head = project(model, batch_for(model))
        assert head.hidden.shape == (4, 6, 16)
        assert head.weight is model.lm_head.weight


def test_lora():
    base = tiny_t5(seed=5)
    with torch.no_grad():
        before = naive_numbers(base, PROMPTS, ANSWERS)
    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    model = get_peft_model(base, settings).eval()
    stats = token_stats(model, batch_for(model))
    with torch.no_grad():
        reference = torch.cat([n["log_prob"] for n in naive_numbers(model, PROMPTS, ANSWERS)])
    torch.testing.assert_close(stats.log_prob[stats.action_mask], reference, rtol=1e-5, atol=1e-5)
    assert (reference - torch.cat([n["log_prob"] for n in before])).abs().max() > 1e-3
    stats.log_prob.sum().backward()
    assert gradients(model)
    assert all("lora" in name for name in gradients(model))


# --- from labels -------------------------------------------------------------------------------------------------


LABELS = torch.tensor([[20, 21, EOS, -100], [22, 0, 23, 24], [-100, -100, -100, -100]])
ENCODER = torch.tensor([[5, EOS], [6, 7], [8, EOS]])
OPTIONS = {"start_token_id": 0, "pad_token_id": 0, "eos_token_ids": [EOS]}


def test_from_labels_is_from_ids():
    batch = Seq2SeqBatch.from_labels(ENCODER, LABELS, **OPTIONS)
    lists = Seq2SeqBatch.from_ids(ENCODER.tolist(), [[20, 21, EOS], [22, 0, 23, 24], []], **OPTIONS)
    for name, tensor in vars(lists).items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(getattr(batch, name))), name
    assert batch.num_actions == 7
    assert batch.attention_mask.sum(dim=1).tolist() == [4, 5, 1]  # a row without labels keeps its start token


def test_decoder_input_ids_say_what_is_fed():
    """A prefix that the policy did not choose: the models are fed it, but it is no action."""
    labels = torch.tensor([[-100, -100, 20, -100, 21, EOS], [22, 23, -100, 24, -100, -100]])
    fed = torch.tensor([[0, 30, 31, 20, 32, 21], [0, 22, 23, 33, 24, 0]])
    batch = Seq2SeqBatch.from_labels(ENCODER[:2], labels, decoder_input_ids=fed, **OPTIONS)
    assert batch.input_ids.tolist() == [[0, 30, 31, 20, 32, 21, EOS], [0, 22, 23, 33, 24, 0, 0]]
    assert batch.action_mask.int().tolist() == [[0, 0, 0, 1, 0, 1, 1], [0, 1, 1, 0, 1, 0, 0]]
    assert batch.next_state.tolist() == [[-1, -1, -1, 4, -1, 5, -1], [-1, 1, 3, -1, 4, -1, -1]]
    assert batch.attention_mask.sum(dim=1).tolist() == [7, 5]
    unknown = Seq2SeqBatch.from_labels(ENCODER[:1], torch.tensor([[20, -100, 21, EOS]]), **OPTIONS)
    assert unknown.input_ids.tolist() == [[0, 20, 0, 21, EOS]]
    assert unknown.attention_mask.all()


def test_what_is_refused():
    left = torch.tensor([[-100, 20, EOS], [20, 21, EOS]])
    with pytest.raises(ValueError, match="left"):
        Seq2SeqBatch.from_labels(ENCODER[:2], left, **OPTIONS)
    with pytest.raises(ValueError, match="shifted"):
        Seq2SeqBatch.from_labels(ENCODER, LABELS, decoder_input_ids=LABELS.clamp(min=0), **OPTIONS)
    with pytest.raises(ValueError, match="decoder_input_ids are"):
        Seq2SeqBatch.from_labels(ENCODER, LABELS, decoder_input_ids=LABELS[:, :2], **OPTIONS)
    with pytest.raises(ValueError, match="encoder's ids"):
        Seq2SeqBatch.from_labels(ENCODER[:2], LABELS, **OPTIONS)
    with pytest.raises(ValueError, match="encoder's ids"):
        Seq2SeqBatch.from_labels(ENCODER, LABELS, attention_mask=torch.ones(3, 3), **OPTIONS)
    with pytest.raises(ValueError, match="as many of each"):
        Seq2SeqBatch.from_ids([[5]], [], **OPTIONS)


@pytest.mark.parametrize("model", [tiny_t5(6), tiny_bart(6)], ids=["t5", "bart"])
def test_the_models_own_labels_give_the_same_likelihood(model):
    """What a model makes of `labels` by itself is what the batch makes of them."""
    batch = Seq2SeqBatch.from_labels(
        ENCODER, LABELS, **{**OPTIONS, "start_token_id": model.config.decoder_start_token_id}
    )
    with torch.no_grad():
        own = model(input_ids=ENCODER, labels=LABELS).loss
        stats = token_stats(model, batch)
    torch.testing.assert_close(-stats.log_prob.sum() / batch.num_actions, own)
