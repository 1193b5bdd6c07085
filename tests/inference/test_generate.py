import copy
import random

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, T5Config, T5ForConditionalGeneration

from inverselm.errors import UserError
from inverselm.evaluation.gsm8k import CalculatorLogitsProcessor
from inverselm.inference.generate import Completion


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


def test_greedy_equals_a_plain_loop_for_every_prompt_and_batch_size(model, tokenizer, run, prompts):
    expected = [reference_greedy(model.eval(), tokenizer, p, 12) for p in prompts]
    assert len(set(expected)) > 2
    for batch_size in (1, 2, 5):
        results = run(model, tokenizer, temperature=0, batch_size=batch_size)
        assert [row[0].token_ids for row in results] == expected
        assert [row[0].text for row in results] == [tokenizer.decode(e, skip_special_tokens=True) for e in expected]


def test_greedy_does_not_depend_on_the_order_or_company_of_prompts(model, tokenizer, run, prompts):
    results = dict(zip(prompts, run(model, tokenizer, temperature=0, batch_size=2), strict=True))
    shuffled = random.Random(0).sample(prompts, len(prompts))
    assert run(model, tokenizer, shuffled, temperature=0, batch_size=3) == [results[p] for p in shuffled]
    assert run(model, tokenizer, ["x"], temperature=0) == [results["x"]]


def test_completions_end_at_the_first_eos_of_tokenizer_or_checkpoint(model, tokenizer, run, prompts):
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
    expected = reference_greedy(model, tokenizer, prompts[0], 12, eos=(stop,))
    other = copy.deepcopy(tokenizer)
    other.eos_token = other.convert_ids_to_tokens(stop)
    other.pad_token = None
    assert run(model, other, temperature=0)[0] == [Completion(other.decode(expected[:-1]), expected, True)]


def test_the_length_limit_is_not_an_end(model, tokenizer, run):
    for row in run(model, tokenizer, temperature=0, max_new_tokens=3):
        assert row[0].finished == (row[0].token_ids[-1] == 0)
        assert row[0].finished or len(row[0].token_ids) == 3
    assert any(not row[0].finished for row in run(model, tokenizer, temperature=0, max_new_tokens=3))


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state_alone(model, tokenizer, run, prompts):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = run(model, tokenizer, num_return=3, batch_size=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert run(model, tokenizer, num_return=3, batch_size=2, seed=1) == first
    assert run(model, tokenizer, num_return=3, batch_size=2, seed=2) != first
    assert [len(row) for row in first] == [3] * len(prompts)
    assert len({c.token_ids for row in first for c in row}) == 15
    repeated = run(model, tokenizer, ["x", "x"], batch_size=1, seed=1)
    assert repeated[0] != repeated[1], "each batch has its own seed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sampling_on_cuda_repeats_and_leaves_its_random_state_alone(model, tokenizer, run):
    model.cuda()
    torch.cuda.manual_seed(5)
    state = torch.cuda.get_rng_state()
    first = run(model, tokenizer, num_return=3, seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.manual_seed(6)
    assert run(model, tokenizer, num_return=3, seed=1) == first
    assert run(model, tokenizer, num_return=3, seed=2) != first


def test_samples_follow_the_model_distribution(model, tokenizer, run):
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


class Only(LogitsProcessor):
    """Allows one token, which says how many columns the prompts take."""

    def __init__(self, tokenizer, prompt_length):
        self.token = prompt_length

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, float("-inf"))
        scores[:, self.token] = 0
        return scores


def test_logits_processor_is_made_for_each_batch_with_its_prompt_length(model, tokenizer, run, prompts):
    lengths = [len(tokenizer.encode(p)) for p in prompts]
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


def test_calculator_works_in_a_left_padded_cached_generation(model, tokenizer, run, prompts):
    rows = run(model, tokenizer, logits_processor=ForceThenCalculate, max_new_tokens=24, batch_size=5)
    for prompt, row in zip(prompts, rows, strict=True):
        assert row[0].text.startswith("<<9-2=7>>" if prompt.endswith("two") else "a <<3*4=12>>")


def test_calculator_and_beam_search_are_refused_together(model, tokenizer, run):
    with pytest.raises(UserError, match="beam search"):
        run(model, tokenizer, logits_processor=CalculatorLogitsProcessor, num_beams=2, temperature=0)


def log_likelihood(model, tokenizer, prompt, ids):
    prompt_ids = tokenizer.encode(prompt)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    return float(logits[range(len(ids)), list(ids)].sum())


def test_beam_search_finds_a_likelier_text_than_greedy(model, tokenizer, run, prompts):
    def total(rows):
        return sum(
            log_likelihood(model.eval(), tokenizer, p, r[0].token_ids) for p, r in zip(prompts, rows, strict=True)
        )

    beams = run(model, tokenizer, temperature=0, num_beams=8, num_return=2, max_new_tokens=4)
    assert total(beams) > total(run(model, tokenizer, temperature=0, max_new_tokens=4)) + 0.1
    assert all(len(row) == 2 and row[0] != row[1] for row in beams)


def test_encoder_decoder_generates_from_its_start_token(tokenizer, run, prompts):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, initializer_factor=3.0
    )
    config.eos_token_id, config.pad_token_id, config.decoder_start_token_id = 0, 1, 1
    model = T5ForConditionalGeneration(config).eval()
    results = run(model, tokenizer, temperature=0, batch_size=3)
    for prompt, row in zip(prompts, results, strict=True):
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
