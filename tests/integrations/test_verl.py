"""Token rewards in verl's batches.

The batches are stand-ins of verl 0.9.1's `DataProto` (`.batch`, `.non_tensor_batch`), laid out as its rollout, its
reward worker and its agent loop lay them out; with verl installed, its own class and registry are used too.
"""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from helpers.data import text_tokenizer, tiny_for
from helpers.loops import run
from helpers.rollouts import action_log_probs
from inverselm import UserError
from inverselm.integrations.verl import TokenRewardLoopManager, TokenRewardManager, token_level_rewards
from inverselm.scorers import FrozenLM, QFunctionReward

PROMPTS = [[11, 12, 13, 14], [21, 22], [31]]
RESPONSES = [[41, 42], [51, 52, 53, 54, 55], []]
PAD = 0


@pytest.fixture(scope="module")
def scorer():
    tokenizer = text_tokenizer()
    return QFunctionReward(tokenizer, FrozenLM(tiny_for(tokenizer)), kind="log_prob")


@pytest.fixture(scope="module")
def want(scorer):
    """log pi of every token, row by row, without padding."""
    return [action_log_probs(scorer.model.model, p, r) if r else [] for p, r in zip(PROMPTS, RESPONSES, strict=True)]


def padded(rows, width, side):
    blank = lambda row: [PAD] * (width - len(row))
    ids = [blank(row) + row if side == "left" else row + blank(row) for row in rows]
    mask = [[0] * len(blank(r)) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(blank(r)) for r in rows]
    return torch.tensor(ids), torch.tensor(mask)


def rollout(prompt_side="left", **extra):
    """Prompts padded on the left, responses on the right, one mask over both; `right` as in its reward workers."""
    prompts, mask = padded(PROMPTS, 6, prompt_side)
    responses, response_mask = padded(RESPONSES, 7, "right")
    batch = {"prompts": prompts, "responses": responses, "attention_mask": torch.cat([mask, response_mask], dim=1)}
    return SimpleNamespace(batch={**batch, **extra}, non_tensor_batch={})


def matrix(rows, width=7):
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_response_token_has_its_reward(scorer, want, side):
    found = token_level_rewards(scorer, rollout(side), batch_size=2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, matrix(want), rtol=1e-4, atol=1e-4)


def test_a_tools_tokens_are_read_and_not_paid(scorer, want):
    mask = torch.zeros(3, 7, dtype=torch.long)
    mask[0, :2], mask[1, [0, 3, 4]] = 1, 1
    found = token_level_rewards(scorer, rollout(response_mask=mask))
    torch.testing.assert_close(found, matrix(want) * mask, rtol=1e-4, atol=1e-4)


def test_a_manager_of_whole_batches(scorer, want):
    manager = TokenRewardManager(scorer)
    both = manager(rollout(), return_dict=True)
    torch.testing.assert_close(both["reward_tensor"], manager(rollout()))
    torch.testing.assert_close(both["reward_tensor"], matrix(want), rtol=1e-4, atol=1e-4)
    assert both["reward_extra_info"]["token_reward_sum"] == pytest.approx([sum(row) for row in want], abs=1e-3)


def loop_manager(folder, **options):
    tokenizer = text_tokenizer()
    tiny_for(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = SimpleNamespace(reward={"reward_kwargs": {"sft": str(folder), "kind": "log_prob", **options}})
    # verl passes what its own managers take
    return TokenRewardLoopManager(
        config=config, tokenizer=tokenizer, compute_score=None, reward_router_address=None, reward_model_tokenizer=None
    )


def one_of(data, i):
    return SimpleNamespace(batch={k: v[i : i + 1] for k, v in data.batch.items()}, non_tensor_batch={})


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_reward_loop_from_rows_to_a_batch(tmp_path, want, level):
    manager, data = loop_manager(tmp_path, level=level), rollout("right")

    async def all_rows():
        return await asyncio.gather(*(manager.run_single(one_of(data, i)) for i in range(3)))

    outputs = run(all_rows())
    for output, row in zip(outputs, want, strict=True):
        assert output["reward_extra_info"]["token_reward_sum"] == pytest.approx(sum(row), abs=1e-3)
        score = output["reward_score"]
        assert score == pytest.approx(row if level == "token" else sum(row), abs=1e-3)
    found = type(manager).assemble_rm_scores(data, [output["reward_score"] for output in outputs])
    if level == "token":
        torch.testing.assert_close(found, matrix(want), rtol=1e-4, atol=1e-4)
    else:
        last = matrix([[0.0], [0.0] * 4 + [sum(want[1])], []])
        last[0, 1] = sum(want[0])
        torch.testing.assert_close(found, last, rtol=1e-4, atol=1e-4)


def test_the_agent_loops_lengths_stand_in_for_its_mask(tmp_path, want):
    """Several turns of one trajectory: ids padded on the right, and a mask that does not follow their columns."""
    manager = loop_manager(tmp_path)
    prompts, _ = padded(PROMPTS[:2], 4, "right")
    responses, _ = padded(RESPONSES[:2], 5, "right")
    mask, _ = padded([[1] * 6, [1] * 7], 7, "right")
    lengths = {"prompt_len": [4, 2], "response_len": [2, 5]}
    data = SimpleNamespace(
        batch={"prompts": prompts, "responses": responses, "attention_mask": mask}, non_tensor_batch=lengths
    )
    found = run(manager.run_single(data))
    assert found["reward_score"] == pytest.approx(sum(want[1]), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": "word"}, "level"), ({"kind": "x"}, "kind"), ({"sft": ""}, "sft"), ({"baseline": "b"}, "baseline")],
)
def test_bad_settings_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=f"reward.reward_kwargs.{message}"):
        loop_manager(tmp_path, **options)


def test_bad_batches_are_named(scorer):
    data = rollout()
    del data.batch["attention_mask"]
    with pytest.raises(UserError, match="attention_mask"):
        token_level_rewards(scorer, data)
    data = rollout()
    data.batch["attention_mask"][1, :6] = 0
    with pytest.raises(UserError, match="prompt of the batch has no token"):
        token_level_rewards(scorer, data)


def test_with_verl_itself(tmp_path, scorer, want):
    verl = pytest.importorskip("verl", reason="verl is not installed")
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls

    data = verl.DataProto.from_single_dict(dict(rollout().batch))
    torch.testing.assert_close(TokenRewardManager(scorer)(data), matrix(want), rtol=1e-4, atol=1e-4)
    tokenizer = text_tokenizer()
    tiny_for(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    module = {"path": "pkg://inverselm.integrations.verl"}
    manager = {"source": "importlib", "name": "TokenRewardLoopManager", "module": module}
    kwargs = {"sft": str(tmp_path), "kind": "log_prob", "level": "token"}
    config = OmegaConf.create({"reward": {"reward_manager": manager, "reward_kwargs": kwargs}})
    made = load_reward_manager(config, tokenizer, reward_router_address=None, reward_model_tokenizer=None)
    scores = [run(made.run_single(data[i : i + 1]))["reward_score"] for i in range(3)]
    found = resolve_reward_manager_cls(config).assemble_rm_scores(data, scores)
    torch.testing.assert_close(found, matrix(want), rtol=1e-4, atol=1e-4)
