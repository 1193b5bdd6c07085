"""What the service answers is what the scorer says offline, for every form of row, and for fifty clients at once."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.data import chat_tokenizer, text_tokenizer
from inverselm.scorers import encode_pair

from .conftest import Held, dense, q_function, running, wait_until

TEXTS = ("ok", " 12 ", "naïve ", "漢字", "🙂", "\n", "Q: ", "<b>&", "été", '"\\', "\u200d", "7")


def texts(seed, count):
    rng = random.Random(seed)
    piece = lambda low, high: "".join(rng.choice(TEXTS) for _ in range(rng.randint(low, high)))
    return [{"prompt": f"{seed}.{i} " + piece(1, 12), "completion": piece(0, 15)} for i in range(count)]


def check(scored, expected):
    """One row of an answer against a ScoredCompletion."""
    assert scored["rewards"] == pytest.approx(expected.rewards, abs=2e-5)
    assert scored["reward"] == pytest.approx(expected.total, abs=2e-4)
    assert scored["token_ids"] == [token.token_id for token in expected.tokens]
    assert scored["terminated"] is expected.terminated
    assert scored["scored_text"] == expected.text
    assert scored["tokens"] == [token.text for token in expected.tokens]
    assert scored["offsets"] == [[token.start, token.end] for token in expected.tokens]


def offline(rows, scorer=None, **options):
    scorer = scorer or dense()
    return scorer.score([row["prompt"] for row in rows], [row["completion"] for row in rows], **options)


# ---- many clients ----------------------------------------------------------------------------------------------------
def test_fifty_clients_each_get_the_offline_scores_of_their_rows():
    asked = [texts(client, 1 + client % 4) for client in range(50)]
    scorer = dense()
    held = Held(scorer)
    held.open.clear()
    with running(scorer, max_wait=0.05) as client, ThreadPoolExecutor(50) as pool:

        def ask(number):
            """Rows as text and as ids, in one request after another, one of them without `rows`."""
            rows = asked[number]
            pairs = [encode_pair(text_tokenizer(), row["prompt"], row["completion"]) for row in rows]
            ids = [{"prompt_ids": p.prompt_ids, "completion_ids": p.completion_ids} for p in pairs]
            first = client.score({"rows": rows})
            return first, client.score({"rows": ids}), client.score(rows[-1])

        futures = [pool.submit(ask, number) for number in range(50)]
        wait_until(lambda: client.service.batcher.depth >= 100)  # of 123 rows
        held.open.set()
        replies = [future.result(60) for future in futures]
        metrics = client.get("/metrics").body.decode()
    for rows, (text, ids, single) in zip(asked, replies, strict=True):
        assert (text.status, ids.status, single.status) == (200, 200, 200)
        expected = offline(rows)
        for scored, other, want in zip(text.json["rows"], ids.json["rows"], expected, strict=True):
            check(scored, want)
            check(other, want)
        assert len(single.json["rows"]) == 1
        check(single.json["rows"][0], expected[-1])
    totals = [scored["reward"] for text, _, _ in replies for scored in text.json["rows"]]
    assert len({round(total, 3) for total in totals}) > 0.9 * len(totals), "rows that can be told apart"
    assert max(map(len, held.calls)) == 16
    assert f"inverselm_rows_total {2 * sum(map(len, asked)) + 50}\n" in metrics
    assert 'inverselm_requests_total{path="/v1/token_rewards",status="200"} 150\n' in metrics


def test_answers_to_one_prompt_are_scored_together_and_rightly():
    rows = [{"prompt": "Q: a long question about sums " * 3, "completion": f" {i} ok"} for i in range(8)]
    others = texts(5, 8)
    mixed = [row for pair in zip(rows, others, strict=True) for row in pair]
    scorer = dense()
    held = Held(scorer)
    with running(scorer, batch_size=8, max_wait=0.3, max_padding=1.0) as client:
        answer = client.score({"rows": mixed}).json
    for scored, want in zip(answer["rows"], offline(mixed), strict=True):
        check(scored, want)
    first = {tuple(encode_pair(text_tokenizer(), r["prompt"], r["completion"]).completion_ids) for r in rows}
    assert set(held.calls[0]) == first


# ---- forms of rows ---------------------------------------------------------------------------------------------------
def test_answers_of_every_kind_of_text(served):
    rows = [
        {"prompt": "2+2=", "completion": ""},  # EOS alone
        {"prompt": "a", "completion": "b"},
        {"prompt": "漢", "completion": "🙂👩‍👩‍👧 e\u0301 \u202e\ttab\r\n"},
        {"prompt": "a", "completion": "b<|endoftext|>"},
        {"prompt": "a", "completion": "x <|endoftext|> y"},
        {"prompt": "\x00", "completion": "\x00\x7f\ufffd"},
    ]
    answer = served.score({"rows": rows})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"model", "reward_kind", "rows"}
    for scored, want in zip(answer.json["rows"], offline(rows), strict=True):
        check(scored, want)
    assert len(answer.json["rows"][0]["rewards"]) == 1


def test_a_cut_answer_gets_no_eos(served):
    rows = [{"prompt": "a", "completion": "b c"}, {"prompt": "a", "completion": "b c", "finished": True}]
    rows.append({"prompt": "a", "completion": "b c", "finished": False})
    scored = served.score({"rows": rows}).json["rows"]
    assert [row["terminated"] for row in scored] == [True, True, False]
    check(scored[2], offline(rows[2:], add_eos=False)[0])
    check(scored[1], offline(rows[1:2])[0])
    with running(dense(), limits={"add_eos": False}) as client:
        assert client.score(rows[0]).json["rows"][0]["terminated"] is False


def test_log_probabilities_are_those_of_the_sft_model(served):
    pair = encode_pair(text_tokenizer(), "Q: 1+1=", " 2")
    want = dense().score_ids([pair.prompt_ids], [pair.completion_ids])[0].ref_log_prob
    found = served.score({"prompt": "Q: 1+1=", "completion": " 2"}).json["rows"][0]
    assert found["log_probs"] == pytest.approx(want.tolist(), abs=2e-5)
    assert "values" not in found


def test_text_can_be_left_out(served):
    row = {"prompt": "a", "completion": "b"}
    (scored,) = served.score({**row, "return_text": False}).json["rows"]
    assert set(scored) == {"reward", "rewards", "log_probs", "token_ids", "terminated"}
    assert scored == served.score({"rows": [row], "return_text": False}).json["rows"][0]


def test_tokens_that_the_policy_did_not_choose_earn_nothing(served):
    ids = {"prompt_ids": [5, 6, 7], "completion_ids": [8, 9, 10, 11]}
    masked, whole = ({**ids, "action_mask": mask} for mask in ([1, 0, 0, 1], [1, 1, 1, 1]))
    found = served.score({"rows": [masked, ids, whole]}).json["rows"]
    want = dense().score_ids([[5, 6, 7]] * 2, [[8, 9, 10, 11]] * 2, [[1, 0, 0, 1], [1, 1, 1, 1]])
    assert found[0]["rewards"] == pytest.approx(want[0].rewards.tolist(), abs=2e-5)
    assert found[0]["rewards"][1:3] == [0, 0]
    assert found[0]["reward"] == pytest.approx(sum(found[0]["rewards"]))
    assert found[1]["rewards"] == pytest.approx(want[1].rewards.tolist(), abs=2e-5)
    assert found[2]["rewards"] == pytest.approx(found[1]["rewards"], abs=2e-5)


def test_conversations(chatting):
    talk = [{"role": "user", "content": "Q: 1+1="}, {"role": "assistant", "content": " 2 ok"}]
    longer = [{"role": "system", "content": "Sums."}, *talk, *talk]
    rows = [
        {"messages": talk},
        {"messages": longer},
        {"prompt": talk[:1], "completion": talk[1:]},
        {"prompt": talk[:1], "completion": " 2 ok"},
        {"messages": talk, "finished": False},
    ]
    found = chatting.score({"rows": rows}).json["rows"]
    scorer = dense(chat_tokenizer())
    want = scorer.score([talk[:1], longer[:-1]], [talk[1:], longer[-1:]])
    for scored, expected in zip(found, [*want, want[0], want[0]], strict=False):
        check(scored, expected)
    assert found[0]["tokens"][-1] == "<|im_end|>"
    check(found[4], scorer.score([talk[:1]], [talk[1:]], add_eos=False)[0])
    assert found[4]["terminated"] is False


# ---- scorers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_a_q_function_gives_values_too(gamma):
    """r = Q - gamma V', so that with log pi = Q - V: V_t = r_t - log pi_t + gamma V_{t+1}, and V is 0 after EOS."""
    with running(q_function(kind="bellman", gamma=gamma), reward_kind="bellman") as client:
        rows = texts(1, 5)
        found = client.score({"rows": rows}).json
        masked = client.score({"prompt_ids": [5], "completion_ids": [6, 7, 8], "action_mask": [1, 0, 1]}).json
    assert found["reward_kind"] == "bellman"
    for scored, want in zip(found["rows"], offline(rows, q_function(gamma=gamma)), strict=True):
        check(scored, want)
        value = 0.0
        steps = zip(scored["rewards"], scored["log_probs"], scored["values"], strict=True)
        for reward, log_prob, found_value in list(steps)[::-1]:
            value = reward - log_prob + gamma * value
            assert found_value == pytest.approx(value, abs=1e-4)
    assert masked["rows"][0]["values"][1] == 0


def test_log_likelihood_has_no_values():
    with running(q_function(kind="log_prob")) as client:
        (found,) = client.score({"prompt": "a", "completion": "b"}).json["rows"]
    assert found["rewards"] == found["log_probs"]
    assert "values" not in found
