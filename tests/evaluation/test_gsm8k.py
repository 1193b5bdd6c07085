import math
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inverselm.errors import UserError
from inverselm.evaluation.gsm8k import (
    CalculatorLogitsProcessor,
    evaluate_expression,
    extract_answer,
    format_number,
    is_correct,
)

CORPUS = ["3*4=<<3*4=12>>12 apples.\n#### 12", "12+5=<<12+5=17>>17", "abc 0123456789+-*/().=<> $5/0"] * 3


def bpe_tokenizer(pattern_splits=True, extra=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern_splits)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, *extra], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def metaspace_tokenizer():
    """Puts a space mark before every text that stands alone, as SentencePiece does."""
    pieces = ["<unk>", "<eos>", "▁", *"0123456789+-*/().=<>a"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 17", "17"),
        ("#### 3\n#### 1,234", "1234"),
        ("#### $1,200.00.", "1200"),
        ("#### 12.0", "12"),
        ("#### 12.", "12"),
        ("#### -5 degrees", "-5"),
        ("#### $-5", "-5"),
        ("#### -$5", "-5"),
        ("####007", "7"),
        ("#### .50", "0.5"),
        ("#### -0", "0"),
        ("#### 90071992547409931", "90071992547409931"),
        ("17", None),
        ("####", None),
        ("#### none\n17", None),
        ("####\n17", None),
        ("#### 1/2", None),
        ("#### 12 / 5", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


def test_is_correct_compares_numbers_not_texts():
    assert is_correct("#### 12.0", "12")
    assert is_correct("#### $1200", "1,200")
    assert is_correct("#### 12", "3*4=<<3*4=12>>12\n#### 12")
    assert not is_correct("#### 12", "13")
    assert not is_correct("#### 1.25", "125")
    assert not is_correct("12", "12")
    with pytest.raises(UserError, match="twelve"):
        is_correct("#### 12", "twelve")


@pytest.mark.parametrize(
    ("expr", "value"),
    [
        ("3*4", 12),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("10-2-3", 5),
        ("24/4/2", 3),
        ("-3+5", 2),
        ("2*-3", -6),
        ("-(2+1)", -3),
        ("1,000+5", 1005),
        (".5*8", 4),
        ("5.*2", 10),
        ("20%*50", 10),
        ("100%-20%", 0.8),
        (" 3 * ( 4 + 1 ) ", 15),
    ],
)
def test_evaluate_expression(expr, value):
    assert evaluate_expression(expr) == pytest.approx(value)


@pytest.mark.parametrize(
    "expr",
    [
        *("", "3*", "(3", "3)", "3 4", "2**3", "7//2", "1/0", "0/(2-2)", "x+1", "1,00", "1,0000", "1.2.3", "7%3"),
        *("__import__('os')", "1e5", "()", "²", "٣+1", "9" * 101, "1+" * 60 + "1", "999999999*999999999", "(" * 100),
    ],
)
def test_evaluate_expression_refuses(expr):
    assert evaluate_expression(expr) is None


def test_deep_nesting_is_evaluated_within_the_length_limit():
    assert evaluate_expression("(" * 49 + "7" + ")" * 49) == 7
    assert evaluate_expression("-" * 99 + "7") == -7


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.0, "12"), (0.1 + 0.2, "0.3"), (1 / 3, "0.333333"), (-2.5, "-2.5"), (1e11, "100000000000"), (-1e-9, "0")],
)
def test_format_number(value, text):
    assert format_number(value) == text


def write(tokenizer, rows, steps, prompt="abc"):
    """Greedy decoding of a 'model' that always wants `a`, with the calculator; returns the generated texts.

    `rows` are generated first, as they are (texts or token ids); all prompts are left padded by two columns.
    """
    wish = tokenizer.encode("a", add_special_tokens=False)[-1]
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    texts = [tokenizer.encode(row, add_special_tokens=False) if isinstance(row, str) else row for row in rows]
    width = max(len(t) for t in texts)
    pad = tokenizer.eos_token_id
    processor = CalculatorLogitsProcessor(tokenizer, len(prompt_ids) + 2)
    for column in range(width):  # feed the given tokens as a generation does: one column per call
        ids = torch.tensor([[pad] * 2 + prompt_ids + (t + [pad] * width)[:column] for t in texts])
        processor(ids, torch.zeros(len(texts), len(tokenizer)))
    sequences = [[pad] * 2 + prompt_ids + t + [pad] * (width - len(t)) for t in texts]
    for _ in range(steps):
        scores = torch.zeros(len(texts), len(tokenizer))
        scores[:, wish] = 1.0
        best = processor(torch.tensor(sequences), scores).argmax(dim=-1).tolist()
        sequences = [[*s, b] for s, b in zip(sequences, best, strict=True)]
    return [tokenizer.decode(s[len(prompt_ids) + 2 :]).strip() for s in sequences]


@pytest.mark.parametrize("make", [bpe_tokenizer, metaspace_tokenizer])
@pytest.mark.parametrize(
    ("text", "result"),
    [("<<3*4=", "12"), ("<<5-9=", "-4"), ("<<1/3=", "0.333333"), ("<<10/4=", "2.5"), ("<<(2+3)*4=", "20")],
)
def test_calculator_writes_result_and_closing_mark_then_lets_go(make, text, result):
    (written,) = write(make(), [text], 14)
    assert written.startswith(f"{text}{result}>>aa")
    assert set(written[len(f"{text}{result}>>") :]) == {"a"}


def test_calculator_serves_the_rows_of_a_batch_separately():
    tokenizer = bpe_tokenizer()
    pieces = [tokenizer.encode(t, add_special_tokens=False) for t in ("<<3*4=", "a<<12+5=", "abc")]
    width = max(len(p) for p in pieces)
    filler = tokenizer.encode("a", add_special_tokens=False)
    rows = [filler * (width - len(p)) + p for p in pieces]
    texts = write(tokenizer, rows, 12)
    assert texts[0].rstrip("a").endswith("<<3*4=12>>")
    assert texts[1].rstrip("a").endswith("a<<12+5=17>>")
    assert set(texts[2].replace("abc", "")) == {"a"}


@pytest.mark.parametrize(
    "text", ["3*4=", "<<3*4", "<<3*=", "<<5/0=", "<<3*4=12>>12=", "<<=", "<<3*4=9", "<<3*4==", "<<a=", "<<"]
)
def test_calculator_leaves_other_text_alone(text):
    (written,) = write(bpe_tokenizer(), [text], 6)
    assert written == text + "a" * 6


def test_calculator_completes_a_result_that_the_equals_token_has_begun():
    tokenizer = bpe_tokenizer()
    tokenizer.add_tokens(["=1", "= ", "=7", "=12>>"])
    start = tokenizer.encode("<<3*4", add_special_tokens=False)
    rows = [[*start, tokenizer.convert_tokens_to_ids(t)] for t in ("=1", "= ", "=7", "=12>>")]
    texts = write(tokenizer, rows, 10)
    assert texts[0].rstrip("a") == "<<3*4=12>>"
    assert texts[1].rstrip("a") == "<<3*4= 12>>"
    assert texts[2] == "<<3*4=7" + "a" * 10
    assert texts[3] == "<<3*4=12>>" + "a" * 10


def test_calculator_ignores_the_prompt_and_finished_rows():
    tokenizer = bpe_tokenizer()
    (written,) = write(tokenizer, ["="], 5, prompt="<<3*4")
    assert written == "=aaaaa"
    ids = tokenizer.encode("<<3*4=", add_special_tokens=False)
    prompt_length = 2
    sequence = torch.tensor([[5, 5, *ids, tokenizer.eos_token_id], [5, 5, *ids, tokenizer.pad_token_id]])
    scores = torch.randn(2, len(tokenizer))
    assert torch.equal(CalculatorLogitsProcessor(tokenizer, prompt_length)(sequence, scores), scores)


def test_calculator_stops_forcing_when_a_row_is_ended_from_outside_or_a_new_generation_starts():
    tokenizer = bpe_tokenizer()
    ids = tokenizer.encode("<<3*4=", add_special_tokens=False)
    processor = CalculatorLogitsProcessor(tokenizer, 1)
    scores = torch.zeros(1, len(tokenizer))
    forced = processor(torch.tensor([[5, *ids]]), scores)
    assert math.isinf(forced.min())
    assert torch.count_nonzero(forced == 0) == 1
    assert torch.equal(scores, torch.zeros_like(scores)), "the scores of the caller are not changed in place"
    assert torch.equal(processor(torch.tensor([[5, *ids, tokenizer.pad_token_id]]), scores), scores)
    processor(torch.tensor([[5, *ids]]), scores)
    processor(torch.tensor([[5]]), scores)
    other = [5] * len(ids) + [int(forced.argmax())]
    assert torch.equal(processor(torch.tensor([[5, *other]]), scores), scores)


def test_calculator_allows_the_longest_expression_with_one_token_per_character():
    expr = "1+" * 49 + "10"  # 100 characters
    (written,) = write(metaspace_tokenizer(), ["a" + f"<<{expr}="], 5)
    assert written == f"a<<{expr}=59>>a"


def test_calculator_refuses_a_tokenizer_that_cannot_write_numbers():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<<": 1, "=": 2, ">>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(UserError, match="without the calculator"):
        CalculatorLogitsProcessor(wrapped, 1)


def test_calculator_rejects_a_prompt_length_beyond_the_rows():
    tokenizer = bpe_tokenizer()
    with pytest.raises(ValueError, match="prompt_length"):
        CalculatorLogitsProcessor(tokenizer, 9)(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, len(tokenizer)))


def test_reading_answers_needs_neither_torch_nor_transformers():
    code = "import sys, inverselm.evaluation.gsm8k; print('torch' in sys.modules or 'transformers' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
