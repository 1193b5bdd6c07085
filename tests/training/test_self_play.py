"""One iteration of self-play: TRL's losses where TRL has them, plain Python where not, and what is logged."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer

from helpers.data import sums, text_tokenizer, tiny_for
from helpers.rollouts import action_log_probs
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps, weights_moved
from inverselm import SelfPlayConfig, SelfPlayTrainer, UserError
from inverselm.objectives import SELF_PLAY_LOSSES

TOKENIZER = text_tokenizer()
EOS = TOKENIZER.eos_token_id


def preferences():
    """Real answers, and others in the place of own ones; the last two are equal."""
    rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": " no" + r["completion"]} for r in sums(12)]
    return rows[:-2] + [{**row, "rejected": row["chosen"]} for row in rows[-2:]]


def token_ids(rows):
    """The same as token ids."""
    ids = lambda text: TOKENIZER(text)["input_ids"]
    found = []
    for row in rows:
        real, own = (ids(row["prompt"] + row[side] + TOKENIZER.eos_token) for side in ("chosen", "rejected"))
        n = len(ids(row["prompt"]))
        assert real[:n] == own[:n] == ids(row["prompt"])
        found.append({"prompt_ids": real[:n], "chosen_ids": real[n:], "rejected_ids": own[n:]})
    return found


def one(folder, rows=None, trainer=SelfPlayTrainer, model=None, **options):
    args = arguments(SelfPlayConfig, folder, **{"learning_rate": 0.02, **options})
    return make(trainer, args, token_ids(preferences()) if rows is None else rows, TOKENIZER, model)


@pytest.mark.parametrize(
    ("loss_type", "theirs", "ours"),
    [
        ("spin", {"loss_type": ["sigmoid"], "beta": 0.3}, {"beta": 0.3}),
        ("gsil_bernoulli", {"loss_type": ["bco_pair"], "beta": 0.3}, {"gsil_scale": 0.3, "gsil_offset": 0.0}),
        ("spin", {"loss_type": ["sigmoid"], "gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 2}),
    ],
)
def test_it_is_trls_trainer_where_trl_has_the_loss(tmp_path, loss_type, theirs, ours):
    """Against DPOTrainer with the reference in memory, read at every step."""
    settings = {"learning_rate": 0.05, "max_steps": 4}
    args = arguments(DPOConfig, tmp_path / "a", **settings, **theirs)
    dpo = make(DPOTrainer, args, preferences(), TOKENIZER, ref_model=tiny_for(TOKENIZER))
    mine = one(tmp_path / "b", loss_type=loss_type, **settings, **ours)
    dpo.train()
    mine.train()
    keys = ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "num_tokens")
    assert_same_steps(dpo, mine, keys, rel=1e-4, abs_tol=1e-5)
    assert_same_weights(dpo.model, mine.model)
    assert weights_moved(tiny_for(TOKENIZER), mine.model) > 1e-3


class Watched(SelfPlayTrainer):
    """Keeps every batch, and the weights that it met."""

    def __init__(self, *args, **kwargs):
        self.seen, self.references = [], 0
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs, return_outputs):
        weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.seen.append((inputs, weights))
        return super()._compute_loss(model, inputs, return_outputs)

    def compute_ref_log_probs(self, model, inputs):
        self.references += 1
        return super().compute_ref_log_probs(model, inputs)


def naive(loss_type, r, g):
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    u, v = 0.4 * r + 0.5, 0.4 * g + 0.5
    return {
        "spin": -math.log(sigmoid(0.2 * (r - g))),
        "gsil_bernoulli": -math.log(sigmoid(u)) - math.log(1 - sigmoid(v)),
        "gsil_brier": (1 - sigmoid(u)) ** 2 + sigmoid(v) ** 2,
        "gsil_hinge": max(0, 1 - u) + max(0, 1 + v),
        "gsil_kliep": -u + math.exp(v),
        "gsil_lsif": -math.exp(u) + math.exp(2 * v) / 2,
    }[loss_type]


@pytest.mark.parametrize("loss_type", SELF_PLAY_LOSSES)
def test_the_loss_is_that_of_its_batches(tmp_path, loss_type):
    """Each step's numbers, from whole logits of unpadded rows; some own answers are cut, one is empty, some equal."""
    rows = token_ids(preferences())
    rows[0]["rejected_ids"] = rows[0]["rejected_ids"][:-1]
    rows[1]["rejected_ids"] = [EOS]
    settings = {"beta": 0.2, "gsil_scale": 0.4, "gsil_offset": 0.5, "max_steps": 3}
    trainer = one(tmp_path, rows, Watched, loss_type=loss_type, per_device_train_batch_size=6, **settings)
    assert trainer.references == 2  # 12 rows, 6 at a time
    trainer.train()
    assert trainer.references == 2
    start, model, covered = tiny_for(TOKENIZER), tiny_for(TOKENIZER), set()
    for entry, (inputs, weights) in zip(steps(trainer), trainer.seen, strict=True):
        model.load_state_dict(weights, strict=False)
        pairs = []
        for ids, real, mask in zip(
            *(inputs[n] for n in ("input_ids", "attention_mask", "completion_mask")), strict=True
        ):
            prompt, answer = ids[real.bool() & ~mask.bool()].tolist(), ids[mask.bool()].tolist()
            ratio = sum(action_log_probs(model, prompt, answer)) - sum(action_log_probs(start, prompt, answer))
            pairs.append((ratio, answer))
        (real, own) = pairs[:6], pairs[6:]
        numbers = [(r, g) for (r, _), (g, _) in zip(real, own, strict=True)]
        factor = 0.2 if loss_type == "spin" else 0.4
        expected = {
            "loss": sum(naive(loss_type, *n) for n in numbers) / 6,
            "rewards/margins": factor * sum(r - g for r, g in numbers) / 6,
            "log_ratio/real": sum(r for r, _ in numbers) / 6,
            "log_ratio/generated": sum(g for _, g in numbers) / 6,
            "generated_length": sum(len(a) for _, a in own) / 6,
            "generated_truncated": sum(a[-1] != EOS for _, a in own) / 6,
            "generated_equal": sum(a == b for (_, a), (_, b) in zip(real, own, strict=True)) / 6,
        }
        assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=1e-4)
        covered |= {name for name in expected if expected[name]}
    assert {"generated_truncated", "generated_equal", "rewards/margins"} <= covered


def test_share_of_pairs_ranked_right(tmp_path):
    trainer = one(tmp_path, token_ids(preferences()[:4]), beta=1.0, learning_rate=0.1, max_steps=5)
    trainer.train()
    logged = [entry["rewards/accuracies"] for entry in steps(trainer)]
    assert logged[-1] == 1.0
    assert all(0.0 <= share <= 1.0 for share in logged)


def test_at_the_end_of_a_row_an_answer_is_cut(tmp_path):
    """`max_length` cuts real answers and own ones; a cut own one counts as truncated."""
    rows = token_ids(preferences()[:4])
    longest = max(len(r["prompt_ids"]) for r in rows)
    trainer = one(tmp_path, rows, max_length=longest + 1, max_steps=1)
    trainer.train()
    assert steps(trainer)[0]["generated_truncated"] == 1.0
    assert steps(trainer)[0]["generated_length"] <= 1 + longest - min(len(r["prompt_ids"]) for r in rows)


def test_an_adapter_is_its_own_reference(tmp_path):
    """An adapter that has been trained before: the reference is it as handed over, and no copy of it stays."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_for(TOKENIZER), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    trainer = one(tmp_path, model=model, learning_rate=0.1)
    assert list(trainer.model.peft_config) == ["default"]
    trainer.train()
    first, *_, last = steps(trainer)
    assert first["log_ratio/real"] == pytest.approx(0.0, abs=1e-5)
    assert abs(last["log_ratio/real"]) > 1e-3
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists()


def test_evaluation(tmp_path):
    rows = Dataset.from_list(token_ids(preferences()))
    args = arguments(SelfPlayConfig, tmp_path, eval_strategy="steps", eval_steps=2, max_steps=2, learning_rate=0.05,
                     per_device_eval_batch_size=6)  # fmt: skip
    trainer = make(SelfPlayTrainer, args, list(rows), TOKENIZER, eval_dataset=rows)
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert before["eval_generated_equal"] == pytest.approx(2 / 12)
    trainer.train()
    after = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_rewards/margins"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmoid"}, "loss_type must be one of spin, gsil_bernoulli"),
        ({"loss_type": ["spin", "gsil_lsif"]}, "loss_type must be one of"),
        ({"iterations": 0}, "iterations must be 1 or more"),
        ({"max_completion_length": 0}, "max_completion_length must be 1 or more"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"gsil_scale": -1.0}, "gsil_scale must be above 0"),
        ({"gsil_offset": math.nan}, "gsil_offset must be a number"),
        ({"label_smoothing": 0.1}, "label_smoothing belongs to DPO"),
        ({"sync_ref_model": True}, "sync_ref_model belongs to DPO"),
    ],
)
def test_configurations_that_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        arguments(SelfPlayConfig, tmp_path, **options)


def test_published_defaults(tmp_path):
    args = SelfPlayConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (args.beta, args.gsil_scale, args.gsil_offset, args.learning_rate) == (0.1, 0.01, 2.0, 5e-7)


def test_trainers_that_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs a SelfPlayConfig"):
        make(SelfPlayTrainer, arguments(DPOConfig, tmp_path), token_ids(preferences()), TOKENIZER)
    args = arguments(SelfPlayConfig, tmp_path)
    with pytest.raises(UserError, match="pass no ref_model"):
        make(SelfPlayTrainer, args, token_ids(preferences()), TOKENIZER, ref_model=tiny_for(TOKENIZER, 1))
