"""One error in each answer and nothing else changed; of the right kind; repeatable."""

import doctest
import re

import pytest

from helpers.data import chat_tokenizer, text_tokenizer
from inverselm.errors import UserError
from inverselm.evaluation import plant_errors, planting
from inverselm.scorers.text import token_spans

GSM = [
    " Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
    " It costs 80,000+50,000=$<<80000+50000=130000>>130,000\n#### 130000",
]
TEXTS = [
    "The cat saw a dog. Then the dog ran home.",
    "A bird ate the cake. Nobody saw the bird.",
    "The Cat ran home. Then NASA called.",
    "Tom's dog ate a cake. Then Tom ran.",
]


def differences(right, found):
    """The planted text is all that differs."""
    assert found.wrong[: found.start] == right[: found.start]
    assert found.wrong[found.end :] == right[found.start + len(found.original) :]
    assert right[found.start : found.start + len(found.original)] == found.original
    assert found.planted != found.original
    return found.original, found.planted


def test_examples_in_docstrings():
    assert doctest.testmod(planting).failed == 0


@pytest.mark.parametrize("seed", range(20))
def test_digits_of_gsm8k_are_those_of_a_result_and_the_rest_is_kept(seed):
    for right, found in zip(GSM, plant_errors(GSM, "digit", seed=seed), strict=True):
        original, planted = differences(right, found)
        assert original in "0123456789"
        assert planted in "0123456789"
        assert len(found.wrong) == len(right)
        inside = [m.span(1) for m in re.finditer(r"<<[^<>]*=(\d+)>>", found.wrong)]
        start, end = next((a, b) for a, b in inside if a <= found.start < b)
        assert not found.wrong[start:end].startswith("0"), "no leading zero"


def test_all_places_and_digits_are_drawn():
    found = {plant_errors(["It is 146."], "digit", seed=seed)[0].wrong for seed in range(400)}
    expected = {f"It is {n}." for i in range(3) for d in "0123456789" for n in ["146"[:i] + d + "146"[i + 1 :]]}
    assert found == expected - {"It is 146.", "It is 046."}


NUMBERS = ["0", ".5", "costs $5."]
NONE = ["no number", "T5 in 3D", "v1.2.3x", "٣"]


@pytest.mark.parametrize(("text", "there"), [*((t, True) for t in NUMBERS), *((t, False) for t in NONE)])
def test_numbers_are_numbers(text, there):
    assert (plant_errors([text])[0] is not None) is there


def test_a_zero_may_lead_before_the_point():
    assert {plant_errors(["7.5"], seed=s)[0].wrong for s in range(200)} >= {"0.5", "7.0"}


@pytest.mark.parametrize("seed", range(20))
def test_words_are_of_the_same_class(seed):
    words = {w for text in TEXTS for w in re.findall(r"[A-Za-z']+", text)}
    for right, found in zip(TEXTS, plant_errors(TEXTS, "word", seed=seed), strict=True):
        original, planted = differences(right, found)
        assert planted in words
        assert original.lower() != planted.lower()
        assert original[0].isupper() == planted[0].isupper()
        first = {"The", "Then", "A", "Nobody", "Tom's"}
        assert (original in first) == (planted in first), "first words stay first words"


def test_words_are_about_as_frequent():
    texts = ["x the end"] * 16 + ["x rare end", "x seldom end"] + ["x often end"] * 12
    found = plant_errors(texts, "word", seed=1)
    swaps = {(p.original, p.planted) for p in found if p is not None}
    assert ("the", "rare") not in swaps
    assert ("the", "seldom") not in swaps
    assert ("rare", "seldom") in swaps or ("seldom", "rare") in swaps
    assert {p.original for p in found} <= {"the", "often", "rare", "seldom"}, "x and end are alone in their places"


@pytest.mark.parametrize("make", [text_tokenizer, chat_tokenizer])
def test_tokens_follow_what_they_follow_elsewhere(make):
    tokenizer = make()
    texts = [f" {a + b} ok" if a % 2 else f" {a + b} yes" for a in range(10) for b in range(8)]
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    bigrams = {(a, b) for row in ids for a, b in zip([None, *row], row, strict=False)}
    unigrams = {b for row in ids for b in row}
    seen = 0
    for right, row, found in zip(texts, ids, plant_errors(texts, "token", tokenizer=tokenizer), strict=True):
        differences(right, found)
        changed = [i for i, (a, b) in enumerate(zip(row, found.token_ids, strict=True)) if a != b]
        assert len(changed) == 1
        (place,) = changed
        assert found.token_ids[place] in unigrams
        previous = row[place - 1] if place else None
        alternatives = {b for a, b in bigrams if a == previous} - {row[place]}
        assert found.token_ids[place] in alternatives or not alternatives
        seen += bool(alternatives)
        text, spans = token_spans(tokenizer, list(found.token_ids))
        assert text == found.wrong
        assert spans[place] == (found.start, found.end)
    assert seen > 40


def test_tokens_leave_parts_of_characters_and_special_tokens_alone():
    tokenizer = text_tokenizer()  # no merges of these characters: two bytes each
    assert len(tokenizer("é")["input_ids"]) == 2
    texts = ["é1", "ü2", "é3", "<|endoftext|>4"]
    for found in plant_errors(texts, "token", tokenizer=tokenizer, seed=3):
        assert found.planted in "1234"
        assert "\ufffd" not in found.wrong


class TwoSpellings:
    """A tokenizer with two ids for `a`, as SentencePiece has at the start of a text."""

    texts = ("a", "a", "b")
    all_special_ids = ()

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [int(c) for c in text]}

    def decode(self, ids, **options):
        return "".join(self.texts[i] for i in ids)


def test_a_token_that_looks_the_same_is_no_error():
    for seed in range(10):
        for found in plant_errors(["0", "1", "2"], "token", tokenizer=TwoSpellings(), seed=seed):
            assert {found.original, found.planted} == {"a", "b"}


def test_tokens_are_cut_as_after_their_prompts():
    tokenizer = text_tokenizer()
    prompts, texts = [f"Q: {a}+2=" for a in range(6)], [f" {a + 2} ok" for a in range(6)]
    for prompt, found in zip(prompts, plant_errors(texts, "token", tokenizer=tokenizer, prompts=prompts), strict=True):
        whole = tokenizer(prompt + found.wrong)["input_ids"]
        assert len(found.token_ids) == len(whole) - len(tokenizer(prompt)["input_ids"])


@pytest.mark.parametrize("kind", planting.KINDS)
def test_planting_repeats_with_its_seed(kind):
    texts = [f" It is {a + b}, says {'Tom' if a % 2 else 'Ann'}." for a in range(6) for b in range(5)]
    tokenizer = text_tokenizer()
    one, same, other = (plant_errors(texts, kind, seed=s, tokenizer=tokenizer) for s in (1, 1, 2))
    assert one == same
    assert one != other
    if kind == "digit":
        assert plant_errors(texts[:7], kind, seed=1) == one[:7]


def test_nothing_to_plant():
    assert plant_errors(["one", ""], "word") == [None, None]
    assert plant_errors(["a", "a"], "token", tokenizer=text_tokenizer()) == [None, None]


def test_bad_input():
    with pytest.raises(UserError, match="unknown kind"):
        plant_errors(["1"], "number")
    with pytest.raises(UserError, match="needs the tokenizer"):
        plant_errors(["1"], "token")
    with pytest.raises(UserError, match="one string"):
        plant_errors("1")
