"""Extrapolated adapters: the logits of the model whose merged weights are extrapolated, for every kind of LoRA."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.data import text_tokenizer, tiny_for
from helpers.models import tiny_gpt2
from inverselm.errors import UserError
from inverselm.inference.extrapolate import extrapolate

IDS = torch.arange(24).view(2, 12)
PLAIN = {"r": 2, "target_modules": ["q_proj", "down_proj"]}


def llama():
    return tiny_for(text_tokenizer(), 5)


def gpt2():
    return tiny_gpt2(5, vocab_size=len(text_tokenizer()), eos_token_id=0, pad_token_id=1)


def save_base(root, build=llama):
    build().save_pretrained(root / "base")
    text_tokenizer().save_pretrained(root / "base")
    return root / "base"


def save_adapter(root, name, seed, build=llama, **config):
    torch.manual_seed(seed)
    model = get_peft_model(build(), LoraConfig(**{**PLAIN, **config}))
    model.peft_config["default"].base_model_name_or_path = str(root / "base")
    for key, parameter in model.named_parameters():
        if "lora_" in key or parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(root / name)
    text_tokenizer().save_pretrained(root / name)
    return root / name


def load(root, name):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "base"), str(root / name))


def merged(root, name):
    """A model with the adapter in its weights, float64; of the base, the base."""
    if name == "base":
        return AutoModelForCausalLM.from_pretrained(root / "base").double()
    return load(root, name).double().merge_and_unload()


def logits(model):
    with torch.no_grad():
        return model.double().eval()(IDS).logits


def by_definition(root, sft, base, weight):
    """Logits of theta_SFT + w (theta_SFT - theta_base), of merged models."""
    model, a, b = merged(root, sft), merged(root, sft).state_dict(), merged(root, base).state_dict()
    model.load_state_dict({name: a[name] + weight * (a[name] - b[name]) for name in a})
    return logits(model)


KINDS = {
    "plain": (llama, {"lora_alpha": 3}),
    "rslora": (llama, {"use_rslora": True, "lora_alpha": 5}),
    "patterns": (
        llama,
        {
            "rank_pattern": {"down_proj": 3, "layers.1.self_attn.q_proj": 1},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 4, "q_proj": 7},
        },
    ),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "lora_alpha": 3}),
    "biases and whole modules": (gpt2, {"target_modules": ["c_proj"], "bias": "all", "modules_to_save": ["ln_f"],
                                        "fan_in_fan_out": True}),
    "conv1d": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
}  # fmt: skip


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_merged_models(tmp_path, kind, weight):
    build, config = KINDS[kind]
    save_base(tmp_path, build)
    sft, base = (save_adapter(tmp_path, n, s, build, **config) for s, n in enumerate(("sft", "early")))
    out = extrapolate(sft, base, weight, tmp_path / "out")
    wanted = by_definition(tmp_path, "sft", "early", weight)
    torch.testing.assert_close(logits(load(tmp_path, "out")), wanted, rtol=1e-4, atol=1e-4)
    if weight != -1.0:
        assert (wanted - logits(merged(tmp_path, "sft"))).abs().max() > 0.1
    assert {file.name for file in out.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "inverselm.json", "tokenizer.json"),
        "tokenizer_config.json",
    }


def test_extrapolating_the_factors_would_be_something_else(tmp_path):
    save_base(tmp_path)
    sft, base = (save_adapter(tmp_path, n, s) for s, n in enumerate(("sft", "early")))
    extrapolate(sft, base, 1.0, tmp_path / "out")
    factors, a, b = load(tmp_path, "sft"), load(tmp_path, "sft").state_dict(), load(tmp_path, "early").state_dict()
    factors.load_state_dict({name: 2 * a[name] - b[name] for name in a})
    assert (logits(factors) - by_definition(tmp_path, "sft", "early", 1.0)).abs().max() > 0.1
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.size(0) for n, t in tensors.items() if "lora_A" in n} == {4}


@pytest.mark.parametrize("weight", [0.5, -1.0])
def test_against_the_base_itself(tmp_path, weight):
    """The baseline is the pretrained model: the adapter scaled by 1 + w, of the same rank."""
    base = save_base(tmp_path)
    sft = save_adapter(tmp_path, "sft", 0, rank_pattern={"down_proj": 3}, lora_alpha=5)
    extrapolate(sft, base, weight, tmp_path / "out")
    wanted = by_definition(tmp_path, "sft", "base", weight)
    torch.testing.assert_close(logits(load(tmp_path, "out")), wanted, rtol=1e-4, atol=1e-4)
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("sft", "out"))
    assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}


def test_the_sft_adapters_dtype_is_kept(tmp_path):
    save_base(tmp_path)
    sft, base = (save_adapter(tmp_path, n, s) for s, n in enumerate(("sft", "early")))
    file = sft / "adapter_model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    out = extrapolate(sft, base, 0.5, tmp_path / "out")
    assert {t.dtype for t in load_file(out / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_kinds_that_do_not_go_together_are_refused(tmp_path):
    save_base(tmp_path)
    sft, base = (save_adapter(tmp_path, n, s) for s, n in enumerate(("sft", "early")))
    merged(tmp_path, "early").float().save_pretrained(tmp_path / "full")
    text_tokenizer().save_pretrained(tmp_path / "full")
    other = json.loads((base / "adapter_config.json").read_text())
    for a, b in ((sft, tmp_path / "full"), (tmp_path / "full", base)):
        with pytest.raises(UserError, match="merge adapters into their base"):
            extrapolate(a, b, 0.5, tmp_path / "out")
    (base / "adapter_config.json").write_text(json.dumps({**other, "base_model_name_or_path": "elsewhere"}))
    with pytest.raises(UserError, match="an adapter of elsewhere"):
        extrapolate(sft, base, 0.5, tmp_path / "out")


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        ({"use_dora": True}, {"use_dora": True}, "its use_dora makes it more than plain LoRA"),
        ({"lora_bias": True}, {"lora_bias": True}, "its lora_bias makes it more"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa' changes the base"),
        ({"r": 3}, {}, "differ in base_model.model.*lora_[AB]"),
        ({"target_modules": ["q_proj"]}, {}, "differ in base_model.model.*down_proj"),
        ({"modules_to_save": ["norm"]}, None, "holds base_model.model.model.*norm.weight in full"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(tmp_path, own, other, message):
    base = save_base(tmp_path)
    sft = save_adapter(tmp_path, "sft", 0, **own)
    early = base if other is None else save_adapter(tmp_path, "early", 1, **other)
    with pytest.raises(UserError, match=message):
        extrapolate(sft, early, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_kinds_of_adapters_are_refused(tmp_path):
    from peft import IA3Config

    save_base(tmp_path)
    for seed, name in enumerate(("sft", "early")):
        torch.manual_seed(seed)
        model = get_peft_model(
            llama(), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        )
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        for key, parameter in model.named_parameters():
            if "ia3" in key:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / name)
        text_tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(UserError, match="is a IA3 adapter, not LoRA"):
        extrapolate(tmp_path / "sft", tmp_path / "early", 0.5, tmp_path / "out")


def test_an_adapter_without_usable_weights_is_refused(tmp_path):
    save_base(tmp_path)
    sft, baseline = save_adapter(tmp_path, "sft", 1), save_adapter(tmp_path, "old", 2)
    (baseline / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"old: has no readable adapter_model\.safetensors"):
        extrapolate(sft, baseline, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
