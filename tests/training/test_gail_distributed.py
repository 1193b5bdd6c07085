"""GAIL on two processes computes what one computes with the same global batch and the same answers."""

import json

import pytest

from helpers.jobs import gail_global_batch
from helpers.processes import kill, start
from helpers.training import steps

KEYS = (
    *("loss", "grad_norm", "nll", "kl", "own_entropy", "advantage_abs", "own_length", "own_truncated", "own_reward"),
    *("reward_margin", "discriminator_loss", "discriminator_accuracy_own", "value_loss", "return"),
)


@pytest.mark.slow
def test_gail_does_not_depend_on_the_number_of_processes(tmp_path):
    log = tmp_path / "log"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "helpers.jobs"]
    process = start(*launch, str(tmp_path / "two"), "gail_global_batch", log=log)
    try:
        assert process.wait(timeout=300) == 0, log.read_text()[-5000:]
    finally:
        kill(process)
    folder = tmp_path / "two" / "gail_global_batch"
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    one = gail_global_batch(tmp_path / "one")
    one.train()
    assert len(ranks[0]["steps"]) == len(steps(one)) == 4
    for a, b in zip(steps(one), ranks[0]["steps"], strict=True):
        for key in KEYS:
            assert a[key] == pytest.approx(b[key], rel=2e-4, abs=1e-5), (a["step"], key)
