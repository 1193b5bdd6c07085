"""Places of tokens by few calls are those by many, for tokenizers whose tokens depend on their neighbours too."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.data import chat_tokenizer, text_tokenizer, toy_tokenizer
from helpers.seq2seq import t5_tokenizer
from inverselm.integrations.spans import quick_spans
from inverselm.scorers import token_spans


def word_pieces():
    """`##` is taken off where a token follows another, and words get spaces between them."""
    vocab = {"[UNK]": 0, "un": 1, "##do": 2, "##ne": 3, "do": 4, ".": 5, "[SEP]": 6}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[SEP]")


def metaspace():
    """The space in front of the first token is not shown."""
    vocab = [("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581", -2.0), ("b", -2.0), ("\u2581ab", -1.5), ("</s>", 0.0)]
    core = Tokenizer(models.Unigram(vocab, unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


MAKERS = [text_tokenizer, chat_tokenizer, toy_tokenizer, t5_tokenizer, word_pieces, metaspace]


@pytest.mark.parametrize("make", MAKERS)
def test_spans_of_any_ids(make):
    tokenizer, rng = make(), random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 12))]
        assert quick_spans(tokenizer, ids) == token_spans(tokenizer, ids)


@pytest.mark.parametrize(
    "text", ["", "2+2=4 ok", "naïve 漢字 🙂👩‍👩‍👧", "e\u0301 \ufffd\ufffd", "a  b\t\r\n<|endoftext|>x", "\x00\u202e"]
)
def test_spans_of_texts(text):
    tokenizer = text_tokenizer()
    ids = tokenizer(text)["input_ids"]
    found, spans = quick_spans(tokenizer, ids)
    assert (found, spans) == token_spans(tokenizer, ids)
    assert found == text
    assert "".join(found[a:b] for a, b in spans) == text


def test_plain_text_takes_two_calls(monkeypatch):
    calls = []
    tokenizer = text_tokenizer()
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda *args, **kwargs: calls.append(1) or decode(*args, **kwargs))
    quick_spans(tokenizer, tokenizer("a plain text " * 20)["input_ids"])
    assert len(calls) == 1


def test_a_tokenizer_without_a_fast_core():
    class Slow:
        def decode(self, ids, **kwargs):
            return "".join("ab"[i] for i in ids)

    assert quick_spans(Slow(), [0, 1, 1]) == ("abb", [(0, 1), (1, 2), (2, 3)])
