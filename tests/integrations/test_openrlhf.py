"""OpenRLHF's remote reward model: what its trainer posts, and what it does with the answer."""

import math

import pytest
import torch
from transformers import AutoTokenizer

from helpers.data import chat_tokenizer, text_tokenizer
from inverselm.integrations.openrlhf import encode_sampled, split_query

from .conftest import dense, running

EOS = "<|endoftext|>"


def posted(tokenizer, prompt, ids):
    """The trainer's body for one sampled answer: the ids of prompt and answer decoded as one, special tokens kept."""
    whole = tokenizer(prompt, add_special_tokens=False)["input_ids"] + ids
    return {"query": [tokenizer.decode(whole, skip_special_tokens=False)], "prompts": [prompt], "labels": ["7"]}


def trained_on(reply):
    """What the trainer makes of an answer to one query: tensors of one reward, one score, and one of each log."""
    assert reply.status == 200
    info = reply.json
    assert isinstance(info["rewards"], list)
    logs = {name: torch.tensor([value]) for name, value in info["extra_logs"].items()}
    return torch.tensor([info["rewards"]]), torch.tensor([info.get("scores") or info["rewards"]]), logs


@pytest.mark.parametrize("end", [EOS, ""])
@pytest.mark.parametrize("text", [" 12 ok", "1", "naïve 漢字 🙂"])
def test_a_sampled_answer_makes_the_round_trip(served, text, end):
    tokenizer, prompt = text_tokenizer(), "Q: 3+4="
    ids = tokenizer(text + end)["input_ids"]
    reward, score, logs = trained_on(served.post("/get_reward", posted(tokenizer, prompt, ids)))
    (want,) = dense().score_ids([tokenizer(prompt)["input_ids"]], [ids])
    assert reward.item() == score.item() == pytest.approx(want.rewards.sum().item(), abs=1e-4)
    assert logs["reward_sum"].item() == pytest.approx(reward.item())
    assert logs["reward_mean"].item() == pytest.approx(reward.item() / len(ids))
    assert logs["scored_tokens"].item() == len(ids)
    answer = served.post("/get_reward", posted(tokenizer, prompt, ids)).json
    assert answer["token_ids"] == [ids]
    assert answer["token_rewards"][0] == pytest.approx(want.rewards.tolist(), abs=2e-5)


def test_a_chat_prompt_is_not_given_its_special_tokens_twice(chatting):
    tokenizer = chat_tokenizer()
    talk = [{"role": "user", "content": "Q: 3+4="}]
    prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(" 7 ok<|im_end|>")["input_ids"]
    answer = chatting.post("/get_reward", posted(tokenizer, prompt, ids)).json
    (want,) = dense(chat_tokenizer()).score([talk], [[{"role": "assistant", "content": " 7 ok"}]])
    assert answer["token_rewards"][0] == pytest.approx(want.rewards, abs=2e-5)
    assert answer["rewards"] == [pytest.approx(want.total, abs=1e-4)]


def test_many_queries_in_order(served):
    tokenizer = text_tokenizer()
    answers = [f" {i} ok" * (i % 5 + 1) + EOS for i in range(20)]
    prompts = [f"Q: {i}+1=" for i in range(20)]
    body = {"query": [p + a for p, a in zip(prompts, answers, strict=True)], "prompts": prompts, "labels": [None] * 20}
    found = served.post("/get_reward", body).json
    pairs = [[tokenizer(text)["input_ids"] for text in texts] for texts in (prompts, answers)]
    want = dense().score_ids(*pairs)
    assert found["rewards"] == found["scores"] == pytest.approx([s.rewards.sum().item() for s in want], abs=1e-4)
    assert set(found) == {"rewards", "scores", "extra_logs", "token_rewards", "token_ids"}
    assert all(len(values) == 20 for values in found["extra_logs"].values())


def test_means_instead_of_sums():
    body = {"query": ["Q: 1+1= 2 ok"], "prompts": ["Q: 1+1="]}  # without labels
    with running(dense(), mean=True) as client:
        found = client.post("/get_reward", body).json
    rewards = found["token_rewards"][0]
    assert len(rewards) > 1
    assert found["rewards"] == found["scores"] == [pytest.approx(math.fsum(rewards) / len(rewards))]


def test_no_queries_have_no_rewards(served):
    """A trainer with several servers may send one of them nothing."""
    found = served.post("/get_reward", {"query": [], "prompts": [], "labels": []})
    assert found.status == 200
    assert (found.json["rewards"], found.json["scores"]) == ([], [])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompts": ["a"]}, "'query' is missing; the body is query, prompts and labels"),
        ({"query": ["ab"]}, "'prompts' is missing"),
        ({"query": "ab", "prompts": ["a"]}, "'query' must be a list of texts"),
        ({"query": [3], "prompts": ["a"]}, "'query' must be a list of texts"),
        ({"query": ["ab", "cd"], "prompts": ["a"]}, "2 queries but 1 prompts"),
        ({"query": ["xb"], "prompts": ["ab"]}, "does not begin with its prompt"),
        ({"query": ["a"], "prompts": ["a"]}, "the completion has no token"),
        ({"query": ["ab"], "prompts": [""]}, "the prompt has no token"),
        (b'{"query": ["a\\ud800"], "prompts": ["a"]}', "cannot be tokenised"),
    ],
)
def test_what_cannot_be_scored(served, body, words):
    reply = served.post("/get_reward", body)
    assert reply.status == 422
    assert words in reply.error["message"]


def test_the_second_query_is_named(served):
    assert served.post("/get_reward", {"query": ["ab", "xb"], "prompts": ["a", "a"]}).error["row"] == 1


# ---- text to ids -----------------------------------------------------------------------------------------------------
def test_ids_that_merge_over_the_border_are_cut_where_the_prompt_ended():
    """The sampler went on after the prompt's own ids; a tokenizer reads both at once and may join them."""
    tokenizer = text_tokenizer()
    joined = next(t for t in tokenizer.get_vocab() if t.isascii() and t.isalpha() and len(t) == 2)
    alone = [tokenizer(part)["input_ids"] for part in joined]
    assert len(tokenizer(joined)["input_ids"]) == 1
    pair = encode_sampled(tokenizer, joined[0], joined[1])
    assert (pair.prompt_ids, pair.completion_ids) == tuple(alone)


def test_no_special_tokens_are_added(tmp_path):
    """The trainer adds none to a prompt, whose template wrote them already."""
    from tokenizers.processors import TemplateProcessing

    text_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    begin = tokenizer.pad_token
    adds = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.pad_token_id)])
    tokenizer.backend_tokenizer.post_processor = adds
    assert tokenizer("a")["input_ids"][0] == tokenizer.pad_token_id
    pair = encode_sampled(tokenizer, f"{begin}Q: 1+1=", " 2 ok")
    want = text_tokenizer()(f"{begin}Q: 1+1=")["input_ids"], text_tokenizer()(" 2 ok")["input_ids"]
    assert (pair.prompt_ids, pair.completion_ids) == want


@pytest.fixture(scope="module")
def starting(tmp_path_factory):
    """A tokenizer that puts a BOS before every text, as Llama's do."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("starting")
    text_tokenizer().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    adds = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = adds
    return tokenizer


@pytest.fixture(scope="module")
def started(starting):
    with running(dense(starting)) as client:
        yield client


QUERIES = {  # before the prompt's own text; the ids that the model is to see before it; behind the answer
    "written by the template": ("<s>Q: 3+4=", "", ["<s>"], ""),
    "added by the tokenizer": ("Q: 3+4=", "<s>", ["<s>"], ""),
    "both, as it was sampled": ("<s>Q: 3+4=", "<s>", ["<s>", "<s>"], ""),
    "none": ("Q: 3+4=", "", [], ""),
    "padded": ("Q: 3+4=", "<|pad|><|pad|><s>", ["<s>"], "<|pad|><|pad|>"),
    "padded, by the template": ("<s>Q: 3+4=", "<|pad|><|pad|>", ["<s>"], "<|pad|>"),
    "padded, without BOS": ("Q: 3+4=", "<|pad|>", [], ""),
}


@pytest.mark.parametrize("end", [EOS, ""])
@pytest.mark.parametrize("form", QUERIES)
def test_special_tokens_of_a_query_are_there_once(starting, started, form, end):
    """BOS as it was sampled, never a second one; EOS is an action; padding is nothing."""
    prompt, before, begin, behind = QUERIES[form]
    plain = lambda text: starting(text, add_special_tokens=False)["input_ids"]
    ids, asked = plain(" 7 ok" + end), [*starting.convert_tokens_to_ids(begin), *plain("Q: 3+4=")]
    body = {"query": [f"{before}{prompt} 7 ok{end}{behind}"], "prompts": [prompt], "labels": [None]}
    found = started.post("/get_reward", body).json
    assert found["token_ids"] == [ids]
    want = dense(starting).score_ids([asked], [ids])[0].rewards.tolist()
    assert found["token_rewards"][0] == pytest.approx(want, abs=2e-5)
    assert found["rewards"] == [pytest.approx(math.fsum(want), abs=1e-4)]
    others = {tuple(q[2]) for q in QUERIES.values()} - {tuple(begin)}
    for other in others:  # rewards that can be told apart
        wrong = [*starting.convert_tokens_to_ids(list(other)), *plain("Q: 3+4=")]
        assert max(abs(dense(starting).score_ids([wrong], [ids])[0].rewards - torch.tensor(want))) > 1e-3


def test_padding_that_is_the_end_of_answers_too(tmp_path):
    text_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    pad, both = tokenizer.pad_token_id, [tokenizer.eos_token_id, tokenizer.pad_token_id]
    answer = lambda query, *ends: split_query(tokenizer, query, "a", *ends)[1]
    assert [answer(f"a b<|pad|>{more}", both) for more in ("", "<|pad|>")] == [" b<|pad|>"] * 2
    assert answer(f"a b{EOS}<|pad|><|pad|>", both) == f" b{EOS}"
    assert answer("a b<|pad|><|pad|>", [tokenizer.eos_token_id]) == answer("a b<|pad|>") == " b"
    for tokenizer.pad_token in (EOS, None):  # trainers pad with EOS where there is nothing else
        assert answer(f"{EOS}{EOS}a b{EOS}{EOS}") == f" b{EOS}"
        assert answer(f"{EOS}a b") == " b"
        assert answer(f"a{EOS}") == EOS
    assert pad != tokenizer.eos_token_id


def test_a_prompt_as_its_tokenizer_gives_it_back(tmp_path):
    """Lower-cased by the tokenizer, so the decoded query does not begin with the prompt as it was written."""
    from inverselm.training.scratch_tokenizer import build_tokenizer

    build_tokenizer({"type": "bpe", "vocab_size": 270, "lowercase": True}, ["a b c"]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids, answer = split_query(tokenizer, "what is it? yes", "What is it?")
    assert (ids, answer) == (tokenizer("what is it?")["input_ids"], " yes")
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        split_query(tokenizer, "what was it? yes", "What is it?")


def test_encoder_decoders():
    """Source and target are tokenised apart, each with its own special tokens."""
    from helpers.seq2seq import t5_for, t5_tokenizer
    from inverselm.integrations.rows import RowReader
    from inverselm.scorers import TokenReward
    from inverselm.scorers.seq2seq import encode_seq2seq_pair

    tokenizer = t5_tokenizer()
    make = lambda: TokenReward.from_checkpoints(t5_for(tokenizer, 0), t5_for(tokenizer, 1), tokenizer=tokenizer)
    prompt, text = "Q: 1+1=", " 2 ok"
    with running(make(), RowReader(tokenizer, encode_seq2seq_pair)) as client:
        ended = client.post("/get_reward", {"query": [prompt + text + tokenizer.eos_token], "prompts": [prompt]}).json
        cut = client.post("/get_reward", {"query": [prompt + text], "prompts": [prompt]}).json
        row = client.score({"prompt": prompt, "completion": text}).json["rows"][0]
    want = make().score([prompt], [text])[0]
    assert row["terminated"] is True
    assert row["rewards"] == ended["token_rewards"][0] == pytest.approx(want.rewards, abs=2e-5)
    want = make().score([prompt], [text], add_eos=False)[0]
    assert cut["token_rewards"][0] == pytest.approx(want.rewards, abs=2e-5)
