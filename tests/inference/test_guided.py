"""Guided decoding: every step against a computation without cache, batch or padding, and its exact distribution."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.models import TINY_MODELS, tiny_llama
from inverselm.errors import UserError
from inverselm.inference.guided import GuidedDecodingProcessor
from inverselm.scorers import FrozenLM
from inverselm.tabular import TokenTree, log_policy, myopic_optimum, sequence_log_probs

PROMPTS = [[5, 6, 7], [8], [9, 4, 4, 6, 3], [1, 3]]
PAD, EOS = 0, 2


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])}


def settings(steps=6, **options):
    return GenerationConfig(
        **{"do_sample": True, "top_k": 0, "max_new_tokens": steps, "eos_token_id": EOS, "pad_token_id": PAD,
           "return_dict_in_generate": True, "output_scores": True, **options}
    )  # fmt: skip


def guided_log_probs(sft, base, weight, ids, **inputs):
    """(V,) by the definition: one row, the whole of it, no cache, float64."""
    name = "decoder_input_ids" if inputs else "input_ids"
    with torch.no_grad():
        a, b = (m(**{name: torch.tensor([ids])}, **inputs).logits[0, -1].double() for m in (sft, base))
    return ((1 + weight) * a - weight * b).log_softmax(dim=-1)


def written(row):
    """The tokens of a generated row up to its EOS."""
    row = row.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else row


def check_steps(out, sft, base, weight, prompts, repeats, prompt_length):
    """The scores of every step of every row are the guided policy's of that row's tokens."""
    compared = 0
    for n, row in enumerate(out.sequences):
        prompt = prompts[n // repeats]
        answer = written(row[prompt_length:])
        for t in range(len(answer)):
            want = guided_log_probs(sft, base, weight, prompt + answer[:t])
            torch.testing.assert_close(out.scores[t][n].double(), want, rtol=0, atol=2e-5)
            compared += 1
    assert compared > 2 * len(prompts) * repeats


@pytest.mark.parametrize("weight", [0.5, 3.0, -1.0])
@pytest.mark.parametrize("kind", TINY_MODELS)
def test_every_step_is_the_definitions(kind, weight):
    """Left padding, several samples of a prompt, absolute and rotary positions, a window shorter than the rows."""
    options = {"sliding_window": 4} if kind == "gemma2" else {}
    sft, base = (TINY_MODELS[kind](seed, **options) for seed in (0, 1))
    batch = left_padded(PROMPTS)
    torch.manual_seed(0)
    guide = GuidedDecodingProcessor(base, weight, **batch)
    out = sft.generate(**batch, generation_config=settings(num_return_sequences=3), logits_processor=[guide])
    check_steps(out, sft, base, weight, PROMPTS, 3, 5)
    if weight == -1.0:
        plain = base(**batch, position_ids=(batch["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits[:, -1]
        torch.testing.assert_close(out.scores[0][::3], plain.log_softmax(-1), rtol=0, atol=2e-5)


def test_weight_zero_is_the_sft_model_bit_for_bit():
    sft, batch = tiny_llama(0), left_padded(PROMPTS)
    runs = []
    for processors in (None, [GuidedDecodingProcessor(RefusesToRun(), 0.0, **batch)]):
        torch.manual_seed(0)
        runs.append(sft.generate(**batch, generation_config=settings(), logits_processor=processors))
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].scores, runs[1].scores, strict=True))


class RefusesToRun(torch.nn.Module):
    def forward(self, input_ids):
        raise AssertionError("the baseline was run")


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_it_is_the_optimum_of_myopic_dense_path_reinforce(weight):
    """In every state of a tree, with the cache growing along all its sequences at once: beta = 1 / w."""
    tree = TokenTree(vocab_size=4, max_length=4, eos=EOS)
    sft, base = (tiny_llama(seed, vocab_size=4, dtype=torch.float64) for seed in (0, 1))
    root = torch.tensor([[EOS]])
    guide = GuidedDecodingProcessor(base, weight, root)
    table, tables = {}, []
    for depth in range(tree.max_length):
        # all sequences as far as they go, as rows of one prompt; what comes after EOS is not looked at
        rows = torch.tensor([[EOS, *s, *[0] * 4][: depth + 1] for s in tree.sequences])
        with torch.no_grad():
            scores = guide(rows, sft(rows).logits[:, -1])
        for sequence, row in zip(tree.sequences, scores, strict=True):
            if len(sequence) > depth:
                table[sequence[:depth]] = row
    for model in (sft, base):
        with torch.no_grad():
            tables.append(torch.stack([model(torch.tensor([[EOS, *state]])).logits[0, -1] for state in tree.states]))
    target = myopic_optimum(tree, *(log_policy(tree, q) for q in tables), 1 / weight)
    found = log_policy(tree, torch.stack([table[state] for state in tree.states]))
    torch.testing.assert_close(found[tree.allowed], target[tree.allowed], rtol=0, atol=1e-10)
    torch.testing.assert_close(sequence_log_probs(tree, found), sequence_log_probs(tree, target), rtol=0, atol=1e-10)


def test_samples_follow_the_enumerated_distribution():
    """20,000 answers of `generate` against the probabilities of all possible ones; the SFT model's do not fit them."""
    vocabulary, steps, weight, prompt = 4, 3, 0.7, [1, 3]
    sft, base = (tiny_llama(seed, vocab_size=vocabulary) for seed in (0, 1))
    batch = left_padded([prompt])

    def probabilities(weight):
        found = {}
        for answer in itertools.product(range(vocabulary), repeat=steps):
            answer = tuple(written(torch.tensor(answer)))
            if answer not in found:
                steps_of = [guided_log_probs(sft, base, weight, prompt + list(answer[:t])) for t in range(len(answer))]
                found[answer] = sum(row[a] for row, a in zip(steps_of, answer, strict=True)).exp().item()
        assert sum(found.values()) == pytest.approx(1.0, abs=1e-6)
        return found

    torch.manual_seed(0)
    rows = sft.generate(
        **batch, generation_config=settings(steps, num_return_sequences=20_000, return_dict_in_generate=False),
        logits_processor=[GuidedDecodingProcessor(base, weight, **batch)],
    )  # fmt: skip
    expected, plain = probabilities(weight), probabilities(0.0)
    counts = dict.fromkeys(expected, 0)
    for row in rows[:, len(prompt) :]:
        counts[tuple(written(row))] += 1
    observed = [counts[answer] for answer in expected]
    assert chisquare(observed, [20_000 * p for p in expected.values()]).pvalue > 0.01
    assert chisquare(observed, [20_000 * plain[answer] for answer in expected]).pvalue < 1e-6


@pytest.mark.parametrize("beams", [3, 16])
def test_beam_search(beams):
    """Rows change places: the score of every found beam is its own log-probability; enough beams find the best."""
    vocabulary, steps, weight = 4, 3, 0.8
    sft, base = (tiny_llama(seed, vocab_size=vocabulary) for seed in (2, 3))
    prompts = [[1, 3], [3], [0, 1, 1]]
    batch = left_padded(prompts)
    out = sft.generate(
        **batch, generation_config=settings(
            steps, do_sample=False, num_beams=beams, num_return_sequences=3, length_penalty=0.0, top_k=None
        ), logits_processor=[GuidedDecodingProcessor(base, weight, **batch)],
    )  # fmt: skip

    def log_probability(prompt, answer):
        rows = [guided_log_probs(sft, base, weight, prompt + list(answer[:t])) for t in range(len(answer))]
        return sum(row[a] for row, a in zip(rows, answer, strict=True)).item()

    for n, (row, score) in enumerate(zip(out.sequences, out.sequences_scores.tolist(), strict=True)):
        prompt, answer = prompts[n // 3], written(row[3:])
        assert score == pytest.approx(log_probability(prompt, answer), abs=1e-4)
        if beams == 16 and n % 3 == 0:
            every = {tuple(written(torch.tensor(a))) for a in itertools.product(range(vocabulary), repeat=steps)}
            assert score == pytest.approx(max(log_probability(prompt, a) for a in every), abs=1e-4)


def test_any_sequence_of_calls():
    """Rows that grow by several tokens, shrink (as in assisted decoding), start again, change places, or come from
    nowhere: always the definition."""
    sft, base = tiny_llama(0), tiny_llama(1)
    batch = left_padded(PROMPTS[:2])
    guide = GuidedDecodingProcessor(base, 0.5, **batch)
    for tails in (
        [[], []], [[4], [5]], [[4, 6, 7], [5, 5, 9]], [[4, 8], [5, 6]], [[], []], [[3], [4]], [[3], [4]],
        [[5, 5], [6, 6]],
        [[7], [8], [7], [9]], [[8, 1], [7, 2], [9, 3], [7, 4]], [[7, 2, 5], [8, 1, 5], [7, 4, 5], [9, 3, 5]],
        [[7, 2, 5, 1], [7, 4, 5, 1]],
    ):  # fmt: skip
        repeats = len(tails) // 2
        ids = batch["input_ids"].repeat_interleave(repeats, dim=0)
        ids = torch.cat([ids, torch.tensor(tails, dtype=torch.long).reshape(len(tails), -1)], dim=1)
        rows = [PROMPTS[i // repeats] + tail for i, tail in enumerate(tails)]
        with torch.no_grad():
            scores = torch.stack([sft(torch.tensor([row])).logits[0, -1] for row in rows])
        want = torch.stack([guided_log_probs(sft, base, 0.5, row) for row in rows])
        torch.testing.assert_close(guide(ids, scores).double(), want, rtol=0, atol=2e-5)


def test_adapters_of_one_base():
    """The baseline is an adapter of the very model that generates, which comes back as it was."""
    model = get_peft_model(tiny_llama(0), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    model.add_adapter("early", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
        torch.nn.init.normal_(parameter, std=0.5)
    model.eval()
    flags = [p.requires_grad for p in model.parameters()]
    merged = []
    for name in ("default", "early"):
        other = get_peft_model(tiny_llama(0), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        weights = {n.replace(f".{name}.", ".default."): p for n, p in model.state_dict().items() if f".{name}." in n}
        other.load_state_dict(weights, strict=False)
        merged.append(other.merge_and_unload())
    batch = left_padded(PROMPTS)
    torch.manual_seed(0)
    guide = GuidedDecodingProcessor(FrozenLM(model, "early"), 0.5, **batch)
    out = model.generate(**batch, generation_config=settings(), logits_processor=[guide])
    check_steps(out, *merged, 0.5, PROMPTS, 1, 5)
    assert model.active_adapter == "default"
    assert [p.requires_grad for p in model.parameters()] == flags
    base = GuidedDecodingProcessor((model, None), 0.5, **batch)  # the base itself, adapters off
    out = model.generate(**batch, generation_config=settings(), logits_processor=[base])
    check_steps(out, merged[0], tiny_llama(0), 0.5, PROMPTS, 1, 5)


def t5(seed):
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=3.0)
    ).eval()


def bart(seed):
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, init_std=0.5,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    model.generation_config.forced_eos_token_id = None
    return model


@pytest.mark.parametrize("kind", [t5, bart])
def test_encoder_decoders(kind):
    sft, base = kind(0), kind(1)
    width = max(map(len, PROMPTS))
    batch = {
        "input_ids": torch.tensor([p + [PAD] * (width - len(p)) for p in PROMPTS]),
        "attention_mask": torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in PROMPTS]),
    }
    start = {"decoder_start_token_id": PAD, "bos_token_id": None}
    beams = {"do_sample": False, "num_beams": 3, "length_penalty": 0.0, "top_k": None}
    for options in ({}, beams):
        torch.manual_seed(0)
        guide = GuidedDecodingProcessor(base, 0.5, **batch)
        config = settings(num_return_sequences=2, **options, **start)
        out = sft.generate(**batch, generation_config=config, logits_processor=[guide])
        for n, row in enumerate(out.sequences):
            prompt, answer, total = torch.tensor([PROMPTS[n // 2]]), written(row[1:]), 0.0
            for t in range(len(answer)):
                want = guided_log_probs(sft, base, 0.5, [PAD, *answer[:t]], input_ids=prompt)
                total += want[answer[t]].item()
                if not options:
                    torch.testing.assert_close(out.scores[t][n].double(), want, rtol=1e-5, atol=5e-5)
            if options:
                assert out.sequences_scores[n].item() == pytest.approx(total, abs=2e-4)


def test_what_was_forbidden_stays_forbidden():
    sft, base, batch = tiny_llama(0), tiny_llama(1), left_padded(PROMPTS)
    for weight in (-1.0, 0.5):
        guide = GuidedDecodingProcessor(base, weight, **batch)
        config = settings(min_new_tokens=4, num_return_sequences=8)
        out = sft.generate(**batch, generation_config=config, logits_processor=[guide])
        for step in out.scores[:4]:
            assert (step[:, EOS] == -torch.inf).all()
            assert not step.isnan().any()


def test_a_baseline_in_training_mode_is_read_without_dropout():
    sft, base, batch = tiny_llama(0), tiny_llama(1, attention_dropout=0.9), left_padded(PROMPTS)
    base.train()
    out = sft.generate(
        **batch, generation_config=settings(), logits_processor=[GuidedDecodingProcessor(base, 0.5, **batch)]
    )
    check_steps(out, sft, base.eval(), 0.5, PROMPTS, 1, 5)
    base.train()
    GuidedDecodingProcessor(base, 0.5, **batch)(batch["input_ids"], torch.zeros(4, 64))
    assert base.training


def test_a_folder_can_be_the_baseline(tmp_path):
    sft, base, batch = tiny_llama(0), tiny_llama(1), left_padded(PROMPTS)
    base.save_pretrained(tmp_path)
    guide = GuidedDecodingProcessor(str(tmp_path), 0.5, **batch)
    check_steps(
        sft.generate(**batch, generation_config=settings(), logits_processor=[guide]), sft, base, 0.5, PROMPTS, 1, 5
    )


def test_a_call_with_other_prompts_is_refused():
    sft, base, batch = tiny_llama(0), tiny_llama(1), left_padded(PROMPTS)
    guide = GuidedDecodingProcessor(base, 0.5, **batch)
    run = lambda ids: sft.generate(input_ids=ids, generation_config=settings(), logits_processor=[guide])
    run(batch["input_ids"])
    run(batch["input_ids"])  # the same prompts again are the same call
    for ids in (batch["input_ids"] + 1, batch["input_ids"][:, 1:]):
        with pytest.raises(UserError, match="do not begin with the prompts"):
            run(ids)
    with pytest.raises(UserError, match="3 rows for 4 prompts"):
        run(batch["input_ids"][:3])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.5])
def test_bad_weights_are_refused(weight):
    with pytest.raises(UserError, match="weight"):
        GuidedDecodingProcessor(tiny_llama(1), weight, torch.tensor([[1]]))


def test_what_does_not_fit_is_refused():
    ids = torch.tensor([[1, 3]])
    with pytest.raises(UserError, match="attention_mask"):
        GuidedDecodingProcessor(tiny_llama(1), 0.5, ids, torch.ones(1, 3))
    with pytest.raises(UserError, match="vocabulary of 32"):
        GuidedDecodingProcessor(tiny_llama(1, vocab_size=32), 0.5, ids)(ids, torch.zeros(1, 64))
