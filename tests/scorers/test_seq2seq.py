"""Token rewards of encoder-decoder checkpoints, against the models themselves, one answer at a time."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.data import chat_pairs, chat_tokenizer, text_tokenizer
from helpers.seq2seq import naive_numbers, t5_for, t5_tokenizer, tiny_bart
from inverselm.errors import UserError
from inverselm.scorers import FrozenLM, QFunctionReward, TokenReward, load_model
from inverselm.scorers.seq2seq import decoder_start_token_id, encode_seq2seq_pair, position_limits

PROMPTS = ["Q: 1+1=", "Q: 12+30=", "Q: 12+30=", "Q: 2=", "Q: 5+5="]
ANSWERS = [" 2", " 42 ok ok", " 4", " the answer", " 10"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An SFT model and an earlier one, and adapters "sft_lora" and "early_lora" on a base, with merged models."""
    root = tmp_path_factory.mktemp("seq2seq")
    for seed, name in enumerate(("sft", "early", "base")):
        t5_for(t5_tokenizer(), seed).save_pretrained(root / name)
    for seed, name in enumerate(("sft", "early")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")
        model = get_peft_model(t5_for(t5_tokenizer(), 2), lora)
        model.peft_config["default"].base_model_name_or_path = str(root / "base")
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(root / f"{name}_lora")
        model.merge_and_unload().save_pretrained(root / f"{name}_merged")
    for folder in root.iterdir():
        t5_tokenizer().save_pretrained(folder)
    return root


def numbers(model, tokenizer, add_eos=True):
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    eos = tokenizer.eos_token_id
    answers = [[i for i in tokenizer(text)["input_ids"] if i != eos] + [eos] * add_eos for text in ANSWERS]
    with torch.no_grad():
        return answers, naive_numbers(model, prompts, answers, eos)


@pytest.mark.parametrize("add_eos", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_log_ratio(folders, batch_size, add_eos):
    reward = TokenReward.from_checkpoints(folders / "sft", folders / "early")
    scored = reward.score(PROMPTS, ANSWERS, batch_size=batch_size, add_eos=add_eos)
    tokenizer = t5_tokenizer()
    answers, sft = numbers(t5_for(tokenizer, 0), tokenizer, add_eos)
    _, early = numbers(t5_for(tokenizer, 1), tokenizer, add_eos)
    for text, ids, a, b, found in zip(ANSWERS, answers, sft, early, scored, strict=True):
        assert [token.token_id for token in found.tokens] == ids
        assert found.rewards == pytest.approx((a["log_prob"] - b["log_prob"]).tolist(), abs=1e-5)
        assert found.terminated == add_eos
        assert found.text == text + tokenizer.eos_token * add_eos
        assert max(map(abs, found.rewards)) > 0.1


def test_centred_rewards_lose_their_mean(folders):
    """Their expectation under the SFT model, by hand in one state."""
    reward = TokenReward.from_checkpoints(folders / "sft", folders / "early", centred=True)
    tokenizer = t5_tokenizer()
    sft, early = t5_for(tokenizer, 0), t5_for(tokenizer, 1)
    inputs = {
        "input_ids": torch.tensor([tokenizer(PROMPTS[0])["input_ids"]]),
        "decoder_input_ids": torch.tensor([[tokenizer.pad_token_id]]),
    }
    with torch.no_grad():
        p, q = (model(**inputs).logits[0, 0].log_softmax(-1) for model in (sft, early))
    ratio = p - q
    token = reward.score(PROMPTS[:1], ANSWERS[:1])[0].tokens[0]
    assert token.reward == pytest.approx((ratio[token.token_id] - (p.exp() * ratio).sum()).item(), abs=1e-5)


@pytest.mark.parametrize("add_eos", [True, False])
@pytest.mark.parametrize("kind", ["bellman", "log_prob"])
def test_q_function(folders, kind, add_eos):
    reward = QFunctionReward.from_checkpoint(folders / "sft", kind=kind, gamma=0.9)
    tokenizer = t5_tokenizer()
    _, sft = numbers(t5_for(tokenizer, 0), tokenizer, add_eos)
    for n, found in zip(sft, reward.score(PROMPTS, ANSWERS, add_eos=add_eos), strict=True):
        expected = n["log_prob"] if kind == "log_prob" else n["action_logit"] - 0.9 * n["next_value"]
        assert found.rewards == pytest.approx(expected.tolist(), abs=1e-4)
        assert (n["next_value"][-1] == 0) == add_eos


@pytest.mark.parametrize("start", ["pad", "eos"])
def test_bart(start):
    """Absolute positions, a bias behind the output layer, and a start token that is EOS."""
    tokenizer = t5_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["decoder_start_token_id"] = ids[f"{start}_token_id"]
    model = tiny_bart(0, len(tokenizer), **ids)
    reward = QFunctionReward(tokenizer, FrozenLM(model))
    _, expected = numbers(model, tokenizer)
    for n, found in zip(expected, reward.score(PROMPTS, ANSWERS), strict=True):
        assert found.rewards == pytest.approx((n["action_logit"] - n["next_value"]).tolist(), abs=1e-4)


def test_adapters_share_their_base(folders):
    reward = TokenReward.from_checkpoints(folders / "sft_lora", folders / "early_lora")
    assert reward.sft.model is reward.baselines[0].model
    merged = TokenReward.from_checkpoints(folders / "sft_merged", folders / "early_merged")
    for a, b in zip(reward.score(PROMPTS, ANSWERS), merged.score(PROMPTS, ANSWERS), strict=True):
        assert a.rewards == pytest.approx(b.rewards, abs=1e-4)
        assert max(map(abs, a.rewards)) > 0.01


def test_ids_are_scored_as_they_are(folders):
    tokenizer = t5_tokenizer()
    reward = QFunctionReward.from_checkpoint(folders / "sft")
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
    answers, expected = numbers(t5_for(tokenizer, 0), tokenizer)
    whole = reward.score_ids(prompts, answers[:2])
    for scores, n in zip(whole, expected, strict=False):
        assert scores.ref_log_prob.tolist() == pytest.approx(n["log_prob"].tolist(), abs=1e-5)
        assert scores.rewards.tolist() == pytest.approx((n["action_logit"] - n["next_value"]).tolist(), abs=1e-4)
    masks = [[1] * len(ids) for ids in answers[:2]]
    masks[1][1:3] = [0, 0]
    masked = reward.score_ids(prompts, answers[:2], masks)
    assert masked[0].rewards.tolist() == whole[0].rewards.tolist()
    n, kept = expected[1], [i for i, chosen in enumerate(masks[1]) if chosen]
    following = [n["value"][k] for k in kept[1:]] + [n["next_value"][-1]]
    by_hand = torch.stack([n["action_logit"][k] - v for k, v in zip(kept, following, strict=True)])
    assert masked[1].rewards[kept].tolist() == pytest.approx(by_hand.tolist(), abs=1e-4)
    assert masked[1].rewards[1:3].tolist() == [0, 0]
    given = reward.score(PROMPTS[:1], [answers[0]])[0]
    assert given.rewards == pytest.approx(whole[0].rewards.tolist(), abs=1e-5)


def test_what_is_refused(folders):
    reward = QFunctionReward.from_checkpoint(folders / "sft")
    with pytest.raises(UserError, match="no token to score"):
        reward.score(["a"], [[]])
    model = t5_for(t5_tokenizer(), decoder_start_token_id=None)
    model.generation_config.decoder_start_token_id = None
    with pytest.raises(UserError, match="decoder_start_token_id"):
        QFunctionReward(t5_tokenizer(), FrozenLM(model))
    model.generation_config.decoder_start_token_id = 7
    assert decoder_start_token_id(model) == 7


def test_the_class_of_a_checkpoint_is_its_own(folders, tmp_path):
    from helpers.data import tiny_for

    assert type(load_model(folders / "sft")).__name__ == "T5ForConditionalGeneration"
    assert type(load_model(folders / "sft_lora")).__name__ == "PeftModelForSeq2SeqLM"
    tiny_for(text_tokenizer()).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)).__name__ == "LlamaForCausalLM"


def test_targets_without_eos_of_their_own_get_one():
    for tokenizer in (text_tokenizer(), t5_tokenizer()):
        eos, plain = tokenizer.eos_token_id, text_tokenizer()
        ids = plain(" 42")["input_ids"]
        assert encode_seq2seq_pair(tokenizer, "a", " 42").completion_ids == [*ids, eos]
        assert encode_seq2seq_pair(tokenizer, "a", " 42", add_eos=False).completion_ids == ids
        assert encode_seq2seq_pair(tokenizer, "a", " 42" + tokenizer.eos_token).completion_ids == [*ids, eos]
        assert encode_seq2seq_pair(tokenizer, "a", [7, 8]).completion_ids == [7, 8]
        assert encode_seq2seq_pair(tokenizer, "a", " 42").prompt_ids == tokenizer("a")["input_ids"]


def test_what_follows_eos_is_left_out():
    """Some tokenizers write the language behind the EOS of a target."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(text_tokenizer())
    eos, pad = tokenizer.eos_token, tokenizer.pad_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos} {pad}", special_tokens=[(eos, tokenizer.eos_token_id), (pad, tokenizer.pad_token_id)]
    )
    assert tokenizer("x")["input_ids"][-2:] == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids = text_tokenizer()("x")["input_ids"]
    assert encode_seq2seq_pair(tokenizer, "x", "x").completion_ids == [*ids, tokenizer.eos_token_id]
    assert encode_seq2seq_pair(tokenizer, "x", "x", add_eos=False).completion_ids == ids


def test_conversations_are_split():
    tokenizer, pair = chat_tokenizer(), chat_pairs(1)[0]
    ids = encode_seq2seq_pair(tokenizer, pair["prompt"], pair["completion"])
    template = lambda messages, **more: tokenizer.apply_chat_template(messages, return_dict=True, **more)["input_ids"]
    whole = template(pair["prompt"] + pair["completion"])
    assert ids.prompt_ids == template(pair["prompt"], add_generation_prompt=True)
    assert [*ids.prompt_ids, *ids.completion_ids] == whole[:-1]  # the newline behind EOS
    assert whole[-2] == tokenizer.eos_token_id
    assert (
        encode_seq2seq_pair(tokenizer, pair["prompt"], pair["completion"], max_source_length=3).prompt_ids == whole[:3]
    )
    with pytest.raises(UserError, match="one kind"):
        encode_seq2seq_pair(tokenizer, "a", pair["completion"])


def test_position_limits():
    tokenizer = t5_tokenizer()
    assert position_limits(t5_for(tokenizer).config) == (None, None)
    assert position_limits(tiny_bart().config) == (64, 64)
    from transformers import BertConfig, EncoderDecoderConfig, LEDConfig

    led = LEDConfig(max_encoder_position_embeddings=50, max_decoder_position_embeddings=20)
    assert position_limits(led) == (50, 20)
    parts = (BertConfig(max_position_embeddings=n) for n in (30, 40))
    assert position_limits(EncoderDecoderConfig.from_encoder_decoder_configs(*parts)) == (30, 40)
