"""Self-play that was killed and resumed, or shared by two processes, ends where an uninterrupted run of one ends."""

import json

import pytest

from helpers.processes import kill, start, wait_for
from helpers.selfplay_job import PLACES, SHARED, play, prepare
from helpers.training import assert_same_weights
from inverselm.scorers import load_model
from inverselm.scorers.markers import read_marker


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Runs that were killed in their second of three iterations."""
    root = tmp_path_factory.mktemp("killed")
    parent = start("-m", "helpers.selfplay_job", str(root), *PLACES, log=root / "log")
    try:
        for place in PLACES:
            wait_for(root / place / "hanging", parent, root / "log", seconds=300)
    finally:
        kill(parent)
    return root


@pytest.fixture(scope="module")
def whole(killed, tmp_path_factory):
    """Runs that were not."""
    root = tmp_path_factory.mktemp("whole")
    return {kind: play(killed / "sft", root / kind, kind) for kind in ("plain", "adapter")}


def logged(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_resumes_to_the_same_end(killed, whole, place):
    folder, expected = killed / place, whole["adapter" if place == "adapter" else "plain"]
    second = folder / "iteration_2"
    assert read_marker(folder / "iteration_1")
    assert not read_marker(second)
    checkpoints = {"sampling": [], "training": ["2"], "adapter": ["2"], "saving": ["2", "4", "6"]}[place]
    assert sorted(p.name for p in second.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in checkpoints]
    parts = list(second.glob("generated.jsonl.parts/*.jsonl"))
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "iteration_1").iterdir() if path.is_file()}
    assert len(parts) == (2 if place == "sampling" else 0)
    checkpoints = {path: path.stat().st_mtime_ns for path in second.glob("checkpoint-*/optimizer.pt")}
    play(killed / "sft", folder, place, config={"resume_from_checkpoint": "True"})
    for number in (1, 2, 3):
        one, other = (f / f"iteration_{number}" for f in (folder, expected))
        assert (one / "generated.jsonl").read_bytes() == (other / "generated.jsonl").read_bytes()
        assert_same_weights(load_model(one), load_model(other), atol=1e-5)  # Adam enlarges rounding
        for a, b in zip(logged(one), logged(other), strict=True):
            for key in ("step", "loss", "grad_norm", "learning_rate", "rewards/margins", "log_ratio/real"):
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), (number, a["step"], key)
        assert logged(one)[-1]["step"] == 6
    assert_same_weights(load_model(folder), load_model(expected), atol=1e-5)
    assert read_marker(folder) == read_marker(expected)
    assert checkpoints == {path: path.stat().st_mtime_ns for path in checkpoints}, "not made again"
    assert kept == {name: (folder / "iteration_1" / name).stat().st_mtime_ns for name in kept}, "not made again"


@pytest.mark.slow
def test_two_processes_share_the_sampling(tmp_path):
    prepare(tmp_path)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "helpers.selfplay_job"]
    process = start(*launch, str(tmp_path), "shared", log=tmp_path / "log")
    try:
        assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()[-5000:]
    finally:
        kill(process)
    alone = play(tmp_path / "sft", tmp_path / "alone", "plain", config={**SHARED, "per_device_train_batch_size": 4})
    for number in (1, 2):
        one, other = (folder / f"iteration_{number}" for folder in (alone, tmp_path / "shared"))
        assert (one / "generated.jsonl").read_bytes() == (other / "generated.jsonl").read_bytes()
        for a, b in zip(logged(one), logged(other), strict=True):
            for key in (
                "loss",
                "grad_norm",
                "rewards/margins",
                "num_tokens",
                "generated_length",
                "generated_truncated",
            ):
                assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6), (number, key)
    assert_same_weights(load_model(alone), load_model(tmp_path / "shared"))
