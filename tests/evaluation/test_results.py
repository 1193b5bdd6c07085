"""Estimates and reports as text, rows and JSON; the names of the package are documented."""

import doctest
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

import inverselm.evaluation
from inverselm.evaluation import Estimate, RewardReport, results

NOTHING = Estimate(math.nan, math.nan, math.nan)
REPORT = RewardReport(
    counts={"answers": 4},
    values={
        "auroc": {"dense": Estimate(0.9, 0.8, 1.0), "log pi": Estimate(0.5, 0.4, 0.6)},
        "rank": {"dense": NOTHING, "log pi": Estimate(0.25, math.nan, math.nan)},
    },
    differences={"auroc": {"dense": Estimate(0.4, 0.2, 0.6)}, "rank": {"dense": NOTHING}},
    controls={"dense": "log pi"},
    chance={"auroc": 0.5},
    used={"rank": {"dense": 3}},
)


def test_examples_in_docstrings():
    assert doctest.testmod(results).failed == 0


def test_a_table_has_a_line_for_every_reward():
    lines = str(REPORT).splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["auroc", "rank"]
    assert lines[1] == "dense   0.900 [0.800, 1.000]  -"
    assert lines[2] == "log pi  0.500 [0.400, 0.600]  0.250"
    assert REPORT.table({"auroc": "AUROC"}).splitlines()[0].strip() == "AUROC"


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Estimate(0.4, 0.2, 0.6), "dense beats log pi by 0.400 [0.200, 0.600]"),
        (Estimate(-0.4, -0.6, -0.2), "dense is behind log pi by 0.400 [0.200, 0.600]"),
        (Estimate(0.1, -0.2, 0.4), "dense against log pi: no difference shown (+0.100 [-0.200, +0.400])"),
        (Estimate(0.1, 0.0, 0.4), "dense against log pi: no difference shown (+0.100 [+0.000, +0.400])"),
        (NOTHING, "dense against log pi: not defined on this data"),
    ],
)
def test_verdicts(difference, words):
    report = RewardReport({}, {}, {"m": {"dense": difference}}, {"dense": "log pi"}, {})
    assert report.verdict("m", "dense") == words


def test_rows_and_json():
    rows = list(REPORT.records())
    assert [(row["measure"], row["reward"]) for row in rows] == [
        (m, r) for m in ("auroc", "rank") for r in ("dense", "log pi")
    ]
    assert rows[0] == {
        "measure": "auroc", "reward": "dense", "value": 0.9, "low": 0.8, "high": 1.0, "control": "log pi",
        "difference": 0.4, "difference_low": 0.2, "difference_high": 0.6, "prompts_used": None,
    }  # fmt: skip
    assert (rows[2]["value"], rows[2]["difference"], rows[2]["prompts_used"]) == (None, None, 3)
    assert (rows[3]["low"], rows[3]["control"]) == (None, "")
    content = json.loads(json.dumps(REPORT.as_dict(), allow_nan=False))
    assert content["values"]["auroc"]["dense"] == {"value": 0.9, "low": 0.8, "high": 1.0}
    assert content["level"] == 0.95


def test_public_names_are_documented_and_light():
    root = Path(__file__).parents[2]
    words = set(re.findall(r"\w+", (root / "docs" / "reference" / "python.md").read_text(encoding="utf-8")))
    assert [name for name in inverselm.evaluation.__all__ if name not in words] == []
    for name in inverselm.evaluation.__all__:
        assert getattr(inverselm.evaluation, name).__doc__
    assert set(inverselm.evaluation.__all__) <= set(dir(inverselm.evaluation))
    code = "import sys, inverselm.evaluation as e; e.reward_correlation; e.compare_runs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = inverselm.evaluation.nothing
