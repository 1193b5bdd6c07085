"""A GAIL run that was killed and resumed ends where an uninterrupted one ends: policy, critics and their optimisers."""

import pytest
import torch

from helpers.jobs import KINDS
from helpers.processes import kill, start, wait_for
from helpers.training import assert_same_weights, steps

KILLED = ["gail", "gail_head"]
LOGGED = ("loss", "grad_norm", "kl", "kl_coef", "own_reward", "own_length", "discriminator_loss", "value_loss", "ratio")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of runs that were killed at step 3 of 6, one step past a checkpoint."""
    root = tmp_path_factory.mktemp("killed")
    parent = start("-m", "helpers.jobs", str(root), *KILLED, "--hang-at", "3", log=root / "log")
    try:
        for kind in KILLED:
            wait_for(root / kind / "hanging", parent, root / "log", seconds=240)
    finally:
        kill(parent)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_run_resumes_to_the_same_end(killed, tmp_path, kind):
    folder = killed / kind
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not list((folder / "checkpoint-2/critics").glob("*.pt"))
    whole = KINDS[kind](tmp_path)
    whole.train()
    resumed = KINDS[kind](folder)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_same_weights(whole.model, resumed.model, atol=1e-5)  # Adam enlarges rounding
    for name in ("discriminator", "value"):
        assert_same_weights(whole.critics.networks[name], resumed.critics.networks[name], atol=1e-5)
        a, b = (t.critics.optimizers[name].state_dict()["state"] for t in (whole, resumed))
        assert a.keys() == b.keys() != set()
        for index, one in a.items():
            assert one["step"] == b[index]["step"] == 6
            torch.testing.assert_close(one["exp_avg_sq"], b[index]["exp_avg_sq"], rtol=1e-3, atol=1e-7)
    for a, b in zip(steps(whole), steps(resumed), strict=True):
        for key in LOGGED:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), (a["step"], key)
    assert (whole.collapse.endless, whole.collapse.separated) == (resumed.collapse.endless, resumed.collapse.separated)
