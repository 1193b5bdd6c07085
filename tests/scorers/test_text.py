"""Token spans tile the text, whatever bytes tokens hold; pairs are encoded as TRL's SFT does."""

import random
from itertools import pairwise

import pytest
from trl import SFTConfig, SFTTrainer

from helpers.data import (
    chat_pairs,
    chat_tokenizer,
    clean_chat_tokenizer,
    sums,
    text_tokenizer,
    tiny_for,
)
from helpers.training import arguments, make
from inverselm.errors import UserError
from inverselm.scorers import encode_pair, token_spans

TEXTS = [
    " 5 ok ok",
    "  two  spaces\n\nand\ttabs ",
    "Ünïcödé, 漢字 and 🙂 end",
    "🙂👩‍👩‍👧🙂",
    "e\u0301 \u2028 \ufeff \u0000",
    "漢",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_spans_tile_the_text(text):
    tokenizer = text_tokenizer()
    ids = tokenizer.encode(text)
    found, spans = token_spans(tokenizer, ids)
    assert found == text
    assert len(spans) == len(ids)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert not spans or (spans[0][0], spans[-1][1]) == (0, len(text))


def test_the_token_that_completes_a_character_gets_it():
    tokenizer = text_tokenizer()
    ids = tokenizer.encode("a🙂b漢")
    assert len(ids) == 1 + 4 + 1 + 3
    text, spans = token_spans(tokenizer, ids)
    assert [text[a:b] for a, b in spans] == ["a", "", "", "", "🙂", "b", "", "", "漢"]


def test_special_tokens_and_leading_spaces_are_shown():
    tokenizer = text_tokenizer()
    ids = [*tokenizer.encode(" ok ok"), tokenizer.pad_token_id, tokenizer.eos_token_id]
    text, spans = token_spans(tokenizer, ids)
    assert text == " ok ok<|pad|><|endoftext|>"
    assert [text[a:b] for a, b in spans][-2:] == ["<|pad|>", "<|endoftext|>"]
    assert text[slice(*spans[0])].startswith(" ")


def test_a_character_that_is_never_completed():
    tokenizer = text_tokenizer()
    cut = tokenizer.encode("ok🙂")[:-2]
    text, spans = token_spans(tokenizer, cut)
    assert text == tokenizer.decode(cut)
    assert text.startswith("ok")
    assert "".join(text[a:b] for a, b in spans) == text
    assert spans[-1][1] == len(text)


def test_any_sampled_ids_have_spans():
    """Random ids are mostly broken bytes: the spans still tile what they decode to."""
    tokenizer, rng = text_tokenizer(), random.Random(0)
    for _ in range(30):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 30))]
        text, spans = token_spans(tokenizer, ids)
        assert text == tokenizer.decode(ids)
        assert "".join(text[a:b] for a, b in spans) == text
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_the_replacement_character_itself_belongs_to_its_token():
    tokenizer = text_tokenizer()
    ids = tokenizer.encode("a\ufffdb")
    text, spans = token_spans(tokenizer, ids)
    assert text == "a\ufffdb"
    assert text[slice(*spans[-1])].endswith("b")


@pytest.mark.parametrize(
    ("rows", "tokenizer", "trailing"),
    [(sums, text_tokenizer, 0), (chat_pairs, clean_chat_tokenizer, 0), (chat_pairs, chat_tokenizer, 1)],
)
def test_pairs_are_encoded_as_trl_does(tmp_path, rows, tokenizer, trailing):
    tokenizer, rows = tokenizer(), rows(6)
    trained = make(SFTTrainer, arguments(SFTConfig, tmp_path), rows, tokenizer, tiny_for(tokenizer)).train_dataset
    for row, example in zip(rows, trained, strict=True):
        pair = encode_pair(tokenizer, row["prompt"], row["completion"])
        end = len(example["input_ids"]) - trailing  # what the template writes behind EOS
        assert [*pair.prompt_ids, *pair.completion_ids] == example["input_ids"][:end]
        assert [label != -100 for label in example["labels"]][:end] == (
            [False] * len(pair.prompt_ids) + [True] * len(pair.completion_ids)
        )


def test_a_merge_across_the_border_belongs_to_the_completion():
    tokenizer = text_tokenizer()
    joined = next(
        (a, b)
        for a, b in ((" o", "k"), ("Q", ":"), (":", " "), ("o", "k"))
        if tokenizer.encode(a + b)[: len(tokenizer.encode(a))] != tokenizer.encode(a)
    )
    pair = encode_pair(tokenizer, "x" + joined[0], joined[1], add_eos=False)
    assert [*pair.prompt_ids, *pair.completion_ids] == tokenizer.encode("x" + "".join(joined))
    assert tokenizer.decode(pair.completion_ids) != joined[1]


def test_ids_are_kept_and_kinds_must_agree():
    tokenizer = chat_tokenizer()
    assert encode_pair(tokenizer, "a", [7, 8, 9]).completion_ids == [7, 8, 9]
    assert encode_pair(tokenizer, "a", []).completion_ids == []
    message = [{"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="one kind"):
        encode_pair(tokenizer, "a", message)
    user = [{"role": "user", "content": "a"}]
    with pytest.raises(UserError, match="chat template"):
        encode_pair(text_tokenizer(), user, message)
    with pytest.raises(UserError, match="another speaker"):
        encode_pair(tokenizer, user, [*message, *user, *message])
