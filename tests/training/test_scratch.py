"""Models from nothing: exact tokenizers, models that fit them, and one line for a mistake in the YAML."""

import copy
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from inverselm.errors import UserError
from inverselm.training.scratch import build_from_scratch, texts_of
from inverselm.training.scratch_tokenizer import build_tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BPE = {"type": "bpe", "vocab_size": 300}
TEXTS = ["the cat sat on the mat 12 + 34 = 46\n", "the dog, the  log.", "def f(x):\n\treturn x"]
HARD = [
    "",
    " leading and trailing ",
    "\n\n  two\r\nlines\t",
    "don 't , stop . it 's n't",
    "2024 007 3.14",
    "é e\u0301 漢字 🙂👩‍👩‍👧 \u0000 \u2028 \ufeff",
    "<|endoftext|> inside",
]


def fails(sections, *parts, **kwargs):
    with pytest.raises(UserError) as caught:
        build_from_scratch(sections, TEXTS, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("split_digits", [True, False])
@pytest.mark.parametrize("chat", [{}, {"chat_template": "chatml"}])
def test_bpe_gives_every_text_back(tmp_path, split_digits, chat):
    built = build_tokenizer({**BPE, "split_digits": split_digits, **chat}, TEXTS)
    built.save_pretrained(tmp_path)
    for tokenizer in (built, AutoTokenizer.from_pretrained(tmp_path)):
        for text in [*HARD, *TEXTS, "".join(map(chr, range(1, 0x500)))]:
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert 260 < len(tokenizer) <= 300
        assert len(tokenizer.tokenize("the")) == 1  # merges were learned
        assert tokenizer.eos_token_id != tokenizer.pad_token_id
        assert tokenizer.eos_token == ("<|im_end|>" if chat else "<|endoftext|>")


def test_digits_are_split_when_asked():
    texts = ["2024 2024 2024 2024"] * 4
    assert len(build_tokenizer({**BPE, "split_digits": True}, texts).tokenize("2024")) == 4
    assert len(build_tokenizer({**BPE, "split_digits": False}, texts).tokenize("2024")) < 4


def test_char_gives_known_text_back_and_marks_the_rest():
    tokenizer = build_tokenizer({"type": "char"}, [*TEXTS, "é🙂"])
    for text in [*TEXTS, " 🙂 \n\né", "1234", "<|endoftext|>the"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("the cat")) == 7
    assert tokenizer.decode(tokenizer.encode("a漢t")) == "a<unk>t"
    assert len(tokenizer) == 3 + len(set("".join(TEXTS) + "é🙂"))


@pytest.mark.parametrize("kind", [{"type": "char"}, BPE])
def test_lowercase(kind):
    tokenizer = build_tokenizer({**kind, "lowercase": True}, ["Hello WORLD ÉΣ"])
    assert tokenizer.decode(tokenizer.encode("HELLO É Σ<|endoftext|>")) == "hello é σ<|endoftext|>"


@pytest.mark.parametrize("kind", [{"type": "char"}, BPE])
def test_chatml_marks_assistant_turns_and_ends_with_eos(kind):
    tokenizer = build_tokenizer({**kind, "chat_template": "chatml"}, TEXTS)
    messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on"}] * 2
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    turn = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\nsat on<|im_end|>"
    assert text == turn + "\n" + turn
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(out["input_ids"]) == text
    assert out["input_ids"][-1] == tokenizer.eos_token_id
    marked = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "sat on<|im_end|>" * 2
    prompts = [
        tokenizer.apply_chat_template(messages[:n], add_generation_prompt=n % 2 == 1, return_dict=False)
        for n in range(1, 5)
    ]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(prompts))


@pytest.mark.parametrize(
    "section",
    [
        LLAMA,
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "num_attention_heads": 2, "n_positions": 64},
    ],
)
def test_model_fits_its_tokenizer(tmp_path, section):
    model, tokenizer = build_from_scratch({"model": section, "tokenizer": BPE}, TEXTS, max_length=64)
    vocab = len(tokenizer)
    assert model.config.vocab_size == vocab == model.get_input_embeddings().num_embeddings
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.float32
    assert tokenizer.model_max_length == 64
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert config.bos_token_id is None
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode(TEXTS[0])])
    assert again(ids).logits.shape == (1, ids.shape[1], vocab)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_same_seed_same_model_and_no_side_effect(tmp_path):
    (tmp_path / "m.yaml").write_text(
        "model: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,\n"
        "        num_attention_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}\n"
        "tokenizer: {type: bpe, vocab_size: 300}\n"
    )
    state = torch.get_rng_state()
    one, first = build_from_scratch(str(tmp_path / "m.yaml"), iter(TEXTS), seed=3)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    two, second = build_from_scratch({"model": LLAMA, "tokenizer": BPE}, TEXTS, seed=3)
    other, _ = build_from_scratch({"model": LLAMA, "tokenizer": BPE}, TEXTS, seed=4)
    assert first.get_vocab() == second.get_vocab()
    weights = [list(model.parameters())[1] for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_little_text_gives_a_smaller_vocabulary():
    model, tokenizer = build_from_scratch({"model": LLAMA, "tokenizer": {"type": "bpe"}}, ["ab"])
    assert 258 <= len(tokenizer) < 300
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("section", "change", "parts"),
    [
        ("model", {"hiden_size": 3}, ("unknown key model.hiden_size", "did you mean 'hidden_size'")),
        ("model", {"vocab_size": 3}, ("model.vocab_size comes from the tokenizer",)),
        ("model", {"model_type": "lama"}, ("unknown model.model_type 'lama'", "llama")),
        ("model", {"model_type": None}, ("model.model_type is missing",)),
        ("model", {"hidden_size": "x"}, ("section 'model'", "hidden_size", "expected int")),
        ("model", {"rms_norm_eps": "1e-5"}, ("rms_norm_eps", "write 1.0e-5")),
        ("model", {"num_attention_heads": 3}, ("section 'model'", "multiple")),
        ("tokenizer", {"type": None}, ("tokenizer.type is missing", "bpe, char")),
        ("tokenizer", {"type": "word"}, ("tokenizer.type 'word' is unknown", "bpe, char")),
        ("tokenizer", {"vocabsize": 3}, ("unknown key tokenizer.vocabsize", "vocab_size")),
        ("tokenizer", {"type": "char"}, ("unknown key tokenizer.vocab_size for type char",)),
        ("tokenizer", {"vocab_size": "3"}, ("tokenizer.vocab_size must be a whole number",)),
        ("tokenizer", {"vocab_size": True}, ("tokenizer.vocab_size must be a whole number",)),
        ("tokenizer", {"lowercase": "no"}, ("tokenizer.lowercase must be true or false",)),
        ("tokenizer", {"vocab_size": 257}, ("too small", "258")),
        ("tokenizer", {"chat_template": "alpaca"}, ("chatml", "'alpaca'")),
    ],
)
def test_mistakes_are_named(section, change, parts):
    sections = copy.deepcopy({"model": LLAMA, "tokenizer": BPE})
    sections[section].update(change)
    fails(sections, *parts)


def test_broken_configurations_are_named(tmp_path):
    fails({"model": LLAMA}, "section 'tokenizer' is missing")
    fails({"model": LLAMA, "tokenizer": BPE, "trainer": {}}, "unknown section 'trainer'")
    fails({"model": LLAMA, "tokenizer": "bpe"}, "'tokenizer' must be a mapping")
    fails({"model": LLAMA, "tokenizer": BPE}, "64 positions, fewer than max_length=65", max_length=65)
    fails(tmp_path / "none.yaml", "none.yaml: cannot be read")
    (tmp_path / "bad.yaml").write_text("model: {a: [")
    fails(tmp_path / "bad.yaml", "bad.yaml: not valid YAML")
    (tmp_path / "list.yaml").write_text("- 1")
    fails(tmp_path / "list.yaml", "not a mapping")
    for kind in (BPE, {"type": "char", "chat_template": "chatml"}):
        with pytest.raises(UserError, match="no text"):
            build_from_scratch({"model": LLAMA, "tokenizer": kind}, ["", ""])


def test_texts_of_every_format():
    parts = [{"type": "text", "text": "c"}]
    rows = [
        {"prompt": "a", "completion": "b", "id": "no"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": parts}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
        {"conversations": [{"from": "user", "value": "a"}]},
        {"text": "t", "body": "no"},
    ]
    assert [list(texts_of([row])) for row in rows] == [["a", "b"], ["a", "c"], ["a"], ["a"], ["t"]]
    assert list(texts_of(Dataset.from_list([{"body": "x"}]), text_field="body")) == ["x"]
