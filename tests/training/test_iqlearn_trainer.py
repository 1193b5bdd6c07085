"""IQLearnTrainer without its temporal difference is SFTTrainer, in every way the latter can be used."""

import pytest
import torch
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from helpers.data import chat_pairs, chat_tokenizer, chats, clean_chat_tokenizer, sums, text_tokenizer, texts, tiny_for
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps, weights_moved
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

LOGGED = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")
CASES = {
    "prompt_completion": (sums, text_tokenizer, {}),
    "text": (texts, text_tokenizer, {}),
    "messages": (lambda: chats(turns=2), chat_tokenizer, {}),
    "chat_pairs": (chat_pairs, chat_tokenizer, {}),
    "assistant_only": (lambda: chats(turns=2), chat_tokenizer, {"assistant_only_loss": True}),
    "packing": (sums, text_tokenizer, {"packing": True, "max_length": 48, "per_device_train_batch_size": 2}),
    "packed_text": (texts, text_tokenizer, {"packing": True, "max_length": 48, "per_device_train_batch_size": 2}),
    "wrapped": (texts, text_tokenizer, {"packing": True, "packing_strategy": "wrapped", "max_length": 24}),
    "checkpointing": (sums, text_tokenizer, {"gradient_checkpointing": True}),
    "accumulation": (sums, text_tokenizer, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}),
    "padding": (sums, text_tokenizer, {"pad_to_multiple_of": 16}),
    "cut": (sums, text_tokenizer, {"max_length": 10}),
}


@pytest.mark.parametrize("case", CASES)
def test_without_td_it_is_sft(tmp_path, case):
    rows, tokenizer, options = CASES[case]
    rows, tokenizer = rows(), tokenizer()
    sft = make(SFTTrainer, arguments(SFTConfig, tmp_path / "a", **options), rows, tokenizer)
    ours = make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path / "b", td_coef=0.0, **options), rows, tokenizer)
    sft.train()
    ours.train()
    assert_same_steps(sft, ours, LOGGED)
    assert_same_weights(sft.model, ours.model)
    assert weights_moved(tiny_for(tokenizer), ours.model) > 1e-4  # or the comparison would be empty


def test_without_td_it_is_sft_with_lora(tmp_path):
    tokenizer, lora = text_tokenizer(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    runs = []
    for trainer, config, more in ((SFTTrainer, SFTConfig, {}), (IQLearnTrainer, IQLearnConfig, {"td_coef": 0.0})):
        torch.manual_seed(0)  # of the adapter's random half
        args = arguments(config, tmp_path / trainer.__name__, learning_rate=0.5, **more)
        runs.append(make(trainer, args, sums(), tokenizer, peft_config=lora))
        runs[-1].train()
    assert_same_steps(*runs, LOGGED)
    assert_same_weights(runs[0].model, runs[1].model)
    moved = {n for n, p in runs[1].model.named_parameters() if p.requires_grad and "lora_B" in n and p.abs().max() > 0}
    assert len(moved) == 4


def test_the_default_masks_what_follows_eos_only_with_a_td():
    assert IQLearnConfig("x", td_coef=0.1, use_cpu=True, bf16=False).mask_after_eos is True
    assert IQLearnConfig("x", td_coef=0.0, use_cpu=True, bf16=False).mask_after_eos is False
    assert IQLearnConfig("x", td_coef=0.1, mask_after_eos=False, use_cpu=True, bf16=False).mask_after_eos is False


@pytest.mark.parametrize("tokenizer", [chat_tokenizer, clean_chat_tokenizer])
def test_evaluation_loss_is_sfts_without_td(tmp_path, tokenizer):
    from datasets import Dataset

    held_out = Dataset.from_list(chats(7))
    losses = []
    for trainer, config, more in ((SFTTrainer, SFTConfig, {}), (IQLearnTrainer, IQLearnConfig, {"td_coef": 0.0})):
        args = arguments(config, tmp_path / trainer.__name__, per_device_eval_batch_size=3, **more)
        run = make(trainer, args, chats(), tokenizer(), eval_dataset=held_out)
        losses.append(run.evaluate())
    for key in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert losses[0][key] == pytest.approx(losses[1][key], rel=1e-5), key
    assert not steps(run)
