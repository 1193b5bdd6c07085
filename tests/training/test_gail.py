"""GAILTrainer: each step's losses from what it sampled, what is updated when, and what changes nothing."""

import math

import pytest
import torch
from peft import LoraConfig

from helpers.data import chats, clean_chat_tokenizer, sums, text_tokenizer, tiny_for
from helpers.gail import Watched, advantages_by_hand, by_prompt, gail, read_critic, rows_of, softplus
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps, weights_moved
from inverselm import UserError
from inverselm.training.gail import GAILConfig
from inverselm.training.gail_collapse import CollapseMonitor
from inverselm.training.gail_update import first_answers
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer

OPTIONS = {
    "gamma": 0.9, "gae_lambda": 0.8, "kl_coef_start": 0.5, "kl_coef": 0.1, "kl_anneal_steps": 2, "entropy_coef": 0.05,
    "mle_coef": 0.7, "reward_shift": 0.2,
}  # fmt: skip


def log_probs(model, ids, columns):
    """(log pi, entropy) of the actions of one unpadded row."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1)
    return [(logits[c - 1, ids[c]].item(), entropy[c - 1].item()) for c in columns]


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


@pytest.mark.parametrize(("critics", "fixed"), [("full", None), ("full", by_prompt), ("head", by_prompt)])
def test_the_losses_are_those_of_its_samples(tmp_path, critics, fixed):
    """Everything that is logged, from whole logits and hidden states of the networks that were, one row at a time."""
    trainer = gail(tmp_path, critics=critics, fixed=fixed, **OPTIONS)
    trainer.train()
    logged, start = steps(trainer), tiny_for(text_tokenizer())
    assert len(trainer.seen) == len(logged) == 3
    read = lambda critic, ids: read_critic(critic, ids, start.model if critic.body is None else critic.body)
    model, eos = tiny_for(text_tokenizer()), trainer._eos_token_ids
    for entry, (step, [inputs], [own], policy, networks) in zip(logged, trainer.seen, strict=True):
        model.load_state_dict(policy, strict=False)
        demos = rows_of(inputs["input_ids"], inputs["labels"] != -100, inputs["attention_mask"])
        sampled = rows_of(own["input_ids"], own["actions"], own["attention_mask"])
        d = lambda ids, critics=networks: read(critics["discriminator"], ids)
        expert_d = [d(ids)[c] for ids, columns in demos for c in columns[:5]]
        own_d = [d(ids)[c] for ids, columns in sampled for c in columns]
        held, errors, returns = [], [], []
        for ids, columns in sampled:
            v = read(networks["value"], ids)
            values = [v[c - 1] for c in columns]
            rewards = [softplus(d(ids)[c]) - 0.2 for c in columns]
            bootstrap = 0.0 if ids[columns[-1]] in eos else v[columns[-1]]
            one = advantages_by_hand(rewards, values, bootstrap, 0.9, 0.8)
            held += one
            returns += [a + value for a, value in zip(one, values, strict=True)]
            errors += [a * a for a in one]  # G - V is A
        spread = math.sqrt(mean((a - mean(held)) ** 2 for a in held))
        scaled = [(a - mean(held)) / (spread + 1e-6) for a in held]
        mine = [x for ids, columns in sampled for x in log_probs(model, ids, columns)]
        first = [p for ids, columns in sampled for p, _ in log_probs(start, ids, columns)]
        gaps = [p - q for (p, _), q in zip(mine, first, strict=True)]
        nll = -mean(p for ids, columns in demos for p, _ in log_probs(model, ids, columns))
        kl_coef = [0.5, 0.3, 0.1][step]
        loss = mean(-a + kl_coef * gap * gap / 2 for a, gap in zip(scaled, gaps, strict=True))
        loss += 0.7 * nll - 0.05 * mean(h for _, h in mine)
        both = [-softplus(-x) for x in expert_d] + [-softplus(x) for x in own_d]
        expected = {
            "loss": loss, "nll": nll, "kl": mean(gaps), "kl_coef": kl_coef, "own_entropy": mean(h for _, h in mine),
            "ratio": 1.0, "advantage_abs": mean(map(abs, scaled)), "value_loss": mean(errors), "return": mean(returns),
            "value": mean(returns) - mean(held), "discriminator_loss": -mean(both),
            "discriminator_accuracy_expert": mean(x > 0 for x in expert_d),
            "discriminator_accuracy_own": mean(x < 0 for x in own_d),
            "discriminator_accuracy": (mean(x > 0 for x in expert_d) + mean(x < 0 for x in own_d)) / 2,
            "own_reward": mean(map(softplus, own_d)) - 0.2,
            "reward_margin": mean(map(softplus, expert_d)) - mean(map(softplus, own_d)),
            "own_length": mean(len(columns) for _, columns in sampled),
            "own_truncated": mean(ids[columns[-1]] not in eos for ids, columns in sampled),
        }  # fmt: skip
        for name, value in expected.items():
            assert entry[name] == pytest.approx(value, rel=2e-4, abs=2e-5), (step, name)
    assert logged[0]["discriminator_loss"] == pytest.approx(math.log(2.0)), "the discriminator knows nothing yet"
    assert logged[2]["discriminator_accuracy"] != logged[0]["discriminator_accuracy"]


def test_critics_are_updated_once_after_each_step(tmp_path):
    """The updates in plain torch: AdamW on the losses of the samples of the step."""
    trainer = gail(tmp_path, max_steps=2, max_grad_norm=0.0)
    trainer.train()
    _, [inputs], [own], _, before = trainer.seen[0]
    *_, after = trainer.seen[1]
    demos = rows_of(inputs["input_ids"], inputs["labels"] != -100, inputs["attention_mask"])
    sampled = rows_of(own["input_ids"], own["actions"], own["attention_mask"])
    for name in ("discriminator", "value"):
        critic = before[name].train()
        optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2, weight_decay=0.0)

        def of(ids, critic=critic):
            return critic.head(critic.body(input_ids=torch.tensor([ids])).last_hidden_state)[0, :, 0]

        if name == "discriminator":
            parts = [-of(ids)[columns[:5]] for ids, columns in demos] + [of(ids)[columns] for ids, columns in sampled]
            loss = torch.nn.functional.softplus(torch.cat(parts)).mean()
        else:
            aims = [g[acts] for g, acts in zip(own["returns"], own["actions"], strict=True)]
            found = [of(ids)[[c - 1 for c in columns]] for ids, columns in sampled]
            loss = (torch.cat(found) - torch.cat(aims)).square().mean() / 2
        loss.backward()
        optimizer.step()
        assert weights_moved(critic, after[name]) < 1e-4
        assert weights_moved(tiny_for(text_tokenizer()).model, after[name].body) < 1e-6, "a zero head moves first"
        assert weights_moved(after[name], trainer.critics.networks[name]) > 1e-3


def test_accumulation_changes_nothing(tmp_path):
    runs = []
    for size, accumulation in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        runs.append(gail(tmp_path / str(size), fixed=by_prompt, optim="sgd", **options))
        runs[-1].train()
    keys = ("loss", "grad_norm", "discriminator_loss", "value_loss", "reward_margin", "own_length", "own_truncated",
            "discriminator_accuracy_own", "own_reward")  # fmt: skip
    assert_same_steps(*runs, keys, rel=1e-3, abs_tol=1e-5)
    assert_same_weights(runs[0].model, runs[1].model, atol=1e-5)


def test_without_reward_and_kl_it_is_sft(tmp_path):
    """Advantages of a constant reward are nothing if V knows it: with them scaled to 0, the likelihood is left."""
    ours = gail(tmp_path / "a", trainer=NoAdvantage, kl_coef=0.0, kl_coef_start=0.0)
    sft = make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path / "b", td_coef=0.0), sums(), text_tokenizer())
    ours.train()
    sft.train()
    assert_same_steps(sft, ours, ("loss", "grad_norm", "nll", "entropy", "mean_token_accuracy"))
    assert_same_weights(sft.model, ours.model, atol=1e-7)


class NoAdvantage(Watched):
    def _rescaled(self, parts):
        return [torch.zeros_like(advantages) for advantages, _ in parts]


def test_samples_used_twice_keep_their_old_log_prob(tmp_path):
    trainer = gail(tmp_path, max_steps=4, rollout_every=2, kl_anneal_steps=0)
    trainer.train()
    assert [step for step, *_ in trainer.seen] == [0, 2]
    ratios = [entry["ratio"] for entry in steps(trainer)]
    assert ratios[0] == pytest.approx(1.0, abs=1e-5)
    assert ratios[2] == pytest.approx(1.0, abs=1e-5)
    assert abs(ratios[1] - 1.0) > 1e-4


@pytest.mark.parametrize("critics", ["full", "head"])
@pytest.mark.parametrize("case", ["plain", "chat", "lora", "checkpointing"])
def test_ways_to_use_it(tmp_path, case, critics):
    tokenizer = clean_chat_tokenizer() if case == "chat" else text_tokenizer()
    rows = chats() if case == "chat" else sums()
    options = {"chat": {"assistant_only_loss": True}, "checkpointing": {"gradient_checkpointing": True}}.get(case, {})
    if case == "lora":
        options["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"])
    before = tiny_for(tokenizer)
    trainer = gail(tmp_path, rows=rows, tokenizer=tokenizer, critics=critics, **options)
    trainer.train()
    assert len(trainer.seen) == 3
    assert len(steps(trainer)) == 3
    for name, critic in trainer.critics.networks.items():
        assert (critic.body is None) == (critics == "head")
        assert weights_moved(trainer.seen[0][-1][name], critic) > 1e-4
    if case == "lora":
        assert_same_weights(before, trainer.model.unload(), atol=0.0)
        return
    assert weights_moved(before, trainer.model) > 1e-4
    assert_same_weights(before, trainer.reference.model, atol=0.0)


def test_a_continued_adapter(tmp_path):
    """The initial policy is the adapter as it was, not its base."""
    from peft import get_peft_model

    model = get_peft_model(tiny_for(text_tokenizer()), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path / "sft"
    tiny_for(text_tokenizer()).save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(folder)
    trainer = gail(tmp_path / "run", model=str(folder), max_steps=2)
    trainer.train()
    first, second = (entry["kl"] for entry in steps(trainer))
    assert first == pytest.approx(0.0, abs=1e-6)
    assert abs(second) > 1e-6
    body = trainer.seen[0][-1]["value"].body
    merged = model.merge_and_unload().model
    assert_same_weights(merged, body, atol=1e-6)


def test_evaluation_is_the_likelihood(tmp_path):
    from datasets import Dataset

    rows = Dataset.from_list(sums(8))
    trainer = gail(tmp_path, eval_dataset=rows, eval_strategy="steps", eval_steps=3, max_steps=3)
    trainer.train()
    entry = steps(trainer, "eval_loss")[-1]
    assert entry["eval_loss"] == pytest.approx(entry["eval_nll"], rel=1e-4)
    assert not [name for name in entry if name.startswith("eval_own")]


def test_first_answers():
    mask = torch.tensor([[0, 1, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    assert first_answers(mask, 2).int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert first_answers(mask, 9)[0].int().tolist() == [0, 1, 1, 1, 0, 0]


def test_collapse():
    monitor = CollapseMonitor(patience=2, truncated=0.9, accuracy=0.99)
    assert monitor.update(0.9, 0.5) is None
    assert monitor.update(0.8, 0.99) is None  # not in a row
    assert "right about at least 99.0%" in monitor.update(0.9, 1.0)
    assert "ran to max_completion_length" in monitor.update(0.95, 0.5)
    never = CollapseMonitor(patience=0)
    assert [never.update(1.0, 1.0) for _ in range(50)] == [None] * 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_completion_length": 1, "collapse_truncated": 0.5}, "stopped at step 2: the policy has collapsed"),
        ({"collapse_accuracy": 0.0, "fixed": by_prompt}, "stopped at step 2: the discriminator has won"),
    ],
)
def test_a_collapsed_run_stops(tmp_path, options, message):
    trainer = gail(tmp_path, collapse_steps=2, max_steps=9, **options)
    with pytest.raises(UserError, match=message):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critics": "both"}, "critics must be one of full, head"),
        ({"kl_estimator": "k1"}, "kl_estimator must be one of"),
        ({"advantage_scale": "max"}, "advantage_scale must be one of"),
        ({"mle_coef": -1.0}, "mle_coef must be >= 0"),
        ({"gae_lambda": 1.5}, r"gae_lambda must be in \[0, 1\]"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\]"),
        ({"packing": True}, "set packing=False"),
        ({"completion_only_loss": False}, "GAIL answers prompts"),
        ({"rollout_every": 4, "save_strategy": "steps", "save_steps": 6}, "a multiple of rollout_every=4"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        arguments(GAILConfig, tmp_path, **options)


def test_learning_rates_of_the_critics(tmp_path):
    args = arguments(GAILConfig, tmp_path, learning_rate=3e-5)
    assert (args.discriminator_learning_rate, args.value_learning_rate) == (3e-5, 3e-5)
    args = arguments(GAILConfig, tmp_path, learning_rate=3e-5, critics="head")
    assert (args.discriminator_learning_rate, args.value_learning_rate) == (1e-3, 1e-3)
    args = arguments(GAILConfig, tmp_path, discriminator_learning_rate=1e-4)
    assert args.value_learning_rate == 1e-4
    assert args.mask_after_eos is True
