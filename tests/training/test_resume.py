"""A run that was killed and resumed ends where an uninterrupted one ends."""

import pytest

from helpers.jobs import KINDS
from helpers.processes import kill, start, wait_for
from helpers.training import assert_same_weights, steps
from inverselm.scorers.markers import read_marker

KILLED = ["iqlearn", "iqlearn_lora", "iqlearn_online", "sft", "dpr", "dpr_buffer", "dpr_adapters"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of runs that were killed at step 3 of 6, one step past a checkpoint."""
    root = tmp_path_factory.mktemp("killed")
    parent = start("-m", "helpers.jobs", str(root), *KILLED, "--hang-at", "3", log=root / "log")
    try:
        for kind in KILLED:
            wait_for(root / kind / "hanging", parent, root / "log")
    finally:
        kill(parent)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_run_resumes_to_the_same_end(killed, tmp_path, kind):
    folder = killed / kind
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    whole = KINDS[kind](tmp_path)
    whole.train()
    resumed = KINDS[kind](folder)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_same_weights(whole.model, resumed.model, atol=1e-5)  # Adam enlarges rounding
    for a, b in zip(steps(whole), steps(resumed), strict=True):
        for key in ("loss", "grad_norm", "td_coef", "reward", "own_reward", "kl", "completions/mean_length"):
            if key in a:
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), (a["step"], key)
    if kind == "sft":
        assert read_marker(folder / "baseline")["step"] == 2
        a, b = ((f / "baseline" / "model.safetensors").read_bytes() for f in (tmp_path, folder))
        assert a == b
    if kind.startswith("dpr"):  # and the rollouts after the checkpoint are the same answers
        assert [seen["completions"] for seen in whole.seen[-len(resumed.seen) :]] == [
            seen["completions"] for seen in resumed.seen
        ]
        assert 0 < len(resumed.seen) < len(whole.seen)
