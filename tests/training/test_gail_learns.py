"""Over seeds: GAIL improves what it says it improves, on prompts and draws that it was not trained on."""

import pytest
from datasets import Dataset

from helpers.data import tiny_for
from helpers.grammar import LETTERS, demonstrations, grammar_tokenizer, improves, valid
from helpers.training import QUIET
from inverselm.inference.generate import generate
from inverselm.training.gail import GAILConfig, GAILTrainer
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer


def answers(model, count=128, seed=12345):
    prompts = [f"{LETTERS[i % 4]}:" for i in range(count)]
    drawn = generate(model, grammar_tokenizer(), prompts, max_new_tokens=8, batch_size=count, seed=seed, progress=False)
    return [(prompt, completion.text) for prompt, [completion] in zip(prompts, drawn, strict=True)]


def share_valid(model):
    found = answers(model)
    return sum(valid(prompt, text) for prompt, text in found) / len(found)


def trained(trainer, config, model, folder, rows, **options):
    args = config(str(folder), **{**QUIET, "logging_steps": 50, "lr_scheduler_type": "constant", **options})
    run = trainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=grammar_tokenizer())
    run.train()
    vars(run.model).pop("forward", None)  # TRL's, which would be copied with the model
    return run.model


@pytest.mark.slow
def test_more_answers_pass_for_demonstrations(tmp_path):
    """From an under-trained SFT model, by the discriminator alone: neither likelihood nor KL are in the loss."""

    def measure(seed):
        rows, model = demonstrations(64, seed=seed), tiny_for(grammar_tokenizer(), seed)
        sft = {"td_coef": 0.0, "max_steps": 12, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "seed": seed}
        model = trained(IQLearnTrainer, IQLearnConfig, model, tmp_path / f"sft{seed}", rows, **sft)
        before = share_valid(model)
        gail = {
            "mle_coef": 0.0, "kl_coef_start": 0.0, "kl_coef": 0.0, "reward_shift": 0.6931, "max_completion_length": 8,
            "learning_rate": 1e-3, "discriminator_learning_rate": 1e-2, "max_steps": 60, "seed": seed,
            "per_device_train_batch_size": 32, "collapse_steps": 0,
        }  # fmt: skip
        model = trained(GAILTrainer, GAILConfig, model, tmp_path / f"gail{seed}", rows, **gail)
        return before, share_valid(model)

    improves(measure, seeds=range(1, 6))  # the setting was chosen on seed 0
