import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.data import text_tokenizer, tiny_for


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of full models, with their tokenizer: "sft", "early", "earlier"."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("sft", "early", "earlier")):
        tiny_for(text_tokenizer(), seed).save_pretrained(root / name)
        text_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Folders of a "base" and of adapters on it, "sft" and "early", and the same merged: "sft_merged", ..."""
    root = tmp_path_factory.mktemp("adapters")
    base = tiny_for(text_tokenizer(), 5)
    base.save_pretrained(root / "base")
    text_tokenizer().save_pretrained(root / "base")
    for seed, name in enumerate(("sft", "early")):
        torch.manual_seed(seed)
        model = get_peft_model(tiny_for(text_tokenizer(), 5), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        model.peft_config["default"].base_model_name_or_path = str(root / "base")
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(root / name)
        text_tokenizer().save_pretrained(root / name)
        model.merge_and_unload().save_pretrained(root / f"{name}_merged")
        text_tokenizer().save_pretrained(root / f"{name}_merged")
    return root
