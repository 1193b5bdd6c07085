"""`inverselm score` by several processes: those of accelerate, and the actors of a Ray cluster, one of them killed."""

import secrets
import threading
import time

import pytest

from helpers.processes import kill, start
from inverselm.cli.main import main

from .conftest import SUMS, write_jsonl

FLAGS = ["--model_name_or_path", "sft", "--device", "cpu", "--batch_size", "2", "--dataset_name", "rows.jsonl"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_processes_write_what_one_writes(desk):
    write_jsonl(desk / "rows.jsonl", [{**row, "id": i} for i, row in enumerate(SUMS)])
    log = desk / "log"
    launch = [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "inverselm", "score"),
    ]
    process = start(*launch, *FLAGS, "--shard_size", "5", "--output_dir", "two", log=log)
    try:
        assert process.wait(timeout=600) == 0, log.read_text()[-5000:]
    finally:
        kill(process)
    assert log.read_text().count("Wrote two: 24 answers") == 1, "one process speaks"
    assert "process 1 of 2" in log.read_text()
    assert main(["score", *FLAGS, "--shard_size", "5", "--output_dir", "one"]) == 0
    assert files(desk / "two") == files(desk / "one")


class Killer(threading.Thread):
    """Kills one of Ray's actors that score, once the first shards are there."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.killed, self.done, self.actors = folder, None, 0, set()
        self.over = threading.Event()

    def scoring(self):
        import psutil

        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                name = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if name.startswith("ray::") and "MapBatches" in name:
                found.append(process)
        return found

    def run(self):
        while not self.over.is_set():
            self.done = len(list(self.folder.glob("part-*")))
            if self.done >= 2:
                actors = self.scoring()
                self.actors |= {process.pid for process in actors}
                if self.killed is None and actors:
                    self.killed, self.done_then = actors[0].pid, self.done
                    actors[0].kill()  # SIGKILL
            time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_ray_actor_loses_nothing_and_doubles_nothing(desk, monkeypatch):
    """Needs `pip install -c constraints.txt -e '.[dev,ray]'`: Ray takes 200 MB, and is no part of `dev`."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'inverselm[ray]'")
    rows = [{**SUMS[i % len(SUMS)], "id": i} for i in range(120)]
    write_jsonl(desk / "rows.jsonl", rows)
    flags = ["score", *FLAGS, "--shard_size", "3"]
    assert main([*flags, "--output_dir", "one"]) == 0
    (desk / "token").write_text(secrets.token_hex(32))  # or Ray leaves one in the home folder
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(desk / "token"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    killer = Killer(desk / "ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killer.start()
        assert main([*flags, "--output_dir", "ray", "--backend", "ray", "--num_workers", "2"]) == 0
    finally:
        killer.over.set()
        killer.join(timeout=60)
        ray.shutdown()
    assert killer.killed is not None
    assert killer.done_then < 40, "it was killed before the end"
    assert files(desk / "ray") == files(desk / "one")


def test_without_ray_it_says_what_to_install(desk, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    write_jsonl(desk / "rows.jsonl", SUMS)
    assert main(["score", *FLAGS, "--output_dir", "ray", "--backend", "ray"]) == 2
    assert "--backend ray: needs Ray" in capsys.readouterr().err
    assert not list((desk / "ray").glob("part-*"))
