"""Translation, summarisation and data to text against sacrebleu, rouge-score's definition and hand-counted slots."""

import random

import pytest

from helpers.tasks import corpus, example, prepared
from inverselm.errors import UserError
from inverselm.evaluation.examples import Example, read_examples
from inverselm.evaluation.tasks import load_task
from inverselm.evaluation.tasks.summarisation import sentences


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
