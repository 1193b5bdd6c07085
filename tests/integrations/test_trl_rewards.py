"""Token rewards in TRL's own trainers: the ids that were sampled reach the scorer, and its numbers reach the loss."""

from functools import partial

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from helpers.data import chat_tokenizer, chats, sums, text_tokenizer, tiny_for
from helpers.rollouts import BASELINE, SFT, action_log_probs
from helpers.training import arguments, steps
from inverselm import UserError
from inverselm.inference import answer_scores
from inverselm.integrations.trl import SequenceReward
from inverselm.scorers import FrozenLM, TokenReward


def watched(trainer):
    """The trainer's class, keeping what it samples and what its reward functions return."""

    class Watched(trainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            self.seen = getattr(self, "seen", [])
            self.seen += list(zip(prompts, completions, completion_ids_list, found.tolist(), strict=True))
            return found

    return Watched


def reward_of(tokenizer, **options):
    models = [FrozenLM(tiny_for(tokenizer, seed)) for seed in (SFT, BASELINE)]
    return SequenceReward(TokenReward(tokenizer, models[0], models[1:]), **options)


def by_hand(tokenizer, prompt, ids):
    """log pi_SFT - log pi_baseline of each token, from unpadded rows."""
    if isinstance(prompt, str):
        asked = tokenizer(prompt)["input_ids"]
    else:
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    sft, base = (action_log_probs(tiny_for(tokenizer, seed), asked, list(ids)) for seed in (SFT, BASELINE))
    return [a - b for a, b in zip(sft, base, strict=True)]


def run(folder, trainer, config, tokenizer, rows, reward, **options):
    settings = {"max_steps": 2, "num_generations": 4, "max_completion_length": 8, "per_device_train_batch_size": 8}
    args = arguments(config, folder, **{**settings, **options})
    made = watched(trainer)(
        tiny_for(tokenizer), reward_funcs=reward, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    made.train()
    return made


@pytest.mark.parametrize(
    ("trainer", "config", "by", "chat"),
    [
        (GRPOTrainer, GRPOConfig, "sum", False),
        (GRPOTrainer, GRPOConfig, "length_controlled", True),
        (RLOOTrainer, partial(RLOOConfig, beta=0.0), "mean", False),
    ],
    ids=["grpo", "grpo-chat", "rloo"],
)
def test_stock_trainers_are_paid_by_the_sampled_ids(tmp_path, trainer, config, by, chat):
    tokenizer = chat_tokenizer() if chat else text_tokenizer()
    rows = [{"prompt": r["messages"][:1]} for r in chats()] if chat else [{"prompt": r["prompt"]} for r in sums()]
    made = run(tmp_path, trainer, config, tokenizer, rows, reward_of(tokenizer, by=by, name="dense"))
    assert len(made.seen) == 16
    again = 0
    for part in (made.seen[:8], made.seen[8:]):  # one call each
        want = answer_scores(
            [by_hand(tokenizer, prompt, ids) for prompt, _, ids, _ in part], [str(row[0]) for row in part], by=by
        )
        assert [row[3][0] for row in part] == pytest.approx(want, abs=1e-3)
    for _, completion, ids, _ in made.seen:
        text = completion if isinstance(completion, str) else completion[0]["content"]
        bare = [i for i in ids if i not in tokenizer.all_special_ids]
        again += tokenizer(text, add_special_tokens=False)["input_ids"] != bare
    assert again > 4, "many of these answers would have other tokens if their text was tokenised again"
    assert any(ids[-1] != tokenizer.eos_token_id for _, _, ids, _ in made.seen), "some were cut"
    logged = steps(made)
    mean = sum(row[3][0] for row in made.seen[:8]) / 8
    assert logged[0]["rewards/dense/mean"] == pytest.approx(mean, abs=1e-3)
    if trainer is GRPOTrainer and by == "length_controlled":
        assert all(abs(entry.get("rewards/dense/length_correlation", 0.0)) < 1e-5 for entry in logged)


def test_without_ids_the_text_is_tokenised_and_ended():
    tokenizer = text_tokenizer()
    reward = reward_of(tokenizer)
    [found] = reward(["Q: 1+2="], [" 3"])
    whole = tokenizer("Q: 1+2= 3")["input_ids"] + [tokenizer.eos_token_id]
    ids = whole[len(tokenizer("Q: 1+2=")["input_ids"]) :]
    assert found == pytest.approx(sum(by_hand(tokenizer, "Q: 1+2=", ids)), abs=1e-4)
    [cut] = reward(["Q: 1+2="], [" 3"], completion_ids=[ids[:-1]])
    assert cut == pytest.approx(sum(by_hand(tokenizer, "Q: 1+2=", ids[:-1])), abs=1e-4)
    assert abs(cut - found) > 1e-3


def test_prompts_may_be_encoded_otherwise():
    tokenizer = text_tokenizer()
    ids = tokenizer(" 3")["input_ids"]
    plain, other = (
        reward_of(tokenizer),
        reward_of(tokenizer, encode_prompt=lambda p: tokenizer("Hm. " + p)["input_ids"]),
    )
    assert other(["1+2="], [" 3"], completion_ids=[ids]) == plain(["Hm. 1+2="], [" 3"], completion_ids=[ids])


def test_what_it_cannot_score_is_refused():
    tokenizer = chat_tokenizer()
    reward = reward_of(tokenizer)
    talk = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
    with pytest.raises(UserError, match="DensePathTrainer"):
        reward([[{"role": "user", "content": "x"}]], [talk], completion_ids=[[5, 6]])
    with pytest.raises(UserError, match="by is 'max'"):
        reward_of(tokenizer, by="max")
    with pytest.raises(UserError, match="needs a scorer"):
        SequenceReward(lambda: None)
