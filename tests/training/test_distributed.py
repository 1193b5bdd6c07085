"""Two processes compute what one computes with the same global batch."""

import json

import pytest

from helpers.data import tiny_for, toy_tokenizer
from helpers.jobs import iqlearn_global_batch
from helpers.processes import kill, start
from helpers.rollouts import BASELINE, SFT, action_log_probs, advantages_by_hand, mean, minus
from helpers.training import steps


def on_two_processes(kind, folder):
    """What each rank wrote."""
    log = folder / "log"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "helpers.jobs"]
    process = start(*launch, str(folder), kind, log=log)
    try:
        assert process.wait(timeout=240) == 0, log.read_text()[-5000:]
    finally:
        kill(process)
    found = [json.loads((folder / kind / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [ranks["world"] for ranks in found] == [2, 2]
    assert found[0]["weights"] == found[1]["weights"]
    return found


@pytest.mark.slow
def test_iqlearn_does_not_depend_on_the_number_of_processes(tmp_path):
    two, _ = on_two_processes("iqlearn_global_batch", tmp_path / "two")
    one = iqlearn_global_batch(tmp_path / "one")
    one.train()
    keys = ("loss", "grad_norm", "nll", "td_error", "reward", "value_first", "value_gap", "entropy",
            "mean_token_accuracy", "num_tokens", "td_coef")  # fmt: skip
    assert len(two["steps"]) == len(steps(one)) == 4
    for a, b in zip(steps(one), two["steps"], strict=True):
        for key in keys:
            assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (a["step"], key)


@pytest.mark.slow
def test_a_group_may_be_spread_over_processes(tmp_path):
    """Advantages of the gathered rollouts, computed here in one go, are those each process trained with."""
    ranks = on_two_processes("dpr_spread_group", tmp_path)
    sft, base, policy = (tiny_for(toy_tokenizer(), seed) for seed in (SFT, BASELINE, 2))
    prompts, completions, held = ([row for rank in ranks for row in rank["rollouts"][0][i]] for i in range(3))
    assert len(prompts) == 8
    assert prompts[0] == prompts[3]
    sides = [rank["rollouts"][0][0] for rank in ranks]
    assert len(sides[0]) == len(sides[1]) == 4
    of = lambda model: [action_log_probs(model, p, c) for p, c in zip(prompts, completions, strict=True)]
    ref = of(sft)
    kl, rewards = minus(of(policy), ref), minus(ref, of(base))
    expected = advantages_by_hand(minus(rewards, kl, 0.3))
    for row, found in zip(expected, held, strict=True):
        assert found[: len(row)] == pytest.approx(row, abs=1e-4)
        assert not any(found[len(row) :])
    first = ranks[0]["steps"][0]
    assert first["reward"] == pytest.approx(mean([sum(row) for row in rewards]), rel=1e-4)
    assert first["kl_sequence"] == pytest.approx(mean([sum(row) for row in kl]), rel=1e-4)
    assert first["kl"] == pytest.approx(sum(map(sum, kl)) / sum(map(len, kl)), rel=1e-4)
