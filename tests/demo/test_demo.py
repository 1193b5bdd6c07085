"""The demo's measurements and page on made-up results, and the whole demo in its quick size."""

import json
import re

import numpy as np
import pytest

from inverselm.demo import pipeline
from inverselm.demo.evaluate import Planted, Result, localisation
from inverselm.demo.page import build_page, text_table, verdicts
from inverselm.scorers import ScoredCompletion, TokenScore


def scored(rewards, ids=None):
    ids = ids or list(range(len(rewards)))
    tokens = tuple(TokenScore(i, f"t{i}", k, k + 1, r) for k, (i, r) in enumerate(zip(ids, rewards, strict=True)))
    return ScoredCompletion("x" * len(rewards), tokens, True)


def result(model, temperature, right, calculator=False):
    return Result(model, temperature, calculator, tuple(right), (0.1, 0.9), 12.0, 0.0, None)


def grid():
    right = {"SFT": [0.0] * 50 + [1.0] * 50, "IQLearn": [0.0] * 49 + [1.0] * 51, "DPR": [0.0] * 10 + [1.0] * 90}
    return [result(m, t, r, c) for c in (False, True) for m, r in right.items() for t in pipeline.TEMPERATURES]


def test_localisation_by_hand():
    item = Planted("q", scored([0.5, 0.5, 0.5]), scored([0.1, -2.0, 0.3]), (1, 2))
    other = Planted("q", scored([0.0, 0.0, 0.0]), scored([-3.0, -1.0, 9.0]), (1, 2))
    found = localisation([item, other])
    # -r at the planted tokens: 2, 1; elsewhere: -0.1, -0.3, 3, -9; pairs won: 2 > three of four, 1 > three of four
    assert found["auroc"] == pytest.approx(6 / 8)
    assert found["first"] == 0.5
    assert found["pairs"] == 0.5


def test_verdicts_say_when_no_difference_is_shown():
    lines = verdicts(grid())
    assert len(lines) == 4
    iqlearn = next(line for line in lines if line.startswith("IQLearn") and "without" in line)
    dpr = next(line for line in lines if line.startswith("DPR") and "without" in line)
    assert iqlearn.count("no difference shown") == 4
    assert "no difference" not in dpr
    assert "+40.0" in dpr


def test_the_table_has_a_row_for_every_sampler():
    table = text_table(grid())
    assert len(table.splitlines()) == 2 + 18
    assert re.search(r"DPR +greedy +with +90\.0%", table)


def test_the_page_holds_everything_and_escapes(tmp_path):
    hostile = Planted("<script>alert(1)</script>", scored([0.5, 0.1]), scored([0.5, -0.9]), (1, 2))
    step = {"step": 1, "loss": 1.0, "nll": 1.0, "td_error": 2.0, "reward": 0.1, "kl_sequence": 0.0}
    rows = [step | {"completions/mean_length": 9.0, "entropy": 0.5}, step | {"step": 2, "entropy": 0.4}]
    planted = {"a reward": [hostile]}
    path = build_page(
        grid(),
        {"SFT": rows, "IQLearn": rows, "DPR": rows},
        planted,
        {name: localisation(items) for name, items in planted.items()},
        pipeline.Size(),
        0,
        tmp_path / "report.html",
    )
    html = path.read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert html.count("<svg") == 8
    assert "no difference shown" in html
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)


def test_data_is_written_in_trl_format(tmp_path):
    size = pipeline.Size(demonstrations=20, held_out=5)
    held_out = pipeline.write_data(tmp_path, size, seed=1)
    train = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(train) == 20
    assert set(train[0]) == {"prompt", "completion"}
    assert {p["prompt"] for p in held_out}.isdisjoint(row["prompt"] for row in train)


@pytest.mark.slow
def test_the_whole_demo_quickly(tmp_path, capsys):
    from inverselm.cli.main import main

    folder = tmp_path / "demo"
    assert main(["demo", "--quick", "True", "--output_dir", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "$ inverselm sft" in printed
    assert "$ inverselm dpr" in printed
    assert "report.html" in printed
    assert "Next:" in printed
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.count('class="irl-heat"') == 12
    losses = [row["loss"] for row in pipeline.curves(folder / "sft")]
    assert np.isfinite(losses).all()
    assert main(["demo", "--quick", "True", "--output_dir", str(folder)]) == 2
