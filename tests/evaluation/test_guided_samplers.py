"""`guided=0.5` as a sampler: the answers of guided decoding, measured as the model's own."""

import pytest
import torch

from helpers.data import sums, text_tokenizer, tiny_for
from helpers.models import tiny_llama
from helpers.seq2seq import tiny_t5
from inverselm.errors import UserError
from inverselm.evaluation import evaluate
from inverselm.inference.generate import generate

ROWS = [{**row, "prompt": "so " * (i * 7 % 4) + row["prompt"]} for i, row in enumerate(sums(6))]
PROMPTS = [row["prompt"] for row in ROWS]


@pytest.fixture(scope="module")
def models():
    """A model, its baseline, and their tokenizer."""
    tokenizer = text_tokenizer()
    return tiny_for(tokenizer, seed=0), tiny_for(tokenizer, seed=1), tokenizer


def rows_of(model, tokenizer, samplers, **kwargs):
    shared = {"task": "exact_match", "num_samples": 2, "max_new_tokens": 6, "batch_size": 64, "seed": 3}
    return evaluate(model, tokenizer, ROWS, samplers=samplers, progress=False, **(shared | kwargs))


def ids_of(row):
    """(prompts, samples) token ids."""
    groups = [[] for _ in ROWS]
    for record in row.records:
        groups[record["example"]].append(tuple(record["token_ids"]))
    return groups


SETTINGS = {
    "T=0.7,top_p=0.9,guided=0.5": {"temperature": 0.7, "top_p": 0.9, "num_return": 2, "guidance_weight": 0.5},
    "guided=-0.5": {"temperature": 1.0, "num_return": 2, "guidance_weight": -0.5},
    "greedy,guided=1.5": {"temperature": 0.0, "guidance_weight": 1.5},
    "beam=3,guided=1": {"temperature": 0.0, "num_beams": 3, "guidance_weight": 1.0},
}


@pytest.mark.parametrize("sampler", SETTINGS)
def test_answers_are_those_of_guided_decoding(models, sampler):
    model, baseline, tokenizer = models
    unguided = sampler.split("guided")[0].strip(",") or "T=1"
    guided, plain = rows_of(model, tokenizer, [sampler, unguided], guided_by=baseline)
    shared = {"max_new_tokens": 6, "batch_size": len(ROWS), "seed": 3, "progress": False}
    expected = generate(model, tokenizer, PROMPTS, guided_by=baseline, **shared, **SETTINGS[sampler])
    assert ids_of(guided) == [[answer.token_ids for answer in group] for group in expected]
    assert ids_of(guided) != ids_of(plain)
    assert guided.settings["guidance_weight"] == SETTINGS[sampler]["guidance_weight"]
    assert plain.settings["guidance_weight"] == 0.0


def test_weight_zero_is_no_guidance(models):
    model, baseline, tokenizer = models
    [zero] = rows_of(model, tokenizer, ["T=1.0,guided=0", "T=1.0"], guided_by=baseline)
    [plain] = rows_of(model, tokenizer, ["T=1.0"])
    assert zero.sampler == "T=1.0"
    assert zero.records == plain.records
    assert rows_of(model, tokenizer, ["guided=0"])[0].records == plain.records, "nor needs it a baseline"


def test_weight_minus_one_is_the_baseline(models):
    model, baseline, tokenizer = models
    [guided] = rows_of(model, tokenizer, ["greedy,guided=-1"], guided_by=baseline)
    [own] = rows_of(baseline, tokenizer, ["greedy"])
    assert ids_of(guided) == ids_of(own)
    assert [r["log_prob"] for r in guided.records] != pytest.approx([r["log_prob"] for r in own.records])


def test_log_prob_and_entropy_are_the_models_own(models):
    model, baseline, tokenizer = models
    [row] = rows_of(model, tokenizer, ["T=0.5,guided=2"], guided_by=baseline)
    for record in row.records:
        prompt = tokenizer(record["prompt"])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *record["token_ids"]]])).logits[0, len(prompt) - 1 : -1]
        log_pi = logits.double().log_softmax(-1)
        chosen = log_pi.gather(1, torch.tensor(record["token_ids"])[:, None]).sum()
        assert record["log_prob"] == pytest.approx(float(chosen), rel=1e-5)
        assert record["entropy"] == pytest.approx(float(-(log_pi.exp() * log_pi).sum(-1).mean()), rel=1e-5)


def test_the_best_of_guided_answers_by_the_models_own_likelihood(models):
    model, baseline, tokenizer = models
    [row] = rows_of(model, tokenizer, ["best_of=3,by=sum_log_prob,guided=1"], guided_by=baseline)
    for i in range(len(ROWS)):
        group = [record for record in row.records if record["example"] == i]
        assert [record["score"] for record in group] == [record["log_prob"] for record in group]
        assert [r["chosen"] for r in group].index(True) == max(range(3), key=lambda k: group[k]["score"])


def test_adapters_of_one_base_in_one_model(models):
    from peft import LoraConfig, get_peft_model

    _, _, tokenizer = models
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(tiny_for(tokenizer, seed=4), config)
    model.add_adapter("earlier", config)
    whole = []
    for name in ("default", "earlier"):
        model.set_adapter(name)
        copy = tiny_for(tokenizer, seed=4)
        merged = get_peft_model(copy, config)
        merged.load_state_dict(_renamed(model.state_dict(), name), strict=False)
        whole.append(merged.merge_and_unload())
    model.set_adapter("default")
    [shared] = rows_of(model, tokenizer, ["greedy,guided=1"], guided_by=(model, "earlier"))
    [apart] = rows_of(whole[0], tokenizer, ["greedy,guided=1"], guided_by=whole[1])
    assert ids_of(shared) == ids_of(apart)
    assert [r["log_prob"] for r in shared.records] == pytest.approx([r["log_prob"] for r in apart.records], rel=1e-4)
    assert model.active_adapter == "default"


def _renamed(state, name):
    """The weights of one adapter under the name of the default one."""
    kept = {k: v for k, v in state.items() if f".{name}." in k or "lora_" not in k}
    return {k.replace(f".{name}.", ".default."): v for k, v in kept.items()}


def test_encoder_decoders_too():
    tokenizer = text_tokenizer()
    model, baseline = (tiny_t5(seed=seed, vocab_size=len(tokenizer)) for seed in (0, 1))
    for one in (model, baseline):
        one.generation_config.eos_token_id = one.config.eos_token_id = tokenizer.eos_token_id
    [row] = rows_of(model, tokenizer, ["greedy,guided=1"], guided_by=baseline)
    expected = generate(
        model, tokenizer, PROMPTS, temperature=0.0, max_new_tokens=6, guided_by=baseline, guidance_weight=1.0,
        progress=False,
    )  # fmt: skip
    assert ids_of(row) == [[answer.token_ids for answer in group] for group in expected]


def test_a_guided_sampler_needs_a_baseline(models):
    model, _, tokenizer = models
    with pytest.raises(UserError, match=r"sampler greedy,guided=0.5: is guided by a baseline, and there is none"):
        rows_of(model, tokenizer, ["greedy", "greedy,guided=0.5"])
    with pytest.raises(UserError, match="vocabulary"):
        rows_of(model, tokenizer, ["guided=0.5"], guided_by=tiny_llama(vocab_size=len(tokenizer) + 1))
