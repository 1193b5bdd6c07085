"""Frozen models are left as they were, and what cannot be scored is refused in one clear line."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.data import sums, text_tokenizer, tiny_for
from inverselm.errors import UserError
from inverselm.scorers import FrozenLM, TokenReward, load_adapters, load_frozen, load_model
from inverselm.scorers.frozen import ACTIVE
from inverselm.token_mdp import TokenBatch
from inverselm.training.scratch_tokenizer import build_tokenizer

PROMPTS = [row["prompt"] for row in sums(3)]
ANSWERS = [row["completion"] for row in sums(3)]


def batch():
    return TokenBatch.from_ids([[5, 6]], [[7, 8, 0]], pad_token_id=1, eos_token_ids=[0])


def shared(adapters):
    base = AutoModelForCausalLM.from_pretrained(adapters / "base")
    model = PeftModel.from_pretrained(base, str(adapters / "sft"), is_trainable=True)
    model.load_adapter(str(adapters / "early"), adapter_name="early")
    return model


def state(model):
    return (
        model.training,
        model.active_adapter,
        {name: (parameter.requires_grad, parameter.grad is None) for name, parameter in model.named_parameters()},
    )


def logits_of(frozen, batch):
    hidden, weight, _, _ = frozen.read(batch).projection
    return hidden @ weight.T


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("adapter", ["early", "default", None, ACTIVE], ids=str)
@pytest.mark.parametrize("trainable", ["default", "none", "all"])
def test_scoring_leaves_a_shared_model_as_it_was(adapters, training, adapter, trainable):
    model = shared(adapters)
    model.train(training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable == "all" or (trainable == "default" and ".default" in name))
    before, weights = state(model), {n: p.clone() for n, p in model.named_parameters()}
    outputs = FrozenLM(model, adapter).read(batch())
    assert state(model) == before
    assert not outputs.projection.hidden.requires_grad
    assert not outputs.stats().value.requires_grad
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_scoring_leaves_it_as_it_was_after_an_error(adapters):
    model = shared(adapters)
    model.train()
    before = state(model)
    bad = TokenBatch.from_ids([[5]], [[10_000]], pad_token_id=1, eos_token_ids=[0])
    with pytest.raises(IndexError):
        FrozenLM(model, "early").read(bad)
    assert state(model) == before


def test_dropout_is_off_while_scoring():
    model = tiny_for(text_tokenizer(), attention_dropout=0.5)
    model.train()
    first = logits_of(FrozenLM(model), batch())
    second = logits_of(FrozenLM(model), batch())
    assert torch.equal(first, second)
    assert model.training


def test_the_adapter_asked_for_is_the_one_that_scores(adapters):
    model = shared(adapters)
    full = {name: load_model(adapters / folder) for name, folder in
            {"default": "sft_merged", "early": "early_merged", None: "base"}.items()}  # fmt: skip
    for name, alone in full.items():
        torch.testing.assert_close(logits_of(FrozenLM(model, name), batch()), logits_of(FrozenLM(alone), batch()),
                                   rtol=0, atol=1e-4)  # fmt: skip
    model.set_adapter("early")
    torch.testing.assert_close(logits_of(FrozenLM(model), batch()), logits_of(FrozenLM(model, "early"), batch()))


def test_loaded_folders_are_frozen(checkpoints, adapters):
    for source in (checkpoints / "sft", adapters / "sft"):
        frozen = load_frozen(source, name="sft")
        assert not any(p.requires_grad for p in frozen.model.parameters())
    reward = TokenReward.from_checkpoints(adapters / "sft", adapters / "early")
    reward.score(PROMPTS, ANSWERS)
    assert not any(p.requires_grad for p in reward.sft.model.parameters())
    assert load_frozen(frozen, name="again") is frozen


def refuses(match, *args, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        TokenReward.from_checkpoints(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_the_same_checkpoint_twice_is_refused(checkpoints, adapters, tmp_path):
    import shutil

    refuses("the same", checkpoints / "sft", checkpoints / "sft")
    refuses("the same", checkpoints / "sft", str(checkpoints / "early" / ".." / "sft"))
    shutil.copytree(checkpoints / "sft", tmp_path / "copy")
    refuses("identical weights", checkpoints / "sft", tmp_path / "copy")
    shutil.copytree(adapters / "sft", tmp_path / "adapter")
    refuses("identical weights", adapters / "sft", tmp_path / "adapter")


def test_tokenizers_that_differ_are_refused(checkpoints, tmp_path):
    other = build_tokenizer({"type": "bpe", "vocab_size": 290}, ["something else altogether, with other words"])
    tiny_for(other, 1).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    refuses("different tokenizers", checkpoints / "sft", tmp_path)


def test_no_eos_is_refused(checkpoints):
    tokenizer = copy.deepcopy(text_tokenizer())
    tokenizer.eos_token = None
    refuses("end-of-sequence", checkpoints / "sft", checkpoints / "early", tokenizer=tokenizer)


def test_what_is_missing_is_named(checkpoints, adapters, tmp_path):
    refuses("No baseline", checkpoints / "sft")
    refuses("Name the baseline", tiny_for(text_tokenizer()))
    refuses("tokenizer=", tiny_for(text_tokenizer()), tiny_for(text_tokenizer(), 1))
    refuses("nowhere", checkpoints / "sft", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refuses("empty", checkpoints / "sft", tmp_path / "empty")
    with pytest.raises(UserError, match="baseline"):
        TokenReward(text_tokenizer(), FrozenLM(tiny_for(text_tokenizer())), [])
    frozen = [FrozenLM(tiny_for(text_tokenizer(), seed)) for seed in range(3)]
    with pytest.raises(UserError, match="centred"):
        TokenReward(text_tokenizer(), frozen[0], frozen[1:], centred=True)


def test_adapters_of_other_bases_or_of_none(adapters, tmp_path):
    import shutil

    shutil.copytree(adapters / "early", tmp_path / "other")
    file = tmp_path / "other" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(adapters / "sft_merged")}))
    with pytest.raises(UserError, match="different base models"):
        load_adapters([adapters / "sft", tmp_path / "other"])
    file.write_text(json.dumps({**config, "base_model_name_or_path": ""}))
    with pytest.raises(UserError, match="names no base model"):
        load_adapters([adapters / "sft", tmp_path / "other"])


def test_bad_calls_of_score_are_refused(checkpoints):
    reward = TokenReward.from_checkpoints(checkpoints / "sft", checkpoints / "early")
    for prompts, answers, options, match in [
        (["a"], [], {}, "1 prompts but 0 completions"),
        (["a", "b"], ["c", ""], {"add_eos": False}, "Completion 1 is empty"),
        (["a"], [[]], {}, "Completion 0 is empty"),
        (["a", ""], ["c", "d"], {}, "Prompt 1 has no token"),
    ]:
        with pytest.raises(UserError, match=match):
            reward.score(prompts, answers, **options)
    assert reward.score([], []) == []
