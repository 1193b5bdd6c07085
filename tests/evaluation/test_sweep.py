"""`evaluate`: records against the model's own numbers, batches, choice, and the row that sums them up."""

import math

import numpy as np
import pytest
import torch

from helpers.data import chat_tokenizer, sums, text_tokenizer
from helpers.models import tiny_llama
from helpers.seq2seq import tiny_t5
from inverselm.errors import UserError
from inverselm.evaluation import compare_runs, evaluate
from inverselm.evaluation.examples import read_examples
from inverselm.evaluation.metrics import compute_metrics
from inverselm.evaluation.samplers import parse_sampler
from inverselm.evaluation.sampling import Runner, Settings
from inverselm.evaluation.summary import COLUMNS, measure, render, summarise
from inverselm.evaluation.tasks import load_task
from inverselm.scorers import FrozenLM, QFunctionReward

ROWS = [{**row, "prompt": "so " * (i * 7 % 4) + row["prompt"]} for i, row in enumerate(sums(6))]


@pytest.fixture(scope="module")
def policy():
    tokenizer = text_tokenizer()
    eos = tokenizer.eos_token_id
    model = tiny_llama(vocab_size=len(tokenizer), eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
    with torch.no_grad():  # so that some answers end by themselves
        model.lm_head.weight[eos] = 0.5 * model.lm_head.weight.abs().max()
    return model, tokenizer


def runner_of(policy, **settings):
    task = load_task("exact_match")
    examples = read_examples(ROWS, task)
    task.prepare(examples)
    return Runner(*policy, examples, Settings(**{"max_new_tokens": 8, **settings}))


def own_numbers(model, tokenizer, record, temperature=1.0):
    """Sum of log pi and mean entropy over the sampled ids, from one row's logits."""
    prompt = tokenizer(record["prompt"])["input_ids"]
    ids = torch.tensor([[*prompt, *record["token_ids"]]])
    with torch.no_grad():
        log_pi = (model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
    chosen = log_pi.gather(1, torch.tensor(record["token_ids"])[:, None]).sum()
    return float(chosen), float(-(log_pi.exp() * log_pi).sum(-1).mean())


def test_records_say_what_the_model_says(policy):
    model, tokenizer = policy
    [row] = evaluate(
        model, tokenizer, ROWS, task="exact_match", samplers=["T=0.7,top_p=0.9"], num_samples=3, max_new_tokens=8,
        batch_size=7, progress=False,
    )  # fmt: skip
    assert (row.prompts, row.samples, len(row.records)) == (6, 3, 18)
    assert set(row.records[0]) | set(row.settings) <= COLUMNS
    assert [(r["example"], r["sample"]) for r in row.records] == [(i, k) for i in range(6) for k in range(3)]
    finished = [record["finished"] for record in row.records]
    assert 0 < sum(finished) < 18, "some end by EOS, some do not"
    for record in row.records:
        source = ROWS[record["example"]]
        assert (record["prompt"], record["references"]) == (source["prompt"], [source["completion"]])
        assert record["completion"] == tokenizer.decode(record["token_ids"], skip_special_tokens=True)
        assert record["finished"] == (record["token_ids"][-1] == tokenizer.eos_token_id)
        assert record["length"] == len(record["token_ids"]) - record["finished"]
        assert record["reference_length"] == len(tokenizer(source["completion"])["input_ids"])
        log_prob, entropy = own_numbers(model, tokenizer, record)
        assert record["log_prob"] == pytest.approx(log_prob, rel=1e-5)
        assert record["entropy"] == pytest.approx(entropy, rel=1e-5), "at temperature 1, not at the sampler's"
        assert record["metrics"] == {"exact_match": float(record["completion"].strip() == source["completion"].strip())}


def test_encoder_decoders_too():
    tokenizer = text_tokenizer()
    model = tiny_t5(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    [row] = evaluate(
        model, tokenizer, ROWS, task="exact_match", samplers=["T=1.0"], num_samples=2, max_new_tokens=6, progress=False
    )
    for record in row.records:
        prompt, answer = tokenizer(record["prompt"])["input_ids"], record["token_ids"]
        fed = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=fed).logits[0].double()
        log_pi = logits.log_softmax(-1)
        assert record["log_prob"] == pytest.approx(float(log_pi[range(len(answer)), answer].sum()), rel=1e-5)
        assert record["entropy"] == pytest.approx(float(-(log_pi.exp() * log_pi).sum(-1).mean()), rel=1e-5)


def test_batches_hold_prompts_of_like_length_and_the_asked_number_of_answers(policy):
    runner = runner_of(policy, num_samples=3, batch_size=7)
    lengths = [len(ids) for ids in runner.prompts]
    assert len(set(lengths)) > 2
    sizes = {"T=1": [2, 2, 2], "greedy": [6], "beam=2": [3, 3], "best_of=9": [1] * 6, "beam=4": [1] * 6}
    for sampler, expected in sizes.items():
        batches = runner.batches(parse_sampler(sampler))
        assert [len(batch) for batch in batches] == expected
        assert sorted(i for batch in batches for i in batch) == list(range(6))
        flat = [lengths[i] for batch in batches for i in batch]
        assert flat == sorted(flat, reverse=True)


def test_a_batch_is_the_same_whatever_ran_before(policy):
    runner, sampler = runner_of(policy, batch_size=2, num_samples=2), parse_sampler("T=1")
    batches = runner.batches(sampler)
    whole = [runner.run(sampler, batch, at) for at, batch in enumerate(batches)]
    torch.rand(7)
    assert runner_of(policy, batch_size=2, num_samples=2).run(sampler, batches[2], 2) == whole[2]
    first, again = (runner.run(sampler, batches[0], at) for at in (0, 1))
    assert first == whole[0] != again, "each batch has a seed of its own"
    other = runner_of(policy, batch_size=2, num_samples=2, seed=1).run(sampler, batches[0], 0)
    assert [r["token_ids"] for r in other] != [r["token_ids"] for r in whole[0]]


def test_greedy_and_beams_are_one_answer_each(policy):
    model, tokenizer = policy
    samplers = ["greedy", "beam=3", "beam=3,length_penalty=-20"]
    shared = {"task": "exact_match", "max_new_tokens": 6, "progress": False}
    greedy, beam, short = evaluate(*policy, ROWS, samplers=samplers, **shared)
    assert greedy.self_bleu is beam.self_bleu is None
    assert [row.samples for row in (greedy, beam, short)] == [1, 1, 1]
    for a, b in zip(greedy.records, beam.records, strict=True):
        ids = torch.tensor([tokenizer(a["prompt"])["input_ids"]])
        with torch.no_grad():
            assert a["token_ids"][0] == int(model(input_ids=ids).logits[0, -1].argmax())
        assert b["log_prob"] / len(b["token_ids"]) >= a["log_prob"] / len(a["token_ids"]) - 1e-5
    assert beam.records != greedy.records
    assert short.length < beam.length, "a negative penalty makes short answers win"


def test_a_small_nucleus_is_greedy(policy):
    model, tokenizer = policy
    samplers = ["greedy", "T=1.0,top_p=0.0001", "T=0.0001", "T=1.0"]
    rows = evaluate(
        model, tokenizer, ROWS, task="exact_match", samplers=samplers, num_samples=1, max_new_tokens=6, progress=False
    )
    greedy, nucleus, cold, hot = ([record["token_ids"] for record in row.records] for row in rows)
    assert greedy == nucleus == cold != hot


@pytest.mark.parametrize("by", ["mean_log_prob", "sum_log_prob", "mean_reward", "sum_reward"])
def test_best_of_n_chooses_by_its_score(policy, by):
    model, tokenizer = policy
    judge = tiny_llama(seed=5, vocab_size=len(tokenizer))
    scorer = QFunctionReward(tokenizer, FrozenLM(judge), kind="log_prob")
    [row] = evaluate(
        model, tokenizer, ROWS, task="exact_match", samplers=[f"best_of=4,by={by}"], max_new_tokens=8, reward=scorer,
        batch_size=8, progress=False,
    )  # fmt: skip
    assert (row.samples, len(row.records), row.self_bleu) == (1, 24, None)
    chosen = []
    for i in range(6):
        group = [record for record in row.records if record["example"] == i]
        scores = []
        for record in group:
            total = own_numbers(judge if by.endswith("reward") else model, tokenizer, record)[0]
            scores.append(total / len(record["token_ids"]) if by.startswith("mean") else total)
        assert [record["score"] for record in group] == pytest.approx(scores, rel=1e-5)
        [best] = [record for record in group if record["chosen"]]
        assert best["score"] == max(record["score"] for record in group)
        assert best["sample"] == [record["score"] for record in group].index(best["score"]), "the first of equals"
        chosen.append(best)
    assert row.length == np.mean([record["length"] for record in chosen])
    assert row.truncated == np.mean([not record["finished"] for record in chosen])
    assert row.per_prompt("exact_match") == [record["metrics"]["exact_match"] for record in chosen]


def test_what_does_not_go_together_is_refused_before_sampling(policy):
    model, tokenizer = policy

    def run(**kwargs):
        evaluate(model, tokenizer, ROWS, **{"task": "exact_match", **kwargs})

    with pytest.raises(UserError, match=r"best_of=2,T=1.0,by=sum_reward: chooses by a reward, and there is none"):
        run(samplers=["best_of=2,by=sum_reward"])
    refused = {"num_samples is 0": {"num_samples": 0}, "unknown task": {"task": "poetry"}}
    refused["the metric 'length' has the name"] = {"task": lambda *_: {"length": 1.0}}
    for message, bad in refused.items():
        with pytest.raises(UserError, match=message):
            run(**bad)
    scorer = QFunctionReward(chat_tokenizer(), FrozenLM(model), kind="log_prob")
    with pytest.raises(UserError, match="different tokenizers"):
        run(samplers=["best_of=2,by=sum_reward"], reward=scorer)


def test_the_calculator_is_used_where_it_is_asked_for(policy, monkeypatch):
    model, tokenizer = policy
    from inverselm.evaluation import gsm8k

    calls, real = [], gsm8k.CalculatorLogitsProcessor
    monkeypatch.setattr(gsm8k, "CalculatorLogitsProcessor", lambda *args: calls.append(args[1]) or real(*args))
    samplers, rows = ["greedy", "greedy,calculator"], [{"prompt": "2*3", "answer": "6"}]
    evaluate(model, tokenizer, rows, task="gsm8k", samplers=samplers, progress=False, max_new_tokens=3)
    assert calls == [1, len(tokenizer("2*3")["input_ids"])], "once to check the tokenizer, once to sample"


def written(texts, **columns):
    """Records of hand-written answers, two to a prompt."""
    records = []
    for i, group in enumerate(texts):
        for k, text in enumerate(group):
            ids = [5] * len(text.split())
            base = {"example": i, "sample": k, "completion": text, "finished": True, "length": len(ids) - 1}
            records.append({**base, "token_ids": ids, "reference_length": 4.0, "entropy": 1.0, "log_prob": -1.0})
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            record[name] = value
    return records


TEXTS = [["a b #### 1", "c d e #### 1"], ["f g #### 2", "f g #### 3"], ["h i #### 4", "j k l m #### 4"]]


def row_of(records, answers=("1", "2", "5"), sampler="T=1", **kwargs):
    task = load_task("gsm8k")
    examples = read_examples([{"prompt": f"p{a}", "answer": a} for a in answers], task)
    task.prepare(examples)
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    measured = measure(shuffled, examples, task)
    return summarise(measured, task, parse_sampler(sampler), model="m", prompts=len(examples), **kwargs)


def test_the_row_by_hand():
    entropy, lengths = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [4, 5, 4, 4, 4, 6]
    row = row_of(written(TEXTS, entropy=entropy, finished=[True, False, True, True, True, True]), settings={"seed": 3})
    values = {name: estimate.value for name, estimate in row.metrics.items()}
    assert values == pytest.approx({"accuracy": 0.5, "answered": 1.0, "pass@2": 2 / 3})
    assert row.main == row.metrics["accuracy"]
    assert row.per_prompt("accuracy") == [1.0, 0.5, 0.0]
    assert row.length == pytest.approx(np.mean(lengths) - 1)
    assert row.length_ratio == pytest.approx((sum(lengths) - 6) / 24)
    assert row.entropy == pytest.approx(np.average(entropy, weights=lengths)), "per token, not per answer"
    assert row.truncated == pytest.approx(1 / 6)
    by_name = compute_metrics(["diversity"], TEXTS, ["", "", ""])
    assert row.distinct == {n: by_name[f"distinct_{n}"] for n in (1, 2, 3)}
    assert row.self_bleu == pytest.approx(by_name["self_bleu_n2"])
    assert row.settings | {"seed": 3, "temperature": 1.0, "best_of_by": None} == row.settings
    none = row_of([record | {"reference_length": None} for record in written(TEXTS)])
    assert none.length_ratio is None


def test_intervals_are_over_prompts():
    rng = np.random.default_rng(4)
    right = rng.random((60, 2)) < 0.3
    texts = [["#### 1" if ok else "#### 0" for ok in group] for group in right]
    row = row_of(written(texts), answers=[f"1.{'0' * i}" for i in range(1, 61)])
    means = right.mean(axis=1)
    half = 1.96 * means.std() / math.sqrt(60)
    assert row.main.value == pytest.approx(means.mean())
    assert row.main.low == pytest.approx(means.mean() - half, abs=0.02)
    assert row.main.high == pytest.approx(means.mean() + half, abs=0.02)
    anywhere = right.any(axis=1)
    half = 1.96 * anywhere.std() / math.sqrt(60)
    assert row.metrics["pass@2"].high - row.metrics["pass@2"].low == pytest.approx(2 * half, rel=0.15)


def test_rows_feed_paired_tests():
    better = [[text.replace("3", "2") for text in group] for group in TEXTS]
    one, two = (row_of(written(texts)) for texts in (TEXTS, better))
    task = load_task("gsm8k")
    [found] = compare_runs(
        {"a": one.statistics["accuracy"][None], "b": two.statistics["accuracy"][None]},
        score=task.metrics(2)[0].score, n=200,
    )  # fmt: skip
    assert (found.reference_value, found.value) == (0.5, pytest.approx(4 / 6))
    assert two.per_prompt("accuracy") == [1.0, 1.0, 0.0]


def test_tables_and_lines():
    rows = [row_of(written(TEXTS)), row_of(written([group[:1] for group in TEXTS]), sampler="greedy")]
    head, first, second = render(rows).splitlines()
    assert head.split()[:6] == ["model", "sampler", "accuracy", "↑", "answered", "↑"]
    assert "pass@2" in head
    assert second.split()[:4] == ["m", "greedy", "0.667", "[0.000,"]
    assert "1.000]*" in second
    assert "*" not in first.replace("0.667*", ""), "pass@2 of one row alone is no best"
    line = rows[0].flat()
    assert line["accuracy"] == 0.5
    assert line["accuracy_low"] <= 0.5 <= line["accuracy_high"]
    assert (line["self_bleu_n"], line["samples_per_prompt"], line["temperature"]) == (4, 2, 1.0)
    assert "pass@2_low" not in line
    assert set(line) - {"accuracy", "accuracy_low", "accuracy_high", "answered", "pass@2"} <= COLUMNS
    assert set(rows[0].as_dict()["metrics"]["pass@2"]) == {"value", "low", "high"}
    assert rows[0].records[0]["completion"] == "a b #### 1"


def test_the_best_mark_knows_which_way_is_better():
    task = load_task("g2p")
    examples = read_examples([{"prompt": "a", "completion": "AH B"}], task)
    rows = []
    for sampler, said in (("greedy", "AH B"), ("T=1", "AH C")):
        measured = measure(written([[said]]), examples, task)
        rows.append(summarise(measured, task, parse_sampler(sampler), model="m", prompts=1))
    head, right, wrong = render(rows).splitlines()
    assert head.split()[2:6] == ["wer", "↓", "per", "↓"]
    assert right.split()[2:5] == ["0.000", "[0.000,", "0.000]*"]
    assert "1.000 [1.000, 1.000] " in wrong
