"""TokenReward against two models and a plain loop; every kind of source gives the same numbers."""

import random

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.data import chat_tokenizer, chats, sums, text_tokenizer, tiny_for
from inverselm.errors import UserError
from inverselm.scorers import FrozenLM, QFunctionReward, TokenReward, load_adapters

PROMPTS = [row["prompt"] for row in sums(9)]
ANSWERS = [row["completion"] for row in sums(9)]


def log_probs(model, prompt, completion):
    """log softmax over the vocabulary at each state of one unpadded row, (C, V) float64."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(dim=-1)


def of_actions(model, prompt, completion):
    return log_probs(model, prompt, completion).gather(1, torch.tensor(completion)[:, None])[:, 0]


def ids(text):
    return text_tokenizer().encode(text)


def pair_ids(i):
    return ids(PROMPTS[i]), [*ids(ANSWERS[i]), text_tokenizer().eos_token_id]


def make(seeds=(0, 1), **options):
    frozen = [FrozenLM(tiny_for(text_tokenizer(), seed)) for seed in seeds]
    return TokenReward(text_tokenizer(), frozen[0], frozen[1:], **options)


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_rewards_are_those_of_a_loop_over_two_models(batch_size):
    found = make().score(PROMPTS, ANSWERS, batch_size=batch_size)
    sft, base = tiny_for(text_tokenizer(), 0), tiny_for(text_tokenizer(), 1)
    for i, scored in enumerate(found):
        prompt, completion = pair_ids(i)
        assert [token.token_id for token in scored.tokens] == completion
        same(scored.rewards, of_actions(sft, prompt, completion) - of_actions(base, prompt, completion))
        assert scored.total == pytest.approx(sum(scored.rewards))
        assert scored.terminated
    assert max(abs(r) for scored in found for r in scored.rewards) > 0.5


def test_order_does_not_matter():
    order = list(range(9))
    random.Random(0).shuffle(order)
    straight = make().score(PROMPTS, ANSWERS, batch_size=3)
    mixed = make().score([PROMPTS[i] for i in order], [ANSWERS[i] for i in order], batch_size=4)
    for place, i in enumerate(order):
        assert mixed[place].text == straight[i].text
        same(mixed[place].rewards, straight[i].rewards)


def test_ids_are_scored_as_given():
    """A cut in other places than the tokenizer's: the ids' own rewards, not those of the text."""
    tokenizer = text_tokenizer()
    text = " ok ok"
    single = [tokenizer.convert_tokens_to_ids(c) for c in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(
        text
    )[0][0]]  # fmt: skip
    single = [*single, *single, 1]
    assert tokenizer.decode(single[:-1]) == text
    assert tokenizer.encode(text) != single[:-1]
    reward = make()
    scored = reward.score(["Q: 1+1="], [single])[0]
    assert [token.token_id for token in scored.tokens] == single
    prompt, models = ids("Q: 1+1="), [tiny_for(tokenizer, seed) for seed in (0, 1)]
    same(scored.rewards, of_actions(models[0], prompt, single) - of_actions(models[1], prompt, single))
    (by_ids,) = reward.score_ids([prompt], [single])
    same(by_ids.rewards, scored.rewards)
    same(by_ids.ref_log_prob, of_actions(models[0], prompt, single))
    assert not scored.terminated  # 1 is <|pad|>, no EOS


def test_tokens_the_policy_did_not_choose_get_nothing():
    reward = make()
    prompt, completion = pair_ids(3)
    mask = [1] * len(completion)
    mask[1] = 0
    (whole,) = reward.score_ids([prompt], [completion])
    some, other = reward.score_ids([prompt] * 2, [completion, completion[:3]], [mask, [1, 1, 1]])
    same(some.rewards, whole.rewards * torch.tensor(mask))
    same(some.ref_log_prob, whole.ref_log_prob * torch.tensor(mask))
    same(other.rewards, whole.rewards[:3])
    assert whole.rewards[1] != 0


def test_without_eos_the_answer_counts_as_cut():
    ended, cut = make().score(PROMPTS[:1], ANSWERS[:1])[0], make().score(PROMPTS[:1], ANSWERS[:1], add_eos=False)[0]
    assert (ended.terminated, cut.terminated) == (True, False)
    assert len(ended.tokens) == len(cut.tokens) + 1
    same(ended.rewards[:-1], cut.rewards)
    assert ended.text == cut.text + "<|endoftext|>"
    twice = make().score(PROMPTS[:1], [ANSWERS[0] + "<|endoftext|>"])[0]
    assert twice == ended


@pytest.mark.parametrize("mix", ["log", "probability"])
def test_several_baselines(mix):
    found = make((0, 1, 2), mix=mix).score(PROMPTS, ANSWERS)
    sft, a, b = (tiny_for(text_tokenizer(), seed) for seed in range(3))
    for i, scored in enumerate(found):
        first, second = of_actions(a, *pair_ids(i)), of_actions(b, *pair_ids(i))
        mixed = (first + second) / 2 if mix == "log" else ((first.exp() + second.exp()) / 2).log()
        same(scored.rewards, of_actions(sft, *pair_ids(i)) - mixed)


def test_floor_and_clip():
    raw = [torch.tensor(s.rewards) for s in make().score(PROMPTS, ANSWERS)]
    floored = make(floor_alpha=0.6).score(PROMPTS, ANSWERS)
    clipped = make(clip_range=(-0.5, 1.0)).score(PROMPTS, ANSWERS)
    for plain, low, cut in zip(raw, floored, clipped, strict=True):
        same(low.rewards, (0.6 * plain.double().exp() + 0.4).log())
        same(cut.rewards, plain.clamp(-0.5, 1.0))
    assert min(r.min() for r in raw) < -0.5


def test_centred_rewards_have_expectation_0_under_the_sft_model():
    tokenizer = text_tokenizer()
    prompt, completion = pair_ids(4)
    sft, base = tiny_for(tokenizer, 0), tiny_for(tokenizer, 1)
    reward = make(centred=True)
    at = 2  # the state after two tokens: every token of the vocabulary as the action there
    candidates = [[*completion[:at], token] for token in range(len(tokenizer))]
    rewards = torch.stack([s.rewards[at] for s in reward.score_ids([prompt] * len(candidates), candidates)]).double()
    p = log_probs(sft, prompt, completion)[at].exp()
    assert (p * rewards).sum().item() == pytest.approx(0, abs=1e-5)
    raw = log_probs(sft, prompt, completion)[at] - log_probs(base, prompt, completion)[at]
    kl = (p * raw).sum()
    assert kl > 0.1
    same(rewards, raw - kl)


def test_chat_messages():
    tokenizer = chat_tokenizer()
    models = [tiny_for(tokenizer, seed) for seed in (0, 1)]
    reward = TokenReward(tokenizer, FrozenLM(models[0]), [FrozenLM(models[1])])
    rows = [row["messages"] for row in chats(5, turns=2)]
    prompts, answers = [m[:-1] for m in rows], [m[-1:] for m in rows]
    found = reward.score(prompts, answers)
    by_text = reward.score(prompts, [m[0]["content"] for m in answers])
    cut = reward.score(prompts, answers, add_eos=False)
    for messages, scored, again, short in zip(rows, found, by_text, cut, strict=True):
        assert scored.text == messages[-1]["content"] + "<|im_end|>"  # and no line break of the template
        assert scored.terminated
        assert scored == again
        assert (short.text, short.terminated) == (messages[-1]["content"], False)
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"][:-1]
        count = len(scored.tokens)
        expected = [of_actions(model, whole[:-count], whole[-count:]) for model in models]
        same(scored.rewards, expected[0] - expected[1])


def test_folders_models_and_pairs_give_the_same_numbers(checkpoints, adapters):
    tokenizer = text_tokenizer()
    score = lambda sft, base, **kw: [
        s.rewards for s in TokenReward.from_checkpoints(sft, base, **kw).score(PROMPTS, ANSWERS)
    ]
    load = lambda path: AutoModelForCausalLM.from_pretrained(path)
    full = score(checkpoints / "sft", checkpoints / "early")
    loaded = score(load(checkpoints / "sft"), load(checkpoints / "early"), tokenizer=tokenizer)
    mixed = score(str(checkpoints / "sft"), load(checkpoints / "early"))
    for a, b, c in zip(full, loaded, mixed, strict=True):
        same(a, b)
        same(a, c)
    shared = PeftModel.from_pretrained(load(adapters / "base"), str(adapters / "sft"))
    shared.load_adapter(str(adapters / "early"), adapter_name="early")
    merged = score(adapters / "sft_merged", adapters / "early_merged")
    ways = [
        score(adapters / "sft", adapters / "early"),
        score((shared, "default"), (shared, "early"), tokenizer=tokenizer),
        score(adapters / "sft", adapters / "early_merged"),
    ]
    for way in ways:
        for a, b in zip(merged, way, strict=True):
            same(a, b, 1e-4)
    against_base = [score((shared, "default"), (shared, None), tokenizer=tokenizer),
                    score(adapters / "sft", adapters / "base")]  # fmt: skip
    for a, b in zip(*against_base, strict=True):
        same(a, b)
    assert (
        max(abs(x - y) for a, b in zip(merged, against_base[0], strict=True) for x, y in zip(a, b, strict=True)) > 0.1
    )


def test_adapters_share_one_base_in_memory(adapters):
    frozen = load_adapters([adapters / "sft", adapters / "early"])
    assert frozen[0].model is frozen[1].model
    reward = TokenReward.from_checkpoints(adapters / "sft", adapters / "early")
    assert reward.sft.model is reward.baselines[0].model


def test_it_finds_its_baseline_and_takes_several(checkpoints, tmp_path):
    import shutil

    from inverselm.scorers.markers import write_marker

    shutil.copytree(checkpoints / "sft", tmp_path / "run")
    shutil.copytree(checkpoints / "early", tmp_path / "run" / "baseline")
    write_marker(tmp_path / "run" / "baseline", "baseline")
    own = TokenReward.from_checkpoints(tmp_path / "run").score(PROMPTS, ANSWERS)
    named = TokenReward.from_checkpoints(checkpoints / "sft", checkpoints / "early").score(PROMPTS, ANSWERS)
    assert [s.rewards for s in own] == [s.rewards for s in named]
    both = TokenReward.from_checkpoints(checkpoints / "sft", [checkpoints / "early", checkpoints / "earlier"])
    for a, b in zip(both.score(PROMPTS, ANSWERS), make((0, 1, 2)).score(PROMPTS, ANSWERS), strict=True):
        same(a.rewards, b.rewards)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_q_function_rewards(gamma):
    tokenizer, model = text_tokenizer(), tiny_for(text_tokenizer(), 3)
    reward = QFunctionReward.from_checkpoint(model, tokenizer=tokenizer, gamma=gamma)
    by_log_prob = QFunctionReward.from_checkpoint(model, tokenizer=tokenizer, kind="log_prob")
    for add_eos in (True, False):
        found = reward.score(PROMPTS, ANSWERS, add_eos=add_eos)
        plain = by_log_prob.score(PROMPTS, ANSWERS, add_eos=add_eos)
        for i, scored in enumerate(found):
            prompt, completion = pair_ids(i)
            completion = completion if add_eos else completion[:-1]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 :].double()
            v = logits.logsumexp(dim=-1)
            after = v[1:].clone()
            after[-1] = 0 if add_eos else after[-1]
            q = logits[:-1].gather(1, torch.tensor(completion)[:, None])[:, 0]
            same(scored.rewards, q - gamma * after)
            same(plain[i].rewards, q - v[:-1])
            if gamma == 1.0:  # telescopes
                assert scored.total == pytest.approx((v[0] - after[-1]).item() + plain[i].total, abs=1e-3)
    with pytest.raises(UserError, match="bellman"):
        QFunctionReward.from_checkpoint(model, tokenizer=tokenizer, kind="q")
