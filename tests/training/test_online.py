"""Online IQLearn: its loss from what was sampled, when it samples, and where it is the offline method."""

import pytest
import torch
from peft import LoraConfig

from helpers.data import chats, clean_chat_tokenizer, sums, text_tokenizer, tiny_for
from helpers.training import arguments, assert_same_steps, assert_same_weights, make, steps, weights_moved
from inverselm import UserError
from inverselm.training.iqlearn import IQLearnConfig, IQLearnTrainer
from inverselm.training.online import OnlineIQLearnConfig, OnlineIQLearnTrainer, prompts_of

NOW = {"mle_warmup_steps": 0, "td_anneal_steps": 0}


class Watched(OnlineIQLearnTrainer):
    """Keeps what was sampled, and from which weights."""

    def __init__(self, *args, fixed=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.fixed = [], fixed

    def _rollout(self, batches):
        samples = super()._rollout(batches)
        if self.fixed is not None:
            prompts = [prompts_of(self._token_batch(inputs)) for inputs in batches]
            samples = [self._as_tensors(group, [self.fixed[len(p)] for p in group]) for group in prompts]
        weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.seen.append((self.state.global_step, batches, samples, weights))
        return samples


def online(folder, rows=None, tokenizer=None, trainer=Watched, model=None, fixed=None, **options):
    tokenizer = text_tokenizer() if tokenizer is None else tokenizer
    settings = {"td_coef": 0.3, "mix_in": 0.4, "max_completion_length": 5, **NOW, **options}
    more = {} if fixed is None else {"fixed": fixed}
    return make(trainer, arguments(OnlineIQLearnConfig, folder, **settings), rows or sums(), tokenizer, model, **more)


def test_without_own_samples_it_is_the_offline_trainer(tmp_path):
    tokenizer = text_tokenizer()
    offline = make(IQLearnTrainer, arguments(IQLearnConfig, tmp_path / "a", td_coef=0.3, **NOW), sums(), tokenizer)
    ours = online(tmp_path / "b", mix_in=0.0)
    offline.train()
    ours.train()
    assert not ours.seen
    assert_same_steps(offline, ours, ("loss", "grad_norm", "reward", "td_error", "value_first", "entropy"))
    assert_same_weights(offline.model, ours.model, atol=0.0)


def test_the_loss_is_that_of_its_samples(tmp_path):
    """Each step's logged loss, from whole logits of the weights that sampled, one row at a time."""
    trainer = online(tmp_path, gamma=0.9)
    trainer.train()
    logged = steps(trainer)
    assert len(trainer.seen) == len(logged) == 3
    model = tiny_for(text_tokenizer())
    for entry, (_, [inputs], [own], weights) in zip(logged, trainer.seen, strict=True):
        model.load_state_dict(weights, strict=False)
        demonstrations = inputs["input_ids"], inputs["labels"] != -100, inputs["attention_mask"]
        sampled = own["input_ids"], own["actions"], own["attention_mask"]
        expert, mine = (_residuals(model, rows, trainer._eos_token_ids, 0.4, 0.9) for rows in (demonstrations, sampled))
        nll = sum(n for n, _ in expert) / len(expert)
        squared = [sum(r * r for _, r in part) / len(part) for part in (expert, mine)]
        assert entry["loss"] == pytest.approx(nll + 0.3 * (0.6 * squared[0] + 0.4 * squared[1]), rel=1e-4)
        assert entry["nll"] == pytest.approx(nll, rel=1e-4)
        assert entry["own_td_squared"] == pytest.approx(squared[1], rel=1e-4)
        assert entry["own_reward"] == pytest.approx(sum(r for _, r in mine) / len(mine), rel=1e-4, abs=1e-5)
        assert entry["own_length"] == pytest.approx(len(mine) / len(own["finished"]), rel=1e-6)
        assert entry["own_truncated"] == pytest.approx(1 - own["finished"].mean().item(), abs=1e-6)


def _residuals(model, rows, eos, mix_in, gamma):
    """(-log pi, r) of every action."""
    found = []
    with torch.no_grad():
        for ids, actions, real in zip(*rows, strict=True):
            ids, actions = ids[real.bool()], actions[real.bool()]
            logits = model(ids[None]).logits[0].double()
            values = logits.logsumexp(-1)
            places = actions.nonzero().flatten().tolist()
            for at in places:
                log_prob = logits[at - 1, ids[at]] - values[at - 1]
                ends = at == places[-1]
                after = 0.0 if ends and int(ids[at]) in eos else values[at]
                found.append((-log_prob.item(), float(values[at - 1] + log_prob / (1 - mix_in) - gamma * after)))
    return found


def test_samples_answer_the_batches_prompts_and_come_from_the_policy(tmp_path):
    trainer = online(tmp_path, max_steps=2)
    trainer.train()
    for _, [inputs], [own], _ in trainer.seen:
        prompts = [ids[(labels == -100) & real.bool()].tolist() for ids, labels, real in zip(
            inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True)]  # fmt: skip
        begun = [ids[real & ~actions].tolist() for ids, actions, real in zip(
            own["input_ids"], own["actions"], own["attention_mask"], strict=True)]  # fmt: skip
        assert begun == prompts
        assert own["actions"].any(dim=1).all()
        assert own["actions"].sum(dim=1).max() <= 5
    first, second = (own["input_ids"] for _, _, [own], _ in trainer.seen)
    assert first.shape != second.shape or not torch.equal(first, second)


def test_it_samples_every_k_steps_and_not_during_the_warm_up(tmp_path):
    trainer = online(tmp_path, max_steps=6, rollout_every=2, mle_warmup_steps=3)
    trainer.train()
    # step 3 is the first with a temporal difference: samples are needed at once, then anew at even steps
    assert [step for step, *_ in trainer.seen] == [3, 4]
    assert ["own_reward" in entry for entry in steps(trainer)] == [False] * 3 + [True] * 3


def test_accumulation_changes_nothing(tmp_path):
    """The same demonstrations and samples, in one micro-batch or in four."""
    from inverselm.inference.generate import Completion

    eos = text_tokenizer().eos_token_id
    fixed = {n: Completion("", (*range(5, 5 + n % 3), eos) if n % 2 else (7, 8, 9), bool(n % 2)) for n in range(40)}
    runs = []
    for size, accumulation in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        runs.append(online(tmp_path / str(size), fixed=fixed, **options))
        runs[-1].train()
    assert_same_steps(*runs, ("loss", "grad_norm", "own_reward"), rel=1e-4)
    assert_same_weights(runs[0].model, runs[1].model, atol=1e-5)


@pytest.mark.parametrize("case", ["chat", "lora", "padded", "checkpointing"])
def test_ways_to_use_it(tmp_path, case):
    tokenizer = clean_chat_tokenizer() if case == "chat" else text_tokenizer()
    rows = chats() if case == "chat" else sums()
    options = {"chat": {"assistant_only_loss": True}, "padded": {"pad_to_multiple_of": 16}}.get(case, {})
    options |= {"gradient_checkpointing": True} if case == "checkpointing" else {}
    args = arguments(OnlineIQLearnConfig, tmp_path, td_coef=0.3, mix_in=0.4, max_completion_length=5, **NOW, **options)
    more = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])} if case == "lora" else {}
    trainer = make(Watched, args, rows, tokenizer, **more)
    trainer.train()
    assert len(trainer.seen) == 3
    assert all(entry["own_length"] >= 1 for entry in steps(trainer))
    if case != "lora":
        assert weights_moved(tiny_for(tokenizer), trainer.model) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_in": 1.0}, r"mix_in must be in \[0, 1\)"),
        ({"mix_in": 0.1, "td_coef": 0.0}, "set td_coef above 0"),
        ({"mix_in": 0.1, "packing": True}, "set packing=False"),
        ({"mix_in": 0.1, "rollout_every": 0}, "rollout_every must be 1 or more"),
        (
            {"mix_in": 0.1, "rollout_every": 4, "save_strategy": "steps", "save_steps": 6},
            "a multiple of rollout_every=4",
        ),
        ({"mix_in": 0.1, "rollout_every": 4, "save_strategy": "epoch"}, "set save_strategy='steps'"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        arguments(OnlineIQLearnConfig, tmp_path, **{"td_coef": 0.1, **options})


def test_a_prompt_without_room(tmp_path):
    trainer = online(tmp_path, max_completion_length=10_000)
    with pytest.raises(UserError, match="max_new_tokens"):
        trainer.train()
