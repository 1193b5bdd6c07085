"""Options of IQLearnTrainer: schedule, entropy bonus, precision, what is logged, and what is refused."""

import math

import pytest
import torch
from datasets import Dataset
from scipy import stats as scipy_stats
from trl import SFTConfig

from helpers.data import chat_tokenizer, chats, sums, text_tokenizer, texts, tiny_for
from helpers.training import arguments, make, steps
from inverselm.errors import UserError
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

NO_SCHEDULE = {"mle_warmup_steps": 0, "td_anneal_steps": 0}


def run(folder, **options):
    trainer = make(IQLearnTrainer, arguments(IQLearnConfig, folder, **options), sums(), text_tokenizer())
    trainer.train()
    return trainer


@pytest.mark.parametrize("lengths", [(2, 3), (0.25, 0.375)], ids=["steps", "fractions"])
def test_td_coef_warms_up_and_anneals_in(tmp_path, lengths):
    trainer = run(tmp_path, td_coef=0.4, max_steps=8, mle_warmup_steps=lengths[0], td_anneal_steps=lengths[1])
    logged = steps(trainer)
    assert [entry["td_coef"] for entry in logged] == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    for entry in logged:  # and it is the one in the loss
        assert entry["loss"] == pytest.approx(entry["nll"] + entry["td_coef"] * entry["td_squared"], rel=1e-5)


def test_the_schedule_is_in_optimiser_steps(tmp_path):
    trainer = run(
        tmp_path, td_coef=1.0, max_steps=3, gradient_accumulation_steps=2, mle_warmup_steps=2, td_anneal_steps=0
    )
    assert [entry["td_coef"] for entry in steps(trainer)] == [0, 0, 1]


def test_entropy_bonus(tmp_path):
    plain = run(tmp_path / "a", td_coef=0.0, max_steps=20)
    bonus = run(tmp_path / "b", td_coef=0.0, entropy_coef=0.5, max_steps=20)
    for entry in steps(bonus):
        assert entry["loss"] == pytest.approx(entry["nll"] - 0.5 * entry["entropy"], rel=1e-5)
        assert "td_coef" not in entry
    assert steps(bonus)[-1]["entropy"] > steps(plain)[-1]["entropy"] + 0.01  # its gradient is taken


def test_metrics_are_what_they_say(tmp_path):
    logged = steps(run(tmp_path, td_coef=0.5, gamma=1.0, **NO_SCHEDULE))
    names = ("nll", "td_squared", "td_error", "reward", "value_first", "value_gap", "entropy", "mean_token_accuracy")
    for entry in logged:
        assert all(math.isfinite(entry[name]) for name in names)
        assert entry["td_error"] >= abs(entry["reward"])
        assert entry["td_squared"] >= entry["td_error"] ** 2
        assert 0 < entry["entropy"] <= math.log(len(text_tokenizer()))
        assert entry["value_first"] > 0  # logsumexp over 290 logits around 0
        assert entry["value_gap"] < 0  # one state's log-partition against the NLL of a whole answer


def test_metrics_of_unequal_micro_batches_are_means_over_their_actions(tmp_path):
    """Each micro-batch logs the mean over its own actions, as TRL does with entropy and accuracy."""
    one = run(tmp_path / "a", td_coef=0.5, per_device_train_batch_size=1, max_steps=1, **NO_SCHEDULE)
    (entry,) = steps(one)
    assert entry["loss"] == pytest.approx(entry["nll"] + 0.5 * entry["td_squared"], rel=1e-5)


def test_a_value_is_not_rounded_to_bfloat16(tmp_path):
    seen = []

    class Watched(IQLearnTrainer):
        def objective(self, stats, num_actions):
            seen.append(stats)
            return super().objective(stats, num_actions)

    args = arguments(IQLearnConfig, tmp_path, td_coef=0.5, bf16=True, max_steps=1, **NO_SCHEDULE)
    model = tiny_for(text_tokenizer())
    trainer = make(Watched, args, sums(), text_tokenizer(), model)
    dtypes = []
    trainer.model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda m, a, out: dtypes.append(out.dtype))
    trainer.train()
    assert dtypes == [torch.bfloat16]  # autocast was on
    stats = seen[-1]  # of the whole batch; the ones before are chunks
    for tensor in (stats.value, stats.next_value, stats.action_logit):
        assert tensor.dtype == torch.float32
        numbers = tensor[stats.action_mask & (tensor != 0)]
        assert (numbers != numbers.bfloat16().float()).float().mean() > 0.9
    assert math.isfinite(steps(trainer)[0]["grad_norm"])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"td_coef": -0.1}, ["td_coef"]),
        ({"gamma": 1.5}, ["gamma"]),
        ({"gamma": -0.1}, ["gamma"]),
        ({"mle_warmup_steps": -1}, ["mle_warmup_steps"]),
        ({"td_anneal_steps": -0.5}, ["td_anneal_steps"]),
        ({"td_coef": 0.1, "entropy_coef": 0.1}, ["td_coef", "entropy_coef"]),
        ({"loss_type": "dft"}, ["loss_type", "dft"]),
        ({"label_smoothing_factor": 0.1}, ["label_smoothing_factor"]),
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_config_is_built(tmp_path, options, names):
    with pytest.raises(UserError) as caught:
        arguments(IQLearnConfig, tmp_path, **options)
    assert all(name in str(caught.value) for name in names)


def test_what_the_trainer_refuses(tmp_path):
    with pytest.raises(UserError, match="IQLearnConfig"):
        make(IQLearnTrainer, arguments(SFTConfig, tmp_path), sums(), text_tokenizer())
    args = arguments(IQLearnConfig, tmp_path)
    with pytest.raises(UserError, match="compute_loss_func"):
        make(IQLearnTrainer, args, sums(), text_tokenizer(), compute_loss_func=lambda *a, **k: 0)
    wrapped = {"packing": True, "packing_strategy": "wrapped", "max_length": 32}
    with pytest.raises(UserError, match="packing_strategy"):
        make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path, **wrapped), chats(), chat_tokenizer())
    make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path, td_coef=0.0, **wrapped), chats(), chat_tokenizer())
    make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path, **wrapped), texts(), text_tokenizer())


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    import copy

    tokenizer = copy.deepcopy(text_tokenizer())
    tokenizer.eos_token = None
    rows = [{"input_ids": [300 % 290, 5, 6, 7], "labels": [-100, 5, 6, 7]}] * 4
    with pytest.raises(UserError, match="EOS"):
        make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path), rows, tokenizer, tiny_for(text_tokenizer()))


def grammar(seed, count):
    """Sentences of a small grammar: an article, adjectives, a noun and a verb that agrees with it."""
    import random

    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        noun, plural = rng.choice(["cat", "dog", "bird"]), rng.random() < 0.5
        adjectives = [rng.choice(["big", "old", "red"]) for _ in range(rng.randint(0, 2))]
        words = [*adjectives, noun + "s" * plural, rng.choice(["run", "sit"]) + "s" * (not plural)]
        rows.append({"prompt": "those" if plural else "that", "completion": " " + " ".join(words)})
    return rows


@pytest.mark.slow
def test_iqlearn_lowers_the_td_error_below_maximum_likelihood(tmp_path):
    """Over 6 seeds, at the same number of steps, |delta| on held-out sentences; and the NLL stays close."""
    errors, nlls = {0.0: [], 0.5: []}, {0.0: [], 0.5: []}
    tokenizer = text_tokenizer()
    for seed in range(6):
        for td_coef in errors:
            args = arguments(
                IQLearnConfig, tmp_path, td_coef=td_coef, seed=seed, optim="adamw_torch", learning_rate=1e-2,
                max_steps=40, per_device_train_batch_size=8, logging_steps=40, per_device_eval_batch_size=64,
            )  # fmt: skip
            held_out = Dataset.from_list(grammar(1000 + seed, 64))
            trainer = make(
                IQLearnTrainer, args, grammar(seed, 128), tokenizer, tiny_for(tokenizer, seed), eval_dataset=held_out
            )
            trainer.train()
            found = trainer.evaluate()
            errors[td_coef].append(found["eval_td_error"])
            nlls[td_coef].append(found["eval_nll"])
    test = scipy_stats.ttest_rel(errors[0.5], errors[0.0], alternative="less")
    assert test.pvalue < 0.001, (errors, test)
    assert sum(nlls[0.5]) < 1.5 * sum(nlls[0.0]), nlls
