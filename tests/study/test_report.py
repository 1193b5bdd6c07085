"""The report of a study: its page, figures and tables, with planted differences; what is missing; hostile texts."""

import csv
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from helpers.study import Plan, cell_of, planted, write_study
from inverselm.cli.main import main
from inverselm.errors import UserError
from inverselm.report import study_page
from inverselm.report.study_figures import Figures, negative_is_good, reward_score, reward_table, short_sampler
from inverselm.report.study_heatmaps import choose_answers, study_heatmaps
from inverselm.report.study_report import best_samplers
from inverselm.report.study_tables import full_table, shared_machine, spread, step_seconds, timing_table
from inverselm.report.study_words import fixed, interval
from inverselm.study import load_study
from inverselm.study.answers import Answers

pytest.importorskip("matplotlib")

HOSTILE = "<script>alert(1)</script>\"'&"
TWO = {"sft": {"role": "reference"}, "a": {}}


class Elements(HTMLParser):
    """All elements and texts; fails when tags do not nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))


def small(folder, **more):
    options = {"seeds": (0, 1), "samplers": ("greedy",), "prompts": 6, "curves": False, **more}
    return write_study(folder, Plan(options.pop("methods", TWO), options.pop("wrong", lambda *_: 0.5), **options))


def make(folder, target, **more):
    return study_page(folder, target, **{"heatmaps": 0, "num_resamples": 200, "progress": False, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), planted())


@pytest.fixture(scope="module")
def page(folder):
    target = folder / "report.html"
    make(folder, target, num_resamples=1000)
    return Elements(target.read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_self_contained(page, folder):
    names = {name for name, _ in page.found}
    assert not names & {"script", "link", "iframe", "img", "object"}
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|https?://(?!www.w3.org/2000/svg)", html)
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for name, a in page.found if name == "a"}
    assert targets <= set(ids)
    assert {"fronts", "temperature", "curves", "rewards", "timing", "dense_path", "tables", "made"} == targets


def test_the_verdict_is_said_first(page):
    text = page.text
    assert text.index("Verdict") < text.index("Quality against diversity")
    assert "With 3,000 training rows Method A is better than SFT at its best sampler; " in text, (
        "a group of one: its label"
    )
    assert "; with 3,000 training rows d is worse." in text
    assert re.search(r"SFT at its best sampler, T=1.0: wer 0\.\d+ \(lower is better\)", text)
    assert re.search(r"Method A with \S+: better, 0\.\d+, a difference of −0\.\d+ \[−0\.\d+, −0\.\d+\], p ", text)
    assert re.search(r"Method B with \S+: no difference shown", text)
    assert re.search(r"Method C with [^;]*; 3\.00 tokens longer\.", text)
    assert re.search(r"Against the best control, A control with \S+ \(0\.\d+\):", text)
    assert "Holm's correction over all 9 comparisons" in text
    assert "D, first with greedy: worse" in text


def test_figures_are_written(page, folder):
    names = {path.name for path in (folder / "figures").glob("*.png")}
    expected = {"verdict", "front_self_bleu_3000", "front_entropy_3000", "temperature_3000", "curves_3000"}
    assert {f"{name}.png" for name in expected | {"rewards_3000", "dense_path"}} == names
    svgs = [attributes for name, attributes in page.found if name == "svg"]
    assert len(svgs) == 1 + 5 + 5 + 5 + 3 + 2 + 1, "panels: by group; of curves, those that were trained by likelihood"


def test_results_csv(folder, page):
    with open(folder / "results.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7 * 3 * 2 * 2
    content = json.loads((cell_of(folder, "3000", "d2", 1) / "test/results.json").read_text(encoding="utf-8"))
    wanted = next(row for row in content["rows"] if row["sampler"] == "T=1.0")
    found = next(
        row
        for row in rows
        if (row["method"], row["seed"], row["split"], row["sampler"]) == ("d2", "1", "test", "T=1.0")
    )
    assert (found["group"], found["role"], found["size"], found["rows"]) == ("d", "method", "3000", "3000")
    assert float(found["wer"]) == wanted["metrics"]["wer"]["value"]
    assert float(found["per"]) == wanted["metrics"]["per"]["value"]
    assert float(found["self_bleu"]) == wanted["self_bleu"]
    assert float(found["distinct_2"]) == wanted["distinct_2"]
    greedy = next(row for row in rows if row["sampler"] == "greedy")
    assert greedy["self_bleu"] == ""


def test_verdicts_csv_and_json(folder, page):
    content = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
    assert (content["metric"], content["better"], content["reference"]) == ("wer", "low", "sft")
    outcomes = {(v["group"], v["against"]): v["outcome"] for v in content["verdicts"]}
    assert outcomes["iq", "reference"] == "better"
    assert outcomes["d", "reference"] == "worse"
    assert len(content["dense_path"]) == 6
    with open(folder / "verdicts.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["part"] for row in rows] == ["verdict"] * 9 + ["dense_path"] * 6
    assert float(rows[0]["difference_low"]) == content["verdicts"][0]["difference_low"]
    assert rows[0]["rows"] == "3000"


def test_every_number_is_in_the_tables(folder):
    study = load_study(folder)
    header, rows = full_table(study, "3000")
    assert header[:5] == ["method", "sampler", "seeds", "wer", "per"]
    assert len(rows) == 7 * 2
    row = next(row for row in rows if row[:2] == ["Method A", "T=1.0"])
    assert row[2:4] == ["3", spread(study.values("3000", "a", "test", "T=1.0", "wer"))]
    assert row[header.index("Self-BLEU")] == spread(study.values("3000", "a", "test", "T=1.0", "self_bleu"))


def test_points_are_means_and_bars_reach_over_the_seeds(folder):
    study = load_study(folder)
    figures = Figures(study, best_samplers(study))
    panel = figures.front("3000", "self_bleu")[0]
    assert [line.name for line in panel.lines] == ["SFT", "Method A"]
    [dot] = [dot for dot in panel.lines[1].shown if dot.label == "T=1"]
    wer, bleu = (study.values("3000", "a", "test", "T=1.0", name) for name in ("wer", "self_bleu"))
    assert (dot.x, dot.x_low, dot.x_high) == pytest.approx((sum(bleu) / 3, min(bleu), max(bleu)))
    assert (dot.y, dot.y_low, dot.y_high) == pytest.approx((sum(wer) / 3, min(wer), max(wer)))
    assert [dot.label for dot in panel.lines[1].shown] == ["T=1"], "greedy answers have no Self-BLEU"
    entropy = figures.front("3000", "entropy")[0].lines[1]
    assert sorted(dot.label for dot in entropy.shown) == ["T=1", "greedy"]
    heat = figures.temperature("3000")[0].lines[1]
    assert [dot.x for dot in heat.shown] == [0.0, 1.0]
    titles = [panel.title for panel in figures.front("3000", "entropy")]
    assert titles == ["Method A", "Method B", "Method C", "d", "A control (control)"]


def test_curves_are_means_of_the_steps_that_all_seeds_have(folder, tmp_path):
    study = load_study(folder)
    panels = Figures(study, {}).curves("3000")
    assert [panel.title for panel in panels] == ["Method A", "Method C", "d"]
    line = panels[0].lines[1]
    logs = [study.cells["3000", "a", seed].history for seed in range(3)]
    wanted = [next(e["eval_nll"] for e in log if e.get("step") == 600 and "eval_nll" in e) for log in logs]
    assert line.dots[-1].x == 600
    assert line.dots[-1].y == pytest.approx(sum(wanted) / 3)
    assert [thin[-1][1] for thin in line.thin] == wanted, "not eval_loss, which has IQLearn's penalty in it"


def test_sizes_have_a_log_axis_and_the_best_samplers(tmp_path):
    def wrong(size, method, sampler, split):
        return {"100": 0.8, "3000": 0.4}[size] + (0.15 if sampler == "greedy" else 0.0)

    folder = small(tmp_path, sizes=("3000", "100"), samplers=("greedy", "T=1.0"), wrong=wrong, prompts=20)
    study = load_study(folder)
    figures = Figures(study, best_samplers(study))
    [greedy], [best] = figures.sizes("greedy"), figures.sizes(None)
    assert greedy.logx
    assert greedy.ticks == {3000.0: "3,000", 100.0: "100"}
    assert [dot.x for dot in best.lines[0].shown] == [100, 3000]
    for size, dot in zip(("100", "3000"), best.lines[0].shown, strict=True):
        sampler = best_samplers(study)[size, "sft"]
        values = study.values(size, "sft", "test", sampler, "wer")
        assert dot.y == pytest.approx(sum(values) / 2)
    assert Figures(load_study(small(tmp_path / "one")), {}).sizes(None) == []


def test_rewards_over_lambda(folder):
    study = load_study(folder)
    overall, within = Figures(study, {}).rewards("3000")
    [line] = overall.lines
    table = reward_table(study, "3000")["overall"]
    assert [dot.x for dot in line.dots] == [0.0, 0.1]
    assert line.dots[0].y == pytest.approx(sum(table["Q - V', sum"]) / 3), "the reference is lambda 0"
    assert line.dots[1].y == pytest.approx(sum(table["a, sum"]) / 3)
    assert set(overall.levels) == {"dense reward", "log-likelihood", "mean log-likelihood", "length", "random"}
    assert "length" not in within.levels, "not defined"
    assert reward_score(study) == "−wer"
    assert not negative_is_good(study)
    assert negative_is_good(replace(study, facts={**study.facts, "rewards": {"metric": ""}}))


def test_timing(folder):
    study = load_study(folder)
    header, rows = timing_table(study, "3000")
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert set(by_name) == {"SFT", "Method A", "Method B", "Method C", "D, first", "D, second"}, "decoding trains not"
    assert step_seconds(study.cells["3000", "a", 2]) == pytest.approx((0.08 * 600 + 2) / 600)
    assert by_name["SFT"]["s/step"] == "0.0817"
    assert by_name["Method B"]["starts from"] == "SFT"
    assert by_name["SFT"]["training (s)"] == "61"
    assert by_name["SFT"]["peak memory (MiB)"] == "1,024"


def test_ratios_of_time(tmp_path):
    study = load_study(small(tmp_path, seconds=lambda method: {"sft": 10.0, "a": 40.0}[method]))
    rows = timing_table(study, "3000")[1]
    assert [row[6] for row in rows] == ["1.00", f"{40.5 / 10.5:.2f}"]


def test_stages_at_the_same_time_are_noticed(tmp_path, folder):
    assert shared_machine(load_study(folder)), "all of them end in the same second"
    clock = iter(range(10_000))

    def one_after_another(size, method, seed, stage):
        return (datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=70 * next(clock))).isoformat()

    assert not shared_machine(load_study(small(tmp_path, finished=one_after_another)))


def test_a_study_that_is_not_finished(tmp_path):
    unfinished = (("3000", "a", 1, "test"), ("3000", "b", 0, "all"), ("3000", "b", 1, "all"))
    folder = small(tmp_path / "study", methods=TWO | {"b": {}, "c": {"label": "Method C"}}, unfinished=unfinished)
    text = Elements(make(folder, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Not finished, and left out of the tests: a (1 of 2 seeds) and b (0 of 2 seeds)." in text
    assert "runs/3000/a/seed1: test" in text
    assert "3 cells are missing or not finished" in text
    assert "1 of 2 *" in text
    assert "Two seeds say little" in text
    assert "Method C with greedy" in text
    left_out = text[text.index("Left out:") :]
    for line in (
        "Learning curves: no trainer_state.json has a validation loss.",
        "Quality against training-set size: the study has one size.",
        "Quality against temperature: there are not two temperatures.",
        "Do rewards rank answers?: there are no rewards.json.",
        "Dense-Path REINFORCE: no method of `dpr` can be compared yet.",
        "Token rewards: not asked for",
    ):
        assert line in left_out
    assert "has no finished control" in text


def test_nothing_is_done_yet(tmp_path):
    unfinished = [("3000", name, seed, "all") for name in TWO for seed in (0, 1)]
    folder = small(tmp_path / "study", unfinished=tuple(unfinished))
    text = Elements(make(folder, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "No method can be compared with sft yet" in text
    assert "No seed of sft is evaluated at this size yet" in text
    assert (tmp_path / "verdicts.csv").read_text(encoding="utf-8") == "part,size,group\n"


def test_texts_from_outside_are_escaped(tmp_path):
    methods = {
        "sft": {"role": "reference", "label": HOSTILE, "group": HOSTILE},
        "a": {"label": HOSTILE, "group": HOSTILE},
        "c": {"label": f"**bold** {HOSTILE}", "role": "control"},
    }
    folder = small(
        tmp_path / "study", methods=methods, title=HOSTILE, notes=f"{HOSTILE} [x](javascript:alert(1))",
        edit=lambda facts: facts | {"machine": {HOSTILE: HOSTILE}, "name": HOSTILE}, wrong=lambda *_: 0.3,
    )  # fmt: skip
    page = Elements(make(folder, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {name for name, _ in page.found}
    assert not [a for _, attributes in page.found for a in attributes if a.startswith("on") or "'" in a or '"' in a]
    assert not [a for name, a in page.found if name == "a" and not a["href"].startswith("#")]
    assert page.text.count(HOSTILE) >= 8
    assert "**bold**" in page.text


def test_mixed_code_makes_no_report(tmp_path):
    folder = small(tmp_path / "study")
    path = cell_of(folder, "3000", "a", 0) / "stages/test.json"
    path.write_text(path.read_text(encoding="utf-8").replace("c0de", "beef"), encoding="utf-8")
    with pytest.raises(UserError, match=r"3000/a/seed0/stages/test\.json: was made by other code"):
        make(folder, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_numbers_in_words():
    assert interval((-0.0214, -0.0331, -0.0098)) == "−0.021 [−0.033, −0.010]"
    assert interval((12.34, 2.0, 22.7)) == "+12 [+2, +23]"
    assert interval(None) == "–"
    assert fixed(-1e-17, 3, sign=True) == "+0.000"
    assert short_sampler("best_of=8,T=1.0,by=sum_log_prob") == "best of 8 T=1 sum_log_prob"


def test_answers_for_heatmaps_reach_from_best_to_worst():
    rows = [{"sample": k, "token_ids": [1], "metrics": {"wer": w}} for w in (0.5, 0.0, 1.0, 0.25) for k in (0, 1)]
    rows.append({"sample": 0, "token_ids": [], "metrics": {"wer": 2.0}})
    assert [r["metrics"]["wer"] for r in choose_answers(rows, "wer", 3)] == [0.0, 0.5, 1.0]
    assert len(choose_answers(rows, "wer", 9)) == 4
    assert len(choose_answers(rows, "wer", 1)) == 1


@pytest.fixture
def with_models(tmp_path):
    """A study whose reference and IQLearn model are real ones."""
    from inverselm.scorers.markers import write_marker
    from inverselm.training.scratch import build_from_scratch

    methods = {"sft": {"role": "reference", "label": "SFT"}, "iq": {"command": "iqlearn", "label": "IQ"}}
    folder = small(tmp_path / "study", methods=methods, seeds=(0,))
    scratch = tmp_path / "tiny.yaml"
    scratch.write_text(
        "model: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
        "num_attention_heads: 2, max_position_embeddings: 96, tie_word_embeddings: true}\n"
        "tokenizer: {type: bpe, vocab_size: 300}\n",
        encoding="utf-8",
    )
    for seed, (method, name, role) in enumerate(
        (("sft", "model", "sft"), ("sft", "model/baseline", "baseline"), ("iq", "model", "iqlearn"))
    ):
        model, tokenizer = build_from_scratch(scratch, ["Say: abc\n AA B CH"], seed=seed)
        target = cell_of(folder, "3000", method, 0) / name
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        write_marker(target, role, **({"gamma": 0.5} if role == "iqlearn" else {}))
    return folder


def test_token_rewards_are_of_the_sampled_ids(with_models):
    from inverselm.scorers import QFunctionReward, TokenReward

    study = load_study(with_models)
    answers = Answers(study)
    found, note = study_heatmaps(study, answers, 2)
    assert note == ""
    assert [[h.reward for h in row] for row in found] == [["Dense reward of SFT", "Q − γV′ of IQ"]] * 2
    models = [cell_of(with_models, "3000", name, 0) / "model" for name in ("sft", "iq")]
    scorers = [TokenReward.from_checkpoints(models[0]), QFunctionReward.from_checkpoint(models[1], gamma=0.5)]
    chosen = choose_answers(answers.records("3000", "sft", 0, "greedy"), "wer", 2)
    for row, record in zip(found, chosen, strict=True):
        for heatmap, scorer in zip(row, scorers, strict=True):
            prompt = scorer.tokenizer(text=record["prompt"])["input_ids"]
            [wanted] = scorer.score_ids([prompt], [record["token_ids"]])
            assert [t.reward for t in heatmap.tokens] == pytest.approx(wanted.rewards.tolist(), abs=1e-5)
            assert heatmap.prompt == record["prompt"]


def test_heatmaps_are_in_the_page_and_models_may_be_gone(with_models, tmp_path):
    page = Elements(make(with_models, tmp_path / "report.html", heatmaps=1).read_text(encoding="utf-8"))
    assert "Dense reward of SFT; wer" in page.text
    assert (tmp_path / "figures/heatmap_1_2.png").is_file()
    (cell_of(with_models, "3000", "iq", 0) / "model/config.json").unlink()
    found, note = study_heatmaps(load_study(with_models), Answers(load_study(with_models)), 1)
    assert (len(found[0]), note) == (1, "no IQLearn model is there")
    (cell_of(with_models, "3000", "sft", 0) / "model/config.json").unlink()
    page = Elements(make(with_models, tmp_path / "report.html", heatmaps=1).read_text(encoding="utf-8"))
    assert "Token rewards: the reference's model is not there any more." in page.text


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small(tmp_path / "study", unfinished=(("3000", "a", 1, "test"),))
    argv = ["report", "--study_dir", "study", "--heatmaps", "0", "--num_resamples", "100"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "3 of 4 cells are finished.\n  missing: runs/3000/a/seed1: test\n" in out
    assert "Wrote study/report.html" in out
    for name in ("report.html", "results.csv", "verdicts.csv", "verdicts.json", "figures/front_entropy_3000.png"):
        assert (tmp_path / "study" / name).is_file()
    assert main(argv) == 2
    assert "study/report.html: exists; pass --overwrite" in capsys.readouterr().err
    old = tmp_path / "study/figures/curves_3000.png"
    old.write_bytes(b"of an earlier report")
    (tmp_path / "study/figures/mine.png").write_bytes(b"")
    content = json.loads((tmp_path / "study/verdicts.json").read_text(encoding="utf-8"))
    content["figures"] += [old.name, "../study.json"]
    (tmp_path / "study/verdicts.json").write_text(json.dumps(content), encoding="utf-8")
    assert main([*argv, "--overwrite", "True"]) == 0
    assert not old.exists()
    assert (tmp_path / "study/figures/mine.png").exists()
    assert (tmp_path / "study/study.json").exists()
    (tmp_path / "there").mkdir()
    assert main([*argv, "--output_file", "there/page.html", "--png_dir", "there/png"]) == 0
    assert (tmp_path / "there/page.html").is_file()
    assert (tmp_path / "there/results.csv").is_file()
    assert (tmp_path / "there/png/front_entropy_3000.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no study: pass --study_dir"),
        (["--study_dir", "nothing"], "nothing: holds no study"),
        (["--study_dir", "study", "--heatmaps", "-1"], "--heatmaps is -1"),
        (["--study_dir", "study", "--alpha", "1.5"], "--alpha is 1.5"),
        (["--study_dir", "study", "--num_resamples", "0"], "--num_resamples"),
        (["--study_dir", "study", "--output_file", "no/such/page.html"], "its folder does not exist"),
        (["--study_dir", "study", "--png_dir", "study/study.json"], "is a file; name a folder"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.json").write_text("{}", encoding="utf-8")
    assert main(["report", *flags]) == 2
    assert message in capsys.readouterr().err
