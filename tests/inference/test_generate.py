import copy
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from inverselm.errors import UserError
from inverselm.evaluation.gsm8k import CalculatorLogitsProcessor
from inverselm.inference.generate import Completion, generate

PROMPTS = ["one two", "a much longer prompt with many words in it", "x", "three words here", "two two"]
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*PROMPTS, "3*4=<<3*4=12>>12"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_model(vocab_size, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # distinct logits, so that greedy choices are no accident
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(len(tokenizer))


def run(model, tokenizer, prompts=PROMPTS, **options):
    settings = {"max_new_tokens": 12, "progress": False} | options
    return generate(model, tokenizer, prompts, **settings)


def reference_greedy(model, tokenizer, prompt, steps, eos=(0,)):
    """Greedy search by hand: no cache, no padding, no library."""
    ids = tokenizer.encode(prompt)
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in eos:
            break
    return tuple(ids[start:])


def test_greedy_equals_a_plain_loop_for_every_prompt_and_batch_size(model, tokenizer):
    expected = [reference_greedy(model.eval(), tokenizer, p, 12) for p in PROMPTS]
    assert len(set(expected)) > 2
    for batch_size in (1, 2, 5):
        results = run(model, tokenizer, temperature=0, batch_size=batch_size)
        assert [row[0].token_ids for row in results] == expected
        assert [row[0].text for row in results] == [tokenizer.decode(e, skip_special_tokens=True) for e in expected]


def test_greedy_does_not_depend_on_the_order_or_company_of_prompts(model, tokenizer):
    results = dict(zip(PROMPTS, run(model, tokenizer, temperature=0, batch_size=2), strict=True))
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert run(model, tokenizer, shuffled, temperature=0, batch_size=3) == [results[p] for p in shuffled]
    assert run(model, tokenizer, ["x"], temperature=0) == [results["x"]]


def test_completions_end_at_the_first_eos_of_tokenizer_or_checkpoint(model, tokenizer):
    free = [row[0].token_ids for row in run(model, tokenizer, temperature=0)]
    stop = free[0][3]
    for setting in (stop, [stop, 17]):
        model.generation_config = GenerationConfig(eos_token_id=setting)
        for row, ids in zip(run(model, tokenizer, temperature=0), free, strict=True):
            cut = ids.index(stop) + 1 if stop in ids else 12
            assert row[0].token_ids[:cut] == ids[:cut]
            if stop in ids:
                assert row[0].token_ids == ids[:cut]
                assert row[0].finished
    model.generation_config = GenerationConfig()
    expected = reference_greedy(model, tokenizer, PROMPTS[0], 12, eos=(stop,))
    other = copy.deepcopy(tokenizer)
    other.eos_token = other.convert_ids_to_tokens(stop)
    other.pad_token = None
    assert run(model, other, temperature=0)[0] == [Completion(other.decode(expected[:-1]), expected, True)]


def test_the_length_limit_is_not_an_end(model, tokenizer):
    for row in run(model, tokenizer, temperature=0, max_new_tokens=3):
        assert row[0].finished == (row[0].token_ids[-1] == 0)
        assert row[0].finished or len(row[0].token_ids) == 3
    assert any(not row[0].finished for row in run(model, tokenizer, temperature=0, max_new_tokens=3))


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state_alone(model, tokenizer):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = run(model, tokenizer, num_return=3, batch_size=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert run(model, tokenizer, num_return=3, batch_size=2, seed=1) == first
    assert run(model, tokenizer, num_return=3, batch_size=2, seed=2) != first
    assert [len(row) for row in first] == [3] * len(PROMPTS)
    assert len({c.token_ids for row in first for c in row}) == 15
    repeated = run(model, tokenizer, ["x", "x"], batch_size=1, seed=1)
    assert repeated[0] != repeated[1], "each batch has its own seed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sampling_on_cuda_repeats_and_leaves_its_random_state_alone(model, tokenizer):
    model.cuda()
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = run(model, tokenizer, num_return=3, seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.manual_seed(6)
    assert run(model, tokenizer, num_return=3, seed=1) == first
    assert run(model, tokenizer, num_return=3, seed=2) != first


def test_samples_follow_the_model_distribution(model, tokenizer):
    model.generation_config = GenerationConfig(
        top_k=1, do_sample=True, repetition_penalty=9.0, min_new_tokens=5, suppress_tokens=[5], temperature=0.01
    )
    with torch.no_grad():
        probabilities = model(torch.tensor([tokenizer.encode("x")])).logits[0, -1].softmax(-1)
    rows = run(model, tokenizer, ["x"], num_return=4000, max_new_tokens=1)[0]
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in rows]), minlength=len(tokenizer))
    assert len(counts.nonzero()) > 50, "top_k=50 would allow 50 tokens only"
    assert 0.5 * (counts / 4000 - probabilities).abs().sum() < 0.15
    cold = run(model, tokenizer, ["x"], num_return=500, max_new_tokens=1, temperature=0.05)[0]
    assert {c.token_ids[0] for c in cold} == {int(probabilities.argmax())}
    top = probabilities.sort(descending=True)
    allowed = set(top.indices[: int((top.values.cumsum(0) < 0.3).sum()) + 1].tolist())
    assert {
        c.token_ids[0] for c in run(model, tokenizer, ["x"], num_return=2000, max_new_tokens=1, top_p=0.3)[0]
    } == allowed


def test_checkpoint_settings_do_not_leak_into_greedy_search_and_are_put_back(model, tokenizer):
    plain = run(model, tokenizer, temperature=0)
    settings = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, num_beams=3, max_length=5, top_k=20)
    model.generation_config = settings
    before = settings.to_dict()
    assert run(model, tokenizer, temperature=0) == plain
    assert model.generation_config is settings
    assert settings.to_dict() == before


def test_a_peft_wrapper_keeps_its_generation_config(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    plain = run(model, tokenizer, temperature=0)
    model.generation_config = settings = GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert run(wrapped, tokenizer, temperature=0) == plain
    assert model.generation_config is settings
    assert wrapped.generation_config is settings


def test_model_mode_and_tokenizer_stay_as_they_were(model, tokenizer):
    tokenizer.padding_side = "right"
    model.train()
    model.model.layers[0].eval()
    run(model, tokenizer, temperature=0)
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training
    assert tokenizer.padding_side == "right"
    with pytest.raises(RuntimeError, match="stop"):
        run(model, tokenizer, logits_processor=_failing)
    assert model.training
    assert model.generation_config.max_new_tokens is None


def _failing(tokenizer, prompt_length):
    raise RuntimeError("stop")


class Only(LogitsProcessor):
    """Allows one token, which says how many columns the prompts take."""

    def __init__(self, tokenizer, prompt_length):
        self.token = prompt_length

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, float("-inf"))
        scores[:, self.token] = 0
        return scores


def test_logits_processor_is_made_for_each_batch_with_its_prompt_length(model, tokenizer):
    lengths = [len(tokenizer.encode(p)) for p in PROMPTS]
    for batch_size in (1, 5):
        rows = run(model, tokenizer, logits_processor=Only, batch_size=batch_size)
        expected = lengths if batch_size == 1 else [max(lengths)] * 5
        assert [set(row[0].token_ids) for row in rows] == [{n} for n in expected]


class ForceThenCalculate(CalculatorLogitsProcessor):
    """Writes `<<3*4=` or, in prompts that end in `two`, `<<9-2=`, and then lets the calculator and the model work."""

    def __call__(self, input_ids, scores):
        for row, ids in enumerate(input_ids):
            second = self.tokenizer.decode(ids[: self.prompt_length]).endswith("two")
            script = self.tokenizer.encode("<<9-2=" if second else "a <<3*4=")
            step = len(ids) - self.prompt_length
            if step < len(script):
                scores[row] = float("-inf")
                scores[row, script[step]] = 0
        return super().__call__(input_ids, scores)


def test_calculator_works_in_a_left_padded_cached_generation(model, tokenizer):
    rows = run(model, tokenizer, logits_processor=ForceThenCalculate, max_new_tokens=24, batch_size=5)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row[0].text.startswith("<<9-2=7>>" if prompt.endswith("two") else "a <<3*4=12>>")


def test_calculator_and_beam_search_are_refused_together(model, tokenizer):
    with pytest.raises(UserError, match="beam search"):
        run(model, tokenizer, logits_processor=CalculatorLogitsProcessor, num_beams=2, temperature=0)


def log_likelihood(model, tokenizer, prompt, ids):
    prompt_ids = tokenizer.encode(prompt)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    return float(logits[range(len(ids)), list(ids)].sum())


def test_beam_search_finds_a_likelier_text_than_greedy(model, tokenizer):
    def total(rows):
        return sum(
            log_likelihood(model.eval(), tokenizer, p, r[0].token_ids) for p, r in zip(PROMPTS, rows, strict=True)
        )

    beams = run(model, tokenizer, temperature=0, num_beams=8, num_return=2, max_new_tokens=4)
    assert total(beams) > total(run(model, tokenizer, temperature=0, max_new_tokens=4)) + 0.1
    assert all(len(row) == 2 and row[0] != row[1] for row in beams)


def test_chat_messages_are_written_with_the_template(model, tokenizer):
    messages = [{"role": "user", "content": "one two"}]
    with pytest.raises(UserError, match=r"prompt 1 .*chat template"):
        run(model, tokenizer, ["x", messages])
    chat = make_tokenizer()
    chat.chat_template = CHAT_TEMPLATE
    assert run(model, chat, [messages, "x"], temperature=0) == run(
        model, chat, ["[user]one two[bot]", "x"], temperature=0
    )


def test_a_prompt_without_room_or_tokens_is_named(model, tokenizer):
    long = "x" * 200
    room = 256 - len(tokenizer.encode(long))
    run(model, tokenizer, [long], max_new_tokens=room, temperature=0)
    with pytest.raises(UserError, match=r"prompt 1 has .* lower max_new_tokens"):
        run(model, tokenizer, ["x", long], max_new_tokens=room + 1)
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        run(model, tokenizer, ["x", ""])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_beams": 4}, "temperature=0"),
        ({"temperature": 0, "num_return": 2}, "num_return"),
        ({"prompts": "x"}, "list of prompts"),
    ],
)
def test_bad_options_are_refused(model, tokenizer, options, named):
    with pytest.raises(UserError, match=named):
        run(model, tokenizer, **options)


def test_no_prompts_give_no_completions(model, tokenizer):
    assert run(model, tokenizer, []) == []


def test_progress_bar_is_written_to_stderr_only_when_asked(model, tokenizer, capsys):
    run(model, tokenizer, temperature=0)
    assert capsys.readouterr().err == ""
    run(model, tokenizer, temperature=0, progress=True)
    captured = capsys.readouterr()
    assert "5/5" in captured.err
    assert captured.out == ""


def test_encoder_decoder_generates_from_its_start_token(tokenizer):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, initializer_factor=3.0
    )
    config.eos_token_id, config.pad_token_id, config.decoder_start_token_id = 0, 1, 1
    model = T5ForConditionalGeneration(config).eval()
    results = run(model, tokenizer, temperature=0, batch_size=3)
    for prompt, row in zip(PROMPTS, results, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt)])
        decoded = [1]
        for _ in range(12):
            with torch.no_grad():
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([decoded])).logits[0, -1]
            decoded.append(int(logits.argmax()))
            if decoded[-1] == 0:
                break
        assert row[0].token_ids == tuple(decoded[1:])
    forced = run(model, tokenizer, logits_processor=ForceThenCalculate, max_new_tokens=16)
    assert forced[0][0].text.startswith("a <<3*4=12>>")
