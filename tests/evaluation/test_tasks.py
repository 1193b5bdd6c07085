"""Each task against hand-computed cases and independent implementations."""

import functools
import itertools
import math
import random
import sys

import numpy as np
import pytest

from inverselm.errors import UserError
from inverselm.evaluation.examples import Example, read_examples
from inverselm.evaluation.tasks import TASKS, FunctionTask, Metric, Task, load_task, mean_of
from inverselm.evaluation.tasks.base import ratio
from inverselm.evaluation.tasks.equations import value_of
from inverselm.evaluation.tasks.g2p import edit_distance
from inverselm.evaluation.tasks.summarisation import sentences


def example(*references, **row):
    return Example("p", references, {"prompt": "p", **row})


def prepared(name, *examples):
    task = load_task(name)
    task.prepare(examples or [example("1")])
    return task


def corpus(task, groups):
    """Metric name -> value, of measured groups."""
    metrics = task.metrics(len(groups[0]))
    return {m.name: float(m.score(m.table(groups).sum(axis=0))) for m in metrics}


def test_every_task_loads_and_says_what_is_better():
    for name in TASKS:
        task = prepared(name, example("1", mr="a[b]"))
        assert task.name == name
        for metric in task.metrics(2):
            assert metric.better == (
                "low" if metric.name in ("wer", "per", "ser", "missing", "hallucinated") else "high"
            )
    with pytest.raises(UserError, match="unknown task 'translate'; did you mean translation"):
        load_task("translate")
    with pytest.raises(UserError, match="no task: name one of gsm8k"):
        load_task("")


def test_a_ratio_of_nothing_is_zero():
    assert ratio([0, 0]) == 0
    assert ratio(np.array([[1, 2], [3, 4.0]])).tolist() == [0.5, 0.75]


def test_gsm8k():
    task = prepared("gsm8k", example("so #### 7"))
    assert task.measure("#### 7.0", example("7")) == {"accuracy": 1.0, "answered": 1.0}
    assert task.measure("seven", example("7")) == {"accuracy": 0.0, "answered": 0.0}
    assert task.measure("#### 8", example("7", "8"))["accuracy"] == 1.0, "any reference"
    groups = [[task.measure(t, example("7")) for t in row] for row in (["#### 7", "#### 1", "x"], ["#### 1", "x", "x"])]
    assert corpus(task, groups) == pytest.approx(
        {"accuracy": 1 / 6, "answered": 1 / 2, "pass@2": (2 / 3) / 2, "pass@3": 1 / 2}
    )
    names = lambda n: [m.name for m in task.metrics(n)][2:]
    assert (names(1), names(2), names(4), names(5)) == (
        [],
        ["pass@2"],
        ["pass@2", "pass@4"],
        ["pass@2", "pass@4", "pass@5"],
    )
    with pytest.raises(UserError, match="the row: the reference answer 'many' is not a number"):
        task.prepare([example("many")])


def test_exact_match_takes_any_reference():
    task = prepared("exact_match")
    assert task.measure(" b\n", example("a", "b"))["exact_match"] == 1.0
    assert task.measure("c", example("a", "b"))["exact_match"] == 0.0


def test_translation_is_sacrebleus_corpus_score():
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = random.Random(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "big", "small", "red", "mat", "house", "today"]
    sentence = lambda n: " ".join(rng.choice(words) for _ in range(n))
    references = [[sentence(rng.randint(6, 12)) for _ in range(rng.randint(1, 3))] for _ in range(12)]
    answers = [[" " + r[0][: rng.randint(15, 40)], sentence(9) + "\n"] for r in references]
    examples = [example(*r) for r in references]
    task = prepared("translation", *examples)
    groups = [[task.measure(t, e) for t in row] for row, e in zip(answers, examples, strict=True)]
    found = corpus(task, groups)
    flat = [(text.strip(), r) for row, r in zip(answers, references, strict=True) for text in row]
    streams = [[r[k] if k < len(r) else None for _, r in flat] for k in range(3)]
    texts = [text for text, _ in flat]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, streams).score)
    assert 1 < found["bleu"] < 99
    single = task.measure("the cat sat", example("the cat sat"))
    assert single["bleu"] == pytest.approx(100), "three words count by the n-grams that they have"
    assert single["chrf"] == pytest.approx(sacrebleu.sentence_chrf("the cat sat", ["the cat sat"]).score)
    assert "bleu|nrefs:var|case:mixed|eff:no|tok:13a" in task.note
    assert "nrefs:1|" in prepared("translation", example("a")).note


def rouge_n(answer, reference, n):
    """ROUGE-N's F-measure of lower-case words, with no stemmer."""
    grams = lambda text: [tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)]
    a, r = grams(answer), grams(reference)
    hits = sum(min(a.count(g), r.count(g)) for g in set(a))
    return 2 * hits / (len(a) + len(r)) if a and r else 0.0


def test_summarisation_is_rouge():
    pytest.importorskip("rouge_score")
    task = prepared("summarisation")
    for answer, reference in [
        ("the cat sat on the mat", "the cat lay on the big mat"),
        ("a dog", "the cat lay on the big mat"),
        ("the the the", "the cat and the dog"),
    ]:
        found = task.measure(answer, example(reference))
        assert found["rouge1"] == pytest.approx(100 * rouge_n(answer, reference, 1))
        assert found["rouge2"] == pytest.approx(100 * rouge_n(answer, reference, 2))
    # union of longest common subsequences, over lines (Lin 2004, sec. 3.2): r1 meets a1 in "w1 w2" and a2 in "w1 w3 w5"
    found = task.measure("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", example("w1 w2 w3 w4 w5"))
    assert found["rougeLsum"] == pytest.approx(100 * 2 * 4 / (10 + 5)), "4 of 5 and of 10 words"
    whole = task.measure("It rained. We left.", example("It rained.\nWe left."))
    assert whole["rougeLsum"] == pytest.approx(100)
    assert task.measure("We left. It rained.", example("It rained.\nWe left."))["rougeLsum"] == pytest.approx(100)
    assert task.measure("running dogs", example("run dog"))["rouge1"] == pytest.approx(100), "stemmed"
    best = task.measure("a b", example("x y", "a b c"))
    assert best["rouge1"] == pytest.approx(80), "the best reference"
    groups = [[task.measure("a b", example("a b"))], [task.measure("a", example("x"))]]
    assert corpus(task, groups) == {"rouge1": 50.0, "rouge2": 50.0, "rougeLsum": 50.0}


def test_sentences():
    assert sentences(" One. Two?  Three! 3.5 times\t") == "One.\nTwo?\nThree!\n3.5 times"
    assert sentences("One. Two.\nThree.") == "One. Two.\nThree.", "lines are kept as they are"


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[eval\]'"):
        prepared("summarisation")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'inverselm\[eval\]'"):
        prepared("translation")


def test_g2p():
    task = prepared("g2p")
    assert task.measure(" AH0 B ", example("AH0 B"))["wer"] == 0.0
    found = task.measure("K AE1 T", example("K AE0 T S", "D AO1 G"))
    assert found == {"wer": 1.0, "per": 0.5, "edits": 2, "phonemes": 4}
    tie = task.measure("A B", example("A", "A B C"))
    assert (tie["edits"], tie["phonemes"]) == (1, 1), "the first of equals"
    groups = [[task.measure("K AE1 T", example("K AE0 T S"))], [task.measure("B", example("B"))]]
    assert corpus(task, groups) == {"wer": 0.5, "per": 2 / 5}
    assert task.measure("", example("A B"))["per"] == 1.0


def test_edit_distance_is_the_shortest_script():
    @functools.cache
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for a, b in itertools.product(map("".join, itertools.product("ab", repeat=3)), ["", "a", "ba", "abab", "bbbb"]):
        assert edit_distance(a, b) == slow(a, b) == edit_distance(b, a)


@pytest.mark.parametrize(
    ("text", "numbers", "value"),
    [
        ("* number0 number1", [3, 4], 12),
        ("- number0 * number1 number2", [25000, 1500, 8], 13000),
        ("- - 10 2 3", [], 5),
        ("/ + number0 number1 2", [50, 60], 55),
        ("- number0 3", [-2], -5),
        ("number0 - 3", [-2], -5),
        (" number0 * ( number1 + 2 )\nso it is", [3, 4], 18),
        ("x = number0 / 4", [10], 2.5),
        ("3*4", [], 12),
        ("12.0", [], 12),
        ("-3", [], -3),
        ("+ 0.1 0.2", [], 0.3),
        ("number10", list(range(11)), 10),
        ("* number0 number1", [3], None),
        ("* 3", [], None),
        ("3 4", [], None),
        ("+ 3 4 5", [], None),
        ("/ 3 0", [], None),
        ("3 / 0", [], None),
        ("", [], None),
        ("number0 number1", [3, 4], None),
        ("* 9e999 2", [], None),
        ("* " * 30 + "999999999999 " * 31, [], None),
        ("3 - number0", [-2], 5),
        ("* number0 number1", [-2, -3], 6),
        ("__import__('os')", [], None),
    ],
)
def test_equations_have_values(text, numbers, value):
    found = value_of(text, numbers)
    assert found == (None if value is None else pytest.approx(value))


def test_random_expressions_in_both_notations_have_pythons_value():
    rng = random.Random(1)

    def build(depth):
        if depth == 0 or rng.random() < 0.3:
            number = str(rng.randint(1, 9))
            return number, number
        operator, (pl, il), (pr, ir) = rng.choice("+-*/"), build(depth - 1), build(depth - 1)
        return f"{operator} {pl} {pr}", f"( {il} {operator} {ir} )"

    checked = 0
    for _ in range(200):
        prefix, infix = build(3)
        try:
            expected = eval(infix)
        except ZeroDivisionError:
            expected = None
        checked += expected is not None
        assert value_of(prefix) == (None if expected is None else pytest.approx(expected))
        assert value_of(infix) == (None if expected is None else pytest.approx(expected))
    assert checked > 150


def test_equations_are_right_by_value():
    task = prepared("equations", example("360.0"), example("* number0 number1", numbers="3 4"))
    row = {"numbers": "8.0 45.0"}
    assert task.measure("* number1 number0", example("360.0", **row)) == {"accuracy": 1.0, "valid": 1.0}
    assert task.measure("number0 * number1", example("* number0 number1", numbers=[8, 45]))["accuracy"] == 1.0
    assert task.measure("+ number1 number0", example("360.0", **row)) == {"accuracy": 0.0, "valid": 1.0}
    assert task.measure("* number1", example("360.0", **row)) == {"accuracy": 0.0, "valid": 0.0}
    assert task.measure("/ 10 3", example("3.3333"))["accuracy"] == 1.0, "references are rounded"
    assert task.measure("/ 10 3", example("3.33"))["accuracy"] == 0.0
    assert task.measure("100009", example("100000"))["accuracy"] == 1.0, "1e-4 of the reference"
    assert task.measure("100011", example("100000"))["accuracy"] == 0.0
    for bad, hint in ((example("many"), "has no value"), (example("+ number0 1"), "column 'numbers'")):
        with pytest.raises(UserError, match=hint):
            task.prepare([bad])
    with pytest.raises(UserError, match="'numbers' must be numbers"):
        task.prepare([example("1", numbers="one two")])


def test_data_to_text_counts_slots_and_takes_all_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    rows = [
        {"prompt": "name[The Eagle], food[French] =>", "completion": "The Eagle serves French food in town."},
        {"prompt": "name[The Eagle], food[French] =>", "completion": "French food is served at The Eagle here."},
        {"prompt": "name[Cotto], food[Indian] =>", "completion": "Cotto serves Indian food all of the day."},
    ]
    task = load_task("data_to_text")
    examples = read_examples(rows, task)
    task.prepare(examples)
    texts = ["French food is served at The Eagle now.", "Cotto serves French food all day long."]
    groups = [[task.measure(text, e)] for text, e in zip(texts, examples, strict=True)]
    assert [(g["missing"], g["hallucinated"], g["slots"], g["ser"]) for [g] in groups] == [(0, 0, 2, 0), (1, 1, 2, 1)]
    found = corpus(task, groups)
    streams = [[rows[0]["completion"], rows[2]["completion"]], [rows[1]["completion"], None]]
    assert found.pop("bleu") == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score)
    assert found == {"ser": 0.5, "missing": 0.25, "hallucinated": 0.25}
    given = example("x", mr="food[Thai]")
    assert prepared("data_to_text", given).measure("thai", given)["ser"] == 0.0, "the column comes before the prompt"
    talk = Example([{"role": "user", "content": "food[Thai]"}], ("x",), {})
    assert prepared("data_to_text", talk).measure("thai", talk)["missing"] == 0
    with pytest.raises(UserError, match="the row: no meaning representation"):
        prepared("data_to_text", example("x"))


def brevity(completion, references, row):
    """More than one number."""
    return {"short": len(completion) < 4, "excess": abs(len(completion) - len(references[0])) * row.get("weight", 1)}


brevity.better = {"excess": "low"}


def test_a_function_is_a_task():
    task = load_task(brevity)
    task.prepare([example("abc")])
    assert task.measure("abcd", example("abc", weight=2)) == {"short": 0.0, "excess": 2.0}
    assert [(m.name, m.better) for m in task.metrics(1)] == [("short", "high"), ("excess", "low")]
    one = FunctionTask(lambda completion, references, row: np.float32(0.5), "half")
    one.prepare([example("abc")])
    assert one.measure("", example("a")) == {"half": 0.5}
    assert corpus(one, [[{"half": 1.0}, {"half": 0.0}]]) == {"half": 0.5}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completion: 1.0, "failed on 'abc', the row (TypeError"),
        (lambda *_: 1 / 0, "(ZeroDivisionError: division by zero)"),
        (lambda *_: "good", "returned 'good' as 'f'"),
        (lambda *_: math.nan, "returned nan as 'f'"),
        (lambda *_: {}, "returned an empty dict"),
        (lambda *_: {"a": None}, "returned None as 'a'"),
        (lambda *_: [1.0], "returned [1.0] as 'f'"),
    ],
)
def test_functions_that_measure_nothing_are_refused(function, message):
    with pytest.raises(UserError) as error:
        FunctionTask(function, "f").prepare([example("abc")])
    assert message in str(error.value)
    assert "--task f" in str(error.value)


def test_a_function_returns_the_same_keys_each_time():
    task = FunctionTask(lambda completion, *_: {completion: 1.0}, "f")
    task.prepare([example("abc")])
    with pytest.raises(UserError, match=r"returned \['x'\], but \['abc'\] before"):
        task.measure("x", example("abc"))
    with pytest.raises(UserError, match="better is 'up'"):
        load_task(type("F", (), {"better": "up", "__call__": lambda *_: 1.0})())


FILE = """
from inverselm.evaluation.tasks import Task, mean_of

number = 3

def length(completion, references, row):
    return len(completion)

class Mine(Task):
    def measure(self, text, example):
        return {"mine": 1.0}

    def metrics(self, samples):
        return (mean_of("mine"),)

ready = Mine()
"""


def test_tasks_from_files(tmp_path):
    path = tmp_path / "metrics.py"
    path.write_text(FILE, encoding="utf-8")
    task = load_task(f"{path}:length")
    task.prepare([example("abc")])
    assert task.measure("abcd", example("abc")) == {"length": 4.0}
    assert task.metrics(1)[0].name == "length"
    for name in ("Mine", "ready"):
        own = load_task(f"{path}:{name}")
        assert (own.name, own.measure("", example("a"))) == (name, {"mine": 1.0})
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("", encoding="utf-8")
    for spec, message in [
        (f"{tmp_path}/none.py:f", "no such file"),
        (f"{path}:missing", "has no 'missing'; it has "),
        (f"{path}:number", "number is no function f\\(completion, references, row\\)"),
        (f"{tmp_path}/broken.py:f", "does not run \\(ModuleNotFoundError: No module named 'nothing_of_this_name'\\)"),
        (f"{tmp_path}/text.txt:f", "is no Python file"),
    ]:
        with pytest.raises(UserError, match=message):
            load_task(spec)


def test_the_docstrings_task_works():
    class Shorter(Task):
        name = "shorter"

        def measure(self, text, example):
            return {"shorter": float(len(text) < len(example.references[0]))}

        def metrics(self, samples):
            return (mean_of("shorter"),)

    task = load_task(Shorter())
    assert corpus(task, [[task.measure("a", example("abc"))], [task.measure("abc", example("abc"))]]) == {
        "shorter": 0.5
    }
    assert isinstance(task.metrics(1)[0], Metric)
