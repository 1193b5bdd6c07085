"""Answers to one prompt share its computation, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from helpers.data import text_tokenizer
from helpers.models import TINY_MODELS
from inverselm.scorers import QFunctionReward, TokenReward
from inverselm.scorers.prefix import PrefixedBatch, plan

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 11, 12, 13], [5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 10], [5, 11, 12, 13]]
COMPLETIONS = [[20, 21, 2], [22], [23, 24, 25, 26], [27, 2], [28, 29, 2]]


def sliding(seed, **_):
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4, initializer_range=0.5,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def scorers(build, **options):
    tokenizer = text_tokenizer()
    first, second = build(seed=1), build(seed=2)
    reward = TokenReward.from_checkpoints(first, second, tokenizer=tokenizer, **options)
    return {"ratio": reward, "bellman": QFunctionReward.from_checkpoint(first, tokenizer=tokenizer)}


def score(scorer, share, **options):
    scorer.shares_prompts = share
    return scorer.score_ids(PROMPTS, COMPLETIONS, **options)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.rewards, b.rewards, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.ref_log_prob, b.ref_log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ratio", "bellman"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("family", TINY_MODELS)
def test_sharing_changes_no_number(family, batch_size, kind):
    scorer = scorers(TINY_MODELS[family])[kind]
    masks = [[1, 0, 1], [1], [1, 1, 0, 0], [1, 1], [0, 1, 1]]
    for action_masks in (None, masks):
        alone = score(scorer, False, batch_size=batch_size, action_masks=action_masks)
        assert_same(score(scorer, True, batch_size=batch_size, action_masks=action_masks), alone)
        assert scorer.shares_prompts or family == "gemma2"  # its layers slide; no other falls back
        assert any(scores.rewards.abs().max() > 1e-3 for scores in alone)


def test_centred_rewards_share_too():
    scorer = scorers(TINY_MODELS["llama"], centred=True)["ratio"]
    assert_same(score(scorer, True), score(scorer, False))


def test_prompts_are_read_once():
    scorer = scorers(TINY_MODELS["llama"])["bellman"]
    read = []
    scorer.model.model.model.embed_tokens.register_forward_hook(lambda m, args, out: read.append(args[0].numel()))
    score(scorer, False)
    alone, read[:] = sum(read), []
    score(scorer, True)
    assert read == [2 * 5, 5 * (1 + 4)]  # two prompts without their last tokens; then last tokens with answers
    assert sum(read) < alone


def test_a_sliding_window_is_not_shared_and_still_right():
    scorer = scorers(sliding)["ratio"]
    alone = score(scorer, False)
    assert_same(score(scorer, True), alone)
    assert not scorer.shares_prompts
    # 4 tokens of window, prompts of 6: had the window been ignored, numbers would differ
    assert any(scores.rewards.abs().max() > 1e-3 for scores in alone)


def test_a_scorer_that_does_not_know_of_it_gets_plain_batches():
    scorer = scorers(TINY_MODELS["llama"])["ratio"]
    seen = []

    class Own(type(scorer)):
        def score_with_reference(self, batch):
            seen.append(batch)
            return super().score_with_reference(batch)

    scorer.__class__ = Own
    score(scorer, False)
    assert not any(isinstance(batch, PrefixedBatch) for batch in seen)
    seen.clear()
    score(scorer, True)
    assert all(isinstance(batch, PrefixedBatch) for batch in seen)


def test_plan_takes_every_row_once_and_shares_only_where_that_pays():
    for share in (False, True):
        batches, _ = plan(PROMPTS, COMPLETIONS, 2, share=share)
        assert sorted(i for rows in batches for i in rows) == list(range(5))
        assert max(map(len, batches)) == 2
    assert plan(PROMPTS, COMPLETIONS, 16, share=True)[1]
    assert not plan(PROMPTS, COMPLETIONS, 16, share=False)[1]
    assert not plan(PROMPTS, COMPLETIONS, 1, share=True)[1]  # rows alone have nobody to share with
    different = [[5, k, 7, 8] for k in range(5)]
    assert not plan(different, COMPLETIONS, 16, share=True)[1]
    assert not plan([[5]] * 5, COMPLETIONS, 16, share=True)[1]  # a single token is nobody's prefix
    lengths = [6, 1, 9, 3, 4]
    batches, _ = plan([[5, 6]] * 5, [[7] * n for n in lengths], 2, share=False)
    assert batches == [[2, 0], [4, 3], [1]]
