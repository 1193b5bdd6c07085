"""The report of a study: its page, figures and tables, with planted differences; what is missing; hostile texts."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest

from helpers.study import cell_of, planted, small, write_study
from inverselm.cli.main import main
from inverselm.errors import UserError
from inverselm.report import study_page

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
