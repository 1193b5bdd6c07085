"""`inverselm judge` against judges on real sockets: what it asks, prints and writes."""

import csv
import json
import os
from itertools import pairwise

import numpy as np
import pytest

from helpers.judge_runs import PROMPTS, command, lines, prepare, results, rows, write
from helpers.judge_server import always, answers_of, completion, prefers_longer, serving
from inverselm.cli.main import main
from inverselm.evaluation import judge


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


def test_a_judge_that_likes_length(capsys, files):
    with serving(prefers_longer) as server:
        assert main(command(server)) == 0
    out = capsys.readouterr().out
    mine, theirs = ({r["prompt"]: r["completion"] for r in rows(*of)} for of in (("b", 2, PROMPTS, 1, 10), ("a", 1)))
    score = [np.sign(len(mine[p]) - len(theirs[p])) / 2 + 0.5 for p in theirs]
    assert len(server.requests) == 2 * PROMPTS
    assert len(set(server.paid)) == 2 * PROMPTS
    orders = {answers_of(request) for request in server.requests}
    assert orders == {pair for p in mine for pair in ((mine[p], theirs[p]), (theirs[p], mine[p]))}
    assert all(r["temperature"] == 0.0 and r["max_tokens"] == 1024 and r["model"] == "m" for r in server.requests)
    assert all("it is" not in r["messages"][0]["content"] for r in server.requests), "references are not shown unasked"
    [found] = results()["comparisons"]
    assert found["rate"]["value"] == pytest.approx(np.mean(score))
    assert (found["wins"], found["losses"]) == (score.count(1), score.count(0))
    assert (found["run"], found["against"], found["prompts"], found["agreement"]) == ("b", "a", PROMPTS, 1.0)
    assert found["length"] == pytest.approx(np.mean([len(text) for text in mine.values()]))
    assert found["first_position"] == 0.5
    pairs = lines("judged/pairs.jsonl")
    assert [p["score"] for p in pairs] == score
    first = pairs[0]
    assert (first["prompt"], first["completion"]) == ("What is 0?", mine["What is 0?"])
    assert [order["shown_first"] for order in first["judge"]] == ["b", "a"]
    better = "b" if score[0] == 1 else "a"
    assert [order["prefers"] for order in first["judge"]] == [better, better]
    assert "I counted." in first["judge"][0]["text"]
    with open("judged/judge.csv", encoding="utf-8", newline="") as stream:
        [line] = csv.DictReader(stream)
    assert float(line["rate_low"]) == found["rate"]["low"]
    assert line["verdict"] == found["verdict"]
    assert f"{2 * PROMPTS} requests" in out.splitlines()[0]
    assert f"b against a: {found['verdict']}" in out
    assert "50% of its decisions are for the answer shown first; the two orders agree in 100%" in out
    assert "one seed per run" in out
    assert sorted(os.listdir("judged")) == ["cache.jsonl", "judge.csv", "judge.json", "pairs.jsonl"]


def test_python_gives_the_same():
    with serving(prefers_longer) as server:
        assert main(command(server)) == 0
        prompts = [row["prompt"] for row in rows("a", 1)]
        answers = {"a": [r["completion"] for r in rows("a", 1)], "b": [r["completion"] for r in rows("b", 2, shift=10)]}
        where = {"judge_url": server.url, "judge_model": "m"}
        [found] = judge(answers, prompts, **where, cache_file="judged/cache.jsonl", n=200, progress=False)
        assert len(server.requests) == 2 * PROMPTS, "all from the cache"
        assert json.loads(json.dumps(found.as_dict())) == results()["comparisons"][0]
        twice = {name: [texts, texts] for name, texts in answers.items()}
        [found] = judge(twice, prompts, **where, n=50, progress=False)
        assert (found.seeds, found.pairs, len(server.requests)) == (2, 2 * PROMPTS, 4 * PROMPTS)
    for bad in ({"a": ["x"]}, {"a": answers["a"], "b": answers["b"][:-1]}, {"a": [answers["a"]], "b": twice["b"]}):
        with pytest.raises(ValueError, match=r"two runs|an answer to each"):
            judge(bad, prompts, **where)
    with pytest.raises(ValueError, match="references"):
        judge(answers, prompts, **where, references=["x"])


def test_a_judge_of_positions_is_exposed(capsys):
    with serving(always("[[A]]")) as server:
        assert main(command(server)) == 0
    out = capsys.readouterr().out
    [found] = results()["comparisons"]
    assert (found["rate"], found["ties"]) == ({"value": 0.5, "low": 0.5, "high": 0.5}, PROMPTS)
    assert (found["first_position"], found["agreement"]) == (1.0, 0.0)
    assert "b against a: no difference shown (win rate 0.500" in out
    assert "100% of its decisions are for the answer shown first; the two orders agree in 0%" in out
    assert "doubt its verdicts" in out


def test_answers_without_verdicts_are_counted(capsys):
    def rule(request, number):
        one, _ = answers_of(request)
        if "What is 3?" in request["messages"][0]["content"]:
            return "Hard to say."
        if "What is 4?" in request["messages"][0]["content"] and one.startswith("a"):
            return (200, completion("I think that", "length"))
        return prefers_longer(request, number)

    with serving(rule) as server:
        assert main(command(server)) == 0
    out = capsys.readouterr().out
    [found] = results()["comparisons"]
    assert (found["unread"], found["unanswered"], found["pairs"], found["prompts"]) == (2, 0, PROMPTS, PROMPTS - 2)
    low, high = found["bounds"]
    assert high - low == pytest.approx(2 / PROMPTS)
    assert f"Note: 3 of {2 * PROMPTS} replies hold no verdict; 1 of them were cut off: raise --max_tokens." in out
    assert f"2 of {PROMPTS} pairs left out without two verdicts; were all of them lost or won" in out
    assert [p["score"] for p in lines("judged/pairs.jsonl")].count(None) == 2


def test_three_seeds_several_samples_and_runs(capsys, files):
    for seed in range(3):
        write(files / f"a{seed}.jsonl", rows("a", seed, samples=2))
        write(files / f"b{seed}.jsonl", rows("b", 10 + seed, samples=3, shift=15))
        write(files / f"c{seed}.jsonl", rows("c", 20 + seed, samples=2, prompts=PROMPTS - 4))
    runs = [f"{n}=" + ",".join(f"{n}{seed}.jsonl" for seed in range(3)) for n in "abc"]
    with serving(prefers_longer) as server:
        assert main(command(server, runs=runs)) == 0
    out = capsys.readouterr().out
    prompts = PROMPTS - 4
    assert len(server.requests) == 2 * 2 * 3 * 2 * prompts
    found = {c["run"]: c for c in results()["comparisons"]}
    expected = []
    for seed in range(3):
        mine, theirs = rows("b", 10 + seed, samples=3, shift=15), rows("a", seed, samples=2)
        for i in range(prompts):
            of = [(mine[3 * i + k]["completion"], theirs[2 * i + k]["completion"]) for k in range(2)]
            expected.append(np.mean([np.sign(len(one) - len(two)) / 2 + 0.5 for one, two in of]))
    assert found["b"]["rate"]["value"] == pytest.approx(np.mean(expected))
    assert (found["b"]["seeds"], found["b"]["prompts"], found["b"]["pairs"]) == (3, prompts, 6 * prompts)
    assert max(c["p_adjusted"] for c in found.values()) >= max(c["p"] for c in found.values())
    assert "p (Holm)" in out
    assert "4 prompts are not in all files: left out." in out
    assert f"{3 * prompts} answers have no partner" in out
    assert "Positions (c):" in out
    with serving(prefers_longer) as server:
        assert main(command(server, "--samples_per_prompt", "1", "--output_dir", "one", runs=runs)) == 0
        assert len(server.requests) == 2 * 2 * 3 * prompts


def test_identical_answers_are_not_asked_about(capsys, files):
    mine = rows("b", 2)
    for i in (0, 5):
        mine[i]["completion"] = rows("a", 1)[i]["completion"]
    write(files / "b.jsonl", mine)
    with serving(always("[[B]]")) as server:
        assert main(command(server)) == 0
    assert len(server.requests) == 2 * (PROMPTS - 2)
    assert "(2 pairs of equal answers (ties, not asked))" in capsys.readouterr().out
    assert results()["comparisons"][0]["identical"] == 2
    assert lines("judged/pairs.jsonl")[5]["judge"] == []


def test_conversations(files):
    talk = lambda text: [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    for name in "ab":
        write(
            files / f"{name}.jsonl",
            [
                {"prompt": talk(f"Q{i}"), "completion": [{"role": "assistant", "content": name * (i + 1)}]}
                for i in range(3)
            ],
        )
    with serving(always("[[C]]")) as server:
        assert main(command(server, "--concurrency", "1")) == 0
    text = server.requests[0]["messages"][0]["content"]
    assert "<request>\nsystem: Be brief.\n\nuser: Q0\n</request>" in text
    assert "<answer_a>\nb\n</answer_a>" in text
    assert results()["comparisons"][0]["ties"] == 3


def test_a_sample_of_the_prompts(files):
    drawn = []
    for more in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"]):
        with serving(prefers_longer) as server:
            folder = f"out{len(drawn)}"
            assert main(command(server, "--num_prompts", "5", "--output_dir", folder, *more)) == 0
            assert len(server.requests) == 10
            drawn.append([pair["prompt"] for pair in lines(f"{folder}/pairs.jsonl")])
    assert drawn[0] == drawn[1] != drawn[2]
    numbers = [int(prompt.split()[-1][:-1]) for prompt in drawn[0]]
    assert all(one < two for one, two in pairwise(numbers)), "in the order of the file"
