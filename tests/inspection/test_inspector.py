"""What the page shows of an answer are the numbers of the scorers, and of the models' logits."""

import math

import pytest
import torch

from helpers.seq2seq import t5_for, t5_tokenizer
from inverselm.errors import UserError
from inverselm.inspection import Inspector
from inverselm.inspection.inspector import stored_reading
from inverselm.scorers import FrozenLM, QFunctionReward, TokenReward

from .conftest import ANSWER, PROMPT, SUMS


def test_rewards_are_those_of_the_scorers(folder, inspector, dense, q_function):
    prompts, answers = [row["prompt"] for row in SUMS[:5]], [row["completion"] for row in SUMS[:5]]
    answers[1] = " 7" * 30
    readings = inspector.read(prompts, answers)
    of_model = {
        kind: QFunctionReward.from_checkpoint(str(folder / "sft"), kind=kind, device="cpu")
        for kind in ("log_prob", "bellman")
    }
    for name, scorer in {"dense": dense, "q_function": q_function, **of_model}.items():
        for reading, scored in zip(readings, scorer.score(prompts, answers), strict=True):
            assert reading.texts == [token.text for token in scored.tokens]
            assert reading.ids == [token.token_id for token in scored.tokens]
            assert reading.rewards[name] == pytest.approx(scored.rewards, abs=1e-4), name
            assert reading.terminated is True
    assert inspector.score(prompts, answers)[0].rewards == pytest.approx(readings[0].rewards["dense"], abs=1e-4)


@pytest.mark.parametrize("add_eos", [True, False])
def test_values_and_entropy_are_those_of_the_logits(inspector, dense, add_eos):
    (reading,) = inspector.read([PROMPT], [ANSWER], add_eos)
    tokenizer = dense.tokenizer
    prompt = tokenizer(PROMPT)["input_ids"]
    ids = tokenizer(PROMPT + ANSWER)["input_ids"] + ([tokenizer.eos_token_id] if add_eos else [])
    assert reading.ids == ids[len(prompt) :]
    with torch.no_grad():
        logits = dense.sft.model(torch.tensor([ids])).logits[0].double()
    states = range(len(prompt) - 1, len(ids) - 1)
    values = [torch.logsumexp(logits[s], 0).item() for s in states]
    last = 0.0 if add_eos else torch.logsumexp(logits[-1], 0).item()
    assert reading.values["model"] == pytest.approx([*values, last], abs=1e-4)
    log_probs = logits.log_softmax(dim=-1)
    entropy = [-(log_probs[s].exp() * log_probs[s]).sum().item() for s in states]
    assert reading.entropy["model"] == pytest.approx(entropy, abs=1e-4)
    assert reading.rewards["log_prob"] == pytest.approx([log_probs[s, ids[s + 1]].item() for s in states], abs=1e-4)
    assert reading.rewards["bellman"] == pytest.approx(
        [logits[s, ids[s + 1]].item() - after for s, after in zip(states, [*values[1:], last], strict=True)], abs=1e-4
    )
    assert reading.terminated is add_eos
    assert set(reading.values) == {"model", "q_function"}


def test_definitions_depend_on_the_models(folder, dense, q_function):
    names = lambda *args, **options: [d.id for d in Inspector.from_scorers(*args, **options).definitions]
    single = QFunctionReward.from_checkpoint(str(folder / "sft"), gamma=0.5, device="cpu")
    assert names(dense, q_function) == ["dense", "q_function", "log_prob", "bellman"]
    assert names(dense) == ["dense", "log_prob", "bellman"]
    assert names(single) == ["log_prob", "bellman"]
    assert names(single, iqlearn=True) == ["bellman", "log_prob"]
    assert Inspector.from_scorers(single).definitions[1].name == "Q − 0.5 V′ (model)"
    assert Inspector.from_scorers(dense, q_function).definitions[1].name == "Q − 0.9 V′ (Q-function)"


def test_several_baselines_are_averaged_as_score_does(folder):
    folders = [str(folder / "baseline"), str(folder / "iq")]
    both = TokenReward.from_checkpoints(str(folder / "sft"), folders, device="cpu")
    (reading,) = Inspector.from_scorers(both).read([PROMPT], [ANSWER])
    assert reading.rewards["dense"] == pytest.approx(both.score([PROMPT], [ANSWER])[0].rewards, abs=1e-4)


def test_what_cannot_be_scored_is_said(inspector, dense):
    with pytest.raises(UserError, match="answer is empty"):
        inspector.read([PROMPT], [""], False)
    with pytest.raises(UserError, match="prompt is empty"):
        inspector.read([""], [ANSWER])
    with pytest.raises(UserError, match=r"tokens; the page takes up to 5,000"):
        inspector.read([PROMPT], [" 7" * 6000])
    with pytest.raises(UserError, match=r"tokens; the model has 6,000 positions"):
        Inspector.from_scorers(dense).read([PROMPT], [" 7" * 6000])
    with pytest.raises(UserError, match="chat template"):
        inspector.read([[{"role": "user", "content": "hi"}]], [ANSWER])


def test_encoder_decoders_are_read_too():
    tokenizer = t5_tokenizer()
    scorer = QFunctionReward(tokenizer, FrozenLM(t5_for(tokenizer)))
    (reading,) = Inspector.from_scorers(scorer).read([PROMPT], [ANSWER])
    scored = scorer.score([PROMPT], [ANSWER])[0]
    assert reading.rewards["bellman"] == pytest.approx(scored.rewards, abs=1e-4)
    assert reading.texts == [token.text for token in scored.tokens]


def test_numbers_that_are_none_become_null():
    tokens = [{"text": "a", "reward": None, "token_id": 3}, {"text": "b", "reward": 1.23456789}]
    reading = stored_reading(tokens, terminated=False)
    assert math.isnan(reading.rewards["file"][0])
    found = reading.as_dict()
    assert found["rewards"] == {"file": [None, 1.234568]}
    assert found["ids"] == [3, -1]
    assert found["texts"] == ["a", "b"]
