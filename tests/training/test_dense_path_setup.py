"""DensePathTrainer around its numbers: adapters on one base, checkpoints of rollouts, what is refused, learning."""

import logging
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from scipy import stats as scipy_stats
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from helpers.data import sums, tiny_for, toy_tokenizer
from helpers.rollouts import BASELINE, ELSEWHERE, SFT, dense_path, minus, of_rollout, padded, toy_reward
from helpers.training import arguments, steps
from inverselm.errors import UserError
from inverselm.scorers.markers import write_marker
from inverselm.training.dense_path import DensePathConfig, DensePathTrainer
from inverselm.training.loading import load_policy_and_reward

BASE = 5


def adapter(folder, base_folder, seed):
    """An adapter with weights that matter, saved."""
    torch.manual_seed(seed)
    model = get_peft_model(tiny_for(toy_tokenizer(), BASE), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
        torch.nn.init.normal_(parameter, std=0.5)
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return model.merge_and_unload().eval()


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """An SFT run with adapters: (folder, merged SFT model, merged baseline); the run holds its baseline."""
    root = tmp_path_factory.mktemp("lora")
    tiny_for(toy_tokenizer(), BASE).save_pretrained(root / "base")
    sft = adapter(root / "sft", root / "base", 0)
    baseline = adapter(root / "sft" / "baseline", root / "base", 1)
    write_marker(root / "sft" / "baseline", "baseline")
    return root / "sft", sft, baseline


def test_adapters_live_on_one_base_and_only_the_policys_changes(lora_run, tmp_path):
    folder, sft, baseline = lora_run
    policy, reward = load_policy_and_reward(folder)
    assert reward.sft.model is policy
    assert all(frozen.model is policy for frozen in reward.baselines)
    whole = sum(p.numel() for p in tiny_for(toy_tokenizer(), BASE).parameters())
    counts = {name: sum(p.numel() for n, p in policy.named_parameters() if f".{name}." in n)
              for name in ("default", "sft", "sft_baseline")}  # fmt: skip
    assert sum(p.numel() for p in policy.parameters()) == whole + sum(counts.values())
    assert len(set(counts.values())) == 1
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for name in before:  # the policy starts at the SFT model
        if ".default." in name:
            assert torch.equal(before[name], before[name.replace(".default.", ".sft.")])
    trainer = dense_path(tmp_path, policy, reward, max_steps=3, kl_coef=0.2, save_strategy="steps", save_steps=3)
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".default." in n}
    assert all(p.requires_grad == (".default." in n) for n, p in trainer.model.named_parameters())
    first = trainer.seen[0]
    expected = minus(of_rollout(first, sft), of_rollout(first, baseline))
    assert steps(trainer)[0]["reward"] == pytest.approx(sum(map(sum, expected)) / 8, rel=1e-3)
    assert abs(steps(trainer)[0]["kl"]) < 1e-5  # to the SFT adapter, not to the base
    assert max(abs(entry["kl"]) for entry in steps(trainer)[1:]) > 1e-4
    trainer.save_model(str(tmp_path / "final"))
    for saved in (tmp_path / "final", tmp_path / "checkpoint-3"):
        assert not [p.name for p in saved.iterdir() if p.is_dir()]
        again = PeftModel.from_pretrained(tiny_for(toy_tokenizer(), BASE), str(saved))
        for name, parameter in again.named_parameters():
            assert torch.equal(parameter, dict(trainer.model.named_parameters())[name]), name


def test_the_sft_adapter_is_not_the_base(lora_run, tmp_path):
    folder, sft, _ = lora_run
    policy, reward = load_policy_and_reward(folder, policy=folder / "baseline")
    trainer = dense_path(tmp_path, policy, reward, kl_coef=0.5, kl_in="loss", kl_estimator="k3")
    trainer.train()
    (first,) = trainer.seen
    width = first["advantages"].size(1)
    torch.testing.assert_close(first["ref_per_token_logps"], padded(of_rollout(first, sft), width), rtol=0, atol=1e-4)
    base = padded(of_rollout(first, tiny_for(toy_tokenizer(), BASE)), width)
    assert (first["ref_per_token_logps"] - base).abs().max() > 0.1
    assert steps(trainer)[0]["kl"] != pytest.approx(0, abs=1e-2)


def test_full_models_are_loaded_apart(tmp_path):
    for seed, folder in ((SFT, tmp_path), (BASELINE, tmp_path / "baseline")):
        tiny_for(toy_tokenizer(), seed).save_pretrained(folder)
        toy_tokenizer().save_pretrained(folder)
    write_marker(tmp_path / "baseline", "baseline")
    policy, reward = load_policy_and_reward(tmp_path)
    assert policy is not reward.sft.model
    assert all(p.requires_grad for p in policy.parameters())
    assert not any(p.requires_grad for p in reward.sft.model.parameters())
    frozen = {n: p.clone() for n, p in reward.sft.model.named_parameters()}
    trainer = dense_path(tmp_path / "out", policy, reward, max_steps=2)
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in reward.sft.model.named_parameters())
    trainer.save_model(str(tmp_path / "out"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert any(not torch.equal(p, frozen[n]) for n, p in saved.named_parameters())
    elsewhere, _ = load_policy_and_reward(tmp_path, policy=tmp_path / "baseline")
    assert torch.equal(elsewhere.lm_head.weight, tiny_for(toy_tokenizer(), BASELINE).lm_head.weight)


def test_it_warns_when_the_policy_runs_away(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer = dense_path(
        tmp_path, ELSEWHERE, max_steps=7, learning_rate=1e-6, warn_kl=0.01, per_device_train_batch_size=4
    )
    trainer.train()
    told = [r.getMessage() for r in caplog.records if "KL to the SFT model is" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("Step 5:")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"kl_coef": -1.0}, ["kl_coef"]),
        ({"gamma": 1.1}, ["gamma"]),
        ({"kl_in": "loss"}, ["kl_in", "k1"]),
        ({"kl_in": "loss", "kl_estimator": "k3", "loss_type": "grpo"}, ["kl_in", "loss_type"]),
        ({"kl_in": "both"}, ["kl_in", "both"]),
        ({"kl_estimator": "k4"}, ["kl_estimator"]),
        ({"credit": "all"}, ["credit"]),
        ({"variance_reduction": "critic"}, ["variance_reduction"]),
        ({"advantage_scale": "max"}, ["advantage_scale"]),
        ({"beta": 0.1}, ["kl_coef", "beta"]),
        ({"temperature": 0.7}, ["temperature", "kl_coef"]),
        ({"importance_sampling_level": "sequence"}, ["importance_sampling_level"]),
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_config_is_built(tmp_path, options, names):
    with pytest.raises(UserError) as caught:
        arguments(DensePathConfig, tmp_path, num_generations=4, **options)
    assert all(name in str(caught.value) for name in names)


def test_what_without_a_kl_is_allowed(tmp_path):
    for options in ({"kl_coef": 0.0, "temperature": 0.7}, {"kl_coef": 0.0, "kl_in": "loss"}):
        arguments(DensePathConfig, tmp_path, num_generations=4, **options)


def test_what_the_trainer_refuses(tmp_path):
    rows = Dataset.from_list([{"prompt": "1+1="}])
    model, args = tiny_for(toy_tokenizer()), arguments(DensePathConfig, tmp_path, num_generations=4)
    build = lambda reward, args, **more: DensePathTrainer(
        model, reward, args=args, train_dataset=rows, processing_class=toy_tokenizer(), **more
    )
    with pytest.raises(UserError, match="DensePathConfig"):
        build(toy_reward(), arguments(GRPOConfig, tmp_path, num_generations=4))
    with pytest.raises(UserError, match="scorer"):
        build(lambda **columns: [0.0], args)
    args.reward_weights = [1.0, 2.0]
    with pytest.raises(UserError, match="reward_weights has 2 entries for 1"):
        build(toy_reward(), args, reward_funcs=[lambda **columns: [0.0]])


def test_checkpoints_land_on_the_ends_of_rollouts(tmp_path):
    def config(**options):
        return arguments(DensePathConfig, tmp_path, num_generations=4, save_strategy="steps", **options)

    spread = {"steps_per_generation": 6, "gradient_accumulation_steps": 2}
    assert config(**spread).steps_per_rollout == 3
    assert [config(save_steps=n, **spread).save_steps for n in (1, 3, 4, 9, 10)] == [3, 3, 6, 9, 12]
    assert config(save_steps=7, gradient_accumulation_steps=2).save_steps == 7
    assert config(num_iterations=2).steps_per_rollout == 2
    assert config(save_steps=0.5, **spread).save_steps == 0.5


def test_it_does_not_resume_inside_a_rollout(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    options = {"steps_per_generation": 2, "per_device_train_batch_size": 4, "save_strategy": "steps", "max_steps": 4}
    first = dense_path(tmp_path, save_steps=1, **options)
    assert first.args.save_steps == 2
    first.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-3")  # as another tool may leave it
    for named in (str(tmp_path / "checkpoint-3"), str(tmp_path / "checkpoint-3") + "/", tmp_path / "checkpoint-3"):
        with pytest.raises(UserError, match="inside a rollout of 2"):
            dense_path(tmp_path, save_steps=2, **options).train(resume_from_checkpoint=named)
    resumed = dense_path(tmp_path, save_steps=2, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert len(resumed.seen) == 1  # the rollout of steps 3 and 4; checkpoint-3 was passed over
    assert "from the beginning" not in caplog.text
    for step in (2, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    anew = dense_path(tmp_path, save_steps=2, **options)
    anew.train(resume_from_checkpoint=True)
    assert len(anew.seen) == 2
    assert "from the beginning" in caplog.text


@pytest.mark.slow
def test_it_raises_its_own_objective(tmp_path):
    """Over 6 seeds, mean dense reward - kl_coef KL of fresh answers, after training against the SFT start."""
    gains, kl_coef = [], 0.5
    held_out = Dataset.from_list([{"prompt": row["prompt"]} for row in sums(8)])
    for seed in range(6):
        trainer = dense_path(
            tmp_path, SFT, max_steps=12, per_device_train_batch_size=16, optim="adamw_torch", learning_rate=1e-2,
            kl_coef=kl_coef, eval_dataset=held_out, num_generations_eval=8, per_device_eval_batch_size=64, seed=seed,
            max_completion_length=6, logging_steps=12,
        )  # fmt: skip
        value = []
        for _ in range(2):
            found = trainer.evaluate()
            value.append(found["eval_reward"] - kl_coef * found["eval_kl_sequence"])
            if len(value) == 1:
                assert abs(found["eval_kl"]) < 1e-5
                trainer.train()
        gains.append(value[1] - value[0])
    test = scipy_stats.ttest_1samp(gains, 0.0, alternative="greater")
    assert test.pvalue < 0.01, (gains, test)
